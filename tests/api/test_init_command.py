"""`sparkdiff init`: a YAML file from a saved pipeline and its rows, which runs as it is."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.sql import SparkSession

from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, WRONG_INPUT


@pytest.fixture(scope="module")
def here(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved pipeline, its rows, and a pipeline in which nothing trains."""
    folder = tmp_path_factory.mktemp("init")
    rows = [(float(i % 7), float(i % 3), f"u{i % 40}", i, float(i % 7 > 3)) for i in range(400)]
    df = spark.createDataFrame(rows, "a double, `b: #1` double, user_id string, number int, churned double")
    df.write.parquet(str(folder / "rows.parquet"))
    df.toPandas().to_csv(folder / "rows.csv", index=False)
    stages = [
        VectorAssembler(inputCols=["a", "b: #1"], outputCol="features"),
        LogisticRegression(labelCol="churned", maxIter=1, regParam=1.0),
    ]
    Pipeline(stages=stages).fit(df).save(str(folder / "churn"))
    index = StringIndexer(inputCol="user_id", outputCol="index").fit(df)
    PipelineModel([index]).save(str(folder / "index"))
    return folder


@pytest.mark.nightly
def test_the_file_runs_as_it_is(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    assert main(["init", "churn", "--data", "rows.parquet", "--output", "churn.yaml"]) == DONE
    assert "next: sparkdiff finetune --config churn.yaml" in capsys.readouterr().out
    text = (here / "churn.yaml").read_text()
    assert yaml.safe_load(text) == {
        "pipeline": "churn",
        "data": {"train": {"path": "rows.parquet", "format": "parquet"}},
        "fineTuner": {"labelCol": "churned", "seed": 0},
        "output": "runs/churn",
    }
    assert "LogisticRegressionModel would train, 3 parameters." in text
    assert "# groupCol: user_id " in text
    assert "reads the columns a, b: #1." in text
    quick = ["fineTuner.maxEpochs=1", "fineTuner.recipe=fast", "fineTuner.verbosity=0"]
    kept = ["fineTuner.storeDir=kept", "fineTuner.redact=false"]
    assert main(["finetune", "--config", "churn.yaml", *quick, *kept]) == DONE
    first = json.loads((here / "runs" / "churn" / "summary.json").read_text())
    capsys.readouterr()
    # The store knows the model by the folder of the run, and the command that it tells makes the same model.
    assert main(["why", "runs/churn", "--store", "kept", "--json"]) == DONE
    made = json.loads(capsys.readouterr().out)["steps"][0]["run"]
    assert (made["model"], made["parent"]) == (first["model"]["hash"], first["parent"]["hash"])
    assert made["verb"] == "finetune" and made["output"].endswith("runs/churn") and made["decision"] == "tuned"
    assert main(["why", "runs/churn", "--store", "kept", "--reproduce"]) == DONE
    command = shlex.split(capsys.readouterr().out)
    assert command[0] == "sparkdiff" and main([*command[1:], "output.path=runs/again"]) == DONE
    again = json.loads((here / "runs" / "again" / "summary.json").read_text())
    assert again["model"]["hash"] == first["model"]["hash"]
    # The report of a run of a tuned model shows where that comes from.
    second = [
        "finetune",
        "--config",
        "churn.yaml",
        "pipeline=runs/churn/model",
        "output.path=runs/second",
        *quick,
        *kept,
    ]
    assert main(second) == DONE
    report = (here / "runs" / "second" / "report.html").read_text()
    assert "Where the original comes from" in report and f">model {first['model']['hash'][:12]}<" in report
    assert "Where the original comes from" not in (here / "runs" / "churn" / "report.html").read_text()


def test_rows_in_a_csv_file_and_comments_that_are_settings(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(here)
    assert (
        main(["init", str(here / "churn"), "--data", "rows.csv", "--label", "number", "--output", "csv.yaml"]) == DONE
    )
    text = (here / "csv.yaml").read_text()
    found = yaml.safe_load(text)
    assert found["data"]["train"] == {
        "path": "rows.csv",
        "format": "csv",
        "options": {"header": True, "inferSchema": True},
    }
    assert found["fineTuner"]["labelCol"] == "number"
    every = yaml.safe_load(text.replace("\n  # ", "\n  "))  # whoever takes a comment's mark away has a setting
    assert {"groupCol", "timeCol", "metric", "maxEpochs"} <= every["fineTuner"].keys()
    assert {"train", "validation", "test"} == every["data"].keys()
    (here / "rows").write_bytes((here / "rows.csv").read_bytes())
    reading = ["--data", "rows", "--format", "csv", "--options", '{"sep": ",", "comment": "#"}']
    assert main(["init", "churn", *reading, "--output", "told.yaml"]) == DONE
    assert yaml.safe_load((here / "told.yaml").read_text())["data"]["train"] == {
        "path": "rows",
        "format": "csv",
        "options": {"header": True, "inferSchema": True, "sep": ",", "comment": "#"},
    }


def test_what_cannot_be_configured(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(here)
    (here / "there.yaml").write_text("mine")
    for told, message in (
        (["churn", "--output", "there.yaml"], "exists: choose another name"),
        (["churn", "--output", "no/folder.yaml"], "there is no folder"),
        (["index", "--output", "index.yaml"], "nothing in "),
        (
            ["churn", "--data", "rows.parquet", "--label", "left", "--output", "left.yaml"],
            "the label column 'left' is not in the data",
        ),
        (["nothing"], "no Spark ML model can be loaded"),
    ):
        assert main(["init", *told]) == WRONG_INPUT
        assert message in capsys.readouterr().err
    assert (here / "there.yaml").read_text() == "mine"
    assert not (here / "left.yaml").exists()
