"""The row of a finished run in the store of runs, and a context that adds it to the store if `storeDir` is set."""

import contextlib
import datetime
import json
import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkdiff import jvm
from sparkdiff.errors import warn
from sparkdiff.evaluation.slices import value_text
from sparkdiff.history import run_store, run_table
from sparkdiff.machine import resources, secrets
from sparkdiff.pipeline.plan import Plan, StagePlan
from sparkdiff.store.model_digests import hash_of

PLACES = ("cacheDir", "checkpointDir", "storeDir", "runDir")
"""Options that name folders."""
KEEPING = ("storeDir", "tags", "redact")
"""Options about the store of runs itself, which are left out of the column `options`."""
VERBS = {"GrowthSummary": "grow", "ImprovementSummary": "improve", "SearchSummary": "search"}
UNSAID = "..."
"""Text that stands for values left out because of the option `redact`."""


class NotKept(UserWarning):
    """The warning that a finished run could not be added to the store of runs."""


Keep = Callable[..., None]
"""A function called once with the summary, the two models, the options and the plan of a run; see `keeping`."""


@contextlib.contextmanager
def keeping(
    storeDir: str | None, tags: Mapping[str, str], redact: bool, folder: Callable[[], Path | None]
) -> Iterator[Keep]:
    """Provide a function that adds the finished run to the store of runs; the function does nothing if storeDir is
    None.

    The context measures the run's time; a failure to add the run becomes a warning.

    Args:
        folder: function that returns the folder in which models are saved temporarily to hash them.

    Raises:
        InputError: storeDir cannot be used; raised before anything runs.
    """
    if storeDir is None:
        yield lambda *_run, **_more: None
        return
    where = jvm.folder("storeDir", storeDir)
    jvm.check_writable("storeDir", storeDir, where)
    used, began = resources.cpu_seconds(), time.monotonic()

    def keep(
        summary: Any,
        model: Any,
        original: Any,
        options: Mapping[str, Any],
        plan: Plan | None,
        hashes: tuple[str | None, str | None] | None = None,
        **more: Any,
    ) -> None:
        try:
            if hashes is None:
                parent = None if original is None else hash_of(original, None, folder())
                hashes = (None if model is original else hash_of(model, None, folder())), parent
            if model is original:
                hashes = hashes[1], hashes[1]  # hashing it again could give another hash
            row = record_of(
                summary,
                summary.records,
                model=hashes[0],
                parent=hashes[1],
                options=options,
                stages=() if plan is None else plan.stages,
                tags=tags,
                redact=redact,
                seconds=time.monotonic() - began,
                coreSeconds=resources.cpu_seconds() - used,
                **more,
            )
            run_store.add(where, row)
        except Exception as e:  # the run is finished, and no error here may lose its result
            why = jvm.cause(e) if isinstance(e, jvm.SparkError) else f"{type(e).__name__}: {e}"
            warn(f"this run is not in the store of runs: {why}", NotKept, stacklevel=3)

    yield keep


def record_of(
    summary: Any,
    records: Sequence[Mapping[str, Any]],
    *,
    model: str | None,
    parent: str | None,
    options: Mapping[str, Any],
    stages: Sequence[StagePlan],
    coreSeconds: float,
    seconds: float,
    tags: Mapping[str, str],
    redact: bool,
    command: str | None = None,
    output: str | None = None,
    offers: Mapping[str, str] | None = None,
    id: str | None = None,
) -> dict[str, Any]:
    """The row of a run in the store.

    Args:
        summary: the run's summary.
        records: the history of the run, or the trials of a search.
        model, parent: content hashes of the returned pipeline, and of the pipeline from which the run started; None if
            unknown.
        options: the run's options, by name.
        stages: the stages of the plan.
        redact: leave out the values of slices, folders, the command, texts of warnings and of errors, and names of
            features. Secrets are always left out.
        command, output: the command of the run, and its output folder.
        offers: content hashes of the other pipelines that an improvement offers, by name.
        id: the id of the row, which summary.json of a job also has; None: a new one.
    """
    found = summary.toDict() if hasattr(summary, "toDict") else summary.asdict()
    row = {
        "id": id or uuid.uuid4().hex,
        "schemaVersion": run_table.VERSION,
        "finished": datetime.datetime.now(datetime.timezone.utc),
        "verb": VERBS.get(type(summary).__name__, "finetune"),
        "runId": options.get("runId"),
        "model": model,
        "parent": parent,
        "decision": found["decision"],
        "kept": found["decision"].startswith("kept"),
        "reason": reason(found, redact=redact),
        "metric": found["metric"],
        "metricDirection": found["metricDirection"],
        "gain": found["gain"],
        "p": found["p"],
        "gainInterval": found["gainInterval"],
        "warnings": len(found["warnings"]),
        "redacted": redact,
        "seconds": seconds,
        "coreSeconds": coreSeconds,
        "tags": {**tags},
        "options": json.dumps(_options(options, redact=redact), sort_keys=True),
        "stages": [{"stageClass": s.stageClass, "role": s.role, "trained": s.trainable} for s in stages],
        "versions": found.get("versions") or {},
        "offers": dict(offers or {}),
        "command": None if redact else command,
        "output": None if redact else output,
    }
    row |= _of_search(found, records) if "fresh" in found else _of_training(found, records, redact=redact)
    return {name: value if name == "tags" else _without_secrets(value) for name, value in row.items()}


def _without_secrets(value: Any) -> Any:
    """The value without secrets, also within lists and mappings; JSON text stays valid JSON."""
    if not isinstance(value, str):
        return secrets.hidden(value) if isinstance(value, (dict, list)) else value
    try:
        inner = json.loads(value)
    except ValueError:
        return secrets.redacted(value)
    return json.dumps(secrets.hidden(inner), sort_keys=True) if isinstance(inner, (dict, list)) else value


def _of_training(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]], *, redact: bool) -> dict[str, Any]:
    metrics = found["metrics"]
    held, test = metrics.get("validation") or {}, metrics.get("test") or {}
    tables = [{k: v for k, v in t.items() if not redact or k != "table"} for t in found["cache"].get("versions") or ()]
    tried = [*_arms(found, redact=redact), *_rounds(found), *_candidates(found, records)]
    return {
        "dataVersions": json.dumps(tables, default=str) if tables else None,
        "before": held.get("before"),
        "after": held.get("after"),
        "testBefore": test.get("before"),
        "testAfter": test.get("after"),
        "data": found["cache"]["fingerprint"],
        "cacheHit": found["cache"]["hit"],
        "rows": found["cache"]["rows"],
        "timings": found["timings"],
        "tried": tried if not redact else _remove_slice_values(tried, found),
        "curves": [
            {"candidate": r["candidate"], "epoch": r["epoch"], "value": float(r["validationMetric"])}
            for r in records
            if r.get("validationMetric") is not None and "candidate" in r
        ],
        "evidence": json.dumps(_evidence(found, redact=redact), sort_keys=True),
    }


def _of_search(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    fresh, metric = found["fresh"], found["metric"]
    tried = [
        _attempt_record("trial", str(r["trial"]), r.get(metric), r.get("seconds"), str(r["state"])) for r in records
    ]
    return {
        "before": fresh["default"],
        "after": fresh["winner"],
        "rows": found["rows"],
        "timings": {"search": found["seconds"]},
        "tried": tried,
        "curves": [],
        "data": None,
        "dataVersions": None,
        "cacheHit": None,
        "evidence": json.dumps({k: found[k] for k in ("optimism", "trials", "failed", "pruned")}),
    }


def reason(found: Mapping[str, Any], *, redact: bool) -> str:
    """The reason for a run's decision; with `redact`, without the values of slices."""
    text = str(found["reason"])
    if redact:
        told = {(s["column"], value_text(s["value"])) for s in found.get("slices") or ()}
        for name, value in sorted(
            told, key=lambda slice_: -len(slice_[1])
        ):  # a value may be the beginning of another one
            text = text.replace(f"{name} = {value}", f"{name} = {UNSAID}")
    return text


def _options(options: Mapping[str, Any], *, redact: bool) -> dict[str, Any]:
    """The options except `KEEPING`; with `redact`, also without folders and without names of features."""
    kept = {k: v for k, v in options.items() if k not in KEEPING and (not redact or k not in PLACES)}
    if redact and isinstance(
        nested := kept.get("penalties"), Mapping
    ):  # per feature; a feature's name may contain a category
        kept["penalties"] = {name: [*strengths.values()] for name, strengths in nested.items()}
    return kept


def _evidence(found: Mapping[str, Any], *, redact: bool) -> dict[str, Any]:
    """Measurements, warnings and other facts behind the decision that have no column of their own in the store; with
    `redact`, without the values of slices and without the warnings.
    """
    left_out = {"value"} if redact else set()
    slices = [{k: v for k, v in s.items() if k not in left_out} for s in found["slices"]]
    compatibility = {k: v for k, v in (found["compatibility"] or {}).items() if k != "bins"}
    told = {} if redact else {"warnings": found["warnings"]}
    if facts := (found.get("order") or {}).get("facts"):
        told["facts"] = facts
    if stopped := [a["arm"] for a in found.get("arms") or () if a["state"] in ("stopped", "interrupted")]:
        told["stopped"] = stopped  # their final results are unknown
    return {"z": found["z"], "slices": slices, "reference": found["reference"], "compatibility": compatibility, **told}


def _attempt_record(kind: str, name: str, value: Any, seconds: Any, outcome: str) -> dict[str, Any]:
    return {"kind": kind, "name": name, "value": value, "seconds": seconds, "outcome": outcome}


def _arms(found: Mapping[str, Any], *, redact: bool) -> list[dict[str, Any]]:
    """Results of an improvement, and the arms (ways to improve a pipeline) that have none.

    With `redact`, texts of errors are left out, because they may hold values of rows.
    """
    rows = [r for r in found.get("table") or () if r["arm"] is not None]
    out = [
        _attempt_record(
            r["arm"], r["name"], r["value"], r["seconds"], "accepted" if r["accepted"] else r["why"] or "not accepted"
        )
        for r in rows
    ]
    named = {r["arm"] for r in rows}
    rest = [a for a in found.get("arms") or () if a["arm"] not in named]
    unsaid = {"failed"} if redact else set()
    why = {a["arm"]: a["state"] if a["state"] in unsaid else f"{a['state']}: {a['why']}" for a in rest}
    return out + [_attempt_record(a["arm"], "", None, a["seconds"], why[a["arm"]]) for a in rest]


def _remove_slice_values(tried: list[dict[str, Any]], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The tried settings, with the values of slices (values of guardCols) removed from the texts of their outcomes."""
    for one in tried:
        for name in (found.get("options") or {}).get("guardCols") or ():
            before, mark, _ = one["outcome"].partition(f"{name} = ")
            one["outcome"] = f"{before}{mark}{UNSAID}" if mark else before  # the end of the value is unknown
    return tried


def _rounds(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    rounds = found.get("rounds") or ()
    return [_attempt_record(r["kind"], r["name"], r["gain"], r["seconds"], r["why"] or "joined") for r in rounds]


def _candidates(found: Mapping[str, Any], records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The candidates of a training run, each with its best metric; empty for a growth or an improvement."""
    if found.get("arms") or found.get("rounds"):
        return []
    better = min if found["metricDirection"] == "smaller" else max
    values: dict[str, list[float]] = {}
    for row in records:
        if row.get("recipe") and row["epoch"]:
            value = row["validationMetric"]
            values.setdefault(row["recipe"], []).extend(v for v in [value] if v is not None and math.isfinite(v))
    return [
        _attempt_record("candidate", name, better(v, default=None), None, "" if v else "diverged")
        for name, v in values.items()
    ]
