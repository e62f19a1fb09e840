"""What is minimised and what is measured, on tensors only: `losses` and `metrics` find them by name.

`objective` and `metric` have what is found, and `objective` adds penalties to it; `label_checks` tells whether labels fit one.
`loss_params` checks parameters; `formulas` are those of single rows; `lbfgs` is torch's optimizer without its slow start.
"""

__all__ = ["formulas", "label_checks", "lbfgs", "loss_params", "losses", "metric", "metrics", "objective"]
