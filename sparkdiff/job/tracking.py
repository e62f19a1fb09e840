"""The callbacks of a job, and its result in MLflow. Whatever fails here is a warning: the run folder is what counts."""

import contextlib
import dataclasses
import importlib
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pyspark.sql import DataFrame

from sparkdiff.machine import paths, secrets
from sparkdiff.report import Events
from sparkdiff.report.progress import tell
from sparkdiff.tracking import JSONLines, TensorBoard
from sparkdiff.tracking.mlflow_runs import Callback, is_logged, log
from sparkdiff.tracking.mlflow_values import mlflow

Made = TypeVar("Made")
TOLD_ONCE = ("uri", "experiment", "runName")
"""Keys of the section that `log` does not take."""
MISSING = "the result is not in MLflow"
URI, EXPERIMENT = "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"
"""Variables of the environment that MLflow sets, too, when it is told a server or an experiment."""
CURRENT = "_active_experiment_id"
"""Where MLflow keeps the experiment that `set_experiment` chose, which no function of it takes back."""


@dataclasses.dataclass(frozen=True)
class JobResult:
    """What a job has made, as `sparkdiff.mlflow.log` takes it; the original is None where it is no longer there."""

    pipelineModel: Any
    originalModel: Any
    summary: Any
    dataset: DataFrame


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The callbacks of a job."""

    given: Mapping[str, Any]
    listeners: tuple[Events, ...]

    def log(self, load: Callable[[], Any]) -> None:
        """Log the result, if the job asks for it; `load` returns it."""
        for one in self.callbacks():
            if not one.muted:
                _or_warning(MISSING, partial(self._log, one, load))

    def mute(self, muted: bool) -> None:
        """Log nothing to MLflow while this is set."""
        for one in self.callbacks():
            one.muted = muted

    def go_on_unless_logged(self, job: str, content: str | None) -> None:
        """Log nothing to MLflow where it has the result of this job already.

        Args:
            job: its runId.
            content: the content hash of its model.
        """
        for one in self.callbacks():
            one.muted = bool(_or_warning(MISSING, partial(is_logged, one.experiment, job, content)))

    def _log(self, one: Callback, load: Callable[[], Any]) -> None:
        options = {k: v for k, v in self.given.get("mlflow", {}).items() if k not in TOLD_ONCE}
        log(load(), runId=one.run(), **options)

    def callbacks(self) -> list[Callback]:
        return [x for x in self.listeners if isinstance(x, Callback)]


@contextlib.contextmanager
def tracked(given: Mapping[str, Any] | None) -> Iterator[Tracking]:
    """Within this context the callbacks of the section `tracking` listen, and MLflow's server is that of the section."""
    tracking = Tracking(given or {}, tuple(_listeners(given or {})))
    with _server(tracking.given["mlflow"]) if tracking.callbacks() else contextlib.nullcontext():
        try:
            yield tracking
        except BaseException as e:
            tell(tracking.listeners, "on_exception", e)
            raise
        for one in tracking.callbacks():
            if one.running:  # such as one that a server could not end before
                _or_warning("the run in MLflow goes on", partial(one.end, "FINISHED"))


def _listeners(given: Mapping[str, Any]) -> Iterator[Events]:
    makers: dict[str, Callable[[Any], Events]] = {
        "jsonLines": _json_lines,
        "tensorboard": lambda path: TensorBoard(str(paths.local(path))),
        "mlflow": lambda given: Callback(runName=given.get("runName"), experiment=given.get("experiment")),
    }  # fmt: skip
    for key, make in makers.items():
        if key in given:
            made = _or_warning(f"tracking.{key} hears nothing", partial(make, given[key]))
            if made is not None:
                yield made


def _json_lines(path: str) -> Events:
    file = Path(str(paths.local(path)))
    file.parent.mkdir(parents=True, exist_ok=True)
    return JSONLines(file)


@contextlib.contextmanager
def _server(given: Mapping[str, Any]) -> Iterator[None]:
    """Within this context MLflow's server is that of the section; afterwards server and experiment are as before."""
    package, fluent = mlflow(), importlib.import_module("mlflow.tracking.fluent")
    known = {name: os.environ.get(name) for name in (URI, EXPERIMENT)}
    experiment = getattr(fluent, CURRENT, None)
    if uri := given.get("uri"):
        package.set_tracking_uri(uri)
    try:
        yield
    finally:
        if uri:
            package.set_tracking_uri(None)  # then the environment counts, which a call before this job has set, too
        setattr(fluent, CURRENT, experiment)
        for name, value in known.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _or_warning(what: str, do: Callable[[], Made]) -> Made | None:
    try:
        return do()
    except Exception as e:
        warnings.warn(f"{what}: {secrets.redacted(repr(e))}", RuntimeWarning, stacklevel=3)
        return None
