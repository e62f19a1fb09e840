"""Pipelines without one of their stages: what is left, and what must be fitted anew."""

from pathlib import Path
from typing import Any

from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, MultilayerPerceptronClassifier, OneVsRest
from pyspark.ml.feature import (
    PCA,
    ElementwiseProduct,
    Normalizer,
    PolynomialExpansion,
    SQLTransformer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame

from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.unfitted_form import refit, unfitted_form
from sparkdiff.serving.compact.deletion import deletions
from tests.support.readable_uids import named


def told(model: Any, **options: Any) -> dict[str, tuple[str, ...]]:
    return {d.uid: d.mustRefit for d in deletions(model, **options)}


def test_what_can_go_and_what_must_be_fitted_anew(df: DataFrame, fitted: dict[str, Any]) -> None:
    pca = named("pca", PCA, inputCol="scaled", outputCol="p", k=2)
    stages = [fitted["indexer"], fitted["encoder"], fitted["assembler"], fitted["scaler"], pca]
    model = Pipeline(stages=[*stages, named("linear", LinearRegression, featuresCol="p", labelCol="count")]).fit(df)
    assert told(model) == {"scaler": (), "pca": ("linear",)}
    scaler, projection = deletions(model)
    assert [s.uid for s in scaler.pipeline.stages] == ["indexer", "encoder", "assembler", "pca", "linear"]
    assert scaler.pipeline.uid == model.uid
    assert scaler.pipeline.stages[3].getInputCol() == "vector"
    by_hand = model.stages[5].transform(
        model.stages[4].transform(fitted["assembler"].transform(df).withColumnRenamed("vector", "scaled"))
    )
    assert scaler.pipeline.transform(df).select("prediction").collect() == by_hand.select("prediction").collect()
    assert projection.pipeline.stages[4].getFeaturesCol() == "scaled"
    again = refit(unfitted_form(projection.pipeline), df)
    assert again.stages[4].numFeatures == 3
    assert "prediction" in again.transform(df).columns
    assert [s.uid for s in model.stages] == ["indexer", "encoder", "assembler", "scaler", "pca", "linear"]
    assert model.stages[4].getInputCol() == "scaled"


def test_what_cannot_go(df: DataFrame, fitted: dict[str, Any]) -> None:
    linear = fitted["linear"].copy({fitted["linear"].featuresCol: "scaled"})
    chain = [fitted["assembler"], fitted["scaler"], linear]
    assert list(told(PipelineModel(chain))) == ["scaler"]
    assert told(PipelineModel(chain[:2])) == {}  # nobody reads it
    sql = SQLTransformer(statement="SELECT * FROM __THIS__")
    assert told(PipelineModel([*chain[:2], sql, linear])) == {}  # who knows what it reads
    again = named("again", VectorAssembler, inputCols=["weight", "index"], outputCol="vector")
    assert told(PipelineModel([*chain[:2], again, linear])) == {}  # its input is not there any more
    outside = VectorAssembler(inputCols=["scaled", "a"], outputCol="all", handleInvalid="keep")
    behind = fitted["linear"].copy({fitted["linear"].featuresCol: "all"})
    assert told(PipelineModel([fitted["scaler"], outside, behind])) == {}  # Spark would not know the width of `vector`
    assert list(told(PipelineModel([fitted["assembler"], fitted["scaler"], outside, behind]))) == ["scaler"]


def test_two_readers_in_nested_pipelines(df: DataFrame, fitted: dict[str, Any]) -> None:
    norm = named("norm", Normalizer, inputCol="scaled", outputCol="n")
    first, second = (
        fitted[name].copy({fitted[name].featuresCol: column, fitted[name].predictionCol: f"by {name}"})
        for name, column in (("linear", "scaled"), ("glr", "n"))
    )
    model = PipelineModel(
        [PipelineModel([fitted["assembler"], fitted["scaler"]]), PipelineModel([norm, first, second])]
    )
    found = {d.uid: d for d in deletions(model)}
    assert {uid: d.mustRefit for uid, d in found.items()} == {"scaler": (), "norm": ()}
    assert [s.uid for _, s in flatten(found["norm"].pipeline)] == ["assembler", "scaler", "linear", "glr"]
    assert [len(s.stages) for s in found["scaler"].pipeline.stages] == [1, 3]
    vectors = fitted["assembler"].transform(df)
    expected = norm.copy({norm.inputCol: "vector"}).transform(vectors).select("n").collect()
    assert found["scaler"].pipeline.transform(df).select("n").collect() == expected


def test_a_selection_of_all_entries_keeps_the_width(df: DataFrame, fitted: dict[str, Any]) -> None:
    linear = fitted["linear"].copy({fitted["linear"].featuresCol: "s"})
    for indices, must in (([2, 0, 1], ()), ([0, 1], ("linear",))):
        slicer = named("slicer", VectorSlicer, inputCol="scaled", outputCol="s", indices=indices)
        found = told(PipelineModel([fitted["assembler"], fitted["scaler"], slicer, linear]))
        assert found["slicer"] == must


def test_one_vs_rest_models_read_the_other_column(df: DataFrame, fitted: dict[str, Any], tmp_path: Path) -> None:
    rest = named("rest", OneVsRest, classifier=LogisticRegression(maxIter=2), featuresCol="scaled", labelCol="grade")
    head = [fitted["assembler"], fitted["scaler"]]
    model = rest.fit(PipelineModel(head).transform(df))
    (only,) = deletions(PipelineModel([*head, model]))
    vectors = fitted["assembler"].transform(df).withColumnRenamed("vector", "scaled")
    expected = model.transform(vectors).select("rawPrediction", "prediction").collect()
    only.pipeline.save(str(tmp_path / "model"))
    for found in (only.pipeline, PipelineModel.load(str(tmp_path / "model"))):
        assert found.transform(df).select("rawPrediction", "prediction").collect() == expected
    assert {m.getFeaturesCol() for m in model.models} == {"scaled"}


def test_settings_of_stages_that_are_fitted_anew(df: DataFrame, fitted: dict[str, Any]) -> None:
    """Where vectors get another width, Params that hold it change too; Params of single entries forbid it."""
    pca, join = fitted["pca"], named("join", VectorAssembler, inputCols=["components", "a"], outputCol="all")
    network = named("network", MultilayerPerceptronClassifier, featuresCol="all", layers=[3, 2, 2], maxIter=1)
    model = Pipeline(stages=[fitted["assembler"], pca, join, network]).fit(df)
    (only,) = deletions(model)
    assert (only.uid, only.mustRefit) == ("pca", ("network",))
    assert only.pipeline.stages[2].getOrDefault("layers") == [4, 2, 2]
    assert model.stages[3].getOrDefault("layers") == [3, 2, 2]
    assert refit(unfitted_form(only.pipeline), df).stages[2].numFeatures == 4
    product = ElementwiseProduct(inputCol="components", outputCol="e", scalingVec=Vectors.dense(1.0, 2.0))
    linear = fitted["linear"].copy({fitted["linear"].featuresCol: "e"})
    assert list(told(PipelineModel([fitted["assembler"], pca, product, linear]))) == [product.uid]
    wide = named("wide", PolynomialExpansion, inputCol="vector", outputCol="powers", degree=2)
    after = PCA(inputCol="powers", outputCol="p", k=4).fit(wide.transform(fitted["assembler"].transform(df)))
    assert told(PipelineModel([fitted["assembler"], wide, after])) == {}  # three entries have no four components
