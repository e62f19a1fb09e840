"""What is minimised and what is measured, on tensors only: `losses` (Objective, resolve) and `metrics` (Metric, resolve); `lbfgs`
is torch's optimizer without its slow start.
"""

__all__ = ["lbfgs", "losses", "metrics"]
