"""The losses that training minimises and the metrics that are measured, on tensors only; `losses` and `metrics` find
them by name.

`objective` and `metric` define their types, and `objective` adds penalties; `label_checks` checks that labels fit them.
`loss_params` checks parameters; `formulas` has the formulas; `lbfgs` is torch's optimizer without its slow import.
"""

__all__ = ["formulas", "label_checks", "lbfgs", "loss_params", "losses", "metric", "metrics", "objective"]
