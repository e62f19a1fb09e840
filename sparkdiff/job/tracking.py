"""The callbacks of a job, and its result in MLflow. Whatever fails here is a warning: the run folder is what counts."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.machine import paths, secrets
from sparkdiff.report import Events
from sparkdiff.tracking import JSONLines, TensorBoard
from sparkdiff.tracking.mlflow_runs import Callback, log, mlflow

TOLD_ONCE = ("uri", "experiment", "runName")
"""Keys of the section that `log` does not take."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a job has made, as `sparkdiff.mlflow.log` takes it."""

    pipelineModel: Any
    originalModel: Any
    summary: Any
    dataset: DataFrame


@dataclasses.dataclass(frozen=True)
class Tracking:
    """The callbacks of a job."""

    given: Mapping[str, Any]
    listeners: tuple[Events, ...]

    def log(self, result: Any) -> None:
        """Log the result, if the job asks for it."""
        options = {k: v for k, v in self.given.get("mlflow", {}).items() if k not in TOLD_ONCE}
        for one in self._callbacks():
            _or_warning("the result is not in MLflow", partial(log, result, runId=one.runId, **options))

    def failed(self, error: BaseException) -> None:
        """The job ends without a result."""
        status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        for one in self._callbacks():
            _or_warning("the run in MLflow goes on", partial(one.end, status))

    def _callbacks(self) -> list[Callback]:
        return [x for x in self.listeners if isinstance(x, Callback)]


@contextlib.contextmanager
def tracked(given: Mapping[str, Any] | None) -> Iterator[Tracking]:
    """Within this context the callbacks of the section `tracking` listen, and MLflow's server is that of the section."""
    tracking = Tracking(given or {}, tuple(_listeners(given or {})))
    with _server(tracking.given.get("mlflow")):
        try:
            yield tracking
        except BaseException as e:
            tracking.failed(e)
            raise


def _listeners(given: Mapping[str, Any]) -> Iterator[Events]:
    if "jsonLines" in given:
        file = Path(str(paths.local(given["jsonLines"])))
        file.parent.mkdir(parents=True, exist_ok=True)
        yield JSONLines(file)
    if "tensorboard" in given:
        yield TensorBoard(str(paths.local(given["tensorboard"])))
    if "mlflow" in given:
        yield Callback(runName=given["mlflow"].get("runName"))


@contextlib.contextmanager
def _server(given: Mapping[str, Any] | None) -> Iterator[None]:
    if not given:
        yield
        return
    package = mlflow()
    before = package.get_tracking_uri()
    if uri := given.get("uri"):
        package.set_tracking_uri(uri)
    if name := given.get("experiment"):
        _or_warning(f"the experiment {name} of MLflow", lambda: package.set_experiment(name))
    try:
        yield
    finally:
        package.set_tracking_uri(before)


def _or_warning(what: str, do: Callable[[], Any]) -> None:
    try:
        do()
    except Exception as e:
        warnings.warn(f"{what}: {secrets.redacted(repr(e))}", RuntimeWarning, stacklevel=3)
