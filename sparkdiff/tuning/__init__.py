"""Many settings of an estimator compared at once, with Spark's own numbers: `CrossValidator` and `TrainValidationSplit`."""

__all__ = ["solvers"]
