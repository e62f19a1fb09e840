"""What is minimised and what is measured, on tensors only: `losses` (Objective, resolve) and `metrics` (Metric, resolve)."""

__all__ = ["losses", "metrics"]
