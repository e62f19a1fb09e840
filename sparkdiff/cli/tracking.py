"""The callbacks of a job, and the logging of its result to MLflow. Failures are only warnings, as the run folder has
the result.
"""

import contextlib
import dataclasses
import importlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.machine import paths
from sparkdiff.report import Events
from sparkdiff.report.progress import call_or_warn, tell
from sparkdiff.tracking import JSONLines, TensorBoard
from sparkdiff.tracking.mlflow_runs import Callback, is_logged, log, mlflow

TOLD_ONCE = ("uri", "experiment", "runName")
"""Keys of the section `tracking.mlflow` that are not arguments of `sparkdiff.mlflow.log`."""
MISSING = "the result is not in MLflow"
URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"
"""Environment variables for the server and the experiment, which MLflow also sets when a program chooses these."""
CURRENT = "_active_experiment_id"
"""Name of MLflow's variable with the experiment chosen by `set_experiment`; no function of MLflow resets the variable.
"""


@dataclasses.dataclass(frozen=True)
class JobResult:
    """The result of a job in the form that `sparkdiff.mlflow.log` takes; `originalModel` is None if it no longer
    exists.
    """

    pipelineModel: Any
    originalModel: Any
    summary: Any
    dataset: DataFrame


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The listeners of a job, and its logging to MLflow; `given` is the section `tracking`."""

    given: Mapping[str, Any]
    listeners: tuple[Events, ...]

    def log(self, load: Callable[[], Any]) -> None:
        """Log the result to MLflow if the job has a section `tracking.mlflow` and logging is on (see `mute`); `load` is a
        function that returns the result.
        """
        for one in self.callbacks():
            if not one.muted:
                call_or_warn(MISSING, self._log, one, load)

    def mute(self, muted: bool) -> None:
        """Switch logging to MLflow off (True) or on (False)."""
        for one in self.callbacks():
            one.muted = muted

    def go_on_unless_logged(self, job: str, content: str | None) -> None:
        """Switch logging to MLflow off if the result of this job is already logged there; else switch logging on.

        Args:
            job: the runId of the job.
            content: the content hash of its model.
        """
        for one in self.callbacks():
            one.muted = bool(call_or_warn(MISSING, is_logged, one.experiment, job, content))

    def _log(self, one: Callback, load: Callable[[], Any]) -> None:
        options = {k: v for k, v in self.given.get("mlflow", {}).items() if k not in TOLD_ONCE}
        log(load(), runId=one.run(), **options)

    def callbacks(self) -> list[Callback]:
        return [x for x in self.listeners if isinstance(x, Callback)]


@contextlib.contextmanager
def activate_callbacks(given: Mapping[str, Any] | None) -> Iterator[Tracking]:
    """Provide the callbacks of the section `tracking`, and use its MLflow server, within this context."""
    tracking = Tracking(given or {}, tuple(_listeners(given or {})))
    with _server(tracking.given["mlflow"]) if tracking.callbacks() else contextlib.nullcontext():
        try:
            yield tracking
        except BaseException as e:
            tell(tracking.listeners, "on_exception", e)
            raise
        for one in tracking.callbacks():
            if one.running:  # the server may have failed to end this run of MLflow before
                call_or_warn("the run in MLflow goes on", one.end, "FINISHED")


def _listeners(given: Mapping[str, Any]) -> Iterator[Events]:
    makers: dict[str, Callable[[Any], Events]] = {
        "jsonLines": _json_lines,
        "tensorboard": lambda path: TensorBoard(str(paths.local(path))),
        "mlflow": lambda given: Callback(runName=given.get("runName"), experiment=given.get("experiment")),
    }
    for key, make in makers.items():
        if key in given:
            made = call_or_warn(f"tracking.{key} hears nothing", make, given[key])
            if made is not None:
                yield made


def _json_lines(path: str) -> Events:
    file = Path(str(paths.local(path)))
    file.parent.mkdir(parents=True, exist_ok=True)
    return JSONLines(file)


@contextlib.contextmanager
def _server(given: Mapping[str, Any]) -> Iterator[None]:
    """Use the section's MLflow server within this context; restore server and experiment afterwards."""
    package, fluent = mlflow(), importlib.import_module("mlflow.tracking.fluent")
    known = {name: os.environ.get(name) for name in (URI, EXPERIMENT)}
    experiment = getattr(fluent, CURRENT, None)
    if uri := given.get("uri"):
        package.set_tracking_uri(uri)
    try:
        yield
    finally:
        if uri:
            package.set_tracking_uri(None)  # then MLflow uses the environment variable, which is restored below
        setattr(fluent, CURRENT, experiment)
        for name, value in known.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
