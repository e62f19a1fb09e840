"""Stages with uids that one can read."""

from typing import Any
from unittest.mock import patch

from pyspark.ml.util import Identifiable


def named(uid: str, cls: type, **params: Any) -> Any:
    """A stage with a uid that one can read, in Python and in the JVM."""
    with patch.object(Identifiable, "_randomUID", return_value=uid):
        return cls(**params)
