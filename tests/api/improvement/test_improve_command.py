"""`sparkdiff improve`: from a saved pipeline and a table to a folder with the offers, and what it refuses."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, WRONG_INPUT
from sparkdiff.store.folder_marker import MARKER, read_marker
from tests.support.small_data import riders, same, unfitted, weights


@pytest.fixture
def folder(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pq.write_table(riders().drop_columns(["when"]), tmp_path / "rows.parquet")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_from_a_saved_model_and_a_table_to_offers(
    spark: SparkSession, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unfitted().fit(spark.read.parquet(f"file://{folder}/rows.parquet")).save(f"file://{folder}/rides")
    command = [
        "improve",
        "rides",
        "--data",
        "rows.parquet",
        "--label",
        "riders",
        "--output",
        "out",
        "--budget",
        "60 passes",
        "improver.arms=[finetune,simplify]",
        "fineTuner.recipe=fast",
        "fineTuner.maxEpochs=5",
        "fineTuner.runId=mine",
        "fineTuner.rowsAreNew=true",
        "fineTuner.numFolds=2",
    ]
    assert main(command) == DONE
    out = capsys.readouterr().out
    assert out.index("improvement of PipelineModel") < out.index("your pipeline") < out.index("decision: improved")
    offers = sorted(f"offer: out/offers/{path.name}" for path in (folder / "out").glob("offers/*"))
    saved, last = "saved out/model (plain Spark ML)", ["report: out/report.html", "next: sparkdiff diff rides out"]
    assert out.splitlines()[-3 - len(offers) :] == [saved, *offers, *last]
    told = json.loads((folder / "out" / "summary.json").read_text())
    others = [name for name in told["offers"] if name != "best"]
    assert (folder / "out" / "offers").exists() == any(
        told["offers"][name] != told["offers"]["best"] for name in others
    )
    assert {path.name for path in (folder / "out").iterdir()} <= {
        MARKER,
        *read_marker(folder / "out"),
    }  # what a later run may replace
    best = PipelineModel.load(f"file://{folder}/out/model")
    for path in (folder / "out").glob("offers/*"):
        other = PipelineModel.load(f"file://{path}")
        assert weights(other).keys() != weights(best).keys() or not same(other, best)
    written = (folder / "out" / "summary.json").stat().st_mtime_ns
    assert main(command) == DONE  # finished: read back
    assert (folder / "out" / "summary.json").stat().st_mtime_ns == written
    assert "your pipeline" in capsys.readouterr().out


@pytest.mark.nightly
def test_a_killed_improvement_begins_anew_with_another_budget(spark: SparkSession, folder: Path) -> None:
    unfitted().fit(spark.read.parquet(f"file://{folder}/rows.parquet")).save(f"file://{folder}/rides")
    command = [
        "improve",
        "rides",
        "--data",
        "rows.parquet",
        "--label",
        "riders",
        "--output",
        "out",
        "improver.arms=[finetune]",
        "fineTuner.recipe=fast",
        "fineTuner.maxEpochs=2",
        "fineTuner.rowsAreNew=true",
        "fineTuner.numFolds=2",
    ]
    killed = subprocess.Popen([sys.executable, "-m", "sparkdiff", *command, "--budget", "2000 passes"])
    places, latest = folder / ".cache" / "checkpoints", time.monotonic() + 300
    while not (kept := [*places.glob("*-improve/order.pt")]):
        assert killed.poll() is None and time.monotonic() < latest, "no order of arms was kept"
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    (kept[0].parent / "of a later version").mkdir()  # which writes what this one doesn't know
    assert main([*command, "--budget", "60 passes"]) == DONE
    assert json.loads((folder / "out" / "summary.json").read_text())["budget"]["given"] == "60 passes"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--budget", "never"], "improver: budget='never' must be a time"),
        (["improver.arms=[grwo]"], "Did you mean 'grow'"),
        (["grower.rounds=2"], "sections 'grower' and 'improver', which are two jobs"),
        (["fineTuner.maxSeconds=5"], "its time is `budget`"),
    ],
)
def test_wrong_flags_are_one_line(
    flags: list[str], says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["improve", "rides", "--data", "rows.parquet", "--label", "riders", "--output", "out", *flags]
    assert main(command) == WRONG_INPUT
    error = capsys.readouterr().err
    assert says in error
    assert error.count("error: ") == 1
    assert not (folder / "out").exists()
