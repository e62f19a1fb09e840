"""Callbacks that record the events of a run: a file of JSON lines, TensorBoard, MLflow.

`values` turns records into parameters, metrics and points of curves, without secrets; `event_files` and `mlflow_runs`
(with `mlflow_values`) write them.
"""

from sparkdiff.tracking.event_files import JSONLines, TensorBoard

__all__ = ["JSONLines", "TensorBoard"]
