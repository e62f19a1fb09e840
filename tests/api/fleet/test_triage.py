"""Triage of real pipelines: facts tell slack from an optimum, the budget is spent on the best, runs are kept and learned from."""

import json
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame

import sparkdiff
from sparkdiff import InputError
from sparkdiff.cli.app import main
from sparkdiff.errors import WRONG_INPUT
from sparkdiff.fleet import triage_run
from sparkdiff.history import run_table
from sparkdiff.history.pipeline_facts import FACTS
from sparkdiff.history.run_forecasts import PastRun
from tests.support.small_data import QUICK, pipeline

FAST = {**QUICK, "stream": "arrow", "verbosity": 0}


@pytest.fixture(scope="module")
def best(df: DataFrame) -> PipelineModel:
    """A Poisson regression on all numbers, at its optimum on these rows."""
    return pipeline(df, GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson"))


@pytest.fixture
def learned(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shipped runs that are kept where the first epochs gain."""
    few = []
    for i in range(40):
        gain = -0.05 + 0.01 * (i % 20)
        few.append(PastRun({"rows": 1500.0, "lastEpochGain": gain}, gain > 0.05, max(gain, 0.0), 4.0))
    monkeypatch.setattr(triage_run, "priors", lambda: tuple(few))


def test_triage_runs_the_best_and_learns_from_it(
    learned: None, numeric: PipelineModel, best: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path
) -> None:
    fleet = [
        {"name": "optimum", "model": best, "data": df},
        {"name": "slack", "model": numeric, "data": df},
        {"name": "no label", "model": best, "data": df, "labelCol": "churned"},
    ]
    options: dict[str, Any] = {"storeDir": str(tmp_path / "runs"), "cacheDir": str(shared), **FAST}
    found = sparkdiff.triage(fleet, budget="10 core-minutes", share=0.5, **options)
    assert [p.name for p in found.pipelines] == ["slack", "optimum", "no label"]
    assert [p.outcome for p in found.pipelines] == ["tuned", "skipped", "refused"]
    assert "pipelines before it promise" in found.pipelines[1].why and "churned" in found.pipelines[2].why
    assert [*found.models] == ["slack"] and found.pipelines[0].gain > 0.02 and found.own == 0
    [run] = run_table.rows(tmp_path / "runs")
    assert json.loads(run["tags"][FACTS])["gradientSignal"] > 5
    again = [{"name": "tuned", "model": found.models["slack"], "data": df}]
    second = sparkdiff.triage(again, budget="1h", dryRun=True, **options)
    assert second.own == 1 and second.models == {} and second.pipelines[0].outcome == "skipped"
    facts = second.pipelines[0].facts
    assert facts["known"] == facts["lastTuned"] == 1.0 and facts["lastGain"] == pytest.approx(run["gain"])
    assert abs(facts["drift"]) < 0.02


def test_a_hopeless_run_is_stopped_and_leaves_nothing(
    learned: None, best: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triage_run, "EARLY", 2)
    options: dict[str, Any] = {**FAST, "learningRate": 10.0, "maxEpochs": 30, "patience": 30}
    found = sparkdiff.triage(
        [{"model": best, "data": df}], budget="1h", storeDir=str(tmp_path / "runs"), cacheDir=str(shared), **options
    )
    assert [p.outcome for p in found.pipelines] == ["stopped"] and "after 2 epochs" in found.pipelines[0].why
    assert not (tmp_path / "runs").exists() or not [*(tmp_path / "runs").iterdir()]
    assert [*(shared / "checkpoints").glob("*")] == []


def test_a_budget_that_is_spent_skips_the_rest(
    learned: None, numeric: PipelineModel, df: DataFrame, shared: Path
) -> None:
    found = sparkdiff.triage([{"model": numeric, "data": df}], budget="0.01s", cacheDir=str(shared), **FAST)
    assert [p.outcome for p in found.pipelines] == ["skipped"] and "budget of 0 core-seconds" in found.pipelines[0].why


def test_wrong_inputs_are_named(
    learned: None, best: PipelineModel, df: DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def why(fleet: Any, **more: Any) -> str:
        with pytest.raises(InputError) as e:
            sparkdiff.triage(fleet, **{"budget": "1h", **FAST, **more})
        return str(e.value)

    good = {"model": best, "data": df}
    assert "4 core-hours" in why([good], budget="soon")
    assert "churn: no Spark ML model can be loaded" in why([{"model": str(tmp_path / "churn"), "data": df}])
    assert "no pipeline of the fleet can be tuned" in why([{**good, "labelCol": "churned"}])
    assert "'churned'" in why([{**good, "labelCol": "churned"}])
    (tmp_path / "file").write_text("")
    assert "storeDir" in why([good], storeDir=str(tmp_path / "file"))
    assert "two entries" in why([good, good])
    assert "no fitted pipeline" in why([{"model": Pipeline(stages=[]), "data": df, "name": "x"}])
    assert "share=2" in why([good], share=2)
    absent = ["triage", str(tmp_path / "churn"), "--data", str(tmp_path / "rows.parquet"), "--budget"]
    assert main([*absent, "1h"]) == WRONG_INPUT and "it does not exist" in capsys.readouterr().err
    assert main([*absent, "soon"]) == WRONG_INPUT and "budget='soon'" in capsys.readouterr().err


def test_the_command_saves_what_it_tuned(
    learned: None,
    numeric: PipelineModel,
    df: DataFrame,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    model, rows, out = tmp_path / "churn", tmp_path / "rows.parquet", tmp_path / "tuned"
    numeric.write().save(f"file://{model}")
    df.coalesce(1).write.parquet(f"file://{rows}")
    command = ["triage", str(model), "--data", str(rows), "--budget", "1h", "--output"]
    before = {*tmp_path.iterdir()}
    for where, why in (("s3a://lake/tuned", "file system of this machine"), (rows / "_SUCCESS", "Not a directory")):
        assert main([*command, str(where)]) == WRONG_INPUT
        assert why in (told := capsys.readouterr()).err and not told.out
    assert main([*command, f"file://{out}", "--json"]) == 0
    assert {*tmp_path.iterdir()} == {*before, out} and [*out.iterdir()] == [out / "churn"]
    told = json.loads(capsys.readouterr().out)
    assert told["pipelines"][0]["outcome"] == "tuned"
    loaded = PipelineModel.load(f"file://{out}/churn")
    assert [type(s) for s in loaded.stages] == [type(s) for s in numeric.stages]
    assert main([*command, str(out)]) == WRONG_INPUT and "churn' exists already" in capsys.readouterr().err
