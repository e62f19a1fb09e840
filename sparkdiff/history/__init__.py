"""The history of runs: the store of runs, the registry of models in MLflow (`model_registry`), the lineage of a model (the
runs that led to it), and the caches that runs wrote; and forecasts of the gain and the cost of a run, learned from past runs
(`run_forecasts`).
"""
