"""Comparison of many settings of an estimator at once, with Spark's own numbers: `CrossValidator` and
`TrainValidationSplit`; and `search`, trials over a space of Params and stages. `mean_loss` evaluates sparkdiff's own
metrics on the output columns of a plain pipeline.
"""
