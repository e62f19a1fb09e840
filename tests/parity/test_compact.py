"""What `compact` makes of fitted pipelines, against Spark's own outputs of the original, on rows with NaN and zeros."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compacting import TOLERANCE, worst
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    RandomForestClassifier,
)
from pyspark.ml.feature import (
    DCT,
    IDF,
    PCA,
    ElementwiseProduct,
    MaxAbsScaler,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    RobustScaler,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import (
    AFTSurvivalRegression,
    DecisionTreeRegressor,
    GBTRegressor,
    GeneralizedLinearRegression,
    LinearRegression,
)
from pyspark.sql import DataFrame, SparkSession
from readable_uids import named

from sparkdiff import compact, compact_plan
from sparkdiff.pipeline.nesting import flatten

pytestmark = pytest.mark.once


@pytest.fixture(scope="session")
def odd(spark: SparkSession, df: DataFrame) -> DataFrame:
    """Rows as of `df`, some with NaN, zeros, huge and tiny numbers; and vectors `dense` of three entries, sparse in most rows."""
    random, rows = np.random.default_rng(7), []
    for i in range(48):
        a, b, c = random.normal(size=3)
        if i < 24:
            a, b = [a, np.nan, 0.0, -0.0, 1e6, 1e-300][i % 6], [b, b, 0.0, np.nan][i % 4]
        stored = [j for j in range(3) if random.random() < 0.6]
        values = [float("nan") if random.random() < 0.1 else float(v) for v in random.normal(size=len(stored))]
        vector = Vectors.dense(random.normal(size=3)) if i % 4 == 0 else Vectors.sparse(3, stored, values)
        rows.append(("abcz"[i % 4], float(i % 3), float(a), float(b), float(c), 1.0 + i % 2, vector))
    names = ["kind", "index", "a", "b", "c", "weight", "dense"]
    return spark.createDataFrame(rows, names).coalesce(1).cache()


def numbers(mode: str = "keep") -> list[Any]:
    return [named("numbers", VectorAssembler, inputCols=["a", "b"], outputCol="v", handleInvalid=mode)]


def categories() -> list[Any]:
    return [
        named("index", StringIndexer, inputCol="kind", outputCol="kindIndex", handleInvalid="keep"),
        named("hot", OneHotEncoder, inputCols=["kindIndex", "index"], outputCols=["kindHot", "indexHot"]),
    ]


def standard(source: str = "v", out: str = "z", mean: bool = True) -> StandardScaler:
    return named("standard", StandardScaler, inputCol=source, outputCol=out, withMean=mean)


def joined(*columns: str, mode: str = "keep") -> VectorAssembler:
    return named("joined", VectorAssembler, inputCols=list(columns), outputCol="all", handleInvalid=mode)


def head(kind: Any, features: str, label: str = "label", **params: Any) -> Any:
    return named("head", kind, featuresCol=features, labelCol=label, **params)


CASES: dict[str, tuple[Callable[[], list[Any]], str]] = {
    # what is fitted, and the uids of the stages that are left
    "scaler and PCA, GLR": (
        lambda: [*numbers(), standard(), PCA(inputCol="z", outputCol="p", k=2),
                 head(GeneralizedLinearRegression, "p", "count", family="poisson", offsetCol="weight", linkPredictionCol="eta")],
        "numbers head"),
    "scaled block between categories, binomial": (
        lambda: [*numbers(), standard(), *categories(), joined("kindHot", "z", "indexHot"),
                 head(LogisticRegression, "all", maxIter=5, threshold=0.4)],
        "index hot joined head"),
    "PCA of a block, softmax": (
        lambda: [*numbers(), standard(), PCA(inputCol="z", outputCol="p", k=1), *categories(), joined("kindHot", "p", "indexHot"),
                 head(LogisticRegression, "all", "grade", maxIter=5, thresholds=[0.3, 0.3, 0.4])],
        "index hot joined head"),
    "lasso, sparse coefficients": (
        lambda: [*numbers(), *categories(), joined("v", "kindHot", "c"), named("robust", RobustScaler, inputCol="all",
                 outputCol="r", withCentering=True), head(LinearRegression, "r", "count", regParam=0.3, elasticNetParam=1.0)],
        "index hot joined head"),
    "entries left out, softmax": (
        lambda: [*numbers(), standard(), *categories(), joined("kindHot", "z", "indexHot"),
                 VectorSlicer(inputCol="all", outputCol="some", indices=[4, 0, 2]),
                 head(LogisticRegression, "some", "grade", maxIter=5)],
        "index hot joined head"),
    "entries left out, SVC": (
        lambda: [*numbers(), standard(mean=False), VectorSlicer(inputCol="z", outputCol="s", indices=[1]),
                 head(LinearSVC, "s", maxIter=3)],
        "numbers head"),
    "network": (
        lambda: [*numbers(), standard(), MinMaxScaler(inputCol="z", outputCol="m", min=-1.0), DCT(inputCol="m", outputCol="d"),
                 PCA(inputCol="d", outputCol="p", k=1), head(MultilayerPerceptronClassifier, "p", layers=[1, 3, 2], maxIter=3)],
        "numbers head"),
    "sparse vectors, survival": (
        lambda: [IDF(inputCol="dense", outputCol="i"), ElementwiseProduct(inputCol="i", outputCol="e",
                 scalingVec=Vectors.dense(2.0, 0.0, -1.0)), MaxAbsScaler(inputCol="e", outputCol="x"),
                 head(AFTSurvivalRegression, "x", "weight", censorCol="label", quantilesCol="q", maxIter=3)],
        "head"),
    "boosted trees": (
        lambda: [*numbers(), standard(), *categories(), joined("kindHot", "z", "indexHot"),
                 VectorSlicer(inputCol="all", outputCol="some", indices=[4, 0, 3]),
                 head(GBTRegressor, "some", "count", maxIter=3, leafCol="leaf")],
        "index hot joined head"),
    "forest behind scalers": (
        lambda: [*numbers(), standard(mean=False), MinMaxScaler(inputCol="z", outputCol="m", min=-3.0),
                 MaxAbsScaler(inputCol="m", outputCol="x"), head(RandomForestClassifier, "x", numTrees=3, maxDepth=4)],
        "numbers head"),
    "two readers": (
        lambda: [*numbers(), standard(), head(LinearRegression, "z", "count", predictionCol="one"),
                 named("tree", DecisionTreeRegressor, featuresCol="z", labelCol="count", predictionCol="two", maxDepth=3)],
        "numbers head tree"),
    "PCA that stays": (
        lambda: [*numbers(), standard(mean=False), named("pca", PCA, inputCol="z", outputCol="p", k=2),
                 named("norm", Normalizer, inputCol="p", outputCol="n")],
        "numbers pca norm"),
}  # fmt: skip


@pytest.fixture(scope="session")
def train(df: DataFrame) -> DataFrame:
    """The rows of `df`, and three of their numbers as a vector."""
    return VectorAssembler(inputCols=["a", "b", "c"], outputCol="dense").transform(df).cache()


@pytest.fixture(scope="session")
def made(train: DataFrame) -> Callable[[str], PipelineModel]:
    """A pipeline of CASES, fitted once."""
    known: dict[str, PipelineModel] = {}

    def of(name: str) -> PipelineModel:
        if name not in known:
            known[name] = Pipeline(stages=CASES[name][0]()).fit(train)
        return known[name]

    return of


def uids(model: Any) -> str:
    return " ".join(stage.uid for _, stage in flatten(model))


def params(stage: Any) -> dict[str, Any]:
    """All Params that are set, but the names of the columns that it reads."""
    reads = ("inputCol", "inputCols", "featuresCol")
    return {p.name: v for p, v in stage._paramMap.items() if p.name not in reads}


@pytest.mark.parametrize("case", CASES)
def test_the_same_outputs_with_fewer_stages(
    made: Callable[[str], PipelineModel], odd: DataFrame, tmp_path: Path, case: str
) -> None:
    model = made(case)
    before = [(s.uid, s.extractParamMap()) for _, s in flatten(model)]
    new, plan = compact(model), compact_plan(model)
    assert uids(new) == CASES[case][1]
    assert (type(new), new.uid) == (PipelineModel, model.uid)
    assert [s.uid for s in plan.stages if s.action != "gone"] == uids(new).split()
    olds = {s.uid: s for _, s in flatten(model)}
    for _, stage in flatten(new):
        assert type(stage) is type(olds[stage.uid])
        now, then = params(stage), params(olds[stage.uid])
        assert {**now, "layers": None} == {**then, "layers": None}
        assert type(stage).__module__.startswith("pyspark.ml.")
    assert worst(model, new, odd, plan.keepCols) <= (0.0 if "tree" in case or "forest" in case else TOLERANCE)
    new.write().overwrite().save(str(tmp_path / "model"))
    assert worst(new, PipelineModel.load(str(tmp_path / "model")), odd, plan.keepCols) == 0.0
    assert [(s.uid, s.extractParamMap()) for _, s in flatten(model)] == before
