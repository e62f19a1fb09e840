"""`sparkdiff grow`: a job with a section `grower`, from its YAML to the run's folder, and read back from there."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel

from sparkdiff import GrowthSummary
from sparkdiff.cli import starting
from sparkdiff.cli.app import main
from sparkdiff.cli.config import load_config
from sparkdiff.errors import DONE, WRONG_INPUT
from sparkdiff.growth import checkpoints
from sparkdiff.growth.checkpoints import RoundFiles
from sparkdiff.improvement.arms import growing

JOB = """
pipeline: grown_here:pipeline
data: {train: rows.parquet}
grower: {parts: [crosses], rounds: 1}
fineTuner: {maxEpochs: 2, recipe: fast, runId: mine, numFolds: 2}
output: out
"""
PIPELINE = """
from pyspark.ml import Pipeline
from pyspark.ml.feature import OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.ml.regression import LinearRegression

def pipeline(train):
    words = ["kind", "season"]
    return Pipeline(stages=[
        StringIndexer(inputCols=words, outputCols=[f"{w}_index" for w in words]),
        OneHotEncoder(inputCols=[f"{w}_index" for w in words], outputCols=[f"{w}_hot" for w in words]),
        VectorAssembler(inputCols=["kind_hot", "season_hot", "x"], outputCol="features"),
        LinearRegression(labelCol="LABEL"),
    ])
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job in a folder: `sales` has kind x season in it, `noise` has nothing."""
    random = np.random.default_rng(0)
    kind, season = random.integers(0, 4, 1500), random.integers(0, 3, 1500)
    x, noise = random.normal(size=(2, 1500))
    rows = {
        "x": x,
        "kind": np.array([*"abcd"])[kind],
        "season": np.array(["dry", "wet", "cold"])[season],
        "sales": x + random.normal(size=(4, 3))[kind, season] + 0.3 * noise,
        "noise": noise,
    }
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    (tmp_path / "grown_here.py").write_text(PIPELINE.replace("LABEL", "sales"))
    (tmp_path / "job.yaml").write_text(JOB)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_file_to_a_folder_and_back(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grow", "--config", "job.yaml"]) == DONE
    out = capsys.readouterr().out
    where = ["saved out/model (plain Spark ML)", "report: out/report.html", "next: sparkdiff plan out"]
    assert out.splitlines()[-3:] == where
    assert 0 < out.index("parts may read it as") < out.index("decision: ")
    assert sorted(p.name for p in (job / "out").iterdir()) == [
        ".sparkdiff",
        "history.csv",
        "model",
        "plan.json",
        "report.html",
        "summary.json",
    ]
    told: dict[str, Any] = json.loads((job / "out" / "summary.json").read_text())
    assert told["decision"] == "grown"
    assert [p["name"] for p in told["parts"]] == ["kind x season"]
    assert {r["kind"] for r in told["rounds"]} == {"crosses"}
    assert [f["fold"] for f in told["folds"]] == [2] and told["options"]["numFolds"] == 2
    assert told["servingCost"]["after"] > told["servingCost"]["before"]
    model = PipelineModel.load(f"file://{job}/out/model")
    assert all(type(stage).__module__.startswith("pyspark.ml.") for stage in model.stages)
    assert "Interaction" in {type(stage).__name__ for stage in model.stages}
    assert [s["uid"] for s in told["shippedStages"]] == [stage.uid for stage in model.stages]
    report = (job / "out" / "report.html").read_text()
    assert f"become {len(model.stages)}; added: " in report and "The new pipeline beside the original" in report
    assert f"finished {told['finished'][:10]}" in report

    written = (job / "out" / "summary.json").stat().st_mtime_ns
    again = starting.run(load_config(Path("job.yaml"), []))  # finished: read back
    assert (job / "out" / "summary.json").stat().st_mtime_ns == written
    assert isinstance(again, GrowthSummary)
    assert {k: v for k, v in again.asdict().items() if k not in ("timings", "options")} == {
        k: v for k, v in told.items() if k in again.asdict() and k not in ("timings", "options")
    }
    assert "kind x season" in str(again)
    assert main(["grow", "--config", "job.yaml", "grower.rounds=2"]) == WRONG_INPUT
    error = capsys.readouterr().err
    assert "exists: choose another folder" in error and error.count("error: ") == 1


@pytest.mark.nightly  # test_from_a_file_to_a_folder_and_back reads one back, test_grown_by_folds keeps one
def test_a_job_that_keeps_the_original_is_read_back_too(job: Path) -> None:
    (job / "grown_here.py").write_text(PIPELINE.replace("LABEL", "noise"))
    overrides = ["pipeline=noise_here:pipeline", "fineTuner.runId=noise", "grower.complexity=1000"]
    (job / "grown_here.py").rename(job / "noise_here.py")
    first, again = (starting.run(load_config(Path("job.yaml"), overrides)) for _ in range(2))
    assert first.decision == again.decision == "kept original"
    assert again.reason == first.reason
    assert "no part joined" in again.reason
    assert (len(again.rounds), len(again.history)) == (len(first.rounds), 0)


@pytest.mark.nightly  # without a job: test_item_processes and test_growing
def test_a_job_that_was_interrupted_goes_on(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*given: Any, **more: Any) -> Any:
        raise KeyboardInterrupt

    config = load_config(Path("job.yaml"), ["fineTuner={maxEpochs: 2, recipe: fast, maxSeconds: 3000, numFolds: 2}"])
    with monkeypatch.context() as m:
        m.setattr(growing, "check_without_parts", stop)
        with pytest.raises(KeyboardInterrupt):
            starting.run(config)
    assert not (job / "out").exists()
    train = checkpoints.train

    def only_in_folds(kept: RoundFiles, *given: Any, **more: Any) -> Any:
        return (train if "-fold" in kept.path.parent.name else stop)(kept, *given, **more)

    # The rounds that explore were over: none of their parts trains again.
    monkeypatch.setattr(checkpoints, "train", only_in_folds)
    assert starting.run(config).decision == "grown"


@pytest.mark.nightly
def test_no_time_is_told_and_no_name_keeps_no_checkpoints(job: Path) -> None:
    """By default rows are divided as shows the smallest gains."""
    summary = starting.run(load_config(Path("job.yaml"), ["fineTuner={maxEpochs: 2, recipe: fast, maxSeconds: 0.001}"]))
    assert summary.decision == "kept original"
    assert summary.options["numFolds"] == "auto"
    assert summary.reason == (
        "no part joined: maxSeconds was over before the first part was trained; to train more parts, raise maxSeconds=0.001"
    )
    assert any(w.startswith("growth stopped early: maxSeconds") for w in summary.warnings)
    assert [*(job / ".cache").iterdir()] and not [*(job / ".cache").glob("checkpoints/*")]


def test_a_pipeline_without_a_linear_stage_is_one_line(job: Path, capsys: Any) -> None:
    forest = PIPELINE.replace("LinearRegression", "RandomForestRegressor").replace("LABEL", "sales")
    (job / "forest_here.py").write_text(forest)
    assert (
        main(["grow", "--config", "job.yaml", "pipeline=forest_here:pipeline", "fineTuner.verbosity=0"]) == WRONG_INPUT
    )
    error = capsys.readouterr().err
    assert "is no linear stage" in error and error.startswith("error: ") and error.count("\n") == 1
    assert not (job / "out").exists()
