"""What should make one doubt a result: the data, and how two models and their predictions differ.

`rows.check` gives warnings about the data, `pipelines` about the tuned pipeline, `models.between` the
differences of two models, `predictions.predictions` those of their predictions.
"""

__all__ = ["models", "pipelines", "predictions", "rows"]
