"""The estimators: `FineTuner`, `Grower`, `Improver` and `Search`, with their Params, their models, and the readers and writers of
both.
"""
