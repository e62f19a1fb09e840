"""The history of runs: the store of runs, the lineage of a model (the runs that led to it), and the caches that runs
wrote.
"""
