"""Reasons to doubt a result: warnings about the data, and differences between two models and their predictions.

`rows.check` returns warnings about the data, `pipelines` has warnings about the tuned pipeline; `models.between`
compares two models, and `predictions.predictions` compares their predictions.
"""

__all__ = ["models", "pipelines", "predictions", "rows"]
