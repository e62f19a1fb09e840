"""Runs that never ran: a summary as a report shows it, and a record as callbacks get it."""

from typing import Any

from sparkdiff.options import Options
from sparkdiff.report import RunRecord

SECRET = "hunter2"


def summary(**changes: Any) -> dict[str, Any]:
    return {
        "metric": "poisson",
        "metricDirection": "smaller",
        "metrics": {"validation": {"before": 2.0, "after": 1.5}, "test": None},
        "decision": "tuned",
        "reason": "because",
        "gain": 0.25,
        "z": 4.0,
        "p": 0.0001,
        "gainInterval": [0.1, None],
        "slices": [],
        "reference": None,
        "compatibility": None,
        "warnings": ["beware"],
        **changes,
    }


def record(**changes: Any) -> RunRecord:
    options = Options.of({"cacheDir": f"s3a://user:{SECRET}@bucket/caches", "maxEpochs": 7, "labelCol": "y"})
    given: dict[str, Any] = {
        "decision": "tuned",
        "reason": f"it is better than password={SECRET}",
        "metric": "poisson",
        "metricDirection": "smaller",
        "metrics": {"train": {"before": 2.0, "after": 1.0}, "validation": {"before": 2.0, "after": 1.5}, "test": None},
        "gain": 0.25,
        "z": 3.0,
        "p": 0.001,
        "parity": {},
        "stages": {},
        "timings": {"train": 2.0},
        "stream": "arrow",
        "records": [{"epoch": 0, "candidate": 0, "recipe": "r", "trainLoss": float("nan"), "validationMetric": 2.0}],
        "cache": {"hit": False, "fingerprint": "f" * 64},
        "options": options.asdict(),
        "versions": {"sparkdiff": "1"},
        "warnings": [],
        "gainInterval": [0.1, None],
    }
    return RunRecord(**given | changes)
