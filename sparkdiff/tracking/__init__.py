"""Callbacks that record the events of a run: a file of JSON lines, TensorBoard, MLflow.

`plain_values` turns summaries and rows of histories into parameters, metrics and points of curves, without secrets;
`event_files` and `mlflow_runs` write these.
"""

from sparkdiff.tracking.event_files import JSONLines, TensorBoard

__all__ = ["JSONLines", "TensorBoard"]
