"""`sparkdiff plan`: text, JSON, a schema, and its exit codes."""

import json
from pathlib import Path

import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import Interaction, StringIndexer, VectorAssembler
from pyspark.sql import SparkSession

from sparkdiff import FineTunerModel, InputError
from sparkdiff.cli.app import main
from sparkdiff.errors import DONE, NOT_STRICT, WRONG_INPUT

SCHEMA = "kind string, a double, b float"


@pytest.fixture(scope="module")
def saved(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A pipeline with an indexer, and one that is translated whole."""
    df = spark.createDataFrame([("x", 1.0, 2.0), ("y", 0.5, 1.0)], "kind string, a double, b double")
    products = Interaction(inputCols=["a", "b"], outputCol="products")
    assembled = VectorAssembler(inputCols=["products", "a"], outputCol="features")
    index = StringIndexer(inputCol="kind", outputCol="index").fit(df)
    folder, out = tmp_path_factory.mktemp("plans"), {}
    for name, stages in (("all", [index, products, assembled]), ("torch", [products, assembled])):
        PipelineModel(stages).save(str(folder / name))
        out[name] = str(folder / name)
    return out


def test_as_text(saved: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", saved["all"]]) == DONE
    text = capsys.readouterr().out.splitlines()
    assert (
        text[2].split(maxsplit=4)[4] == "nothing to train; whether a, b hold categories is decided when data are seen"
    )
    assert main(["plan", saved["all"], "--schema", SCHEMA]) == DONE
    assert capsys.readouterr().out.splitlines()[2].split(maxsplit=4)[4] == "nothing to train"


def test_as_json(saved: dict[str, str], spark: SparkSession, capsys: pytest.CaptureFixture[str]) -> None:
    schema = spark.createDataFrame([], SCHEMA).schema
    assert main(["plan", saved["all"], "--json", "--schema", schema.json()]) == DONE
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"stages", "cacheCols", "edges", "head"}
    assert [set(s) for s in found["stages"]] == [
        {
            "path",
            "uid",
            "stageClass",
            "role",
            "cached",
            "trainable",
            "numParameters",
            "inputCols",
            "outputCols",
            "reason",
        }
    ] * 3
    page = (Path(__file__).parents[2] / "docs" / "plan.md").read_text()
    assert all(f"`{key}`" in page or f".{key}`" in page for key in found["stages"][0])


def test_exit_codes(saved: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", saved["all"], "--strict"]) == NOT_STRICT
    assert main(["plan", saved["torch"], "--strict"]) == DONE
    capsys.readouterr()
    for schema, message in (
        ("kind string, a double", "reads column 'b', which is not in the data"),
        ("a dubble", "--schema must be DDL"),
        ("{}", "--schema must be DDL"),
        ('{"type": "struct"}', "--schema must be DDL"),
    ):
        assert main(["plan", saved["all"], "--schema", schema]) == WRONG_INPUT
        assert message in capsys.readouterr().err


def test_a_damaged_model_is_one_sentence(
    spark: SparkSession, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metadata").mkdir()
    for metadata in ("", "{}", "[]", "7", '{"class": 5}', '{"class": "org.apache.spark.ml.PipelineModel"}'):
        (tmp_path / "metadata" / "part-00000").write_text(metadata)
        assert main(["plan", str(tmp_path)]) == WRONG_INPUT
        assert f"no Spark ML model can be loaded from file://{tmp_path}: " in capsys.readouterr().err
        with pytest.raises(InputError, match=f"{tmp_path} (is damaged|holds a)"):
            FineTunerModel.load(str(tmp_path))
