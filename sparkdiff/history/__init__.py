"""The history of runs: the store of runs, and the lineage of a model."""
