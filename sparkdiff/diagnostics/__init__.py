"""Reasons to doubt a result: warnings about the data, and differences between two models and their predictions.

`rows.check` returns warnings about the data, `pipelines` about the tuned pipeline; `models.between` compares two
models, `predictions.predictions` their predictions.
"""

__all__ = ["models", "pipelines", "predictions", "rows"]
