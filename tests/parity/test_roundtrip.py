"""Fitted pipelines through the public interface: plan, translate, write_back, verify."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.errors import PySparkException
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import (
    PCA,
    Imputer,
    MinMaxScaler,
    OneHotEncoder,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.linalg import Matrices, Vectors
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, Network, jvm
from sparkdiff.pipeline.nesting import flatten
from tests.support.compacting import TOLERANCE, worst
from tests.support.readable_uids import named


def categories(keep: bool = True, drop: bool = True) -> list[Any]:
    return [
        StringIndexer(inputCol="kind", outputCol="kindIndex", handleInvalid="keep" if keep else "error"),
        OneHotEncoder(
            inputCols=["kindIndex", "index"],
            outputCols=["kindHot", "indexHot"],
            dropLast=drop,
            handleInvalid="keep" if keep else "error",
        ),
        VectorAssembler(inputCols=["kindHot", "a", "indexHot", "b", "c"], outputCol="vector"),
    ]


def numbers() -> list[Any]:
    return [VectorAssembler(inputCols=["a", "b", "c"], outputCol="vector")]


BOUNDS = {
    "lowerBoundsOnCoefficients": Matrices.dense(1, 3, [0.0, -1.0, -1.0]),
    "upperBoundsOnIntercepts": Vectors.dense(0.3),
}


def glr(features: str, **params: Any) -> GeneralizedLinearRegression:
    return GeneralizedLinearRegression(
        featuresCol=features, labelCol="count", **{"regParam": 0.1, "maxIter": 3, **params}
    )


GRID: dict[str, Callable[[], list[Any]]] = {
    "poisson after PCA": lambda: [
        *categories(),
        StandardScaler(inputCol="vector", outputCol="scaled", withMean=True),
        PCA(k=4, inputCol="scaled", outputCol="pca"),
        glr("pca", family="poisson", linkPredictionCol="eta", weightCol="weight"),
    ],
    "offset, sqrt link": lambda: [
        *categories(keep=False),
        glr("vector", family="poisson", link="sqrt", offsetCol="weight"),
    ],
    "tweedie": lambda: [
        *categories(drop=False),
        MinMaxScaler(inputCol="vector", outputCol="squeezed", min=-1.0),
        glr("squeezed", family="tweedie", variancePower=1.5, linkPower=0.0),
    ],
    "lasso": lambda: [
        *categories(),
        StandardScaler(inputCol="vector", outputCol="scaled"),
        LinearRegression(featuresCol="scaled", labelCol="count", regParam=0.3, elasticNetParam=1.0),
    ],
    "huber": lambda: [*numbers(), LinearRegression(featuresCol="vector", labelCol="count", loss="huber", maxIter=5)],
    "without intercept": lambda: [*numbers(), LogisticRegression(featuresCol="vector", fitIntercept=False, maxIter=3)],
    "sparse binomial": lambda: [
        *categories(),
        LogisticRegression(featuresCol="vector", regParam=0.1, elasticNetParam=1.0, threshold=0.4),
    ],
    "bounds": lambda: [*numbers(), LogisticRegression(featuresCol="vector", maxIter=3, **BOUNDS)],
    "softmax": lambda: [
        *numbers(),
        MinMaxScaler(inputCol="vector", outputCol="squeezed"),
        LogisticRegression(
            featuresCol="squeezed",
            labelCol="grade",
            maxIter=3,
            thresholds=[0.3, 0.3, 0.4],
            predictionCol="Grade now",
        ),
    ],
    "softmax of two classes": lambda: [
        *numbers(),
        StandardScaler(inputCol="vector", outputCol="scaled", withStd=False, withMean=True),
        LogisticRegression(featuresCol="scaled", family="multinomial", maxIter=3, rawPredictionCol=""),
    ],
}


def on(predictor: Any, features: str) -> Any:
    return predictor.copy({predictor.featuresCol: features})


def moved(model: Any, size: float = 1e-2) -> Network:
    """The model's network with every trainable parameter moved inside its domain."""
    network, generator = sparkdiff.translate(model), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.stages.values():
            for name, p in module.named_parameters():
                if p.requires_grad:
                    counts = module.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
                    noise = torch.rand(p.shape, generator=generator, dtype=p.dtype)
                    p.add_(size * p.abs().clamp_min(0.1) * noise * counts)
            module.project_()
    return network


def params(model: Any) -> list[tuple[Any, ...]]:
    """Everything about a pipeline's stages but their weights."""
    leaves = [(path, type(s), s.uid, dict(s._paramMap), dict(s._defaultParamMap)) for path, s in flatten(model)]
    return [
        (path, cls, uid, *({p.name: v for p, v in values.items()} for values in both))
        for path, cls, uid, *both in leaves
    ]


def weights(model: Any) -> list[Any]:
    return [p.detach().clone() for p in sparkdiff.translate(model).parameters()]


def equal(a: list[Any], b: list[Any]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def schema(model: Any, df: DataFrame) -> list[tuple[Any, ...]]:
    return [(f.name, f.dataType, f.metadata) for f in model.transform(df).schema.fields]


@pytest.mark.parametrize("route", ["constructor", pytest.param("saved data", marks=pytest.mark.nightly)], indirect=True)
@pytest.mark.parametrize("case", GRID)
def test_there_and_back(df: DataFrame, tmp_path: Path, case: str, route: str) -> None:
    model = Pipeline(stages=GRID[case]()).fit(df)
    original = sparkdiff.translate(model)
    before, read = params(model), weights(model)
    assert sparkdiff.write_back(model, original) is model
    if route == "constructor":
        small = sparkdiff.compact(model)
        assert small is model or worst(model, small, df, sparkdiff.compact_plan(model).keepCols) <= TOLERANCE

    network = moved(model)
    back = sparkdiff.write_back(model, network)
    assert back is not model
    assert (type(back), back.uid) == (PipelineModel, model.uid)
    assert params(back) == before
    assert schema(back, df) == schema(model, df)
    assert not equal(weights(back), read)
    assert equal(weights(back), [p.detach() for p in network.parameters()])
    seen = sparkdiff.verify(back, df, network=network)
    assert seen.ok, seen
    assert not sparkdiff.verify(model, df, network=network).ok  # the move is no rounding error
    for old, new, planned in zip(model.stages, back.stages, sparkdiff.plan(model).stages, strict=True):
        assert (old is new) == (not planned.trainable)

    assert params(model) == before
    assert equal(weights(model), read)
    assert sparkdiff.verify(model, df, network=original).ok

    back.write().overwrite().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert sparkdiff.verify(loaded, df, network=network).ok
    assert [(path, cls, uid, given) for path, cls, uid, given, _ in params(loaded)] == [row[:4] for row in before]


# Params -----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("route")
def test_params_set_in_python_survive(df: DataFrame, fitted: dict[str, Any]) -> None:
    """Set on a fitted stage they live in Python only, until someone calls transform."""
    stage = fitted["logistic"].copy()
    stage.setThreshold(0.3).setPredictionCol("churns").setProbabilityCol("p")
    model = PipelineModel([fitted["assembler"], stage])
    network = moved(model)
    assert network.outputCols == ("vector", "rawPrediction", "p", "churns")
    back = sparkdiff.write_back(model, network).stages[1]
    assert (back.getThreshold(), back.getPredictionCol(), back.getProbabilityCol()) == (0.3, "churns", "p")
    assert sparkdiff.verify(PipelineModel([fitted["assembler"], back]), df, network=network).ok
    found = back.transform(fitted["assembler"].transform(df)).select("churns", "p").collect()
    assert {row.churns for row in found} == {0.0, 1.0}
    assert all((row.p[1] > 0.3) == bool(row.churns) for row in found)

    stage.setThresholds([0.9, 0.1])
    with pytest.raises(
        InputError,
        match=r"logistic: thresholds=\[0\.9, 0\.1\] are equivalent to the threshold .*, but threshold is set to 0\.3",
    ):
        sparkdiff.plan(stage)
    stage.clear(stage.threshold)
    assert sparkdiff.verify(stage, fitted["assembler"].transform(df)).ok
    assert sparkdiff.translate(stage).module(0).threshold == pytest.approx(0.1)


@pytest.mark.usefixtures("route")
def test_a_param_set_on_the_original_is_not_sent_to_spark(fitted: dict[str, Any]) -> None:
    stage = fitted["linear"].copy()
    stage.setPredictionCol("later")
    sparkdiff.write_back(stage, moved(stage))
    java = stage._java_obj
    assert java.getOrDefault(java.getParam("predictionCol")) == "prediction"


@pytest.mark.usefixtures("route")
def test_an_output_without_a_name_keeps_its_made_up_name(df: DataFrame, fitted: dict[str, Any]) -> None:
    scaler = StandardScaler(inputCol="vector").fit(fitted["assembler"].transform(df))
    back = sparkdiff.write_back(scaler, moved_scaler(scaler))
    assert back.getOutputCol() == scaler.getOutputCol() == f"{scaler.uid}__output"
    assert schema(back, fitted["assembler"].transform(df)) == schema(scaler, fitted["assembler"].transform(df))


def moved_scaler(scaler: Any) -> Network:
    """A scaler alone doesn't train, but its parameters may be changed."""
    network = sparkdiff.translate(scaler)
    with torch.no_grad():
        network.module(0).std[0] *= 1.5
    return network


def test_attributes_of_a_vector_survive(df: DataFrame) -> None:
    model = Pipeline(
        stages=[
            *categories(),
            StandardScaler(inputCol="vector", outputCol="scaled"),
            LinearRegression(featuresCol="scaled", labelCol="count"),
        ]
    ).fit(df)
    back = sparkdiff.write_back(model, moved(model))
    metadata = {f.name: f.metadata for f in back.transform(df).schema.fields}
    assert {a["name"] for kind in metadata["vector"]["ml_attr"]["attrs"].values() for a in kind} >= {
        "kindHot_a",
        "a",
        "c",
    }
    assert metadata["scaled"]["ml_attr"]["num_attrs"] == metadata["vector"]["ml_attr"]["num_attrs"]
    assert metadata == {f.name: f.metadata for f in model.transform(df).schema.fields}


# Shapes of pipelines ----------------------------------------------------------------------------------------------------


def test_pipelines_in_pipelines(df: DataFrame, fitted: dict[str, Any]) -> None:
    inner = PipelineModel([fitted["scaler"]])
    middle = PipelineModel([PipelineModel([]), inner])
    other = PipelineModel([fitted["indexer"]])
    model = PipelineModel([fitted["assembler"], middle, other, on(fitted["glr"], "scaled")])
    network = moved(model)
    with torch.no_grad():
        network.module(3).load_state_dict(sparkdiff.translate(model).module(3).state_dict())  # only the scaler moves
    back = sparkdiff.write_back(model, network)
    assert back.stages[0] is model.stages[0]
    assert back.stages[2] is other
    assert back.stages[3] is model.stages[3]
    assert back.stages[1] is not middle
    assert back.stages[1].stages[0] is middle.stages[0]
    assert [s.uid for s in (back, back.stages[1], back.stages[1].stages[1])] == [model.uid, middle.uid, inner.uid]
    assert middle.stages == [middle.stages[0], inner]
    assert inner.stages == [fitted["scaler"]]
    assert sparkdiff.verify(back, df, network=network).ok


@pytest.mark.usefixtures("route")
def test_a_single_stage(df: DataFrame, fitted: dict[str, Any]) -> None:
    vectors = fitted["assembler"].transform(df)
    stage = fitted["softmax"]
    assert sparkdiff.write_back(stage, sparkdiff.translate(stage)) is stage
    network = moved(stage)
    back = sparkdiff.write_back(stage, network)
    assert (type(back), back.uid) == (type(stage), stage.uid)
    assert sparkdiff.verify(back, vectors, network=network).ok
    assert network.reference is None


def test_equal_uids_in_one_pipeline(df: DataFrame, fitted: dict[str, Any]) -> None:
    first, second = fitted["scaler"], fitted["scaler"].copy()
    second = second.copy({second.inputCol: "scaled", second.outputCol: "twice", second.withStd: False})
    model = PipelineModel([fitted["assembler"], first, second, on(fitted["linear"], "twice")])
    assert [s.uid for s in sparkdiff.plan(model).stages].count("scaler") == 2
    network = moved(model)
    back = sparkdiff.write_back(model, network)
    assert equal(weights(back), [p.detach() for p in network.parameters()])
    assert not torch.equal(network.module(1).mean, network.module(2).mean)
    assert sparkdiff.verify(back, df, network=network).ok


def test_another_pipelines_network_is_refused(fitted: dict[str, Any]) -> None:
    network = sparkdiff.translate(PipelineModel([fitted["assembler"], fitted["linear"]]))
    with pytest.raises(InputError, match="the network was translated from another pipeline"):
        sparkdiff.write_back(PipelineModel([fitted["assembler"], fitted["glr"]]), network)
    with pytest.raises(InputError, match="another pipeline"):
        sparkdiff.write_back(fitted["linear"], network)


def test_reference_makes_the_networks_inputs(df: DataFrame) -> None:
    model = Pipeline(stages=[*categories(), LinearRegression(featuresCol="vector", labelCol="count")]).fit(df)
    network = sparkdiff.translate(model)
    assert [s.uid for s in network.reference.stages] == [model.stages[0].uid]
    assert network.inputCols == ("kindIndex", "index", "a", "b", "c")
    inputs = network.reference.transform(df).select(*network.inputCols, F.lit(1).alias("extra")).toPandas()
    out = network({c: torch.tensor(inputs[c].to_numpy(dtype=np.float64)) for c in inputs.columns}, ["PREDICTION"])
    wished = model.transform(df).toPandas()["prediction"]
    assert list(out) == ["prediction"]
    assert out["prediction"].shape == (120,)
    np.testing.assert_allclose(np.sort(out["prediction"].detach()), np.sort(wished), rtol=1e-12)
    with pytest.raises(InputError, match=rf"{model.stages[2].uid} needs column 'b', which was not passed"):
        network({c: torch.zeros(3) for c in ("kindIndex", "index", "a", "c")})
    with pytest.raises(InputError, match=r"no translated stage writes column 'predicton'\. Did you mean 'prediction'"):
        network({}, ["predicton"])


def test_a_pipeline_without_reference(fitted: dict[str, Any]) -> None:
    assert sparkdiff.translate(PipelineModel([fitted["assembler"], fitted["linear"]])).reference is None


def test_sql_in_the_middle_and_at_the_end(df: DataFrame, fitted: dict[str, Any]) -> None:
    middle = SQLTransformer(statement="SELECT a, b, c, count, vector, a * 2 AS d FROM __THIS__ WHERE a > -1")
    end = SQLTransformer(statement="SELECT prediction + 1 AS prediction FROM __THIS__ LIMIT 3")
    model = PipelineModel(
        [
            fitted["assembler"],
            middle,
            fitted["scaler"],
            on(fitted["linear"], "scaled"),
            end,
        ]
    )
    parity = sparkdiff.verify(model, df)
    assert parity.ok, parity
    assert parity.rows == df.where("a > -1").count()
    assert set(parity.maxRelDiff) == {"vector", "scaled", "prediction"}
    network = moved(model)
    assert network.inputCols == ("vector",)  # without rows, SQL may change any column
    assert sparkdiff.verify(sparkdiff.write_back(model, network), df, network=network).ok


def test_columns_overwritten_in_place(df: DataFrame, fitted: dict[str, Any], any_case: bool) -> None:
    """`a` before and after an Imputer, `VECTOR` over `vector`: each reader gets its own version."""
    holes = df.withColumn("a", F.when(F.col("index") == 1, None).otherwise(F.col("a")))
    early = VectorAssembler(inputCols=["a", "b"], outputCol="raw", handleInvalid="keep")
    imputer = Imputer(inputCols=["a"], outputCols=["a"]).fit(holes)
    over = fitted["scaler"].copy({fitted["scaler"].outputCol: "VECTOR" if any_case else "scaled"})
    model = PipelineModel([early, imputer, fitted["assembler"], over, fitted["minmax"], fitted["linear"]])
    parity = sparkdiff.verify(model, holes)
    assert parity.ok, parity
    network = moved(model)
    assert sparkdiff.verify(sparkdiff.write_back(model, network), holes, network=network).ok
    assert not sparkdiff.verify(model, holes, network=network).ok


def test_skipped_rows_are_skipped_before(df: DataFrame, fitted: dict[str, Any]) -> None:
    holes = df.withColumn("a", F.when(F.col("index") == 1, None).otherwise(F.col("a")))
    assembler = fitted["assembler"].copy({fitted["assembler"].handleInvalid: "skip"})
    parity = sparkdiff.verify(PipelineModel([assembler, fitted["linear"]]), holes)
    assert parity.ok
    assert parity.rows == df.where("index != 1").count()


def test_rows_skipped_by_a_stage_that_the_network_does_not_read(df: DataFrame, fitted: dict[str, Any]) -> None:
    indexer = fitted["indexer"].copy({fitted["indexer"].handleInvalid: "skip"})
    model = PipelineModel([fitted["assembler"], indexer, fitted["linear"]])
    unseen = df.withColumn("kind", F.when(F.col("index") == 1, "z").otherwise(F.col("kind")))
    assert [s.uid for s in sparkdiff.translate(model).reference.stages] == ["indexer"]
    parity = sparkdiff.verify(model, unseen)
    assert (parity.ok, parity.rows) == (True, df.where("index != 1").count())


def test_two_predictors_and_stacking(df: DataFrame, fitted: dict[str, Any]) -> None:
    below = fitted["logistic"].copy({fitted["logistic"].predictionCol: "below"})
    joined = VectorAssembler(inputCols=["probability", "a"], outputCol="all")
    vectors = joined.transform(below.transform(fitted["assembler"].transform(df)))
    last = LinearRegression(featuresCol="all", labelCol="count", regParam=0.1).fit(vectors)
    side = fitted["glr"].copy({fitted["glr"].predictionCol: "side"})
    model = PipelineModel([fitted["assembler"], below, side, joined, last])
    assert [s.trainable for s in sparkdiff.plan(model).stages] == [False, True, False, False, True]
    network = moved(model)
    back = sparkdiff.write_back(model, network)
    assert back.stages[2] is side
    assert sparkdiff.verify(back, df, network=network).ok


# Names ------------------------------------------------------------------------------------------------------------------


def test_dots_backticks_and_cases_in_names(df: DataFrame, fitted: dict[str, Any]) -> None:
    """Spark reads a column a.b by the Param `a.b` in backticks; as an output the Param is the name itself."""
    odd = df.select(F.col("a").alias("a.b"), F.col("b").alias("b`c"), F.col("c").alias("Straße"), "count")
    assembler, scaler, linear = (fitted[name] for name in ("assembler", "scaler", "linear"))
    model = PipelineModel(
        [
            assembler.copy({assembler.inputCols: ["`a.b`", "`b``c`", "straße"], assembler.outputCol: "v.w"}),
            scaler.copy({scaler.inputCol: "`v.w`", scaler.outputCol: "Scaled"}),
            linear.copy({linear.featuresCol: "SCALED", linear.predictionCol: "riders.per hour"}),
        ]
    )
    try:
        model.transform(odd)
    except PySparkException as e:  # Spark 3.5
        pytest.skip(f"this Spark can't read columns of such names itself: {e}")
    network = moved(model)
    assert network.inputCols == ("a.b", "b`c", "straße")
    assert network.outputCols == ("v.w", "Scaled", "riders.per hour")
    assert sparkdiff.plan(model, schema=odd.schema).cacheCols == ("v.w",)
    back = sparkdiff.write_back(model, network)
    parity = sparkdiff.verify(back, odd, network=network)
    assert parity.ok, parity
    assert set(parity.maxRelDiff) == {"v.w", "Scaled", "riders.per hour"}


# Rows -------------------------------------------------------------------------------------------------------------------


def test_empty_partitions_and_few_rows(spark: SparkSession, df: DataFrame, fitted: dict[str, Any]) -> None:
    model = PipelineModel([fitted["assembler"], fitted["linear"]])
    assert sparkdiff.verify(model, df.limit(3).repartition(8)).rows == 3
    assert sparkdiff.verify(model, df.where("index = 0").repartition(4, "index")).ok


def test_nothing_to_compare_is_an_error(df: DataFrame, fitted: dict[str, Any]) -> None:
    model = PipelineModel([fitted["assembler"], fitted["linear"]])
    with pytest.raises(InputError, match="no rows"):
        sparkdiff.verify(model, df.limit(0))
    with pytest.raises(InputError, match="no rows"):
        sparkdiff.verify(model, df.where("a > 1e9"))
    with pytest.raises(InputError, match=r"no stage of .* that writes a column is translated"):
        sparkdiff.verify(PipelineModel([Tokenizer(inputCol="kind", outputCol="words")]), df)
    with pytest.raises(InputError, match=r"no stage of .* that writes a column is translated"):
        sparkdiff.verify(PipelineModel([]), df)
    silent = fitted["linear"].copy({fitted["linear"].predictionCol: ""})
    with pytest.raises(InputError, match="no column to compare"):
        sparkdiff.verify(silent, fitted["assembler"].transform(df))


def test_missing_columns_and_rows_that_spark_refuses(df: DataFrame, fitted: dict[str, Any]) -> None:
    model = PipelineModel([fitted["assembler"], fitted["linear"]])
    with pytest.raises(InputError, match="assembler reads column 'b', which is not in the data"):
        sparkdiff.verify(model, df.drop("b"))
    with pytest.raises(InputError, match=r"Spark failed while running assembler, linear: .*null"):
        sparkdiff.verify(model, df.withColumn("a", F.lit(None).cast("double")))


def test_null_and_nan(df: DataFrame, fitted: dict[str, Any]) -> None:
    holes = df.withColumn(
        "a", F.when(F.col("index") == 1, None).when(F.col("index") == 2, float("nan")).otherwise(F.col("a"))
    )
    keep = fitted["assembler"].copy({fitted["assembler"].handleInvalid: "keep"})
    scaled = [
        fitted[name].copy({fitted[name].getParam(p): "scaled"})
        for name, p in [("glr", "featuresCol"), ("minmax", "inputCol")]
    ]
    parity = sparkdiff.verify(PipelineModel([keep, fitted["scaler"], *scaled]), holes)
    assert parity.ok, parity
    network = sparkdiff.translate(PipelineModel([fitted["assembler"], fitted["linear"]]))
    with pytest.raises(
        InputError, match="assembler: column 'a' holds null or NaN, which handleInvalid='error' refuses"
    ):
        network({"a": torch.tensor([torch.nan]), "b": torch.ones(1), "c": torch.ones(1)})


def test_labels_may_differ_on_the_boundary_only(spark: SparkSession, fitted: dict[str, Any]) -> None:
    """x decides at 0; a network that is off by 1e-12 calls the rows between otherwise, one that is off by 1e-6 is wrong."""
    weights = {
        "coefficientMatrix": np.array([[1.0]]),
        "interceptVector": np.zeros(1),
        "numClasses": 2,
        "isMultinomial": False,
    }
    stage = jvm.rebuild(fitted["logistic"], weights)
    stage = stage.copy({stage.rawPredictionCol: "", stage.probabilityCol: ""})
    df = spark.createDataFrame([(Vectors.dense(x),) for x in (-1.0, -1e-12, -1e-7, 0.0, 1e-12, 1e-7, 3.0)], ["vector"])

    def off(by: float) -> sparkdiff.Parity:
        network = sparkdiff.translate(stage)
        with torch.no_grad():
            network.module(0).interceptVector += by
        return sparkdiff.verify(stage, df, network=network)

    assert (off(0.0).labelDisagreements, off(0.0).ok) == (0, True)
    assert (off(1e-11).labelDisagreements, off(1e-11).ok) == (2, True)  # -1e-12 and 0
    assert (off(1e-6).labelDisagreements, off(1e-6).ok) == (3, False)  # -1e-7 too
    assert off(1e-6).maxRelDiff == {}


# Domains ----------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("route")
def test_masked_entries_are_written_as_they_were(df: DataFrame, fitted: dict[str, Any]) -> None:
    model = PipelineModel([fitted["assembler"], fitted["scaler"], on(fitted["linear"], "scaled")])
    network = moved(model)
    assert fitted["scaler"].std[2] == 0  # c is constant
    with torch.no_grad():
        network.module(1).std[2], network.module(1).mean[2] = 3.0, torch.nan
    back = sparkdiff.write_back(model, network)
    assert (back.stages[1].std[2], back.stages[1].mean[2]) == (0.0, fitted["scaler"].mean[2])
    assert back.stages[1].mean[0] == network.module(1).mean[0].item()
    assert sparkdiff.verify(back, df).ok
    untouched = sparkdiff.translate(model)
    with torch.no_grad():
        untouched.module(1).std[2] = 5.0
    assert sparkdiff.write_back(model, untouched) is model


VIOLATIONS: dict[str, tuple[str, str, int, float, str]] = {
    "std of 0": ("scaler", "std", 0, 0.0, "scaler: std must stay > 0, but an entry is 0.0"),
    "negative std": ("scaler", "std", 1, -1.0, "scaler: std must stay > 0, but an entry is -1.0"),
    "NaN": ("scaler", "mean", 0, np.nan, "scaler: mean holds nan; only finite values"),
    "infinite": ("pca", "pc", 0, np.inf, "pca: pc holds inf; only finite values"),
    "range below 0": (
        "minmax",
        "originalMax",
        0,
        -1e9,
        "minmax: originalMax must stay > originalMin, but entry 0 is -1",
    ),
    "NaN intercept": ("linear", "intercept", 0, np.nan, "linear: intercept holds nan"),
    "NaN coefficient": ("softmax", "coefficientMatrix", 0, np.nan, "softmax: coefficientMatrix holds nan"),
}


@pytest.mark.parametrize("case", VIOLATIONS)
def test_what_leaves_its_domain_is_refused_by_name(fitted: dict[str, Any], case: str) -> None:
    name, parameter, entry, value, text = VIOLATIONS[case]
    stage = fitted[name]
    network = sparkdiff.translate(stage)
    with torch.no_grad():
        p = getattr(network.module(0), parameter)
        p[(entry, 0)[: p.ndim]] = value
    with pytest.raises(InputError, match=text):
        sparkdiff.write_back(stage, network)


def test_bounds_are_a_domain(df: DataFrame, fitted: dict[str, Any]) -> None:
    stage = named("bounded", LogisticRegression, featuresCol="vector", maxIter=3, **BOUNDS).fit(
        fitted["assembler"].transform(df)
    )
    network = sparkdiff.translate(stage)
    with torch.no_grad():
        network.module(0).coefficientMatrix[0, 0] = -0.5
    with pytest.raises(
        InputError, match=r"bounded: coefficientMatrix has an entry of -0\.5, outside its lower bound 0\.0"
    ):
        sparkdiff.write_back(stage, network)
    network.module(0).project_()
    assert sparkdiff.write_back(stage, network).coefficientMatrix.toArray()[0, 0] == 0.0
    with torch.no_grad():
        network.module(0).interceptVector[0] = 0.5
    with pytest.raises(InputError, match=r"interceptVector has an entry of 0\.5, outside its upper bound 0\.3"):
        sparkdiff.write_back(stage, network)


def test_projection_ends_inside_the_domain(fitted: dict[str, Any]) -> None:
    """Also where the fitted range is one unit in the last place."""
    low = np.ones(3)
    stage = jvm.rebuild(fitted["minmax"], {"originalMin": low, "originalMax": np.nextafter(low, 2)})
    network = sparkdiff.translate(stage)
    with torch.no_grad():
        network.module(0).originalMin += 5
    with pytest.raises(InputError, match="originalMax must stay > originalMin"):
        sparkdiff.write_back(stage, network)
    network.module(0).project_()
    back = sparkdiff.write_back(stage, network)
    assert back.originalMin.toArray().tolist() == [6.0] * 3
    assert (back.originalMax.toArray() > 6).all()


def test_a_stage_of_python_only_stays_where_it_is(df: DataFrame, fitted: dict[str, Any]) -> None:
    class Plus(Transformer):
        def _transform(self, df: DataFrame) -> DataFrame:
            return df.withColumn("a", F.col("a") + 1)

    model = PipelineModel([Plus(), fitted["assembler"], fitted["linear"]])
    network = moved(model)
    back = sparkdiff.write_back(model, network)
    assert back.stages[0] is model.stages[0]
    assert sparkdiff.verify(back, df, network=network).ok
