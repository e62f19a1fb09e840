"""Every stage that stays in Spark whatever its settings: the plan says why, knows its columns, and trains what is behind it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import LDA, BisectingKMeans
from pyspark.ml.feature import (
    DCT,
    IDF,
    PCA,
    BucketedRandomProjectionLSH,
    CountVectorizer,
    FeatureHasher,
    HashingTF,
    IndexToString,
    MaxAbsScaler,
    MinHashLSH,
    MinMaxScaler,
    NGram,
    Normalizer,
    RegexTokenizer,
    RobustScaler,
    SQLTransformer,
    StandardScaler,
    StopWordsRemover,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
)
from pyspark.ml.fpm import FPGrowth
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import plan
from sparkdiff.stages.base import UNTRANSLATED

# stage, the columns that it reads and writes, a part of the reason
STAGES: dict[str, tuple[Callable[[], Any], tuple[str, ...], tuple[str, ...], str]] = {
    "Tokenizer": (lambda: Tokenizer(inputCol="text", outputCol="o"), ("text",), ("o",), "its input is strings"),
    "RegexTokenizer": (
        lambda: RegexTokenizer(inputCol="text", outputCol="o"),
        ("text",),
        ("o",),
        "its input is strings",
    ),
    "StopWordsRemover": (
        lambda: StopWordsRemover(inputCols=["words", "words"], outputCols=["o", "q"]),
        ("words", "words"),
        ("o", "q"),
        "its input is strings",
    ),
    "NGram": (lambda: NGram(inputCol="words", outputCol="o"), ("words",), ("o",), "its input is strings"),
    "StringIndexerModel": (
        lambda: StringIndexer(inputCol="text", outputCol="o"),
        ("text",),
        ("o",),
        "its input is strings",
    ),
    "CountVectorizerModel": (
        lambda: CountVectorizer(inputCol="words", outputCol="o"),
        ("words",),
        ("o",),
        "its input is words",
    ),
    "HashingTF": (
        lambda: HashingTF(inputCol="words", outputCol="o", numFeatures=8),
        ("words",),
        ("o",),
        "its input is words",
    ),
    "FeatureHasher": (
        lambda: FeatureHasher(inputCols=["text", "label"], outputCol="o", numFeatures=8),
        ("text", "label"),
        ("o",),
        "it hashes names and strings",
    ),
    "IndexToString": (
        lambda: IndexToString(inputCol="label", outputCol="o", labels=["no", "yes"]),
        ("label",),
        ("o",),
        "its output is strings",
    ),
    "SQLTransformer": (
        lambda: SQLTransformer(statement="SELECT *, 2 * label AS o FROM __THIS__"),
        ("label",),
        ("o",),
        "its statement computes",
    ),
    "BucketedRandomProjectionLSHModel": (
        lambda: BucketedRandomProjectionLSH(inputCol="features", outputCol="o", bucketLength=2.0, seed=1),
        ("features",),
        ("o",),
        "arrays of hash values",
    ),
    "MinHashLSHModel": (
        lambda: MinHashLSH(inputCol="features", outputCol="o", seed=1),
        ("features",),
        ("o",),
        "arrays of hash values",
    ),
    "BisectingKMeansModel": (
        lambda: BisectingKMeans(predictionCol="o", maxIter=1),
        ("features",),
        ("o",),
        "in a tree of centres",
    ),
    "LocalLDAModel": (
        lambda: LDA(k=2, maxIter=1, seed=1, topicDistributionCol="o"),
        ("features",),
        ("o",),
        "whose number depends on the row",
    ),
    "DistributedLDAModel": (
        lambda: LDA(k=2, maxIter=1, seed=1, optimizer="em", topicDistributionCol="o"),
        ("features",),
        ("o",),
        "in a distributed graph",
    ),
    "FPGrowthModel": (lambda: FPGrowth(itemsCol="words", predictionCol="o"), ("words",), ("o",), "sets of items"),
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    data = [
        (text, text.split(), Vectors.dense(i + 1, i % 2, 2.0), float(i % 2))
        for i, text in enumerate(["a b", "b c", "c d a", "the b d", "d a", "a c"])
    ]
    return spark.createDataFrame(data, ["text", "words", "features", "label"]).coalesce(1).cache()


@pytest.fixture(scope="module")
def fitted(rows: DataFrame) -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            stage = STAGES[name][0]()
            made[name] = stage.fit(rows) if hasattr(stage, "fit") else stage
        return made[name]

    return of


@pytest.fixture(scope="module")
def logistic(rows: DataFrame) -> Any:
    return LogisticRegression(maxIter=2).fit(rows)


def test_all_are_here() -> None:
    """But the whole of a formula, which has tests of its own."""
    left = {name.rpartition(".")[2] for name in UNTRANSLATED if name.startswith("pyspark.ml.")}
    assert left - {"RFormulaModel"} == set(STAGES)


@pytest.mark.parametrize("name", STAGES)
def test_the_plan_says_why(fitted: Callable[[str], Any], rows: DataFrame, logistic: Any, name: str) -> None:
    _, inputs, outputs, why = STAGES[name]
    stage = fitted(name)
    for model in (stage, PipelineModel([stage, logistic])):
        found = plan(model, schema=rows.schema).stages[0]
        assert (found.stageClass, found.role, found.trainable, found.numParameters) == (name, "referenced", False, 0)
        assert (found.inputCols, found.outputCols) == (inputs, outputs)
        assert why in found.reason
    assert not found.cached
    assert plan(model).stages[0].cached == (name == "SQLTransformer")  # which may have written the predictor's input
    assert plan(model).stages[1].trainable


@pytest.mark.parametrize("name", [name for name in STAGES if name != "SQLTransformer"])
def test_it_is_written_back_as_the_same_object(fitted: Callable[[str], Any], logistic: Any, name: str) -> None:
    model = PipelineModel([fitted(name), logistic])
    network = sparkdiff.translate(model)
    assert network.inputCols == ("features",)
    with torch.no_grad():
        network.head.interceptVector.add_(1.0)
    back = sparkdiff.write_back(model, network)
    assert back.stages[0] is fitted(name)
    assert back.stages[1].intercept == logistic.intercept + 1.0


@pytest.mark.parametrize(
    "name", ["CountVectorizerModel", "HashingTF", "FeatureHasher", "LocalLDAModel", "DistributedLDAModel"]
)
def test_what_reads_its_output_trains(fitted: Callable[[str], Any], rows: DataFrame, name: str) -> None:
    stage = fitted(name)
    model = Pipeline(stages=[stage, LogisticRegression(featuresCol="o", maxIter=2)]).fit(rows)
    found = plan(model, schema=rows.schema)
    assert [(s.role, s.trainable, s.cached) for s in found.stages] == [
        ("referenced", False, True),
        ("translated", True, False),
    ]
    assert found.cacheCols == ("o",)
    assert sparkdiff.translate(model).reference.stages == [stage]
    assert sparkdiff.verify(model, rows).ok


def test_an_integer_output_is_no_way_for_gradients(rows: DataFrame, fitted: Callable[[str], Any]) -> None:
    """Nothing in front of it trains: its clusters were found for the features as they were."""
    scaled = [
        StandardScaler(inputCol="features", outputCol="scaled"),
        BisectingKMeans(featuresCol="scaled", predictionCol="cluster"),
    ]
    behind = [
        VectorAssembler(inputCols=["cluster", "scaled"], outputCol="all"),
        LogisticRegression(featuresCol="all", maxIter=1),
    ]
    found = plan(Pipeline(stages=[*scaled, *behind]).fit(rows))
    assert [s.trainable for s in found.stages] == [False, False, False, True]
    assert found.stages[0].reason.startswith("feeds BisectingKMeans_")
    assert "in a tree of centres" in found.stages[0].reason


# What makes sparse rows dense -------------------------------------------------------------------------------------------

DENSE = {
    "mean": (
        lambda: StandardScaler(inputCol="o", outputCol="x", withMean=True),
        r"sparse rows of 8 entries dense \(withMean=True\)",
    ),
    "centre": (
        lambda: RobustScaler(inputCol="o", outputCol="x", withCentering=True),
        r"sparse rows of 8 entries dense \(withCentering=True\)",
    ),
    "range": (
        lambda: MinMaxScaler(inputCol="o", outputCol="x"),
        r"sparse rows of 8 entries dense \(scaling changes zeros\)",
    ),
    "waves": (lambda: DCT(inputCol="o", outputCol="x"), r"sparse rows dense \(each output adds up all entries\)"),
    "components": (lambda: PCA(inputCol="o", outputCol="x", k=2), r"dense \(each component adds up all entries\)"),
}
SPARSE = {
    "std": lambda: StandardScaler(inputCol="o", outputCol="x"),
    "largest": lambda: MaxAbsScaler(inputCol="o", outputCol="x"),
    "words": lambda: IDF(inputCol="o", outputCol="x"),
    "norm": lambda: Normalizer(inputCol="o", outputCol="x"),
}


def counted(rows: DataFrame, *stages: Any) -> PipelineModel:
    return Pipeline(stages=[HashingTF(inputCol="words", outputCol="o", numFeatures=8), *stages]).fit(rows)


@pytest.mark.parametrize("name", DENSE)
def test_the_plan_says_what_makes_rows_dense(rows: DataFrame, name: str) -> None:
    make, why = DENSE[name]
    behind = StandardScaler(inputCol="x", outputCol="y", withMean=True)  # reads dense rows already
    found = plan(counted(rows, make(), behind)).stages
    assert re.search(f"; makes {why}$" if name != "components" else why, found[1].reason)
    assert "dense" not in found[2].reason
    model = counted(rows, IDF(inputCol="o", outputCol="weighed"), (scaler := make()).copy({scaler.inputCol: "weighed"}))
    assert re.search(why, plan(model).stages[2].reason)
    assert (
        re.search(why, plan(PipelineModel(model.stages[1:])).stages[1].reason) is None
    )  # nothing is known of its input


@pytest.mark.parametrize("name", SPARSE)
def test_what_stays_sparse_is_no_matter(rows: DataFrame, name: str) -> None:
    assert "dense" not in plan(counted(rows, SPARSE[name]())).stages[1].reason


def test_wide_rows_of_the_source_may_be_sparse(spark: SparkSession) -> None:
    df = spark.createDataFrame([(Vectors.sparse(2000, [3], [1.0]),), (Vectors.sparse(2000, [7], [2.0]),)], ["o"])
    found = plan(StandardScaler(inputCol="o", outputCol="x", withMean=True).fit(df)).stages[0].reason
    assert found.endswith("makes rows of 2,000 entries dense if they are sparse (withMean=True)")
