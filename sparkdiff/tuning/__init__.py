"""Many settings of an estimator compared at once, with Spark's own numbers: `CrossValidator` and `TrainValidationSplit`; and
`search`, trials over a space of Params and stages.
"""

__all__ = ["fits", "search", "solvers"]
