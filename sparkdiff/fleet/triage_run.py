"""Triage of many pipelines (a fleet): forecasts of the gain of fine-tuning from cheap facts, and runs of the pipelines
with the largest expected gain per core-second within a budget. The result says what became of each pipeline.
"""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from pyspark.ml import Transformer
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.loading import load_data, load_model, model_path
from sparkdiff.errors import InputError, ParityError, SparkdiffError, kind_of
from sparkdiff.estimators.fine_tuner import FineTuner
from sparkdiff.evaluation.model_saving import new_folder, save
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.history import run_store
from sparkdiff.history.pipeline_facts import (
    FACTS,
    HISTORY_COLUMNS,
    Facts,
    SampleError,
    Samples,
    earlier_run_facts,
    finite,
    measure_facts,
)
from sparkdiff.history.run_forecasts import EARLY, Forecast, Forecaster, of_store, priors
from sparkdiff.improvement.budget import core_seconds
from sparkdiff.machine import paths, resources, secrets
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import Holder, plain
from sparkdiff.report import DisplayableFields, Events, Section, SectionTable, StrongLine, duration, signed
from sparkdiff.store.model_digests import hash_of

TUNED, KEPT, STOPPED, SKIPPED, REFUSED, FAILED = "tuned", "kept original", "stopped", "skipped", "refused", "failed"


@dataclasses.dataclass(frozen=True)
class Triaged:
    """The result of triage for one pipeline of the fleet.

    Attributes:
        forecast: the forecast of gain and cost; None if before one was made, the pipeline was refused or failed, its
            facts could not be measured on the sampled rows, or the budget was used up.
        outcome: "tuned"; "kept original"; "stopped" (early, without prospects); "skipped" (not run); "refused" (the
            pipeline, its rows or its options cannot be used); or "failed" (an unexpected error).
        why: the reason for the outcome, as text.
        gain: gain on validation rows, as a share of the original's metric; 0 unless the pipeline was tuned.
        coreSeconds: core-seconds that were spent on the pipeline, including those for its facts.
        facts: the facts on which the forecast is based.
    """

    name: str
    forecast: Forecast | None
    outcome: str
    why: str
    gain: float
    coreSeconds: float
    facts: Mapping[str, float]


@dataclasses.dataclass(frozen=True, repr=False)
class Triage(DisplayableFields):
    """The results of triage. `print` shows them, `toJSON` and `toPandas` return them; `models` has the tuned pipelines
    by name.

    Attributes:
        pipelines: a result per pipeline, that with the largest expected gain per core-second first.
        budget, coreSeconds: core-seconds that were available, and that were spent.
        shipped, own: number of runs from which the forecasts were learned: those shipped with sparkdiff, and those in
            the store of runs.
        models: only the tuned pipelines, plain Spark ML, by name.
    """

    __module__ = "sparkdiff"

    pipelines: tuple[Triaged, ...]
    budget: float
    coreSeconds: float
    shipped: int
    own: int
    models: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

    def toDict(self) -> dict[str, Any]:
        """All results except the models."""
        told = dataclasses.asdict(dataclasses.replace(self, models={}))
        return {name: value for name, value in told.items() if name != "models"}

    def toPandas(self) -> pd.DataFrame:
        """The results as a pandas DataFrame with a row per pipeline."""
        rows = []
        for p in self.pipelines:
            forecast = {} if p.forecast is None else dataclasses.asdict(p.forecast)
            own = {k: getattr(p, k) for k in ("name", "outcome", "why", "gain", "coreSeconds")}
            rows.append(own | {f"expected {k}": v for k, v in forecast.items()})
        return pd.DataFrame(rows)

    def _headline(self) -> str:
        counts = [sum(p.outcome == outcome for p in self.pipelines) for outcome in (TUNED, KEPT, STOPPED)]
        told = f"{counts[0]} tuned, {counts[1]} kept, {counts[2]} stopped"
        spent = f"{self.coreSeconds:,.0f} of {self.budget:,.0f} core-seconds"
        return f"{len(self.pipelines)} pipelines, {told}; {spent}"

    def _sections(self) -> Iterator[Section]:
        head = ("pipeline", "chance", "gain if so", "cost", "outcome", "gain", "why")
        yield SectionTable([head, *map(_row, self.pipelines)], left=(0, 4, 6), ruled=True)
        yield StrongLine(self._headline())
        yield f"forecasts were learned from {self.shipped} runs that sparkdiff ships and {self.own} of the store"


def _row(p: Triaged) -> tuple[str, ...]:
    if p.forecast is None:
        return p.name, "", "", "", p.outcome, "", p.why
    f = p.forecast
    gain = signed(p.gain) if p.outcome == TUNED else ""
    return p.name, f"{f.probability:.0%}", signed(f.gain), duration(f.coreSeconds), p.outcome, gain, p.why


OWN = ("name", "model", "data")
"""Keys of an entry that are not options."""
PATH = (str, os.PathLike)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A pipeline of the fleet, with its rows and options.

    Attributes:
        model: the fitted pipeline.
        path: the folder from which the pipeline was loaded; None if the caller passed the pipeline itself.
        given: the options that were set, by name; `options` also has the other options, at their defaults.
    """

    name: str
    model: Any
    path: str | None
    rows: DataFrame
    given: Mapping[str, Any]
    options: Options

    def content(self) -> str | None:
        """Content hash that identifies the pipeline in a store of runs; None if the pipeline cannot be saved."""
        where = self.path
        if where is not None and isinstance(self.model, Holder):
            where = paths.inside(where, "pipelineModel")
        return hash_of(plain(self.model), where, None)


def entries_of(fleet: Any, common: Mapping[str, Any]) -> list[Entry]:
    """The entries of a fleet.

    Args:
        fleet: mappings with the keys `model` (a fitted pipeline, or the path of a saved one), `data` (a DataFrame, or the
            path of a file), optionally `name`, and options of `FineTuner`; or a Spark or pandas DataFrame with such columns.
        common: options of all entries; an entry's own options override them.

    Raises:
        InputError: the fleet is empty or has another form; an entry lacks a key, or has the name of another one; its model
            or rows cannot be loaded; or one of its options is unknown or wrong. If it is about an entry, the message names it.
    """
    found = [*_mappings(fleet)]
    if not found:
        raise InputError("the fleet is empty: pass at least one mapping with the keys model and data")
    tables = dict[str, DataFrame]()  # one DataFrame per path, so that its rows are sampled once
    out = [_entry(number, given, common, tables) for number, given in enumerate(found)]
    names = [entry.name for entry in out]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{', '.join(twice)}: two entries of the fleet have this name; give each a name of its own (the command "
            "takes each model once)"
        )
    return out


def _mappings(fleet: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(fleet, DataFrame):
        yield from (row.asDict() for row in fleet.collect())
    elif hasattr(fleet, "to_dict") and hasattr(fleet, "columns"):
        yield from fleet.to_dict("records")
    elif isinstance(fleet, Sequence) and all(isinstance(entry, Mapping) for entry in fleet):
        yield from fleet
    else:
        raise InputError(
            "a fleet is a list of mappings with the keys model and data, or a DataFrame with these columns; got "
            f"{type(fleet).__name__}"
        )


def _entry(number: int, given: Mapping[str, Any], common: Mapping[str, Any], tables: dict[str, DataFrame]) -> Entry:
    own = {k: v for k, v in given.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    name = str(own.get("name") or (name_of(own["model"]) if "model" in own else f"entry {number}"))
    if missing := [key for key in ("model", "data") if key not in own]:
        raise InputError(f"{name}: the fleet's entry {number} has no {' and no '.join(missing)}")
    options = {**common, **{k: v for k, v in own.items() if k not in OWN}}
    try:
        checked = Options.of(options)
        path = model_path(os.fspath(own["model"]), Path.cwd()) if isinstance(own["model"], PATH) else None
        model = own["model"] if path is None else load_model(path)
        rows = own["data"] if isinstance(own["data"], DataFrame) else _rows(own["data"], model, tables)
    except InputError as e:
        raise InputError(f"{name}: {e}") from e
    if not isinstance(model, Transformer):
        raise InputError(f"{name}: {type(model).__name__} is no fitted pipeline: pass the result of its fit()")
    return Entry(name, model, path, rows, options, checked)


def name_of(model: Any) -> str:
    """A short name of a model: the last part of its path (the part before it, if it is "model"), its uid, or its class."""
    if not isinstance(model, PATH):
        return str(getattr(model, "uid", type(model).__name__))
    parts = [part for part in secrets.redacted(os.fspath(model)).rstrip("/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def _rows(data: Any, model: Any, tables: dict[str, DataFrame]) -> DataFrame:
    if not isinstance(data, PATH):
        raise InputError(
            f"data must be a Spark DataFrame or the path of a file, got {kind_of(data)}; make a DataFrame of a table by "
            "spark.createDataFrame(table)"
        )
    path = os.fspath(data)
    source = jvm.session(), {"path": path}, Path.cwd(), "triage"
    if path not in tables:
        tables[path] = load_data(*source)
    return load_data(*source, model, inferred=tables[path])


SHARE = 0.8
"""Default share of the fleet's total expected gain after which triage stops: the remaining pipelines promise little gain,
and keep even less, because of the guard.
"""
REFUSALS = (SparkdiffError, jvm.SparkError)
"""Errors that, raised while the facts are found, explain what is wrong with a pipeline or its rows. The pipeline is then
reported as "refused" (after a `SampleError` as "skipped"), after any other error as "failed".
"""


class EarlyStop(BaseException):
    """The exception by which `EarlyStopListener` ends a run without prospects; no `Exception`, as a listener's exceptions become
    warnings.
    """


class EarlyStopListener(Events):
    """A listener that stops a run in which no candidate (copy of the parameters in training) is better than the
    original in the first EARLY epochs.

    Args:
        sign: -1 if larger values of the metric are better, else 1.
    """

    def __init__(self, sign: float) -> None:
        self.sign, self.start, self.best = sign, float("inf"), float("inf")

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Receive a row of the history, and end the run if no candidate was better in the first EARLY epochs.

        Raises:
            EarlyStop: the row belongs to a later epoch, and no candidate was better than the original before it.
        """
        value = row["validationMetric"]
        value = float("inf") if value is None else self.sign * value
        if not row["epoch"]:
            self.start = value
            return
        if row["epoch"] > EARLY and not self.best < self.start:
            raise EarlyStop
        self.best = min(self.best, value)


@dataclasses.dataclass(frozen=True)
class AssessedEntry:
    """An entry of the fleet, and what is known of it before it runs.

    Attributes:
        forecast: None if there is none; the entry then does not run, and `outcome` and `why` give the reason.
        spent: core-seconds that were spent on finding the facts.
    """

    entry: Entry
    facts: Facts
    forecast: Forecast | None
    spent: float
    why: str = ""
    outcome: str = SKIPPED


@jvm.interruptible()
def triage(
    fleet: Sequence[Mapping[str, Any]] | DataFrame,
    *,
    budget: str,
    storeDir: str | None = None,
    share: float = SHARE,
    dryRun: bool = False,
    done: Callable[[Triaged, Any], None] = lambda _pipeline, _model: None,
    **options: Any,
) -> Triage:
    """Forecast gain and cost of fine-tuning each pipeline of a fleet, and run the most valuable ones within a budget.

    A forecast uses the pipeline's plan; a gradient pass, the curvature and three epochs on up to 2,000 of its rows; and
    earlier runs of the pipeline in the store. Pipelines are ordered by expected gain per core-second (gains above 50%
    of the metric count as 50%), and run until the budget is spent, or until the pipelines that ran have `share` of the
    fleet's total expected gain. A run in which no candidate (copy of the parameters in training) is better than the
    original after a few epochs is stopped. Each run is a `FineTuner.fit`, with the same guard (the statistical test that a
    gain on held-out rows must pass). If a run fails with an unexpected error, its pipeline is reported as "failed", and
    the other pipelines run.

    Args:
        fleet: mappings with the keys `model` (a fitted pipeline, or the path of a saved one), `data` (a DataFrame or a path),
            optionally `name`, and options of `FineTuner` such as `labelCol`; or a DataFrame with such columns.
        budget: processor time such as "4 core-hours"; it includes the time for the forecasts. A run that has begun is
            not cut off. The time of executors on other machines is not counted.
        storeDir: the folder of a store of runs, from which forecasts learn and to which triage adds its runs; it may be
            empty.
        share: share of the fleet's total expected gain after which no further pipeline runs, above 0 and at most 1.
        dryRun: only forecast, and report what would run.
        done: function that is called after each run with its result and its tuned model or None; if it raises an error,
            the pipeline is reported as "failed".
        options: options of `FineTuner` for all entries.

    Raises:
        InputError: the budget cannot be parsed; `share` is out of range; the fleet has no valid form; a model or rows cannot
            be loaded, or an option is wrong (the message names the entry); scikit-learn is not installed; or no pipeline
            of the fleet can be tuned.

    Examples:
        >>> import sparkdiff
        >>> fleet = [{"name": "churn", "model": model, "data": df, "labelCol": "label"}]  # and others
        >>> found = sparkdiff.triage(fleet, budget="4 core-hours", dryRun=True)
        >>> print(found)
        pipeline  chance  gain if so  cost  outcome  gain  why
        ------------------------------------------------------
        churn ...
    """
    limit = core_seconds(budget)
    if not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise InputError(f"share={share!r} must be above 0 and at most 1: the part of the expected gain to run for")
    began = resources.cpu_seconds()
    runs = run_store.rows_so_far(storeDir, HISTORY_COLUMNS)
    own = of_store(runs)
    entries, forecaster = entries_of(fleet, options), Forecaster([*priors(), *own])
    judged = _assess_entries(entries, runs, forecaster, limit, began)
    if all(j.outcome == REFUSED for j in judged):
        raise InputError(
            f"no pipeline of the fleet can be tuned: {'; '.join(f'{j.entry.name}: {j.why}' for j in judged)}"
        )
    ranked = sorted(judged, key=lambda j: (j.forecast is None, 0.0 if j.forecast is None else -j.forecast.worth))
    whole, reached, planned, ran = sum(j.forecast.expected for j in ranked if j.forecast), 0.0, 0.0, 0
    models, out = dict[str, Any](), []
    for j in ranked:
        left = limit - (resources.cpu_seconds() - began) - planned
        if j.forecast is None or (why := _why_not(j, ran, reached / whole if whole else 1.0, share, left)):
            out.append(_result_without_run(j, j.why if j.forecast is None else why))
            continue
        if dryRun:
            planned += j.forecast.coreSeconds
            out.append(_result_without_run(j, f"would run as number {ran + 1}"))
        else:
            found, model = _run(j, storeDir)
            if model is not None:
                models[j.entry.name] = model
            out.append(_call_done(done, found, model))
            if found.outcome in (REFUSED, FAILED):  # its expected gain is out of reach
                whole -= j.forecast.expected
                continue
        reached, ran = reached + j.forecast.expected, ran + 1
    return Triage(tuple(out), limit, resources.cpu_seconds() - began, len(priors()), len(own), models)


def _assess_entries(
    entries: Sequence[Entry], runs: Sequence[Mapping[str, Any]], forecaster: Forecaster, limit: float, began: float
) -> list[AssessedEntry]:
    """Find facts and forecast of each entry, as long as the budget lasts. Each table of rows is counted and sampled
    once.
    """
    judged = []
    late = f"the budget of {limit:,.0f} core-seconds was used up before its facts were found"
    with contextlib.closing(Samples()) as samples:
        for entry in entries:
            if resources.cpu_seconds() - began < limit:
                judged.append(_assess_entry(entry, runs, forecaster, samples))
            else:
                judged.append(AssessedEntry(entry, {}, None, 0.0, late))
    return judged


def _call_done(done: Callable[[Triaged, Any], None], found: Triaged, model: Any) -> Triaged:
    """Call `done`, and return the result of the run; if `done` raised an error, the result becomes "failed"."""
    try:
        done(found, model)
    except Exception as e:  # the fleet goes on
        return dataclasses.replace(found, outcome=FAILED, why=f"{found.outcome}, but then: {jvm.message(e)}")
    return found


def _assess_entry(
    entry: Entry, runs: Sequence[Mapping[str, Any]], forecaster: Forecaster, samples: Samples
) -> AssessedEntry:
    began = resources.cpu_seconds()
    try:
        if entry.options.numFolds:
            raise InputError(
                f"numFolds={entry.options.numFolds}: triage neither forecasts nor stops a run of several folds; leave numFolds "
                "out, or run FineTuner"
            )
        facts, metric = measure_facts(prepare(plain(entry.model), entry.options, entry.rows), entry.rows, samples)
        if runs:
            facts |= earlier_run_facts(runs, entry.content(), facts["metric"], metric, entry.options.asdict())
        facts = finite(facts)
        return AssessedEntry(entry, facts, forecaster(facts), resources.cpu_seconds() - began)
    except Exception as e:  # one pipeline may not end the others
        outcome = SKIPPED if isinstance(e, SampleError) else REFUSED if isinstance(e, REFUSALS) else FAILED
        return AssessedEntry(entry, {}, None, resources.cpu_seconds() - began, jvm.message(e), outcome)


def _why_not(j: AssessedEntry, ran: int, reached: float, share: float, left: float) -> str:
    """The reason why a pipeline with a forecast is not run, as text; empty if it is run.

    Args:
        j: the entry with the pipeline; it has a forecast.
        ran: number of pipelines that ran before.
        reached: their share of the fleet's total expected gain.
        share: the share after which triage stops.
        left: core-seconds that are left of the budget.
    """
    f = j.forecast
    assert f is not None
    if reached >= share:
        return f"the {ran} pipelines before it promise {reached:.0%} of the gain to expect; {_why_little(j.facts, f)}"
    if f.coreSeconds > left:
        return f"would take {f.coreSeconds:.0f} core-seconds, and {max(left, 0):.0f} of the budget are left"
    return ""


def _why_little(facts: Mapping[str, float], f: Forecast) -> str:
    """The reason why little gain is expected of a pipeline, as text, from its notable facts."""
    told = []
    if facts.get("known"):
        told.append("the last run tuned it already" if facts.get("lastTuned") else "the last run kept the original")
    if facts.get("drift", 1.0) < 0.02:
        told.append("its metric has not got worse since")
    if facts.get("gradientSignal", 1.0) < 0.5:
        told.append("its gradient is near 0")
    elif facts.get("gradientSignal", 9.0) < 2.0:
        told.append("its gradient is within what chance explains")
    if facts.get("lastEpochZ", 9.0) < 1.0:
        told.append("a training on some rows gains nothing on others")
    reasons = f": {', '.join(told)}" if told else ""
    return f"a gain has a chance of {f.probability:.0%}{reasons}"


def _result_without_run(j: AssessedEntry, why: str) -> Triaged:
    return Triaged(j.entry.name, j.forecast, j.outcome, why, 0.0, j.spent, j.facts)


def _run(j: AssessedEntry, storeDir: str | None) -> tuple[Triaged, Any]:
    """Fine-tune a pipeline; return the result of the run, and the tuned pipeline, or None if there is none."""
    before, entry = resources.cpu_seconds(), j.entry
    given = dict(entry.given)
    if storeDir is not None:
        given |= {"storeDir": storeDir, "tags": {**given.get("tags", {}), FACTS: json.dumps(j.facts)}}
    watch, model, gain = EarlyStopListener(j.facts["metricSign"]), None, 0.0
    try:
        found = FineTuner(entry.model, callbacks=[watch], **given).fit(entry.rows)
        if differs := found.summary.saved.get("differs"):
            raise ParityError(differs)
    except EarlyStop:
        outcome, why = STOPPED, f"no candidate was better than the original after {EARLY} epochs"
    except SparkdiffError as e:
        outcome, why = REFUSED, str(e)
    except Exception as e:  # the fleet goes on
        outcome, why = FAILED, jvm.message(e)
    else:
        tuned = found.summary.decision == "tuned"
        outcome, why = TUNED if tuned else KEPT, found.summary.reason
        if tuned:
            model, gain = found.pipelineModel, found.summary.gain
    spent = j.spent + resources.cpu_seconds() - before
    return Triaged(entry.name, j.forecast, outcome, why, gain, spent, j.facts), model


def triage_paths(
    models: Sequence[str],
    data: Sequence[str],
    budget: str,
    storeDir: str | None,
    output: str | None,
    share: float,
    dryRun: bool,
    options: Mapping[str, Any],
) -> Triage:
    """Run `triage` on models and rows given by their paths.

    Args:
        models: the folders of saved pipelines, or of runs.
        data: paths of the rows: one for all models, or one per model in their order.
        budget: processor time such as "4 core-hours".
        storeDir: as in `triage`.
        output: the folder in which the tuned pipelines are saved, each in a subfolder with its name; None: don't save
            them.
        share: as in `triage`.
        dryRun: only forecast, and report what would run.
        options: options of `FineTuner` for all models, by name.

    Raises:
        InputError: as `triage`; or a folder to write exists, is not on this machine, or cannot be written.
    """
    names = names_of(models)
    folders = {} if output is None else {name: new_folder("--output", paths.inside(output, name)) for name in names}
    every = list(data) * len(models) if len(data) == 1 else list(data)
    data_of = dict(zip(names, every, strict=True))
    fleet = [{"name": n, "model": m, "data": data_of[n]} for n, m in zip(names, models, strict=True)]

    def save_tuned(pipeline: Triaged, model: Any) -> None:
        if model is not None and pipeline.name in folders:
            save(model, folders[pipeline.name], _rows(data_of[pipeline.name], model, {}))

    return triage(fleet, budget=budget, storeDir=storeDir, share=share, dryRun=dryRun, done=save_tuned, **options)


def names_of(models: Sequence[str]) -> list[str]:
    """Names of saved models: see `name_of`; if several paths have the same name, the paths below their common folder, with
    "-" for "/".
    """
    names = [name_of(model) for model in models]
    out = []
    for model, name in zip(models, names, strict=True):
        alike = {other for other, own in zip(models, names, strict=True) if own == name}
        above = os.path.commonpath([os.path.dirname(os.path.abspath(other)) for other in alike])
        out.append(name if len(alike) == 1 else os.path.relpath(model, above).replace("/", "-"))
    return out
