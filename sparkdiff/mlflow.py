"""Log fits to MLflow: `log(tuned)` after a fit, `autolog()` before fits, `Callback()` among the callbacks of one.

Needs the extra `mlflow`. What is logged: docs/mlflow.md.
"""

from sparkdiff.tracking.mlflow_runs import Callback, autolog, log

__all__ = ["Callback", "autolog", "log"]
