"""A finished run as a row of the store: what each kind of run considered, and what is left out."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from sparkdiff.growth.growth_summary import GrowthSummary
from sparkdiff.history import lineage
from sparkdiff.history.run_records import NotKept, keeping, record_of
from sparkdiff.history.run_table import SCHEMA
from sparkdiff.improvement.improvement_summary import ImprovementSummary
from sparkdiff.report import FineTuningSummary

SLICE = {
    "column": "region",
    "value": "north",
    "rows": 50,
    "units": 50,
    "before": 2.0,
    "after": 2.2,
    "gain": -0.2,
    "error": 0.1,
    "p": 0.01,
}
FOUND: dict[str, Any] = {
    "decision": "kept original",
    "reason": "the slice region = north gets worse",
    "metric": "poisson",
    "metricDirection": "smaller",
    "metrics": {"validation": {"before": 2.0, "after": 1.5}, "test": None},
    "gain": 0.25,
    "z": 4.0,
    "p": 0.01,
    "records": [],
    "parity": {},
    "stages": {},
    "timings": {"train": 1.5},
    "stream": "arrow",
    "cache": {"hit": True, "fingerprint": "f00d", "rows": {}},
    "options": {},
    "versions": {"python": "3.11"},
    "warnings": ["of the rows in /data/rows.parquet ..."],
    "slices": [SLICE],
    "gainInterval": [0.1, None],
}


def row(kind: type = FineTuningSummary, *, redact: bool = True, **changes: Any) -> dict[str, Any]:
    summary = kind(**{**FOUND, **changes})
    options = {"cacheDir": "/caches", "maxEpochs": 3, "penalties": {"monotone": {"color=red": 2.0}}, "tags": {"a": "b"}}
    found = record_of(
        summary,
        summary.records,
        model="a",
        parent="a",
        options=options,
        stages=(),
        coreSeconds=2.0,
        seconds=1.0,
        tags={"a": "b"},
        redact=redact,
        command="sparkdiff finetune --data /rows",
        output="/out",
    )
    assert found.keys() == set(SCHEMA.names)
    return pa.Table.from_pylist([found], SCHEMA).to_pylist()[0]


def test_values_of_slices_folders_and_texts_are_left_out() -> None:
    told = json.dumps(row(), default=str)
    for secret in ("north", "/caches", "color=red", "/rows", "/out", "/data"):
        assert secret not in told
    assert "region = ..." in told and json.loads(row()["options"]) == {"maxEpochs": 3, "penalties": {"monotone": [2.0]}}
    allowed = json.dumps(row(redact=False), default=str)
    for secret in ("north", "/caches", "color=red", "/rows", "/out", "/data"):
        assert secret in allowed


@pytest.mark.parametrize("value", ["1", "a", True, 3.0, None])
def test_only_the_value_of_a_slice_is_left_out_of_the_reason(value: Any) -> None:
    told = {"1": "1", "a": "a", True: "true", 3.0: "3.0", None: "null"}[value]
    reason = f"slices get worse: active = {told} (0.31 to 0.35, p 0.011)"
    found = row(reason=reason, slices=[SLICE | {"column": "active", "value": value}])
    assert found["reason"] == "slices get worse: active = ... (0.31 to 0.35, p 0.011)"


def test_errors_and_secrets_are_left_out() -> None:
    arms = [{"arm": "search", "state": "failed", "why": "The value 'Smith' of the type", "seconds": 1.0}]
    assert "Smith" not in json.dumps(row(ImprovementSummary, table=[], arms=arms), default=str)
    assert "Smith" in json.dumps(row(ImprovementSummary, redact=False, table=[], arms=arms), default=str)
    told = row(redact=False, warnings=["s3a://me:hidden@bucket/rows is slow"])
    assert "hidden@" not in json.dumps(told, default=str) and json.loads(told["evidence"])["warnings"]


def test_outcomes_tell_no_values_of_slices_and_no_secrets() -> None:
    line = {
        "arm": "finetune",
        "name": "fine-tuned",
        "value": 1.0,
        "seconds": 1.0,
        "accepted": False,
        "why": "worse on country = Chad, or",
    }
    arms = [{"arm": "grow", "state": "stopped", "why": "jdbc:x?password=hunter2", "seconds": 1.0}]
    given = {"table": [line], "arms": arms, "options": {"guardCols": ["country"]}}
    assert row(ImprovementSummary, **given)["tried"][0]["outcome"] == "worse on country = ..."
    told = json.dumps(row(ImprovementSummary, redact=False, **given), default=str)
    assert "Chad" in told and "hunter2" not in told


def test_whatever_fails_while_a_run_is_kept_costs_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sparkdiff.history.run_records.hash_of", full)
    with (
        keeping(str(tmp_path), {}, True, lambda: tmp_path) as keep,
        pytest.warns(NotKept, match="not in the store of runs: OSError: .*No space left"),
    ):
        keep(FineTuningSummary(**FOUND), object(), object(), {}, None)
    assert not list(tmp_path.iterdir())


def test_a_candidate_has_its_best_epoch() -> None:
    history = [("a", 0, 2.0), ("a", 1, 1.8), ("a", 2, 1.9), ("b", 0, 2.0), ("b", 1, float("nan"))]
    records = [
        {"candidate": "ab".index(r), "recipe": r, "epoch": e, "validationMetric": v, "trainLoss": None}
        for r, e, v in history
    ]
    found = row(records=records)
    assert [(t["name"], t["value"], t["outcome"]) for t in found["tried"]] == [("a", 1.8, ""), ("b", None, "diverged")]
    assert len(found["curves"]) == 5 and found["kept"] and found["warnings"] == 1


def test_an_improvement_has_its_arms() -> None:
    table = [
        {"arm": None, "name": "your pipeline", "value": 2.0, "seconds": 0.0, "accepted": False, "why": ""},
        {"arm": "refit", "name": "refitted", "value": 1.9, "seconds": 3.0, "accepted": True, "why": ""},
        {
            "arm": "refit",
            "name": "refitted without PCA",
            "value": 1.95,
            "seconds": 3.0,
            "accepted": False,
            "why": "chance",
        },
    ]
    arms = [
        {"arm": a, "state": s, "why": w, "seconds": 1.0} for a, s, w in (("refit", "done", ""), ("grow", "failed", "x"))
    ]
    found = row(ImprovementSummary, table=table, arms=arms)
    assert found["verb"] == "improve" and "stopped" not in json.loads(found["evidence"])
    arms[0]["state"] = "stopped"
    assert json.loads(row(ImprovementSummary, table=table, arms=arms)["evidence"])["stopped"] == ["refit"]
    assert [(t["kind"], t["name"], t["value"], t["outcome"]) for t in found["tried"]] == [
        ("refit", "refitted", 1.9, "accepted"),
        ("refit", "refitted without PCA", 1.95, "chance"),
        ("grow", "", None, "failed"),
    ]


def test_a_growth_has_its_parts() -> None:
    rounds = [{"round": 1, "kind": "crosses", "name": "a x b", "gain": 0.2, "seconds": 1.0, "why": ""}]
    found = row(GrowthSummary, rounds=[*rounds, rounds[0] | {"name": "a x c", "why": "less"}])
    assert [(t["name"], t["outcome"]) for t in found["tried"]] == [("a x b", "joined"), ("a x c", "less")]
    assert found["verb"] == "grow"


@pytest.mark.parametrize("verb", ["finetune", "grow"])
def test_the_best_of_what_was_considered_is_shown(verb: str) -> None:
    """What growth tried has gains for values, all other runs have metrics."""
    values = [0.3, 0.1, None, 0.9, 0.5, 0.7, 0.2]
    tried = [{"kind": "part", "name": f"p{i}", "value": v, "outcome": ""} for i, v in enumerate(values)]
    _, *shown = lineage._attempt_sections({"verb": verb, "metricDirection": "smaller", "tried": tried})
    best = ["p3", "p5", "p4", "p0", "p6"] if verb == "grow" else ["p1", "p6", "p0", "p4", "p5"]
    assert [str(line).split()[1] for line in shown] == best
