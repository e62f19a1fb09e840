"""Triage's forecasts: learned from runs, readable priors, budgets in words, and why a pipeline is skipped. Without Spark."""

import builtins
import json
import math
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pyspark.ml import Transformer
from pyspark.sql import DataFrame

from sparkdiff.cli.app import main
from sparkdiff.errors import InputError
from sparkdiff.fleet import triage_run
from sparkdiff.fleet.triage_run import (
    EARLY,
    FAILED,
    KEPT,
    REFUSED,
    SKIPPED,
    AssessedEntry,
    EarlyStop,
    EarlyStopListener,
    Entry,
    Triage,
    Triaged,
    _run,
    _why_little,
    _why_not,
    entries_of,
    name_of,
    names_of,
    triage,
)
from sparkdiff.history.pipeline_facts import FACTS, Samples, earlier_run_facts
from sparkdiff.history.run_forecasts import NAMES, Forecast, Forecaster, PastRun, features, of_store, priors
from sparkdiff.improvement.budget import core_seconds
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import Holder


def learned(count: int = 80) -> list[PastRun]:
    """Runs that are kept where z is large, and whose cost grows with the rows."""
    draw = random.Random(0)
    out = []
    for _ in range(count):
        z, rows, each = draw.uniform(-3, 6), draw.choice([500.0, 1000.0, 4000.0]), draw.choice([1e-5, 2e-5, 1e-4])
        facts = {"rows": rows, "lastEpochZ": z, "parameters": 10.0, "candidates": 1.0, "stages": 3.0, "width": 5.0}
        facts |= {"secondsPerRow": each, "epochs": 40.0}
        beyond = max(0.0, rows - 2000) * each * 40  # core-seconds, were these trained as the sample was
        out.append(PastRun(facts, z > 2, 0.3 if z > 2 else 0.0, 2.0 + rows / 1000 + 0.3 * beyond))
    return out


def test_a_forecast_follows_what_was_learned() -> None:
    forecaster = Forecaster(learned())
    facts = {**learned()[0].facts, "rows": 1000.0, "secondsPerRow": 2e-5}
    good, bad = forecaster({**facts, "lastEpochZ": 5.0}), forecaster({**facts, "lastEpochZ": -2.0})
    assert good.probability > 0.8 > 0.2 > bad.probability
    assert good.gain == pytest.approx(0.3) and good.worth > 10 * bad.worth
    assert good.coreSeconds == pytest.approx(3.0, rel=0.1)
    assert forecaster({**facts, "rows": 4000.0}).coreSeconds == pytest.approx(6.0 + 0.3 * 1.6, rel=0.1)
    large = {**facts, "rows": 12000.0, "secondsPerRow": 1e-4}  # 10,000 rows beyond the sample
    assert forecaster(large).coreSeconds == pytest.approx(2.0 + 12.0 + 0.3 * 40.0, rel=0.1)
    assert forecaster({**large, "candidates": 3.0}).coreSeconds == pytest.approx(2.0 + 12.0 + 0.3 * 120.0, rel=0.1)


def test_a_wide_sparse_table_costs_what_it_stores() -> None:
    draw, runs = random.Random(0), list[PastRun]()
    for _ in range(60):
        rows, width = draw.choice([500.0, 5000.0, 20000.0]), draw.choice([5.0, 50.0])
        facts = {"rows": rows, "width": width, "stages": 3.0, "lastEpochZ": draw.uniform(-3, 6)}
        runs.append(PastRun(facts, draw.random() < 0.5, 0.1, 2.0 + rows * width / 1e5))  # without entries
    forecaster = Forecaster(runs)
    wide = {**runs[0].facts, "rows": 20000.0, "width": 10000.0}
    assert forecaster({**wide, "entries": 50.0}).coreSeconds == pytest.approx(12.0, rel=0.05)
    assert forecaster(wide).coreSeconds > 1000


def test_facts_may_be_missing_and_gains_are_clipped() -> None:
    assert all(math.isnan(v) or v == 0.0 for v in features({}))
    assert dict(zip(NAMES, features({"stepGain": -9.0, "lastEpochZ": 99.0}), strict=True))["stepGain"] == -1.0
    large = [PastRun(k.facts, k.kept, 40.0 if k.kept else 0.0, k.coreSeconds) for k in learned()]
    found = Forecaster(large)({"rows": 500.0})
    assert 0 < found.gain <= 0.5


def test_the_shipped_runs_are_readable_and_of_both_kinds() -> None:
    shipped = priors()
    assert {k.kept for k in shipped} == {True, False} and all(k.coreSeconds > 0 for k in shipped)
    assert {"gradientSignal", "quadraticGain", "lastEpochZ"} <= {n for k in shipped for n in k.facts}
    assert all(math.isfinite(v) for k in shipped for v in k.facts.values())


def test_only_runs_that_triage_started_are_learned_from() -> None:
    run = {
        "verb": "finetune",
        "kept": False,
        "gain": 0.2,
        "coreSeconds": 3.0,
        "tags": {FACTS: json.dumps({"rows": 9.0})},
    }
    others = [{**run, "tags": {}}, {**run, "verb": "improve"}, {**run, "tags": None}]
    assert of_store([run, *others]) == [PastRun({"rows": 9.0}, True, 0.2, 3.0)]
    assert of_store([{**run, "kept": True}])[0].gain == 0.0


@pytest.mark.parametrize("text", ["about cats", "[1]", '{"rows": "many"}', '{"cats": 2}', '{"rows": NaN}', "null"])
def test_a_tag_that_holds_no_facts_is_passed_over(text: str) -> None:
    run = {"verb": "finetune", "kept": False, "gain": 0.2, "coreSeconds": 3.0, "tags": {FACTS: text}}
    assert of_store([run]) == []
    facts = {FACTS: json.dumps({"rows": 9.0})}
    assert of_store([{**run, "tags": facts, "coreSeconds": None}, {**run, "tags": facts, "gain": None}]) == []


def test_history_tells_the_last_run_and_the_drift_since() -> None:
    made = {"model": "m", "verb": "finetune", "kept": False, "gain": 0.1, "after": 2.0}
    made |= {"metricDirection": "smaller", "metric": "rmse", "options": None}
    assert earlier_run_facts([made], "m", 2.5, "rmse", {}) == {
        "known": 1.0,
        "lastTuned": 1.0,
        "lastGain": 0.1,
        "drift": pytest.approx(0.25),
    }
    kept = {**made, "kept": True, "after": 0.8, "metricDirection": "larger"}
    found = earlier_run_facts([made, kept], "m", 0.6, "rmse", {})
    assert found["lastTuned"] == 0.0 and found["drift"] == pytest.approx(0.25)
    assert (
        earlier_run_facts([made], "another", 2.5, "rmse", {}) == {} == earlier_run_facts([made], None, 2.5, "rmse", {})
    )
    assert "drift" not in earlier_run_facts([made], "m", 2.5, "mae", {}), "another metric"
    assert earlier_run_facts([{**made, "verb": "search"}], "m", 2.5, "rmse", {}) == {}
    half = {**made, "options": json.dumps({"lossParams": {"quantile": 0.9}, "metricParams": {"quantile": 0.5}})}
    assert "drift" in earlier_run_facts([half], "m", 2.5, "rmse", {"lossParams": {"quantile": 0.5}, "metricParams": {}})
    assert "drift" not in earlier_run_facts([half], "m", 2.5, "rmse", {"metricParams": {"quantile": 0.95}}), (
        "other parameters"
    )


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4 core-hours", 14400),
        ("30 core-minutes", 1800),
        ("90s", 90),
        ("1.5h", 5400),
        ("2 hours", 7200),
        ("5 min", 300),
        ("3 Core-Secs", 3),
    ],
)
def test_a_budget_in_words(text: str, seconds: float) -> None:
    assert core_seconds(text) == seconds


WRONG = [
    "",
    "4",
    "four hours",
    "0h",
    "300 passes",
    "4 core-days",
    "-1h",
    "4 cores",
    "4 hec",
    "5 mours",
    "3 sin",
    3600,
    None,
]


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_budget_is_named(text: Any) -> None:
    with pytest.raises(InputError, match="4 core-hours") as e:
        core_seconds(text)
    assert repr(text) in str(e.value)


@pytest.mark.parametrize("share", ["0.8", None, 0, 1.5, float("nan")])
def test_what_is_no_share_is_named(share: Any) -> None:
    with pytest.raises(InputError, match=f"share={share!r} must be above 0"):
        triage([], budget="1h", share=share)


def test_without_scikit_learn_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=r"sparkdiff\[triage\]"):
        Forecaster(learned())


def judged(forecast: Forecast | None, **facts: float) -> AssessedEntry:
    entry = Entry("churn", None, None, None, {}, None)  # type: ignore[arg-type]
    return AssessedEntry(entry, facts, forecast, 1.0, "" if forecast else "column 'y' is missing")


def test_each_skip_has_its_reason() -> None:
    some = Forecast(0.1, 0.2, 8.0)
    assert _why_not(judged(some), 1, 0.5, 0.95, 100.0) == ""
    assert "8 core-seconds, and 5 of the budget are left" in _why_not(judged(some), 1, 0.5, 0.95, 5.0)
    little = _why_not(judged(some, known=1.0, drift=0.0, gradientSignal=0.1), 3, 0.96, 0.95, 100.0)
    assert "3 pipelines before it promise 96%" in little and "the last run kept the original" in little
    assert "gradient is near 0" in little and "not got worse" in little
    assert "chance explains" in _why_little({"gradientSignal": 1.0}, some)


class Fleet:
    """Triage of entries that are judged and run by the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *forecasts: Forecast) -> None:
        self.ran = list[str]()
        self.outcomes = dict[str, str]()
        self.seconds = 0.0
        self.facts = 0.0
        made = [Entry(f"p{i}", None, None, None, {}, None) for i in range(len(forecasts))]  # type: ignore[arg-type]
        found = dict(zip((e.name for e in made), forecasts, strict=True))

        def judge(entry: Entry, *rest: Any) -> AssessedEntry:
            self.seconds += self.facts
            return AssessedEntry(entry, {"metricSign": 1.0}, found[entry.name], self.facts)

        def run(j: AssessedEntry, storeDir: str | None) -> tuple[Triaged, Any]:
            self.ran.append(j.entry.name)
            self.seconds += j.forecast.coreSeconds if j.forecast else 0.0
            return Triaged(j.entry.name, j.forecast, self.outcomes.get(j.entry.name, KEPT), "", 0.0, 1.0, {}), None

        monkeypatch.setattr(triage_run, "entries_of", lambda *given: made)
        monkeypatch.setattr(triage_run, "Forecaster", lambda runs: None)
        monkeypatch.setattr(triage_run, "_assess_entry", judge)
        monkeypatch.setattr(triage_run, "_run", run)
        monkeypatch.setattr(triage_run.resources, "cpu_seconds", lambda: self.seconds)


FOUR = (Forecast(0.9, 0.5, 10.0), Forecast(0.8, 0.5, 10.0), Forecast(0.1, 0.5, 10.0), Forecast(0.05, 0.5, 90.0))


@pytest.mark.parametrize("budget", ["15s", "25s", "1h"])
def test_a_dry_run_plans_what_a_run_does(monkeypatch: pytest.MonkeyPatch, budget: str) -> None:
    fleet = Fleet(monkeypatch, *FOUR)
    planned = triage([], budget=budget, dryRun=True)
    assert not fleet.ran
    triage([], budget=budget)
    assert [p.name for p in planned.pipelines if p.why.startswith("would run as number")] == fleet.ran
    assert len(fleet.ran) == (1 if budget == "15s" else 2)


@pytest.mark.parametrize("outcome", [REFUSED, FAILED])
def test_what_a_run_without_a_result_promised_does_not_count(monkeypatch: pytest.MonkeyPatch, outcome: str) -> None:
    fleet = Fleet(monkeypatch, *FOUR)
    fleet.outcomes["p0"] = outcome
    found = triage([], budget="1h", share=0.5)
    assert fleet.ran == ["p0", "p1"]
    assert "the 1 pipelines before it promise 84% of the gain" in found.pipelines[2].why  # 0.8 of 0.8 + 0.1 + 0.05


def test_facts_are_not_found_beyond_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Fleet(monkeypatch, *FOUR)
    fleet.facts = 8.0
    found = triage([], budget="15s")
    assert [p.coreSeconds for p in found.pipelines] == [8.0, 8.0, 0.0, 0.0] and not fleet.ran
    assert "used up before its facts" in found.pipelines[-1].why and found.pipelines[-1].outcome == SKIPPED


def test_an_error_that_nobody_expected_fails_one_pipeline_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __init__(self, *given: Any, **options: Any) -> None:
            raise ZeroDivisionError("by chance")

    monkeypatch.setattr(triage_run, "FineTuner", Broken)
    found, model = _run(judged(FOUR[0], metricSign=1.0), None)
    assert (found.outcome, found.why, model) == (FAILED, "ZeroDivisionError: by chance", None)
    fleet = Fleet(monkeypatch, *FOUR)

    def done(pipeline: Triaged, model: Any) -> None:
        raise OSError("disk is full")

    told = triage([], budget="1h", done=done)
    assert fleet.ran == ["p0", "p1"] and [p.outcome for p in told.pipelines[:2]] == [FAILED, FAILED]
    assert "disk is full" in told.pipelines[0].why
    monkeypatch.undo()
    monkeypatch.setattr(triage_run, "prepare", Broken)
    monkeypatch.setattr(triage_run, "plain", lambda model: model)
    entry = Entry("p", None, None, None, {}, Options())  # type: ignore[arg-type]
    assert triage_run._assess_entry(entry, [], None, Samples()).outcome == FAILED  # type: ignore[arg-type]
    folds = Entry("p", None, None, None, {}, Options(numFolds=5))  # type: ignore[arg-type]
    assert "numFolds=5" in triage_run._assess_entry(folds, [], None, Samples()).why  # type: ignore[arg-type]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_run_without_gain_is_stopped_and_another_one_is_not(sign: float) -> None:
    def row(epoch: int, loss: float | None) -> dict[str, Any]:
        return {"epoch": epoch, "validationMetric": None if loss is None else sign * loss}

    bad, good = EarlyStopListener(sign), EarlyStopListener(sign)
    for epoch in range(EARLY + 1):
        bad.on_epoch(row(epoch, 1.0))
        good.on_epoch(row(epoch, 1.0 if epoch != 3 else 0.9))
    bad_end = row(EARLY + 1, None)
    with pytest.raises(EarlyStop):
        bad.on_epoch(bad_end)
    good.on_epoch(row(EARLY + 1, 2.0))


def test_a_result_shows_itself() -> None:
    p = Triaged("churn", Forecast(0.25, 0.1, 8.0), SKIPPED, "would run as number 1", 0.0, 1.0, {"rows": 5.0})
    refused = Triaged("x", None, "refused", "no rows", 0.0, 0.5, {})
    found = Triage((p, refused), 3600.0, 2.0, 300, 12)
    assert "25%" in str(found) and "300 runs that sparkdiff ships and 12 of the store" in str(found)
    assert json.loads(found.toJSON())["pipelines"][0]["forecast"]["probability"] == 0.25
    assert list(found.toPandas()["name"]) == ["churn", "x"]


class Identity(Transformer):
    """A model that may be named."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset


class Held(Holder):
    """As a FineTunerModel."""

    pipelineModel = Identity()


def test_a_store_knows_the_pipeline_in_a_model_that_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triage_run, "hash_of", lambda model, path, folder: (model, path))
    for model, path, inside in (
        (Held(), None, None),
        (Held(), "file:///m", "file:///m/pipelineModel"),
        (Identity(), "s3a://m/n", "s3a://m/n"),
    ):
        entry = Entry("p", model, path, None, {}, None)  # type: ignore[arg-type]
        assert entry.content() == (getattr(model, "pipelineModel", model), inside)


def test_wrong_fleets_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for fleet, why in (([], "empty"), ("models/churn", "list of mappings"), ([{"data": "x"}], "no model")):
        with pytest.raises(InputError, match=why):
            entries_of(fleet, {})
    with pytest.raises(InputError, match=r"churn: unknown option 'label'"):
        entries_of([{"model": "models/churn", "data": "x.parquet", "label": "y"}], {})
    table = pd.DataFrame({"x": [1]})
    monkeypatch.setattr(triage_run, "load_model", lambda path: Identity())
    for data, why in ((table, "churn: data must be a Spark DataFrame"), (7, "churn: data must be")):
        with pytest.raises(InputError, match=why):
            entries_of([{"model": Path("models/churn"), "data": data}], {})
    assert (
        name_of(Path("models/churn")) == name_of("runs/churn/model") == "churn" and name_of("models/churn/") == "churn"
    )


def test_models_of_one_name_are_named_by_differing_folders() -> None:
    given = ["file:///m/a/churn", "file:///m/b/v1/churn/model", "file:///m/risk", "s3a://m/2/x", "s3a://m/1/x"]
    assert names_of(given) == ["a-churn", "b-v1-churn-model", "risk", "2-x", "1-x"]
    assert names_of(given[:1] * 2) == ["churn", "churn"]


@pytest.mark.parametrize(("outcome", "code"), [(FAILED, 1), (KEPT, 0)])
def test_the_command_fails_where_a_pipeline_does(outcome: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Triage((Triaged("p", None, outcome, "", 0.0, 1.0, {}),), 90.0, 1.0, 0, 0, {})
    for name in ("check_there", "start_session"):
        monkeypatch.setattr(f"sparkdiff.data.loading.{name}", lambda *a, **k: None)
    monkeypatch.setattr("sparkdiff.fleet.triage_run.triage_paths", lambda *a, **k: found)
    assert main(["triage", "/m", "--data", "/d.parquet", "--budget", "90s", "--json"]) == code
