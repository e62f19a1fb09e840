"""Reasons to doubt a result: warnings about the data, and differences between two models and their predictions.

`row_warnings.check` returns warnings about the data, `pipeline_warnings` has warnings about the tuned pipeline;
`model_differences.between` compares two models, and `prediction_differences.predictions` compares their predictions.
"""

__all__ = ["models", "pipelines", "predictions", "rows"]
