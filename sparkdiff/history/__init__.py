"""What was tried before: the store of runs, and where a model comes from."""
