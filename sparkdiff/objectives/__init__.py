"""The losses that training minimises and the metrics that are measured, on tensors only; `losses` and `metrics` find
them by name.

`objective` and `metric` define the types of losses and metrics, and `objective` adds penalties; `label_checks` checks
that labels fit the loss and the metric, and `formulas` has the formulas.
"""
