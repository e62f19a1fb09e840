"""Logging of fits to MLflow: `log(tuned)` after a fit, `autolog()` before fits, `Callback()` among a fit's callbacks.

Needs the extra `mlflow`. docs/mlflow.md lists what is logged.
"""

from sparkdiff.tracking.mlflow_runs import Callback, autolog, log

__all__ = ["Callback", "autolog", "log"]
