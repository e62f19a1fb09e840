"""What is minimised and what is measured, on tensors only: `losses` (Objective, resolve) and `metrics` (Metric, resolve).

`formulas` are those of single rows; `lbfgs` is torch's optimizer without its slow start.
"""

__all__ = ["formulas", "lbfgs", "losses", "metrics"]
