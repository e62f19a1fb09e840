"""Many settings of an estimator compared at once, with Spark's own numbers: `CrossValidator` and `TrainValidationSplit`; and
`search`, trials over a space of Params and stages. `mean_loss` evaluates sparkdiff's own metrics on what a plain pipeline writes.
"""

__all__ = ["fits", "mean_loss", "search", "solvers"]
