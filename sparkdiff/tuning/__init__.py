"""Many settings of a Pipeline compared at once, with Spark's own numbers."""

__all__ = ["solvers"]
