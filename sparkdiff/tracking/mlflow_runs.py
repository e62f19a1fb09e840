"""Logging of fits to runs of MLflow: curves while a fit runs, and at its end the figures, report, plan and plain model.

MLflow is imported only when something is to be logged.
"""

import contextlib
import hashlib
import importlib
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_dataframe, kind_of, requires_extra, warn
from sparkdiff.history.model_registry import ALIAS, check_version
from sparkdiff.machine.secrets import hidden
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.plan import plan as plan_of
from sparkdiff.pipeline.translation import translated_graph
from sparkdiff.report import Events
from sparkdiff.report.fit_observer import Observer, observe
from sparkdiff.report.page import page
from sparkdiff.store.model_digests import hash_of
from sparkdiff.tracking.plain_values import CurvePoint, metrics, params, plain, points, text

ARTIFACT = "model"
"""Folder of the model among the artifacts of a run."""
ROWS, WIDEST = 5, 1000
"""Number of rows of an input example, and the longest vectors with which an example is logged."""
OFTEN = 5.0
"""Smallest number of seconds between two requests to the server while a fit runs."""


# While a fit runs -----------------------------------------------------------------------------------------------------


class Callback(Events):
    """A listener that logs the curves of one fit to MLflow while it runs, and at its end the summary, without the model.

    The listener logs to the run `runId`, or else to the active run; if there is none, to a new run, which it ends, even
    if the fit fails. If the run to log to already has the result of another fit, a new run is created below it. A
    failing server causes only a warning: the curves are then sent at the end of the fit, when the listener tries once
    more.

    Args:
        runId: the run to log to.
        runName: name of a new run.
        experiment: name of the experiment of a new run, which becomes the current experiment; None: the current one.

    Attributes:
        runId: id of the run that is logged to; `sparkdiff.mlflow.log(tuned, runId=callback.runId)` adds the model.
        muted: True to log nothing and create no run.

    Raises:
        InputError: MLflow is not installed.
    """

    __module__ = "sparkdiff.mlflow"
    muted = False

    def __init__(self, runId: str | None = None, runName: str | None = None, experiment: str | None = None):
        self._mlflow, self.runId, self.runName, self.experiment = mlflow(), runId, runName, experiment
        self._chosen, self._own, self._silent, self._ended, self._sent = False, False, False, False, 0.0
        self.running = False
        self._waiting: list[CurvePoint] = []

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        # The run is chosen at the first phase, because an arm of an improvement has a thread of its own, without active
        # run.
        if not (self._chosen or self._silent or self.muted):
            self._silent = True  # until it has succeeded
            self.run()
            self._silent = False

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        if self.muted:
            return
        self._check_new()
        self._waiting += points(row)
        if not self._silent and time.monotonic() - self._sent > OFTEN:
            self._silent = True
            self._send()
            self._silent = False

    def on_decision(self, record: Any) -> None:
        if self.muted:
            return
        self._check_new()
        self._ended = True
        try:
            self._send()
            client, run_id = self._mlflow.MlflowClient(), self.run()
            log_figures(client, run_id, record)
            log_pages(client, run_id, record)
        finally:
            self.end("FINISHED")

    def _check_new(self) -> None:
        if self._ended:
            raise InputError("a Callback logs one fit: make another one for the next fit")

    def on_exception(self, error: BaseException) -> None:
        self.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")

    def end(self, status: str) -> None:
        """End the run with this status, if this callback created it."""
        if self._own and self.runId is not None:
            self._mlflow.MlflowClient().set_terminated(self.runId, status)
            self.running = False

    def _send(self) -> None:
        entities = importlib.import_module("mlflow.entities")
        log_values(self._mlflow.MlflowClient(), self.run(), metrics=metrics_of(entities, self._waiting))
        self._waiting, self._sent = [], time.monotonic()

    def run(self) -> str:
        """Return the id of the run to log to; choose it at the first call, and create it if necessary."""
        if not self._chosen:
            wanted = self.runId or _active_id(self._mlflow)
            if wanted is None or _tells_another(self._mlflow, wanted):
                if self.experiment is not None:
                    self._mlflow.set_experiment(self.experiment)
                wanted, self._own = _new_run(self._mlflow, self.runName, parent=wanted), True
            self.runId, self._chosen, self.running = wanted, True, self._own
        return str(self.runId)


def _active_id(package: Any) -> str | None:
    active = package.active_run()
    return None if active is None else str(active.info.run_id)


def _tells_another(package: Any, run_id: str, digest: str | None = None) -> bool:
    """True if an MLflow run already has the figures of a summary with another digest; a run can hold the figures of one
    only.
    """
    return package.MlflowClient().get_run(run_id).data.tags.get(TOLD) not in (None, digest)


def _new_run(package: Any, name: str | None, parent: str | None = None) -> str:
    """Create a run in the current experiment, below `parent` if any, with the tags that MLflow itself sets; return its
    id.
    """
    tags = dict(importlib.import_module("mlflow.tracking.context.registry").resolve_tags())
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    experiment = importlib.import_module("mlflow.tracking.fluent")._get_experiment_id()
    return str(package.MlflowClient().create_run(experiment, tags=tags, run_name=name).info.run_id)


# Afterwards -----------------------------------------------------------------------------------------------------------


def log(
    tuned: Any,
    data: DataFrame | None = None,
    *,
    runId: str | None = None,
    registeredModelName: str | None = None,
    alias: str = ALIAS,
    registerOriginal: bool = False,
    dfsTmpdir: str | None = None,
    parentRunId: str | None = None,
) -> str:
    """Log the result of a fit to MLflow: parameters, curves, figures, report, plan, and the plain model in the flavour `spark`.

    The result is logged to the run `runId`, to the active run, or else to a new run. If the run to log to already has
    another result, a new run is created below it. `mlflow.spark.load_model` loads the model without sparkdiff. If the
    original was kept, the logged model is the original: the tag `sparkdiff.decision` of the run says so, and no version
    is registered unless `registerOriginal` is set.

    Args:
        tuned: the result of `fit` of FineTuner, Grower, Improver or Search.
        data: rows from which the model's signature and the input example are taken; by default the rows of the fit.
        runId: the run to log to, such as `Callback.runId`.
        registeredModelName: name under which the model is registered, as a new version with the alias; None: not
            registered.
        alias: the alias of that version. "champion" is refused: which version serves is not decided here.
        registerOriginal: also register a version if the original was kept.
        dfsTmpdir: a folder that Spark and this process share: a folder of a Volume (/Volumes/...) on Databricks in standard
            mode, a folder of HDFS on other clusters; by default MLFLOW_DFS_TMP.
        parentRunId: id of the run that logged the original; by default the latest run of the experiment that logged a
            model with the original's content.

    Returns:
        The id of the run.

    Raises:
        InputError: MLflow is not installed, `tuned` is no such result, the name or alias is refused, or a version is to be
            registered but no rows are known.
        mlflow.exceptions.MlflowException: the server refused, or could not be reached.
    """
    package = mlflow()
    _check(tuned, data)
    check_version(registeredModelName, alias)
    rows = getattr(tuned, "dataset", None) if data is None else data
    wanted = registeredModelName is not None and (registerOriginal or not tuned.summary.decision.startswith("kept"))
    if wanted and rows is None:
        raise InputError("a registered model needs a signature: log(tuned, df) takes it from the rows of df")
    with _active(package, runId, digest_of(tuned.summary)) as run_id:
        client = package.MlflowClient()
        _log_result(client, run_id, tuned)
        lineage = _log_lineage(client, run_id, tuned, parentRunId)
        info = log_model(
            package, tuned.pipelineModel, rows, dfsTmpdir, registeredModelName if wanted else None, lineage
        )
        if wanted:
            version = str(info.registered_model_version)
            client.set_registered_model_alias(registeredModelName, alias, version)
            for name, value in {"decision": tuned.summary.decision, **lineage}.items():
                client.set_model_version_tag(registeredModelName, version, f"sparkdiff.{name}", text(value))
    return run_id


def _check(tuned: Any, data: DataFrame | None) -> None:
    if not hasattr(tuned, "pipelineModel") or not hasattr(tuned, "summary"):
        raise InputError(f"log takes what fit() of FineTuner, Grower, Improver or Search returns, got {kind_of(tuned)}")
    if data is not None:
        check_dataframe("data", data)


@contextlib.contextmanager
def _active(package: Any, run_id: str | None, digest: str) -> Iterator[str]:
    """Activate a run within this context, and yield its id: `run_id`, or else the active run.

    A new run is used if there is no such run, or if it already has the result with another digest.
    """
    active = _active_id(package)
    wanted = run_id or active
    if wanted is not None and _tells_another(package, wanted, digest):
        wanted = _new_run(package, None, parent=wanted)
    if wanted is not None and wanted == active:
        yield wanted
    else:
        with package.start_run(run_id=wanted, nested=active is not None) as run:
            yield run.info.run_id


def _log_result(client: Any, run_id: str, tuned: Any) -> None:
    """Log a result except its model; curves and figures only if a `Callback` has not logged them while the fit ran."""
    entities = importlib.import_module("mlflow.entities")
    if client.get_run(run_id).data.tags.get(TOLD) != digest_of(tuned.summary):
        log_values(
            client, run_id, metrics=metrics_of(entities, (p for row in tuned.summary.records for p in points(row)))
        )
        log_figures(client, run_id, tuned.summary)
    stages = ", ".join(type(stage).__name__ for _, stage in flatten(tuned.pipelineModel))
    log_params(client, run_id, {"stages": text(stages)})
    log_pages(client, run_id, tuned.summary, _plan(tuned))


def _plan(tuned: Any) -> Any:
    """The plan of the original for the fine-tuning; for a search, the plan of its model."""
    given = getattr(tuned.summary, "options", {})
    wishes: dict[str, Any] = {name: given.get(name) or () for name in ("freeze", "reference", "target", "unfreeze")}
    return plan_of(getattr(tuned, "originalModel", None) or tuned.pipelineModel, **wishes)


def _log_lineage(client: Any, run_id: str, tuned: Any, parent: str | None) -> dict[str, str]:
    """Log tags with the content hashes of the model and its original and the id of the run that logged the original;
    return the tags by name.
    """
    folder = jvm.scratch_folder() or Path(tempfile.gettempdir())
    original = getattr(tuned, "originalModel", None)
    told = {"modelHash": hash_of(tuned.pipelineModel, None, folder)}
    if original is not None:
        told["parentHash"] = told["modelHash"] if original is tuned.pipelineModel else hash_of(original, None, folder)
    told["parentRunId"] = parent or _run_of(client, run_id, told.get("parentHash"))
    found = {name: value for name, value in told.items() if value is not None}
    log_values(client, run_id, tags=tags_of(importlib.import_module("mlflow.entities"), found))
    return found


def is_logged(experiment: str | None, job: str, content: str | None) -> bool:
    """True if a finished run of MLflow logged the model of this job.

    Args:
        experiment: name of the experiment to search; None: the current one.
        job: the runId of the job.
        content: content hash of the model.
    """
    client = mlflow().MlflowClient()
    if experiment is None:
        number = importlib.import_module("mlflow.tracking.fluent")._get_experiment_id()
    elif (known := client.get_experiment_by_name(experiment)) is not None:
        number = known.experiment_id
    else:
        return False
    finished = f" AND params.runId = '{job}' AND attributes.status = 'FINISHED'"
    return bool(_runs_of(client, number, content, finished))


def _run_of(client: Any, run_id: str, content: str | None) -> str | None:
    """Id of the latest other run of the experiment that logged a model of this content; None if there is none."""
    known = _runs_of(client, client.get_run(run_id).info.experiment_id, content)
    return next((run.info.run_id for run in known if run.info.run_id != run_id), None)


def _runs_of(client: Any, experiment: str, content: str | None, condition: str = "") -> list[Any]:
    """The latest two runs of an experiment that logged a model with this content hash and meet the condition, a filter
    of MLflow that begins with " AND".
    """
    if content is None:
        return []
    wanted, order = f"tags.`sparkdiff.modelHash` = '{content}'{condition}", ["attributes.start_time DESC"]
    return list(client.search_runs([experiment], wanted, order_by=order, max_results=2))


# Of its own accord ----------------------------------------------------------------------------------------------------


class _Autolog(Observer):
    def __init__(self, options: Mapping[str, Any]):
        self.options = options

    def on_fit_begin(self, estimator: Any) -> Events:
        return Callback(runName=type(estimator).__name__)

    def on_fit_end(self, listener: Any, model: Any) -> None:
        log(model, runId=listener.runId, **self.options)


def autolog(
    disable: bool = False,
    *,
    registeredModelName: str | None = None,
    alias: str = ALIAS,
    registerOriginal: bool = False,
    dfsTmpdir: str | None = None,
) -> None:
    """Log each later fit of FineTuner, Grower, Improver and Search in this process, as `Callback` and `log` do.

    Of nested fits, only the outermost is logged; fits that a CrossValidator or `fit(df, [map, ...])` makes for its
    settings are not logged. Fits in several threads have a run each. A failure, such as an unreachable server, causes
    only a warning.

    Args:
        disable: True to log no later fit.
        registeredModelName, alias, registerOriginal, dfsTmpdir: see `log`.

    Raises:
        InputError: MLflow is not installed.
    """
    options = {
        "registeredModelName": registeredModelName,
        "alias": alias,
        "registerOriginal": registerOriginal,
        "dfsTmpdir": dfsTmpdir,
    }
    if not disable:
        mlflow()
        check_version(registeredModelName, alias)
    observe(None if disable else _Autolog(options))


def log_model(
    package: Any, model: Any, rows: DataFrame | None, tmpdir: str | None, name: str | None, metadata: Mapping[str, str]
) -> Any:
    signature, example = None, None
    if rows is not None:
        try:
            signature, example = _signature(model, rows)
        except package.exceptions.MlflowException as e:  # a column type that MLflow does not know
            if name is not None:
                raise
            warn(f"the model has no signature in MLflow: {e}", RuntimeWarning, stacklevel=3)
    return package.spark.log_model(
        model,
        ARTIFACT,
        signature=signature,
        input_example=example,
        dfs_tmpdir=tmpdir,
        registered_model_name=name,
        # Passed explicitly, because to infer them MLflow would start another Spark.
        pip_requirements=package.spark.get_default_pip_requirements(),
        metadata={f"sparkdiff.{key}": value for key, value in metadata.items()},
    )


def _signature(model: Any, rows: DataFrame) -> tuple[Any, Any]:
    """The signature of a model for MLflow, from the columns that the model reads and its prediction column (if it has
    none, all outputs); and a few rows as the input example, or None if vectors are too wide or there are no rows.
    """
    inputs = rows.select(*map(col_by_name, _inputs(model, rows))).limit(ROWS)
    last = next((s for _, s in reversed(flatten(model)) if s.hasParam("predictionCol")), None)
    outputs = model.transform(inputs)
    outputs = outputs.select(col_by_name(last.getPredictionCol())) if last is not None else outputs
    signature = importlib.import_module("mlflow.models").infer_signature(inputs, outputs)
    vectors = [f.name for f in inputs.schema if isinstance(f.dataType, VectorUDT)]
    shown = inputs.select(
        *[vector_to_array(col_by_name(c)).alias(c) if c in vectors else col_by_name(c) for c in inputs.columns]
    )
    found = shown.toPandas()
    wide = any(len(value) > WIDEST for c in vectors for value in found[c] if value is not None)
    return signature, None if wide or found.empty else found


def _inputs(model: Any, rows: DataFrame) -> list[str]:
    """The columns of the rows that a model reads; all columns if a stage may read any."""
    graph = translated_graph(model, rows)
    if any(v.opaque for v in graph.vertices):
        return rows.columns
    read = {name for v in graph.vertices for name, _ in v.sources}
    needed = {
        name for v in graph.vertices for name, writer in {*v.sources} - graph.passes_over(v, read) if writer == -1
    }
    return [column for column in rows.columns if graph.casefold(column) in needed]


# The values of a result -----------------------------------------------------------------------------------------------

TOGETHER = {"metrics": 1000, "params": 100, "tags": 100}
"""Largest number of values of each kind that MLflow's server takes in one request."""
TOLD = "sparkdiff.summary"
"""Tag of a run with the digest of the summary whose curves and figures it has, so that they are not logged again."""


def mlflow() -> Any:
    """The package mlflow, imported.

    Raises:
        InputError: MLflow is not installed.
    """
    with requires_extra("mlflow", "MLflow"):
        importlib.import_module("mlflow.spark")
        return importlib.import_module("mlflow")


def log_values(client: Any, run_id: str, **values: Sequence[Any]) -> None:
    """Log metrics, params or tags, by keyword, in requests of at most the size that the server takes."""
    for kind, entities in values.items():
        for i in range(0, len(entities), TOGETHER[kind]):
            client.log_batch(run_id, **{kind: entities[i : i + TOGETHER[kind]]})


def metrics_of(entities: Any, found: Iterable[CurvePoint]) -> list[Any]:
    now = round(time.time() * 1000)
    return [entities.Metric(p.name, p.value, now, p.step) for p in found]


def tags_of(entities: Any, values: Mapping[str, Any]) -> list[Any]:
    return [entities.RunTag(f"sparkdiff.{name}", text(value)) for name, value in values.items() if value is not None]


def digest_of(summary: Any) -> str:
    return hashlib.sha256(json.dumps(plain(summary), sort_keys=True, default=str).encode()).hexdigest()[:32]


def log_params(client: Any, run_id: str, asked: Mapping[str, str]) -> None:
    """Log params. A param that the run already has with another value, for example from MLflow's own logging of `fit`, is
    logged under its name with the prefix `sparkdiff.`.
    """
    entities, known = importlib.import_module("mlflow.entities"), client.get_run(run_id).data.params
    renamed = {k if known.get(k, v) == v else f"sparkdiff.{k}": v for k, v in asked.items()}
    log_values(client, run_id, params=[entities.Param(k, v) for k, v in renamed.items()])


def log_figures(client: Any, run_id: str, summary: Any) -> None:
    """Log a run's settings, the figures of its decision, and its dataset."""
    entities, told = importlib.import_module("mlflow.entities"), plain(summary)
    tags = {name: told[name] for name in ("decision", "reason")}
    tags |= {f"version.{name}": version for name, version in told.get("versions", {}).items()}
    log_params(client, run_id, params(summary))
    measured = metrics_of(entities, (CurvePoint(k, v, 0) for k, v in metrics(summary).items()))
    log_values(client, run_id, metrics=measured, tags=tags_of(entities, tags))
    _log_dataset(client, run_id, told)
    client.set_tag(run_id, TOLD, digest_of(summary))


def log_pages(client: Any, run_id: str, summary: Any, plan: Any = None) -> None:
    """Log files: summary.json, the report and, if known, the plan."""
    told, history = plain(summary), summary.records
    client.log_text(run_id, json.dumps(told, indent=2), "summary.json")
    drawn = None if plan is None else json.loads(plan.toJSON())
    client.log_text(
        run_id, page(told, history, plan=drawn, trials=hidden(history if "fresh" in told else [])), "report.html"
    )
    if plan is not None:
        client.log_text(run_id, str(plan), "plan.txt")
        client.log_text(run_id, plan.draw()._repr_svg_(), "plan.svg")


def _log_dataset(client: Any, run_id: str, told: Mapping[str, Any]) -> None:
    """Log the rows as a dataset of the run, identified by the fingerprint of their cache."""
    known = told.get("cache") or {}
    if not known.get("fingerprint"):
        return
    entities = importlib.import_module("mlflow.entities")
    source = json.dumps({"fingerprint": known["fingerprint"], "versions": known.get("versions", [])})
    rows = entities.Dataset("rows", known["fingerprint"][:36], "sparkdiff", source)
    client.log_inputs(run_id, [entities.DatasetInput(rows)])
    client.set_tag(run_id, "sparkdiff.fingerprint", known["fingerprint"])
