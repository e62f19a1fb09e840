"""The steps of a job once Spark has started: load, fit, fine-tune, grow or improve, and write the run folder."""

import dataclasses
import hashlib
import json
import re
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.ml import Estimator, Pipeline
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import jvm
from sparkdiff.cli.config import Config, command_of, request_of
from sparkdiff.cli.job_options import SETTINGS
from sparkdiff.cli.output import OFFERS, check_replaceable
from sparkdiff.cli.output_writing import write_run_folder
from sparkdiff.cli.tracking import JobResult, Tracking, activate_callbacks
from sparkdiff.data.cache import ROOM as ROOM_OF_CACHES, root
from sparkdiff.data.fingerprint import source_facts
from sparkdiff.data.loading import function, is_function, load_data, load_model, model_path
from sparkdiff.data.splits import (
    REFERENCE,
    TEST,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    find_boundaries,
    fit_on_training_rows,
    held_out_first,
    rule,
)
from sparkdiff.data.stream import usage
from sparkdiff.errors import DamagedFileError, InputError, as_read_error, warn
from sparkdiff.estimators.fine_tuner import open_run_store
from sparkdiff.evaluation.model_saving import check_saved, not_compared
from sparkdiff.fine_tuning.fine_tuning_run import fine_tune, starting_point
from sparkdiff.fine_tuning.task import Outcome, prepare
from sparkdiff.growth.growth_summary import GrowthSummary
from sparkdiff.history.lineage import Lineage, lineage as lineage_of
from sparkdiff.history.run_records import Keep
from sparkdiff.history.run_store import fetched_files
from sparkdiff.improvement.by_folds import fine_tune_by_folds, grow_pipeline
from sparkdiff.improvement.exploration_and_proof import ImprovementOutcome, improve_pipeline
from sparkdiff.improvement.improvement_summary import ImprovementSummary
from sparkdiff.jvm import stores
from sparkdiff.machine import atomic_files, secrets
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import flatten, plain
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.pipeline.unfitted_form import UnfittedForm, check_unfitted, with_uids_of
from sparkdiff.report import FineTuningSummary, Phases, counted, is_progress_shown
from sparkdiff.report.run_report import LINEAGE, write_report
from sparkdiff.store import files, folder_marker
from sparkdiff.store.checkpoint_folder import UNTOLD, text_or_reason
from sparkdiff.store.identity import UnidentifiableError, identity
from sparkdiff.store.lease import Lease
from sparkdiff.store.model_digests import check_reads_its_input_only, hash_of, params_of
from sparkdiff.store.saved_digests import hash_of_folder

PROCEDURES: Mapping[str, Any] = {"grower": grow_pipeline, "improver": improve_pipeline}
SUMMARIES = {"grow": GrowthSummary, "improve": ImprovementSummary}
COMPLETE = "complete"
"""Name of the file in a remote folder of a fitted pipeline that names the subfolder with the completely written
pipeline.
"""


@jvm.interruptible()
def run(config: Config, lease: Lease, spark: SparkSession, found: dict[str, Any] | None) -> FineTuningSummary:
    """Run the job, and return its summary.

    Args:
        lease: the lease on the output folder.
        found: the summary of a finished run with the same settings in the output folder; None if there is none.
    """
    cache = stores.path_or_url(config.output.parent / ".cache")
    options = Options.of({"cacheDir": cache, "verbosity": 1, "runId": own_id(config.output), **config.options})
    with activate_callbacks(config.tracking) as tracking, open_run_store(options) as keep:
        return _run(config, options, lease, spark, found, tracking, keep)


def _run(
    config: Config,
    options: Options,
    lease: Lease,
    spark: SparkSession,
    found: dict[str, Any] | None,
    tracking: Tracking,
    keep: Keep,
) -> FineTuningSummary:
    own, phases = own_id(config.output), Phases(is_progress_shown(options.verbosity), tracking.listeners)
    if found is not None:
        tracking.mute(True)  # MLflow may have that run
    with phases.phase("load") as say:
        told: list[str] = []
        frames, made, path = load_rows_and_pipeline(config, spark, told.append)
        sources = [Source(df, None if s == TRAIN and VALIDATION not in frames else s) for s, df in frames.items()]
        say("; ".join([f"data: {', '.join(frames)}", *told]))
        check_unfitted(made, options.rowsAreNew)  # before anything is fitted
    with files.room("the fitted pipeline", root(options), ROOM_OF_CACHES):
        content = None if isinstance(made, Estimator) else hash_of(made, path, root(options))
    inputs = inputs_of(sources, made, content) if "runId" in config.options else {}
    if found is not None:
        if _same_inputs(found, inputs, config, options):
            return _replay_finished_run(found, config, phases, tracking, made, sources[0].df)
        check_replaceable(config.output)
        tracking.mute(False)
    parent: dict[str, Any] = {"path": path and path.removeprefix("file://"), "hash": content}
    if path is None:
        parent = {"path": None, "function": config.pipeline, "hash": content}
    # Computed once here, because both the fit and the cache need them.
    boundaries = find_boundaries(sources, options) if isinstance(made, Estimator) else None

    def fit(sources: Sequence[Source]) -> Any:
        with files.room("the fitted pipeline", root(options), ROOM_OF_CACHES), phases.phase("fit") as say:
            model, folder = fit_or_reuse(made, sources, options, say, boundaries)
            parent.update(path=str(folder), hash=hash_of_folder(folder))
        return model

    def fits(estimator: Any, sources: Sequence[Source], boundaries: Boundaries | None) -> Any:
        model, folder = fit_or_reuse(estimator, sources, options, lambda _text: None, boundaries)
        if parent["hash"] is None:  # the result is compared with the first
            parent.update(path=str(folder), hash=hash_of_folder(folder))
        return model if isinstance(estimator, Pipeline) else model.stages[0]

    mine = options.runId == own
    section = next((name for name in PROCEDURES if getattr(config, name) is not None), None)
    if section is not None:
        settings = SETTINGS[section].of(getattr(config, section))
        o = options if "numFolds" in config.options else dataclasses.replace(options, numFolds="auto")
        outcome: Outcome = PROCEDURES[section](made, o, settings, sources, phases, replace=mine, fits=fits)
    elif options.numFolds and options.tune == "weights":
        outcome = fine_tune_by_folds(made, options, sources, phases, replace=mine, fits=fits)
    else:
        model = plain(fit(sources) if isinstance(made, Estimator) else made)
        origin = starting_point(
            made, model, options, sources, phases, boundaries=boundaries, fit=partial(refit_or_reuse, sources, options)
        )
        with phases.phase("plan"):
            task = prepare(origin.model, options, sources[0].df)
        if options.verbosity:
            print(task.plan, flush=True)
        outcome = fine_tune(task, sources, phases, replace=mine, boundaries=boundaries, start=origin)
    with phases.phase("save") as say:
        rows = partial(held_out_first, sources, options)
        shipped, id_ = write_run(outcome, config, phases, parent, inputs, lease, rows)
        say(config.where)
    shown_options = {
        **outcome.summary.options,
        **({"runId": None} if mine else {}),
    }  # the name of the output's folder is in it
    keep(
        outcome.summary,
        outcome.model,
        outcome.original,
        shown_options,
        outcome.plan,
        hashes=(shipped, parent["hash"]),
        offers=_offer_hashes(config.output),
        command=command_of(config),
        output=config.where,
        id=id_,
    )
    if mine:
        for training in outcome.folders:
            training.remove()  # before this line, the same command continues an interrupted run; after it, it starts anew
    tracking.log(lambda: JobResult(outcome.model, outcome.original, outcome.summary, sources[0].df))
    return outcome.summary


def _same_inputs(found: Mapping[str, Any], inputs: Mapping[str, str], config: Config, options: Options) -> bool:
    """True if the finished run `found` had the same inputs, and its model still exists unchanged; then it is returned
    again.

    Raises:
        InputError: the inputs or the model differ, and the job does not allow to overwrite the run.
    """
    before = found["fingerprints"].get("inputs", {})
    changed = [name for name in sorted({*before, *inputs}) if before.get(name) != inputs.get(name)]
    if _hash_there(config.output / "model") != found["model"]["hash"]:
        changed.append("model")
    if changed and not config.overwrite:
        why = "; ".join(f"{k} {inputs[k].rpartition(' ')[0]}" for k in changed if str(inputs.get(k)).startswith(UNTOLD))
        raise InputError(
            f"output {config.where} contains the finished run of runId={options.runId!r}, but its "
            f"{', '.join(changed)} changed since{f' ({why})' if why else ''}: choose another folder and "
            "runId, or set output.mode=overwrite and another runId"
        )
    return not changed


def _hash_there(folder: Path) -> str | None:
    """The content hash of a saved model; None if the model does not exist or is damaged.

    Raises:
        SparkdiffError: it cannot be read at this time.
    """
    try:
        with as_read_error(stores.path_or_url(folder)):
            return hash_of_folder(stores.fetch(folder))
    except DamagedFileError:
        return None


def _offer_hashes(output: Path) -> dict[str, str]:
    """Content hashes of the other pipelines that an improvement offers, by name."""
    folder = output / OFFERS
    return {name: hash_of_folder(stores.fetch(folder / name)) for name in stores.names(folder)}


def _replay_finished_run(
    found: Mapping[str, Any], config: Config, phases: Phases, tracking: Tracking, made: Any, rows: DataFrame
) -> FineTuningSummary:
    """Return the summary of a finished run, and report its events to the listeners as if the run had just happened."""
    summary = _read_summary(found, config)
    tracking.go_on_unless_logged(str(config.options["runId"]), found["model"]["hash"])
    for row in summary.records:
        phases.on_epoch(row)
    phases.on_decision(summary)

    def load() -> JobResult:
        parent = found["parent"]["path"]
        original = None if isinstance(made, Estimator) else made
        if original is None and parent is not None and Path(parent).exists():
            original = jvm.load_model(parent)
        return JobResult(jvm.load_model(config.output / "model"), original, summary, rows)

    tracking.log(load)
    return summary


def own_id(output: Path) -> str:
    """The runId of a job that sets none, made from the output folder's name, which may hold characters that a runId may not, and
    a hash of its path.
    """
    name = re.sub(r"[^\w.-]", "_", output.name, flags=re.ASCII)[:80].lstrip(".-") or "run"
    return f"{name}-{hashlib.sha256(stores.path_or_url(output).encode()).hexdigest()[:8]}"


def inputs_of(sources: list[Source], made: Any, content: str | None) -> dict[str, str]:
    """Hashes of the inputs of a job, by name: the content of the data, the session's settings, and the pipeline.

    Args:
        content: the content hash of a fitted pipeline; None if it cannot be saved.
    """

    def pipeline() -> str:
        if isinstance(made, Estimator):
            return params_of(made)
        stages = [stage for _, stage in flatten(made)]
        for stage in stages:
            check_reads_its_input_only(stage)
        own = [type(s) for s in stages if not type(s).__module__.startswith(("pyspark.ml.", "sparkdiff."))]
        if content is None:
            raise UnidentifiableError("it cannot be saved")
        return f"{content} {identity(own)}"

    facts: dict[str, Any] = {s.split or TRAIN: source_facts(s.df) for s in sources}
    facts["settings"] = [f.pop("settings") for f in facts.values()]
    facts["pipeline"] = text_or_reason(pipeline)
    return {
        k: v
        if k == "pipeline" and v.startswith(UNTOLD)
        else hashlib.sha256(json.dumps(v, default=str).encode()).hexdigest()
        for k, v in facts.items()
    }


def _read_summary(found: Mapping[str, Any], config: Config) -> FineTuningSummary:
    history, kind = stores.fetch(config.output / "history.csv"), SUMMARIES.get(config.command, FineTuningSummary)
    # If a growth added nothing, nothing trained, and the history has no columns.
    records: Any = pd.read_csv(history).to_dict("records") if history.read_text().strip() else []
    known = {f.name for f in dataclasses.fields(kind)}
    return kind(**{k: v for k, v in found.items() if k in known}, records=records)


def load_rows_and_pipeline(
    config: Config, spark: SparkSession, say: Callable[[str], object]
) -> tuple[dict[str, DataFrame], Any, str | None]:
    """The rows of a job by split; its pipeline, fitted or not; and the path of the pipeline, or None if a function made it."""
    path = None if is_function(config.pipeline) else model_path(config.pipeline, config.folder)
    saved = None if path is None else load_model(path)
    rows = {s: load_data(spark, given, config.folder, s, saved, say) for s, given in config.data.items()}
    return rows, function(config.pipeline, config.folder)(rows[TRAIN]) if path is None else saved, path


def fit_or_reuse(
    made: Estimator[Any], sources: Sequence[Source], options: Options, say: Any, boundaries: Boundaries | None = None
) -> tuple[Any, Path]:
    """Fit a pipeline on the training rows, or find it in the cache folder if an earlier run fitted the same pipeline on
    the same rows.

    A pipeline that is not completely described by its classes and Params is fitted each time.

    Args:
        made: the unfitted pipeline or estimator.
        say: function that is called with a text about the result.
        boundaries: times that divide the rows into splits, if already known.

    Returns:
        The fitted pipeline, and its path in the cache folder.
    """
    pipeline = made if isinstance(made, Pipeline) else Pipeline(stages=[made])
    sources = [s for s in sources if s.split not in (TEST, REFERENCE)]
    boundaries = find_boundaries(sources, options) if boundaries is None else boundaries
    why, divided = "", [*rule(options), *boundaries.deciding]
    try:
        facts = [[s.split, source_facts(s.df)] for s in sources]
        key = json.dumps([params_of(pipeline), facts, divided], default=str)
        folder = root(options) / f"fitted-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    except UnidentifiableError as e:
        folder, why = root(options) / f"fitted-{uuid.uuid4().hex[:16]}", f"; not reused by other jobs: {e}"
    folder_marker.check_owner(
        folder, folder_marker.FITTED, f"the folder of the fitted pipeline, {stores.path_or_url(folder)},", "cacheDir"
    )
    if (found := files.read_undamaged(folder, lambda: _load_fitted(folder))) is not None:
        say("reused: the same pipeline was fitted on the same rows before")
        usage.record_use(folder)
        return found
    began = time.monotonic()
    fitted = fit_on_training_rows(pipeline, sources, options, boundaries)
    if stores.url_of(folder) is not None:
        where = _keep_in_store(fitted, folder)
    else:
        where = folder / "model"
        with atomic_files.temporary(folder) as temporary:
            temporary.mkdir()
            folder_marker.mark(temporary, folder_marker.FITTED)
            fitted.write().save(f"file://{temporary}/model")
            usage.begin(temporary, [type(s).__name__ for s in fitted.stages], time.monotonic() - began, options.runId)
            if not files.move_into_place(temporary, folder):
                say("reused: meanwhile another process fitted the same pipeline on the same rows")
                return jvm.load_model(where), where
    say(f"fitted {counted(len(fitted.stages), 'stage')} on the training rows{why}")
    return fitted, where


def refit_or_reuse(sources: Sequence[Source], options: Options, form: UnfittedForm) -> Any:
    """Refit a pipeline on the training rows, given its unfitted form; a later run on the same rows finds the same result, to
    the last bit (see `fit_or_reuse`).
    """
    found, _ = fit_or_reuse(form.estimator, sources, options, lambda _text: None)
    return with_uids_of(form.model, found if isinstance(form.estimator, Pipeline) else found.stages[0])


def _load_fitted(folder: Path) -> tuple[Any, Path] | None:
    """The fitted pipeline that `fit_or_reuse` kept in a folder, and its path; None if there is none, or it is incomplete."""
    if stores.url_of(folder) is None:
        return (jvm.load_model(folder / "model"), folder / "model") if folder.exists() else None
    name = stores.read(folder / COMPLETE)
    return None if name is None else (jvm.load_model(folder / name.decode()), folder / name.decode())


def _keep_in_store(fitted: Any, folder: Path) -> Path:
    """Save a fitted pipeline to a remote store, and return its path.

    Nothing is renamed there; instead, a file that is written last names the subfolder of the complete pipeline.
    """
    where = folder / f"model-{uuid.uuid4().hex[:8]}"
    folder_marker.mark(folder, folder_marker.FITTED)
    fitted.write().save(stores.address(where))
    stores.write(folder / COMPLETE, where.name.encode())
    return stores.fetch(where)


def _lineage_of(config: Config, parent: Mapping[str, Any]) -> Lineage | None:
    """The lineage of the original pipeline from the store of runs; None without a store and, with a warning, if the store
    cannot be read.
    """
    where = config.options.get("storeDir")
    if where is None or parent["hash"] is None:
        return None
    try:
        name = str(parent.get("path") or "the original")
        return lineage_of(name, parent["hash"], jvm.folder("storeDir", where), fetched_files)
    except InputError:  # there is no store before the first run
        return None
    except Exception as e:
        warn(f"the report has no ancestors of the original, as the store of runs cannot be read: {e!r}")
        return None


def write_run(
    outcome: Outcome,
    config: Config,
    phases: Phases,
    parent: Mapping[str, Any],
    inputs: Mapping[str, str],
    lease: Lease,
    rows: Callable[[], DataFrame],
) -> tuple[str, str]:
    """Write the run folder of a fine-tuning, growth or improvement run; return the content hash of its model, and the id of its
    row in a store of runs.

    Args:
        parent: the path and the content hash of the original, for the summary.
        inputs: hashes of the inputs, see `inputs_of`.
        rows: function that returns raw rows, on which the written pipelines are compared with those in memory.

    Raises:
        ParityError: a written pipeline cannot be loaded or has other outputs.
    """
    start, original, found, id_ = time.perf_counter(), Path(str(parent.get("path"))), list[str](), uuid.uuid4().hex

    def size_text() -> str:
        return f"about {files.folder_size(original):,} bytes, like the original model" if original.is_dir() else ""

    def fill(folder: Path) -> None:
        outcome.model.write().save(stores.address(folder / "model"))
        stores.fetch(folder / "model")
        found[:] = [hash_of_folder(folder / "model")]
        outcome.summary.saved.update(compared := check_saved(outcome.model, folder / "model", rows))
        outcome.summary.warnings.extend(not_compared(compared))
        offers = outcome.offers if isinstance(outcome, ImprovementOutcome) else {}
        for name, model in offers.items():
            if model is not outcome.model:
                model.write().save(stores.address(folder / OFFERS / name))
                doubts = not_compared(check_saved(model, folder / OFFERS / name, rows))
                outcome.summary.warnings.extend(f"offer {name}: {doubt}" for doubt in doubts)
        (folder / "plan.json").write_text(outcome.plan.toJSON() + "\n")
        pd.DataFrame(outcome.summary.records).to_csv(folder / "history.csv", index=False)
        timings = {**phases.timings, "save": time.perf_counter() - start}
        summary = outcome.summary.asdict() | {
            "options": secrets.hidden(outcome.summary.options),
            "timings": {k: round(v, 3) for k, v in timings.items()},
            "fingerprints": {
                "cache": outcome.summary.cache["fingerprint"],
                "request": request_of(config),
                **({"inputs": inputs} if inputs else {}),
            },
            "parent": {**parent, "path": parent.get("path") and secrets.redacted(str(parent["path"]))},
            "model": {"path": "model", "hash": found[0]},
            "shippedStages": [
                {"uid": v.uid, "stageClass": v.stageClass, "inputCols": v.inputs, "outputCols": v.outputs}
                for v in graph_of(outcome.model).vertices
            ],
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "command": command_of(config),
            "id": id_,
        }
        (folder / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
        if (lineage := _lineage_of(config, parent)) is not None:
            (folder / LINEAGE).write_text(lineage.toJSON() + "\n")
        write_report(folder)

    write_run_folder(config.output, lease, fill, size_text)
    return found[0], id_
