"""Runs that are kept: what the store holds and what not, and where a model comes from."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame

import sparkdiff
from sparkdiff import FineTunerModel, InputError
from sparkdiff.cli.app import main
from sparkdiff.data.stream import usage
from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import DONE, WRONG_INPUT
from sparkdiff.history import caches, run_store, run_table
from tests.support.small_data import tune


@pytest.fixture(scope="module")
def kept(
    numeric: PipelineModel, df: DataFrame, shared: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PipelineModel, list[PipelineModel]]:
    """A store of four runs: three tunings, each of the one before, and one that kept the last one; and the models."""
    where = tmp_path_factory.mktemp("kept") / "runs of café"
    models = [numeric]
    for epochs in (2, 3, 4):
        tuned = tune(
            models[-1],
            df,
            shared,
            storeDir=str(where),
            tags={"team": "risk"},
            maxEpochs=epochs,
            guardCols=["hour"],
            guard=1.0,
        )
        assert tuned.summary.decision == "tuned"
        models.append(tuned.pipelineModel)
    last = tune(models[-1], df, shared, storeDir=str(where), maxEpochs=1, learningRate=1e-9, guardCols=["hour"])
    assert last.summary.decision == "kept original"
    return where, numeric, models


@pytest.mark.nightly
def test_a_row_tells_what_the_summary_tells(kept: tuple[Path, Any, Any], df: DataFrame) -> None:
    first, second, third, last = run_table.rows(kept[0])
    assert [r["kept"] for r in (first, second, third, last)] == [False, False, False, True]
    assert (
        first["model"] == second["parent"] and second["model"] == third["parent"] and third["model"] == last["parent"]
    )
    assert last["model"] == last["parent"] and first["parent"] not in (first["model"], None)
    assert sum(first["rows"].values()) == df.count() and first["data"] == second["data"] and last["cacheHit"]
    assert first["tags"] == {"team": "risk"} and first["metric"] == "poisson" and first["after"] < first["before"]
    assert [s["trained"] for s in first["stages"]] == [False, True, True, True]
    values = [t["value"] for t in first["tried"]]
    assert len(values) == 1 and min(values) == pytest.approx(first["after"], rel=1e-9)
    assert len(first["curves"]) == 3  # one candidate; the original, and two epochs
    assert min(first["seconds"], first["coreSeconds"]) > 0 and first["timings"].keys() >= {"cache", "train"}
    assert json.loads(first["options"])["maxEpochs"] == 2 and first["versions"]["sparkdiff"] == sparkdiff.__version__


def test_nothing_of_the_rows_and_no_folder_is_in_the_store(kept: tuple[Path, Any, Any], shared: Path) -> None:
    for run in run_table.rows(kept[0]):
        told = json.dumps(run, default=str)
        assert str(shared) not in told and "h0" not in told and "h4" not in told
        assert "tags" in told and "hour" in told  # columns are named


def test_a_user_may_allow_more(numeric: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path) -> None:
    tune(numeric, df, shared, storeDir=str(tmp_path), redact=False, maxEpochs=1, guardCols=["hour"])
    told = json.dumps(run_table.rows(tmp_path), default=str)
    assert str(shared) in told and '\\"h4\\"' in told


def test_the_frame_has_the_same_runs(kept: tuple[Path, Any, Any]) -> None:
    found = sparkdiff.runs(str(kept[0]))
    rows = found.where("not kept and tags['team'] = 'risk'").sort("finished").collect()
    assert [r["model"] for r in rows] == [r["model"] for r in run_table.rows(kept[0])[:3]]
    assert found.schema["stages"].dataType.elementType.names == ["stageClass", "role", "trained"]
    run_store.compact(kept[0])
    assert sparkdiff.runs(str(kept[0])).count() == 4


def test_a_copied_and_renamed_model_names_all_ancestors(kept: tuple[Path, Any, Any], tmp_path: Path) -> None:
    where, _, models = kept
    models[-1].write().save(f"file://{tmp_path / 'first'}")
    shutil.copytree(tmp_path / "first", tmp_path / "another name")
    found = sparkdiff.why(tmp_path / "another name", str(where))
    rows = run_table.rows(where)
    assert [s.run["id"] for s in found.steps] == [r["id"] for r in rows[2::-1]]
    assert found.origin == rows[0]["parent"] and [r["id"] for r in found.attempts] == [rows[3]["id"]]
    assert found.steps[0].cacheOf == rows[0]["id"] and found.steps[2].cacheOf is None
    text = str(found)
    assert text.count("made by finetune") == 3 and "GeneralizedLinearRegressionModel" in text and "considered 1" in text
    assert json.loads(found.toJSON())["steps"][0]["run"]["model"] == found.model
    held = FineTunerModel(models[1], models[0], None)  # type: ignore[arg-type]
    assert sparkdiff.why(held, str(where)).model == rows[0]["model"]


def test_why_from_a_shell_by_relative_paths_and_without_spark(kept: tuple[Path, Any, Any], tmp_path: Path) -> None:
    where, _, models = kept
    models[-1].write().save(f"file://{tmp_path / 'churn'}")
    shutil.copytree(where, tmp_path / "runs")
    command = [sys.executable, "-m", "sparkdiff", "why", "churn", "--store", "runs", "--draw", "churn.svg"]
    nowhere = {
        **os.environ,
        "JAVA_HOME": str(tmp_path / "no java"),
        "PYTHONPATH": str(Path(sparkdiff.__file__).parents[1]),
    }
    done = subprocess.run(command, cwd=tmp_path, env=nowhere, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("made by finetune") == 3
    picture = (tmp_path / "churn.svg").read_text()
    assert (
        picture.count("finetune, ") == 3
        and picture.count('class="reused"') == 2
        and run_table.rows(where)[2]["model"][:12] in picture
    )


def test_a_foreign_model_is_told_what_is_known(
    kept: tuple[Path, Any, Any], model: PipelineModel, tmp_path: Path
) -> None:
    found = sparkdiff.why(model, str(kept[0]))
    assert not found.steps and found.origin == found.model and "no run in this store made it" in str(found)
    with pytest.raises(InputError, match="no run in this store made"):
        found.command()
    with pytest.raises(InputError, match="nothing to draw"):
        found.draw()
    with pytest.raises(InputError, match=r"no saved model in '.*nothing'"):
        sparkdiff.why(tmp_path / "nothing", str(kept[0]))
    with pytest.raises(InputError, match=r"redact=true"):
        sparkdiff.why(kept[2][1], str(kept[0])).command()


def test_a_search_is_kept(df: DataFrame, numeric: PipelineModel, tmp_path: Path) -> None:
    scored = numeric.transform(df).select("components", "riders")
    head = GeneralizedLinearRegression(featuresCol="components", labelCol="riders", family="poisson", maxIter=2)
    space = {head.regParam: sparkdiff.choice(0.0, 10.0)}
    found = sparkdiff.Search(
        head,
        space=space,
        evaluator=RegressionEvaluator(labelCol="riders"),
        sampler="grid",
        storeDir=str(tmp_path),
        numFolds=2,
    ).fit(scored)
    (row,) = run_table.rows(tmp_path)
    assert (row["verb"], row["decision"], row["parent"]) == ("search", found.summary.decision, None)
    assert [t["value"] for t in row["tried"]] == [r["rmse"] for r in found.records] and row["model"] is not None


def test_commands(kept: tuple[Path, Any, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = str(kept[0])
    assert main(["runs", where, "--where", "not kept", "--sort", "gain", "--limit", "2"]) == DONE
    told = capsys.readouterr()
    assert told.out.count("finetune") == 2 and "--limit shows them" in told.out
    assert "starting Spark, for --where" in told.err
    assert main(["runs", where, "--where", "kept", "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)["decision"] == "kept original"
    assert main(["runs", where, "--where", "gainn > 1"]) == WRONG_INPUT and "Did you mean" in capsys.readouterr().err
    assert main(["runs", str(tmp_path)]) == WRONG_INPUT and "there are no runs" in capsys.readouterr().err


def test_a_store_that_cannot_be_written_is_named_first(numeric: PipelineModel, df: DataFrame, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"storeDir='.*file' cannot be used"):
        tune(numeric, df, tmp_path / "caches", storeDir=str(tmp_path / "file"))
    assert not (tmp_path / "caches").exists()


def test_a_cache_knows_its_maker_its_uses_and_its_readers(
    numeric: PipelineModel, df: DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tune(numeric, df, tmp_path, maxEpochs=1, runId="first")
    (found,) = [e for e in caches.entries(tmp_path) if e.kind == "cache"]
    old = tmp_path / "0123456789abcdef"
    shutil.copytree(found.path, old)
    told = json.loads((old / usage.NAME).read_text())
    (old / usage.NAME).write_text(json.dumps(told | {"last": "2026-01-01T00:00:00+00:00"}))
    tune(numeric, df, tmp_path, maxEpochs=1, cacheMaxAge=7, verbosity=1)
    assert "removed 1 entry" in capsys.readouterr().err and not old.exists()
    (found,) = [e for e in caches.entries(tmp_path) if e.kind == "cache"]
    assert (found.run, found.uses, found.rows, found.read, found.madeBy) == (
        "first",
        2,
        df.count(),
        False,
        ["VectorAssembler"],
    ) and found.seconds > 0
    with Stream(found.path):
        assert caches.entries(tmp_path)[0].read and not caches.remove([found])
    assert caches.remove([found]) == [found]
    assert not found.path.exists() and not [e for e in caches.entries(tmp_path) if e.kind == "cache"]
