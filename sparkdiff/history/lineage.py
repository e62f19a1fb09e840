"""The lineage of a model: the runs that led to the model, back to the first ancestor, and the settings that each run
tried.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.history.run_table import FilesOf, json_object, local_files, rows
from sparkdiff.machine import secrets
from sparkdiff.options import Options
from sparkdiff.report import DisplayableFields, Drawing, Section, SectionTable, StrongLine, counted, p_value, signed
from sparkdiff.report.ancestry import SHORT, ancestor_picture, ancestors_of, cost_of, metric_of, name_of
from sparkdiff.store.saved_digests import hash_of_folder

MOST = 5
"""Largest number of tried settings that are shown per run, the best first."""
HELD = ("model", "pipelineModel", ".")
"""Where the pipeline is: in a run's folder, in that of a saved FineTunerModel or SearchModel, and in that of a saved pipeline."""


@dataclasses.dataclass(frozen=True)
class LineageStep:
    """A run that made a model of the lineage.

    Attributes:
        run: the run's row in the store of runs.
        cacheOf: id of the earlier run whose cache this run used; None if it used none of an earlier run, or if that run
            is not in the store.
        beside: the other runs that started from the same model, earlier or later.
    """

    run: Mapping[str, Any]
    cacheOf: str | None
    beside: tuple[Mapping[str, Any], ...]


@dataclasses.dataclass(frozen=True, repr=False)
class Lineage(DisplayableFields):
    """The origin of a model. `print` shows the lineage, `toJSON` returns all of it, with times in UTC.

    Attributes:
        name: the name of the model, as passed.
        model: content hash of the model; copies and renamed folders have the same hash.
        steps: the runs that led to the model, the latest first.
        origin: content hash of the first ancestor; the model's own hash if no run in the store made it; None if
            unknown.
        attempts: runs that started from this model, the oldest first.
    """

    __module__ = "sparkdiff"

    name: str
    model: str
    steps: tuple[LineageStep, ...]
    origin: str | None
    attempts: tuple[Mapping[str, Any], ...]

    def command(self) -> str:
        """The command that made this model. Run with the same version of sparkdiff, model and rows, it gives the same
        weights.

        Raises:
            InputError: the store does not hold the command; the message says what is known instead.
        """
        if not self.steps:
            raise InputError(f"no run in this store made {self.name}, so there is no command")
        run = self.steps[0].run
        if run["command"] is None:
            why = "the store holds no commands (redact=true)" if run["redacted"] else "the run was started from Python"
            parent, rows = _short_hash(run["parent"]), _short_hash(run["data"])
            raise InputError(
                f"the command that made {self.name} is missing: {why}. It was {run['verb']} of the pipeline {parent} "
                f"on the rows with cache {rows}, with {_told_options(run)}"
            )
        return str(run["command"])

    def draw(self) -> Drawing:
        """A picture of the lineage: a box per run, the first ancestor at the top. A dashed line leads to a run from the one
        whose cache it reused, if that run is in the picture.

        Raises:
            InputError: no run in the store made this model.
        """
        if not self.steps:
            raise InputError(f"no run in this store made {self.name}, so there is nothing to draw")
        return Drawing(ancestor_picture(ancestors_of(dataclasses.asdict(self)), self._headline()))

    def _headline(self) -> str:
        return f"{self.name}, content {self.model[:SHORT]}: {counted(len(self.steps), 'run')} led to it"

    def _sections(self) -> Iterator[Section]:
        yield StrongLine(f"{self.name}, content {self.model[:SHORT]}")
        if not self.steps:
            yield "no run in this store made it"
        for step in self.steps:
            yield from _step_sections(step)
        if self.steps and self.origin is not None and self.origin not in {s.run["model"] for s in self.steps}:
            yield f"the first ancestor is {_short_hash(self.origin)}, which no run in this store made"
        if self.attempts:
            yield StrongLine("tried from this model since:")
            yield SectionTable(
                [("finished", "run", "by", "decision", "metric", "gain", "p", "folder"), *map(_short, self.attempts)],
                left=(0, 1, 2, 3, 4, 7),
            )


def hash_of_saved(name: str, folder: Path | None) -> str:
    """Content hash of the model in a folder on this machine: that of a saved pipeline or FineTunerModel, or of a run.

    Args:
        name: the folder, as messages name it.
        folder: None if it does not exist.

    Raises:
        InputError: no model is saved in it.
    """
    for held in HELD:
        if folder is not None and (folder / held / "metadata").exists():
            return hash_of_folder(folder / held)
    raise InputError(f"there is no saved model in {name!r}: pass the folder of a saved pipeline, or of a run")


def _told_options(run: Mapping[str, Any]) -> str:
    """The options of a run that differ from their defaults, as arguments of a command."""
    usual = Options().asdict()
    given = {k: v for k, v in json_object(run["options"]).items() if k not in usual or v != usual[k]}
    return " ".join(f"{k}={json.dumps(v)}" for k, v in given.items()) or "all options at their defaults"


def lineage(
    name: str, model: str, folder: Path, files: FilesOf = local_files, folders: Mapping[str, str] | None = None
) -> Lineage:
    """The lineage of the model with this content hash, from the store in a folder.

    Args:
        name: the name under which the lineage shows the model.
        model: content hash of the model.
        folder: the folder of the store on this machine, or the local working copy of a remote one.
        files: function that returns the files in `folder`.
        folders: output folders of runs whose row has none, by id.

    Raises:
        InputError: there is no store in this folder.
    """
    links = rows(folder, ("model", "parent", "offers", "data"), files=files)
    made = {made: run for run in links for made in _made_by(run)}  # the latest run of each model
    line = [model]
    while line[-1] in made and (parent := made[line[-1]]["parent"]) not in (None, *line):
        line.append(parent)
    on = {run["id"] for run in links if run["parent"] in line or any(made in line for made in _made_by(run))}
    found = {
        run["id"]: run | {"output": run["output"] or (folders or {}).get(run["id"])}
        for run in rows(folder, ids=on, files=files)
    }
    writers = {run["data"]: run["id"] for run in reversed(links) if run["data"]}  # the first run that used each cache
    steps = list[LineageStep]()
    for run in (found[made[model]["id"]] for model in line if model in made):
        beside = [r for r in found.values() if r["parent"] == run["parent"] is not None and r["id"] != run["id"]]
        source = writers.get(run["data"]) if run["cacheHit"] else None
        steps.append(LineageStep(run, None if source == run["id"] else source, tuple(beside)))
    return Lineage(
        secrets.redacted(name),
        model,
        tuple(steps),
        origin=made[line[-1]]["parent"] if line[-1] in made else line[-1],
        attempts=tuple(run for run in found.values() if run["parent"] == model),
    )


def _made_by(run: Mapping[str, Any]) -> list[str]:
    """Content hashes of the models that a run has made, i.e. its result and its offers, except the model it started
    from.
    """
    made = [run["model"], *(run["offers"] or {}).values()]
    return [model for model in made if model not in (None, run["parent"])]


# Text ---------------------------------------------------------------------------------------------------------------------


def _step_sections(step: LineageStep) -> Iterator[Section]:
    run = step.run
    parent = "a pipeline that was not fitted, or is not known" if run["parent"] is None else _short_hash(run["parent"])
    yield StrongLine(f"made by {run['verb']} on {_when(run)} from {parent}: {run['decision']}")
    yield f"  {metric_of(run)}, {p_value(run['p'])}" if run["p"] is not None else f"  {metric_of(run)}"
    yield f"  {run['reason']}"
    yield f"  run {name_of(run)}{f', in {folder}' if (folder := run['output']) else ''}"
    if run["stages"]:
        trained = [s["stageClass"] for s in run["stages"] if s["trained"]]
        left = [s["stageClass"] for s in run["stages"] if s["role"] == "referenced"]
        in_spark = f"; in Spark: {', '.join(left)}" if left else ""
        yield f"  {counted(len(run['stages']), 'stage')}; trained: {', '.join(trained) or 'none'}{in_spark}"
    if run["data"] is not None:
        rows = ", ".join(f"{n:,} {split}" for split, n in dict(run["rows"] or ()).items())
        reused = "reused" if run["cacheHit"] else "written"
        reused += f", of run {step.cacheOf[:SHORT]}" if step.cacheOf else ""
        yield f"  rows: {rows or 'unknown'}; cache {run['data'][:SHORT]}, {reused}"
    yield f"  cost: {cost_of(run)}"
    yield from _attempt_sections(run)
    if step.beside:
        kept = sum(bool(r["kept"]) for r in step.beside)
        yield f"  from the same parent {counted(len(step.beside), 'other run')}, of which {kept} kept it"


def _attempt_sections(run: Mapping[str, Any]) -> Iterator[Section]:
    tried = run["tried"] or []
    if not tried:
        return
    sign = (
        1 if run["metricDirection"] == "smaller" and run["verb"] != "grow" else -1
    )  # a growth records gains as values
    best = sorted(tried, key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0)))[:MOST]
    more = f", the best {len(best)}" if len(tried) > len(best) else ""
    yield f"  considered {len(tried)}{more}:"
    for t in best:
        value = "" if t["value"] is None else f" {t['value']:.5g}"
        name = f" {t['name']}" if t["name"] else ""
        outcome = f": {t['outcome']}" if t["outcome"] else ""
        yield f"    {t['kind']}{name}{value}{outcome}"


def _short_hash(found: str | None) -> str:
    return (found or "unknown")[:SHORT]


def _when(run: Mapping[str, Any]) -> str:
    return f"{run['finished']:%Y-%m-%d %H:%M}"


def _short(run: Mapping[str, Any]) -> tuple[str, ...]:
    gain = "" if run["gain"] is None else signed(run["gain"], 2)
    p = "" if run["p"] is None else p_value(run["p"])
    told = (run[name] or "" for name in ("verb", "decision", "metric"))
    return _when(run), name_of(run), *told, gain, p, run["output"] or ""
