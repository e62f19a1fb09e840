"""Callbacks that keep what a run tells: a file of JSON lines, TensorBoard, MLflow.

`values` turns records into parameters, metrics and points of curves, without secrets; `json_lines`, `tensorboard` and
`mlflow_runs` (with `mlflow_values` and `mlflow_models`) write them.
"""

from sparkdiff.tracking.json_lines import JSONLines
from sparkdiff.tracking.tensorboard import TensorBoard

__all__ = ["JSONLines", "TensorBoard"]
