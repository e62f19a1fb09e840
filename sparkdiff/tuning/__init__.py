"""Comparison of many settings of an estimator at once, with Spark's own numbers: `CrossValidator` and
`TrainValidationSplit`. `mean_loss` evaluates sparkdiff's own metrics on the output columns of a plain pipeline.
"""
