"""Pipelines of every shape: stages of others, unfitted ones, several heads, odd names, structs, columns in place."""

import inspect
from pathlib import Path
from typing import Any

import pyspark.ml.classification
import pyspark.ml.clustering
import pyspark.ml.feature
import pyspark.ml.fpm
import pyspark.ml.recommendation
import pyspark.ml.regression
import pyspark.ml.tuning
import pytest
import torch
from pyspark.errors import PySparkException
from pyspark.ml import Estimator, Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRest
from pyspark.ml.feature import (
    IDF,
    PCA,
    Binarizer,
    Bucketizer,
    HashingTF,
    Imputer,
    Interaction,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialExpansion,
    RobustScaler,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.ml.regression import GBTRegressor, LinearRegression
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import InputError, plan, translate, verify, write_back
from sparkdiff.evaluation.pipeline_warnings import dropped_late
from sparkdiff.pipeline.cut import analyse
from tests.support.custom_stages import BoosterModel, Clipped, OnTheGpu, Squared
from tests.support.readable_uids import named


def with_params(stage: Any, **params: Any) -> Any:
    return stage.copy({stage.getParam(name): value for name, value in params.items()})


def assembler(*names: str, outputCol: str = "features") -> VectorAssembler:
    return VectorAssembler(inputCols=list(names), outputCol=outputCol)


def of(found: sparkdiff.Plan, uid: str) -> Any:
    (only,) = (s for s in found.stages if s.uid == uid)
    return only


# Stages that aren't fitted ----------------------------------------------------------------------------------------------

MODULES = (
    pyspark.ml.classification,
    pyspark.ml.clustering,
    pyspark.ml.feature,
    pyspark.ml.fpm,
    pyspark.ml.recommendation,
    pyspark.ml.regression,
    pyspark.ml.tuning,
)
ESTIMATORS = {
    name: cls
    for module in MODULES
    for name, cls in inspect.getmembers(module, inspect.isclass)
    if issubclass(cls, Estimator)
    and cls.__module__ == module.__name__
    and not (inspect.isabstract(cls) or name[0] == "_")
}


def test_all_estimators_are_there() -> None:
    assert len(ESTIMATORS) in (44, 45)  # TargetEncoder came with Spark 4


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_an_estimator_must_be_fitted_first(df: DataFrame, fitted: dict[str, Any], name: str) -> None:
    stage = ESTIMATORS[name]()
    deep = PipelineModel([fitted["assembler"], PipelineModel([PipelineModel([stage])])])
    for model in (stage, deep):
        for function in (plan, translate, lambda m: verify(m, df)):
            with pytest.raises(InputError, match=rf"{name} {stage.uid} isn't fitted: call fit.. first"):
                function(model)


def test_estimators_that_a_model_keeps_are_no_stages(df: DataFrame, fitted: dict[str, Any]) -> None:
    """OneVsRestModel holds the classifier that it was made by; a tuned model its estimator."""
    rows = fitted["assembler"].transform(df)
    model = OneVsRest(classifier=LogisticRegression(maxIter=1), featuresCol="vector", labelCol="grade").fit(rows)
    assert [s.stageClass for s in plan(model).stages] == ["OneVsRestModel"]


# Empty and plain ones ---------------------------------------------------------------------------------------------------


def test_an_empty_pipeline(df: DataFrame) -> None:
    for model in (PipelineModel([]), PipelineModel([PipelineModel([]), PipelineModel([])])):
        found, network = plan(model, schema=df.schema), translate(model)
        assert (found.stages, found.cacheCols) == ((), ())
        assert str(found).endswith("trains 0 parameters in 0 of 0 stages; the cache holds nothing")
        assert (network.inputCols, network.outputCols, network.reference, network({})) == ((), (), None, {})
        assert write_back(model, network) is model
        with pytest.raises(InputError, match="no column to compare"):
            verify(model, df)
        with pytest.raises(InputError, match="nothing to train"):
            sparkdiff.FineTuner(pipeline=model, labelCol="count").fit(df)


def test_a_pipeline_that_stays_in_spark(df: DataFrame) -> None:
    model = PipelineModel(
        [Tokenizer(inputCol="kind", outputCol="words"), Clipped()._set(inputCol="a", outputCol="clipped")]
    )
    network = translate(model)
    assert [s.role for s in plan(model).stages] == ["referenced", "referenced"]
    assert (network.inputCols, network.outputCols, network.reference, network({"a": torch.ones(2)})) == (
        (),
        (),
        None,
        {},
    )
    assert write_back(model, network) is model
    with pytest.raises(InputError, match="no column to compare"):
        verify(model, df)


# Stages of others -------------------------------------------------------------------------------------------------------


def test_a_users_own_stage(df: DataFrame, tmp_path: Path) -> None:
    """It stays as it is, in Spark, and what it does to rows and columns is done before the cache."""
    mine = named("mine", Clipped)._set(inputCol="a", outputCol="clipped")
    model = Pipeline(
        stages=[
            mine,
            assembler("clipped", "b"),
            StandardScaler(inputCol="features", outputCol="scaled"),
            LinearRegression(featuresCol="scaled", labelCol="count", regParam=1.0),
        ]
    ).fit(df)
    found = plan(model, schema=df.schema)
    assert (of(found, "mine").role, of(found, "mine").cached) == ("referenced", True)
    assert of(found, "mine").reason == (
        "not one of Spark's stages: it is assumed to change clipped only, which it declares, and may drop rows; register a "
        "StageModule for tests.support.custom_stages.Clipped to translate it"
    )
    assert [s.trainable for s in found.stages] == [False, False, True, True]
    network = translate(model)
    assert [s.uid for s in network.reference.stages] == ["mine"]
    with torch.no_grad():
        network.head.coefficients.mul_(1.5)
    new = write_back(model, network)
    assert new.stages[0] is mine
    parity = verify(new, df, network=network)
    assert parity.ok
    assert parity.rows == df.where("a > -2").count() < df.count()
    new.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert verify(loaded, df, network=network).ok


def test_what_a_users_stage_may_have_read_stays(df: DataFrame, fitted: dict[str, Any]) -> None:
    """Without the data it isn't known to read and write no more than it declares, nor to keep all rows."""
    aside = named("aside", Clipped)._set(inputCol="a", outputCol="clipped")
    model = PipelineModel(
        [
            fitted["assembler"],
            fitted["scaler"],
            aside,
            with_params(fitted["linear"], featuresCol="scaled"),
        ]
    )
    assert of(plan(model), "scaler").reason == "reads 'vector' before aside, which stays in Spark and may rewrite it"
    found = plan(model, schema=df.schema)
    assert not of(found, "scaler").trainable
    assert of(found, "scaler").reason == "comes before aside, which stays in Spark and may drop rows"
    assert of(found, "linear").trainable
    one_column = named("aside", Squared)._set(inputCol="a", outputCol="squared")
    found = plan(PipelineModel([*model.stages[:2], one_column, model.stages[3]]))
    assert of(found, "scaler").trainable
    assert of(found, "aside").reason.startswith(
        "not one of Spark's stages: it only computes its output column; register a StageModule"
    )
    assert verify(model, df).ok


def test_rows_that_are_dropped_for_what_trains(df: DataFrame, fitted: dict[str, Any]) -> None:
    """A branch that nobody reads decides which rows there are."""
    side = named("side", VectorAssembler, inputCols=["scaled", "a"], outputCol="side", handleInvalid="skip")
    linear = with_params(fitted["linear"], featuresCol="scaled")
    model = PipelineModel([fitted["assembler"], fitted["scaler"], side, linear])
    found = plan(model)
    assert [s.uid for s in found.stages if s.trainable] == ["linear"]
    assert of(found, "scaler").reason == "comes before side, which stays in Spark and may drop rows"
    assert found.cacheCols == ("scaled",)
    after = plan(PipelineModel([*model.stages[:2], linear, side]))
    assert [s.uid for s in after.stages if s.trainable] == ["linear"]
    assert of(after, "scaler").reason.startswith("also feeds side, outside the loss: side would change")
    assert of(after, "side").cached and after.cacheCols == ("scaled",)
    after = plan(PipelineModel([*model.stages[:2], linear, side]), unfreeze=["scaler.std", "scaler.mean"])
    assert [s.uid for s in after.stages if s.trainable] == ["scaler", "linear"]
    assert not of(after, "side").cached


def test_rows_that_are_dropped_behind_the_predictor(df: DataFrame, fitted: dict[str, Any]) -> None:
    """They neither train nor decide, unless the prediction tells which rows these are; then a warning does."""
    side = named("side", VectorAssembler, inputCols=["gaps"], outputCol="side", handleInvalid="skip")
    many = named("many", SQLTransformer, statement="SELECT * FROM __THIS__ WHERE prediction > 1")
    model = PipelineModel([fitted["assembler"], fitted["linear"], side, many])
    gaps = df.unionByName(df).unionByName(df).withColumn("gaps", F.when(F.col("a") > -0.5, F.col("a")))
    tuned = sparkdiff.FineTuner(pipeline=model, maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True).fit(gaps)
    assert sum(tuned.summary.cache["rows"].values()) == gaps.where("a > -0.5").count() < gaps.count()
    late = (
        "may drop behind the predictor count in training, metrics and decision all the same: drop them in front of the"
    )
    assert [w.partition(late)[0] for w in tuned.summary.warnings if late in w] == ["rows that many "]
    assert verify(tuned.pipelineModel, gaps).ok
    more = named("more", SQLTransformer, statement="select *,\n prediction + 1 AS more\n from __THIS__")
    mine = named("mine", Clipped)._set(inputCol="a", outputCol="clipped")
    assert dropped_late(analyse(PipelineModel([*model.stages[:3], more])).cut) == []
    [warning] = dropped_late(analyse(PipelineModel([*model.stages, mine])).cut)
    assert warning.startswith("rows that many and mine may drop")


def test_models_of_other_libraries(df: DataFrame, fitted: dict[str, Any]) -> None:
    booster = named("booster", BoosterModel)._set(featuresCol="vector", predictionCol="boosted")
    gpu = named("gpu", OnTheGpu)._set(featuresCol="vector", predictionCol="fast")
    model = PipelineModel([fitted["assembler"], booster, gpu, fitted["linear"]])
    found = plan(model)
    assert of(found, "gpu").reason == "tests's model: convert it first, its .cpu() returns Spark's own model"
    assert (of(found, "booster").role, of(found, "booster").inputCols) == ("referenced", ("vector",))
    assert of(found, "linear").trainable
    network = translate(model)
    with torch.no_grad():
        network.head.intercept.add_(1.0)
    new = write_back(model, network)
    assert [a is b for a, b in zip(new.stages, model.stages, strict=True)] == [True, True, True, False]
    assert verify(new, df, network=network).ok


# Labels, heads, stacks --------------------------------------------------------------------------------------------------


def test_a_label_that_a_stage_makes(df: DataFrame) -> None:
    """It is made before the cache, and what makes it doesn't train."""
    index = named("index", StringIndexer, inputCol="kind", outputCol="kindIndex", stringOrderType="alphabetAsc")
    predictor = named("predictor", LogisticRegression, labelCol="kindIndex", maxIter=2)
    model = Pipeline(stages=[index, assembler("a", "b"), predictor]).fit(df)
    found = plan(model)
    assert (of(found, "index").cached, of(found, "index").role) == (True, "referenced")
    wide = df.unionByName(df).unionByName(df)
    tuned = sparkdiff.FineTuner(pipeline=model, maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True).fit(wide)
    assert tuned.summary.parity["before"]["ok"]
    assert verify(model, df.drop("kind")).ok  # a label isn't there when a model only predicts
    with pytest.raises(InputError, match="index reads column 'kind', which is not in the data"):
        sparkdiff.FineTuner(pipeline=model, verbosity=0).fit(wide.drop("kind"))


def test_what_makes_the_label_does_not_train(fitted: dict[str, Any]) -> None:
    stages = [
        fitted["assembler"],
        fitted["scaler"],
        with_params(fitted["logistic"], featuresCol="scaled", predictionCol="made"),
    ]
    joined = named("joined", VectorAssembler, inputCols=["scaled"], outputCol="all")
    model = PipelineModel([*stages, joined, with_params(fitted["linear"], featuresCol="all", labelCol="made")])
    found = plan(model)
    assert of(found, "scaler").reason == "makes 'made', which the loss reads"
    assert [s.uid for s in found.stages if s.trainable] == ["linear"]
    assert of(found, "logistic").cached


def test_a_label_made_in_place_of_a_column_that_was_read(df: DataFrame, fitted: dict[str, Any]) -> None:
    index = named("index", StringIndexer, inputCol="kind", outputCol="index").fit(df.drop("index"))
    joined = assembler("hot", "a", outputCol="joined")
    linear = with_params(fitted["linear"], featuresCol="joined", labelCol="index")
    with pytest.raises(InputError, match="index overwrites the column 'index', which training reads and stages before"):
        plan(PipelineModel([fitted["encoder"], index, joined, linear]))
    assert plan(PipelineModel([index, fitted["encoder"], joined, linear])).cacheCols == ("index", "a")


def test_two_heads(df: DataFrame, fitted: dict[str, Any]) -> None:
    """The loss is on one; the other keeps its predictions, whatever trains."""
    first = with_params(fitted["logistic"], featuresCol="scaled", predictionCol="first", labelCol="label")
    second = with_params(fitted["linear"], featuresCol="squeezed", predictionCol="second")
    model = PipelineModel([fitted["assembler"], fitted["scaler"], fitted["minmax"], first, second])
    wide = df.unionByName(df).unionByName(df).cache()
    for column, kept in (("first", "second"), ("second", "first")):
        tuner = sparkdiff.FineTuner(
            pipeline=model,
            predictionCol=column,
            maxEpochs=2,
            learningRate=0.05,
            guard=1.0,
            recipe="fast",
            verbosity=0,
            rowsAreNew=True,
        )
        tuned = tuner.fit(wide)
        assert tuned.summary.decision == "tuned"
        rows = [[r[kept] for r in m.transform(df).orderBy("a").collect()] for m in (model, tuned.pipelineModel)]
        assert rows[0] == rows[1]
    with pytest.raises(InputError, match=r"there are several predictors to train for: logistic .*; linear"):
        sparkdiff.FineTuner(pipeline=model, verbosity=0).fit(wide)


def test_stacked(df: DataFrame, fitted: dict[str, Any]) -> None:
    """A classifier's probabilities feed a regression, and gradients go all the way."""
    below = with_params(fitted["softmax"], featuresCol="scaled", predictionCol="below")
    rows = PipelineModel([fitted["assembler"], fitted["scaler"], below]).transform(df)
    join, above = (
        assembler("probability", "scaled", outputCol="all"),
        LinearRegression(featuresCol="all", labelCol="count"),
    )
    model = PipelineModel([fitted["assembler"], fitted["scaler"], below, Pipeline(stages=[join, above]).fit(rows)])
    assert [s.uid for s in plan(model).stages if s.trainable][:2] == ["scaler", "softmax"]
    network = translate(model)
    columns = {c: torch.linspace(-1, 1, 7) for c in network.inputCols}
    network(columns)["prediction"].sum().backward()
    for i in (1, 2, 4):
        for name, p in network.module(i).named_parameters():
            assert p.grad is not None, (i, name)
            assert p.grad.abs().sum() > 0, (i, name)
    assert verify(model, df).ok


# Columns ----------------------------------------------------------------------------------------------------------------

LONG = "x" * 400
NAMES = ["a.b", "Größe", "two words", "tick`s", "数", LONG, "__sparkdiff_v0", "SELECT"]


def in_backticks(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def taken(df: DataFrame, name: str) -> bool:
    """Whether Spark's own stages find a column by this name: Spark 3.5's none with a dot, nor any in backticks."""
    try:
        return bool(assembler(name, outputCol="probe").transform(df).columns)
    except PySparkException:
        return False


def test_odd_names(df: DataFrame) -> None:
    """As inputs in backticks, as outputs as they are; through verify, the cache, training and write-back."""
    dots = taken(df.withColumn("a.b", F.col("a")), "`a.b`")
    names = [n for n in NAMES if dots or not set(n) & {".", "`"}]
    values = [F.col("abc"[i % 3]) * (i + 1) + F.col("index") * i for i in range(len(names))]
    odd = df.select("count", *(v.alias(n) for v, n in zip(values, names, strict=True)))
    odd = odd.unionByName(odd).unionByName(odd).cache()
    made, out = "x.y" if dots else "x y", "größer als 数"  # a predictor finds no features in backticks
    spelled = in_backticks if dots else str
    model = Pipeline(
        stages=[
            assembler(*map(spelled, names), outputCol=made),
            StandardScaler(inputCol=spelled(made), outputCol=out),
            LinearRegression(featuresCol=out, labelCol="count", predictionCol="vor her", regParam=1.0),
        ]
    ).fit(odd)
    network = translate(model)
    assert network.inputCols == tuple(names)
    assert network.outputCols == (made, out, "vor her")
    assert verify(model, odd).ok
    tuned = sparkdiff.FineTuner(
        pipeline=model,
        maxEpochs=2,
        learningRate=0.05,
        guard=1.0,
        recipe="fast",
        verbosity=0,
        reference=(),
        rowsAreNew=True,
    ).fit(odd)
    assert tuned.summary.parity["before"]["ok"]
    assert verify(tuned.pipelineModel, odd).ok


def test_fields_of_structs(df: DataFrame) -> None:
    """`s.b` is the field b of s, however deep; in backticks it is the column s.b."""
    inner = F.struct(F.col("b").alias("B"), F.col("c"))
    nested = df.select(
        F.struct("a", inner.alias("in")).alias("S"), F.col("b").alias("s.a"), "count", F.col("c").alias("plain")
    )
    nested = nested.unionByName(nested).unionByName(nested).cache()
    if not taken(nested, "S.a"):
        pytest.skip("this Spark's stages don't find the fields of structs")
    both = PipelineModel([assembler("S.a", outputCol="one"), assembler("`s.a`", "plain", outputCol="two")])
    assert [s.role for s in plan(both).stages] == ["referenced", "translated"]  # a tensor has one name
    assert (
        plan(both).stages[0].reason
        == "reads the field 'S.a' of a struct, and another stage reads a column of that name: rename one of them"
    )
    assert verify(both, nested).ok
    fields = Pipeline(
        stages=[assembler("S.a", "s.in.b", "plain"), LinearRegression(labelCol="count", regParam=1.0)]
    ).fit(nested)
    assert verify(fields, nested).ok
    with pytest.raises(InputError, match=r"reads column 'S\.q', which is not in the data"):
        verify(assembler("S.q"), nested)
    tuned = sparkdiff.FineTuner(pipeline=fields, maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True).fit(nested)
    assert tuned.summary.parity["before"]["ok"]
    made = SQLTransformer(statement="SELECT *, struct(b AS q, count) AS st FROM __THIS__")
    predictor = LinearRegression(featuresCol="made", labelCol="count", regParam=1.0)
    behind = Pipeline(stages=[made, Interaction(inputCols=["st.q", "S.in.B"], outputCol="made"), predictor])
    model = behind.fit(df.withColumn("S", F.struct(inner.alias("in"))))
    again = df.unionByName(df).unionByName(df).withColumn("S", F.struct(inner.alias("in")))
    assert verify(model, again).ok
    tuned = sparkdiff.FineTuner(pipeline=model, maxEpochs=1, recipe="fast", verbosity=0, rowsAreNew=True).fit(again)
    assert tuned.summary.parity["before"]["ok"]


def test_many_classes_at_once(df: DataFrame) -> None:
    """Text, categories, numbers, products, trees and two predictors, in one pipeline of 22 stages."""
    model = Pipeline(
        stages=[
            Tokenizer(inputCol="kind", outputCol="words"),
            HashingTF(inputCol="words", outputCol="tf", numFeatures=64),
            IDF(inputCol="tf", outputCol="idf"),
            StringIndexer(inputCol="kind", outputCol="kindIndex"),
            OneHotEncoder(inputCols=["kindIndex", "index"], outputCols=["hot", "hotter"]),
            Imputer(inputCols=["a"], outputCols=["filled"]),
            Bucketizer(inputCol="b", outputCol="binned", splits=[-99, 0, 5, 99]),
            Binarizer(inputCol="b", outputCol="above", threshold=1.0),
            assembler("filled", "b", "binned", "above", outputCol="v"),
            RobustScaler(inputCol="v", outputCol="robust"),
            MaxAbsScaler(inputCol="robust", outputCol="small"),
            MinMaxScaler(inputCol="v", outputCol="ranged"),
            Normalizer(inputCol="ranged", outputCol="unit"),
            PolynomialExpansion(inputCol="unit", outputCol="powers"),
            VectorSlicer(inputCol="v", outputCol="some", names=["b"]),
            Interaction(inputCols=["kindIndex", "filled"], outputCol="products"),
            assembler("idf", "hot", "hotter", "small", "powers", "some", "products"),
            StandardScaler(inputCol="features", outputCol="z"),
            PCA(inputCol="z", outputCol="main", k=4),
            GBTRegressor(featuresCol="main", labelCol="count", predictionCol="gbt", maxIter=2),
            assembler("main", "gbt", outputCol="last"),
            LinearRegression(featuresCol="last", labelCol="count", regParam=0.1),
        ]
    ).fit(df)
    found = plan(model, schema=df.schema)
    assert [s.stageClass for s in found.stages if s.role == "referenced"] == [
        "Tokenizer",
        "HashingTF",
        "StringIndexerModel",
    ]
    trains = [s.stageClass for s in found.stages if s.trainable]
    assert trains == [
        "IDFModel",
        "ImputerModel",
        "RobustScalerModel",
        "MaxAbsScalerModel",
        "MinMaxScalerModel",
        "StandardScalerModel",
        "PCAModel",
        "GBTRegressionModel",
        "LinearRegressionModel",
    ]
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [str(i) for i in range(22)]
    assert lines[20].endswith(
        "a differentiable path leads to the loss; trains on request (unfreeze): thresholds, treeWeights"
    )
    assert verify(model, df).ok
    network = translate(model)
    assert write_back(model, network) is model
    with torch.no_grad():
        for planned, (_, module) in zip(
            [s for s in found.stages if s.role == "translated"], network.stages.items(), strict=True
        ):
            for p in module.parameters() if planned.trainable else ():
                if p.requires_grad:
                    p.mul_(1.01)
    new = write_back(model, network)
    assert [old is now for old, now in zip(model.stages, new.stages, strict=True)] == [
        not s.trainable for s in found.stages
    ]
    assert verify(new, df, network=network).ok
    assert not verify(model, df, network=network).ok
