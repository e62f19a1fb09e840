"""What differs between two pipelines: content hashes, stages, Params, weights, and predictions on the same rows."""

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.clustering import BisectingKMeans
from pyspark.ml.feature import (
    Imputer,
    IndexToString,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.recommendation import ALS, ALSModel
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError, translate, write_back
from sparkdiff.cli.app import main
from sparkdiff.evaluation.model_differences import Difference, between
from sparkdiff.evaluation.prediction_differences import predictions
from sparkdiff.store.saved_digests import hash_of_folder
from tests.support.small_data import NUMBERS, Write, unfitted


def save(model: Any, path: Path) -> Path:
    model.write().overwrite().save(f"file://{path}")
    return path


def changed(model: Any, change: float = 0.25) -> Any:
    """The pipeline with one entry of its PCA's matrix moved and the predictor's intercept scaled."""
    network = translate(model)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if name.endswith("pc"):
                p[1, 0] += change
            if name.endswith("intercept"):
                p *= 1 + change
    return write_back(model, network)


def what(found: Difference) -> list[str]:
    return [s.what for s in found.stages]


# The content hash ---------------------------------------------------------------------------------------------------


def test_the_hash_tells_weights_and_params(model: PipelineModel, runs: tuple[Path, Path], tmp_path: Path) -> None:
    first = hash_of_folder(runs[0])
    assert hash_of_folder(save(changed(model, 1e-15), tmp_path / "a")) != first
    assert hash_of_folder(save(write_back(model, translate(model)), tmp_path / "b")) == first
    other = model.copy()
    other.stages[0].setHandleInvalid("keep")
    assert hash_of_folder(save(other, tmp_path / "c")) != first


def test_trees_hash_the_same_a_second_later(df: DataFrame, tmp_path: Path) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    trees = GBTClassifier(labelCol="rain", maxIter=2, maxDepth=2, seed=1)
    first = hash_of_folder(save(trees.fit(data), tmp_path / "a"))
    time.sleep(1.1)  # every tree's own metadata hold the time
    assert hash_of_folder(save(trees.copy().fit(data), tmp_path / "b")) == first
    assert hash_of_folder(save(trees.setStepSize(0.2).fit(data), tmp_path / "c")) != first


def test_factors_repartitioned_on_loading_hash_the_same(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(i % 5, i % 3, i % 4) for i in range(20)], ["user", "item", "stars"])
    als = ALS(ratingCol="stars", rank=2, maxIter=1, seed=1, numUserBlocks=5, numItemBlocks=1)
    first = save(als.fit(rows), tmp_path / "a")
    again = save(ALSModel.load(f"file://{first}"), tmp_path / "b")
    assert len([*first.rglob("part-*")]) > len([*again.rglob("part-*")])
    assert hash_of_folder(first) == hash_of_folder(again)


# Stages -------------------------------------------------------------------------------------------------------------


def test_the_same_model_differs_in_nothing(
    model: PipelineModel, runs: tuple[Path, Path], df: DataFrame, tmp_path: Path
) -> None:
    """Neither the time when it was saved nor uids count."""
    loaded, again = PipelineModel.load(f"file://{runs[0]}"), unfitted().fit(df)
    assert again.stages[0].uid != model.stages[0].uid
    first = hash_of_folder(runs[0])
    for old, other in ((model, loaded), (loaded, again)):
        found = between(old, other, tmp_path, paths=(None if old is model else str(runs[0]), None))
        assert found.same
        assert found.oldHash == found.newHash == first
        assert what(found) == ["same"] * 6
        assert str(found).startswith("the same: 6 stages")


def test_weights_that_moved_are_told_with_their_distance(model: PipelineModel, tmp_path: Path) -> None:
    new = changed(model)
    found = between(model, new, tmp_path)
    assert not found.same
    assert found.oldHash != found.newHash
    assert what(found) == ["same"] * 4 + ["differs"] * 2
    pca, glr = found.stages[4:]
    old_pc, new_pc = (m.stages[4].pc.toArray() for m in (model, new))
    (weight,) = pca.weights
    assert (weight.parameter, weight.shape, weight.newShape) == ("pc", old_pc.shape, old_pc.shape)
    assert (weight.entries, weight.differ) == (old_pc.size, 1)
    assert weight.maxAbsDiff == pytest.approx(0.25, rel=1e-12)
    assert weight.maxRelDiff == pytest.approx(0.25 / max(abs(old_pc[1, 0]), abs(new_pc[1, 0])), rel=1e-12)
    assert [w.parameter for w in glr.weights] == ["intercept"]
    assert glr.weights[0].maxRelDiff == pytest.approx(0.2, rel=1e-12)  # of the larger one
    assert not pca.params
    assert not pca.content
    text = str(found)
    assert "2 of 6 stages differ" in text
    assert "1 of 24" in text
    assert not json.loads(found.toJSON())["same"]


def test_params_that_differ_are_told_with_where_they_come_from(model: PipelineModel, tmp_path: Path) -> None:
    new = model.copy()
    new.stages[0].setHandleInvalid("keep")
    new.stages[3].set(new.stages[3].withStd, True)  # as by default, but set
    found = between(model, new, tmp_path)
    assert what(found) == ["differs", "same", "same", "differs", "same", "same"]
    (handle,) = found.stages[0].params
    assert (handle.param, handle.old, handle.new) == ("handleInvalid", ("default", "error"), ("set", "keep"))
    assert [p.param for p in found.stages[3].params] == ["withStd"]
    assert not found.stages[0].content  # nothing but the Param
    assert 'handleInvalid: "error" (default) -> "keep" (set)' in str(found)


@pytest.mark.nightly
def test_stages_that_are_missing_moved_or_others(numeric: PipelineModel, df: DataFrame, tmp_path: Path) -> None:
    s = list(numeric.stages)
    known = str(save(numeric, tmp_path / "numeric"))
    found = between(numeric, PipelineModel([*s[:2], s[3]]), tmp_path, paths=(known, None))
    assert what(found) == ["same"] * 2 + ["only in old", "same"]
    assert not found.same
    assert "2 PCAModel" in str(found)
    found = between(PipelineModel([PipelineModel(s[:2]), s[3]]), numeric, tmp_path, paths=(None, known))
    assert what(found) == ["same"] * 3 + ["only in new"]
    assert (found.stages[1].path, found.stages[1].newPath) == ((0, 1), (1,))
    swapped = between(numeric, PipelineModel([s[1], s[0], *s[2:]]), tmp_path, paths=(known, None))
    assert what(swapped) == ["same"] * 4
    assert not swapped.same
    assert "2 of 4 stages differ" in str(swapped)
    assert repr(swapped).startswith("<Difference: 2 of 4 stages differ")
    assert "<td" in swapped._repr_html_()
    # Fitted again without the PCA: no uid is known, the classes tell who is who.
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
        GeneralizedLinearRegression(featuresCol="scaled", labelCol="riders", family="poisson"),
    ]
    found = between(numeric, Pipeline(stages=stages).fit(df), tmp_path, paths=(known, None))
    assert what(found) == ["same"] * 2 + ["only in old", "differs"]
    assert [p.param for p in found.stages[3].params] == ["featuresCol"]
    coefficients = found.stages[3].weights[0]
    assert (coefficients.shape, coefficients.newShape, coefficients.differ) == ((2,), (4,), None)
    assert "[2] -> [4]" in str(found)


def test_another_class_in_the_same_place(df: DataFrame, tmp_path: Path) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    old = Pipeline(stages=[assembler, LogisticRegression(labelCol="rain", maxIter=2)]).fit(df)
    new = Pipeline(stages=[assembler, GBTClassifier(labelCol="rain", maxIter=1, maxDepth=1)]).fit(df)
    found = between(old, new, tmp_path)
    assert what(found) == ["same", "class differs"]
    assert "is 1 GBTClassificationModel" in str(found)
    assert not found.stages[1].weights


def test_stages_without_a_torch_form_are_told_by_what_they_save(
    df: DataFrame, write: Write, table: pa.Table, tmp_path: Path
) -> None:
    data = VectorAssembler(inputCols=NUMBERS, outputCol="features").transform(df)
    one, two = (BisectingKMeans(k=2, seed=seed, maxIter=1).fit(data.limit(rows)) for seed, rows in ((1, 100), (1, 90)))
    found = between(one, two, tmp_path)
    assert what(found) == ["differs"]
    assert found.stages[0].content
    assert "saved content differs (not translated)" in str(found)
    assert between(one, one.copy(), tmp_path).same
    fewer = write(table.filter(pa.compute.not_equal(table["hour"], "h4")))
    indexers = [StringIndexer(inputCol="hour", outputCol="index").fit(rows) for rows in (df, fewer)]
    assert between(*indexers, tmp_path).stages[0].content


def test_what_is_not_fitted_is_refused(model: PipelineModel, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="isn't fitted"):
        between(model, unfitted(), tmp_path)


# Predictions --------------------------------------------------------------------------------------------------------


def test_numbers_by_how_far_they_move(model: PipelineModel, df: DataFrame) -> None:
    new = changed(model, 0.1)
    found = predictions(model, new, df)
    (prediction,) = found.numbers
    assert not found.labels
    a, b = (np.array(m.transform(df).select("prediction").toPandas())[:, 0] for m in (model, new))
    moved = np.abs(a - b)
    assert found.rows == found.sampled == prediction.rows == len(a)
    assert (prediction.column, prediction.changed, prediction.undefined) == ("prediction", int((a != b).sum()), 0)
    assert prediction.meanAbsChange == pytest.approx(moved.mean(), rel=1e-9)
    assert prediction.maxAbsChange == moved.max()
    for q, value in prediction.quantiles.items():
        assert value == pytest.approx(np.quantile(moved, float(q)), rel=0.05)
    same = predictions(model, model, df).numbers[0]
    assert (same.changed, same.maxAbsChange) == (0, 0.0)


@pytest.mark.nightly
def test_labels_by_how_many_flip(df: DataFrame) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    stages = [
        assembler,
        LogisticRegression(labelCol="rain", maxIter=5),
        IndexToString(inputCol="prediction", outputCol="word", labels=["dry", "wet"]),
    ]
    old = Pipeline(stages=stages).fit(df)
    network = translate(old)
    with torch.no_grad():
        next(p for n, p in network.named_parameters() if n.endswith("interceptVector")).add_(0.5)
    new = write_back(old, network)
    found = predictions(old, new, df)
    (flip,), (probability,) = found.labels, found.numbers
    a, b = (m.transform(df).select("prediction", "probability").toPandas() for m in (old, new))
    flips = int((a.prediction != b.prediction).sum())
    assert flips > 0
    assert (flip.column, flip.rows, flip.flips, flip.share) == ("prediction", len(a), flips, flips / len(a))
    moved = np.abs(
        np.stack(a.probability.map(lambda v: v.toArray())) - np.stack(b.probability.map(lambda v: v.toArray()))
    )
    assert probability.column == "probability"
    assert probability.maxAbsChange == pytest.approx(moved.max(), rel=1e-12)
    assert probability.meanAbsChange == pytest.approx(moved.max(axis=1).mean(), rel=1e-9)
    # Trees have no torch form, and their predictions are labels all the same.
    trees = Pipeline(stages=[assembler, GBTClassifier(labelCol="rain", maxIter=1, maxDepth=1)]).fit(df)
    assert [f.column for f in predictions(old, trees, df).labels] == ["prediction"]
    # Without a predictor the last stage's columns are compared, words as labels.
    words = [
        PipelineModel([IndexToString(inputCol="rain", outputCol="word", labels=w)]) for w in (["a", "b"], ["a", "c"])
    ]
    (word,) = predictions(*words, df).labels
    assert word.flips == df.where("rain = 1").count()


@pytest.mark.nightly
def test_a_sample_is_the_same_rows_each_time(model: PipelineModel, df: DataFrame) -> None:
    new = changed(model)
    first = predictions(model, new, df, 200)
    assert first.rows == 200
    shuffled = predictions(model, new, df.repartition(5), 200)
    assert shuffled.numbers[0].maxAbsChange == first.numbers[0].maxAbsChange
    assert shuffled.numbers[0].meanAbsChange == pytest.approx(first.numbers[0].meanAbsChange, rel=1e-12)
    assert predictions(model, new, df, 10**6).rows == df.count()


def test_columns_of_the_data_are_not_overwritten(df: DataFrame) -> None:
    """Two pipelines read a column that bears the name of what is kept aside of the first one's row; two columns share a name."""
    names = ["__sparkdiff_row", "__SPARKDIFF_0"]
    data = df.withColumnsRenamed({"temp": names[0], "hum": names[1]}).select(
        "*", F.lit(1).alias("x2"), F.lit(2).alias("X2")
    )
    models = [PipelineModel([VectorAssembler(inputCols=n, outputCol="both")]) for n in (names, names[::-1])]
    (found,) = predictions(*models, data).numbers
    (distance,) = df.agg(F.avg(F.abs(F.col("temp") - F.col("hum")))).first()
    assert found.meanAbsChange == pytest.approx(distance, rel=1e-12)


def test_rows_and_columns_that_a_pipeline_changes(df: DataFrame, write: Write, table: pa.Table) -> None:
    # Both overwrite `temp`: the second one must see the data's, not the first one's.
    holes = table.set_column(
        1, "temp", pa.array([None if i % 3 else v for i, v in enumerate(table["temp"].to_pylist())])
    )
    data = write(holes)

    def pipeline(strategy: str) -> PipelineModel:
        imputer = Imputer(inputCols=["temp"], outputCols=["temp"], strategy=strategy)
        return Pipeline(stages=[imputer, VectorAssembler(inputCols=["temp"], outputCol="vector")]).fit(data)

    old, new = pipeline("mean"), pipeline("median")
    gap = abs(old.stages[0].surrogateDF.first()[0] - new.stages[0].surrogateDF.first()[0])
    (vector,) = predictions(old, new, data).numbers
    assert vector.changed == sum(v is None for v in holes["temp"].to_pylist())
    assert vector.maxAbsChange == pytest.approx(gap, rel=1e-12)
    # Rows that a stage drops are told.
    skips = PipelineModel([VectorAssembler(inputCols=["temp"], outputCol="vector", handleInvalid="skip")])
    found = predictions(skips, skips, data)
    assert found.sampled - found.rows == vector.changed
    # NaN on one side has no distance.
    keeps = PipelineModel([VectorAssembler(inputCols=["temp"], outputCol="vector", handleInvalid="keep")])
    (vector,) = predictions(keeps, old, data).numbers
    assert vector.undefined == vector.changed == found.sampled - found.rows
    assert vector.maxAbsChange == 0.0
    narrow = PipelineModel([SQLTransformer(statement="SELECT temp FROM __THIS__"), keeps])
    with pytest.raises(InputError, match="drops columns"):
        predictions(narrow, old, data)


def test_what_cannot_be_compared_is_said(model: PipelineModel, df: DataFrame) -> None:
    with pytest.raises(InputError, match="'wind'"):
        predictions(model, model, df.drop("wind"))
    with pytest.raises(InputError, match="no rows"):
        predictions(model, model, df.where("temp > 1e9"))
    other = PipelineModel([VectorAssembler(inputCols=NUMBERS, outputCol="vector")])
    with pytest.raises(InputError, match="no common output column"):
        predictions(model, other, df)
    strange = df.withColumn("hour", df["hour"].substr(1, 1))
    with pytest.raises(InputError, match="Spark failed"):
        predictions(model, model, strange)


# The command --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(model: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model's folder, and a run's."""
    folder = tmp_path_factory.mktemp("runs")
    save(changed(model), folder / "run" / "model")
    return save(model, folder / "model"), folder / "run"


def test_the_command_compares_folders(
    runs: tuple[Path, Path], df: DataFrame, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    old, run = map(str, runs)
    assert main(["diff", old, old]) == 0
    assert "the same: 6 stages" in capsys.readouterr().out
    df.drop("when").write.option("header", True).csv(f"file://{tmp_path}/rows")
    schema = df.drop("when").schema.simpleString().removeprefix("struct<").removesuffix(">")
    ddl = ", ".join(f"{name} {kind}" for name, kind in (c.split(":") for c in schema.split(",")))
    options = json.dumps({"header": True, "schema": ddl})
    data = ["--data", str(tmp_path / "rows"), "--format", "csv", "--options", options, "--sample", "100"]
    assert main(["diff", old, run, *data, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["predictions"]["rows"] == 100
    assert found["predictions"]["numbers"][0]["changed"] == 100
    assert [s["what"] for s in found["stages"]] == ["same"] * 4 + ["differs"] * 2
    assert found["newHash"] == hash_of_folder(Path(run) / "model")
    assert main(["diff", old, run, *data]) == 0
    text = capsys.readouterr().out
    assert "2 of 6 stages differ" in text
    assert "predictions on 100 rows:\n  prediction: 100 change, by " in text
    assert found["predictions"]["outputs"]["prediction"] == "has other values in 105 of 105 rows"  # 5 of them at edges
    assert "bit by bit, on the first rows:" in text and "  prediction has other values in 105 of 105 rows" in text
    assert main(["diff", old, old, *data]) == 0
    assert "bit by bit, on the first rows: all outputs are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{old}"], "Missing argument"),
        (["{old}", "{old}-nowhere"], "no Spark ML model"),
        (["{run}/model/stages", "{old}"], "no Spark ML model"),
        (["{old}", "{old}", "--data", "{old}-nowhere"], "cannot be read"),
        (["{old}", "{old}", "--data", "{old}", "--options", "header"], "must be a JSON object"),
        (["{old}", "{old}", "--data", "{old}", "--sample", "0"], "sample"),
    ],
)
def test_wrong_use_ends_with_2(
    arguments: list[str], said: str, runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    filled = [a.format(old=runs[0], run=runs[1]) for a in arguments]
    assert main(["diff", *filled]) == 2
    assert said in capsys.readouterr().err
