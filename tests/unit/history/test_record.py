"""A finished run as a row of the store: what each kind of run considered, and what is left out."""

import json
from typing import Any

import pyarrow as pa
import pytest

from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.history.record import record_of
from sparkdiff.history.store import SCHEMA
from sparkdiff.improvement.summary import ImprovementSummary
from sparkdiff.report import FineTuningSummary

pytestmark = pytest.mark.once

SLICE = {
    "column": "region", "value": "north", "rows": 50, "units": 50, "before": 2.0, "after": 2.2, "gain": -0.2, "error": 0.1,
    "p": 0.01,
}  # fmt: skip
FOUND: dict[str, Any] = {
    "decision": "kept original", "reason": "the slice region = 'north' gets worse",
    "metric": "poisson", "metricDirection": "smaller",
    "metrics": {"validation": {"before": 2.0, "after": 1.5}, "test": None}, "gain": 0.25, "z": 4.0, "p": 0.01, "records": [],
    "parity": {}, "stages": {}, "timings": {"train": 1.5}, "stream": "arrow", "cache": {"hit": True, "fingerprint": "f00d"},
    "options": {}, "versions": {"python": "3.11"}, "warnings": ["of the rows in /data/rows.parquet ..."], "slices": [SLICE],
    "gainInterval": [0.1, None],
}  # fmt: skip


def row(kind: type = FineTuningSummary, *, redact: bool = True, **changes: Any) -> dict[str, Any]:
    summary = kind(**{**FOUND, **changes})
    options = {"cacheDir": "/caches", "maxEpochs": 3, "penalties": {"monotone": {"color=red": 2.0}}, "tags": {"a": "b"}}
    found = record_of(
        summary, summary.records, model="a", parent="a", options=options, stages=(), coreSeconds=2.0, seconds=1.0,
        tags={"a": "b"}, redact=redact, command="sparkdiff finetune --data /rows", output="/out",
    )  # fmt: skip
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
    assert found["verb"] == "improve"
    assert [(t["kind"], t["name"], t["value"], t["outcome"]) for t in found["tried"]] == [
        ("refit", "refitted", 1.9, "accepted"), ("refit", "refitted without PCA", 1.95, "chance"),
        ("grow", "", None, "failed: x"),
    ]  # fmt: skip


def test_a_growth_has_its_parts() -> None:
    rounds = [{"round": 1, "kind": "crosses", "name": "a x b", "gain": 0.2, "seconds": 1.0, "why": ""}]
    found = row(GrowthSummary, rounds=[*rounds, rounds[0] | {"name": "a x c", "why": "less"}])
    assert [(t["name"], t["outcome"]) for t in found["tried"]] == [("a x b", "joined"), ("a x c", "less")]
    assert found["verb"] == "grow"
