"""Serving costs of every class of MLlib: a figure that grows with the stage, or a reason why there is none."""

from typing import Any

import pytest
from pyspark.ml import PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel, OneVsRestModel
from pyspark.ml.clustering import BisectingKMeans, KMeans
from pyspark.ml.feature import (
    IDF,
    FeatureHasher,
    HashingTF,
    MinHashLSH,
    PolynomialExpansion,
    SQLTransformer,
    Tokenizer,
    VectorAssembler,
    VectorSlicer,
)
from pyspark.ml.regression import FMRegressor
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.growth import cost_table
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.stages.base import REGISTRY, UNTRANSLATED

UNKNOWN = {
    "SQLTransformer": "its statement may do anything",
    "ALSModel": "it joins the rows with its factors, and Spark decides how",
    "FPGrowthModel": "it goes through all association rules, and a Spark job must find them first",
}
HELD = {"PipelineModel", "CrossValidatorModel", "TrainValidationSplitModel", "RFormulaModel"}
"""Classes that cost what the stages in them cost."""


@pytest.fixture(scope="module")
def rows(tool: Any, spark: SparkSession) -> DataFrame:
    return tool.rows(spark)  # type: ignore[no-any-return]


def test_every_class_has_a_figure_or_a_reason(tool: Any) -> None:
    registered = {name for name in (*REGISTRY, *UNTRANSLATED) if name.startswith(("pyspark.ml.", "sparkdiff.jvm."))}
    names = {kind.__name__ for kind in tool.classes()} | {name.rpartition(".")[2] for name in registered}
    assert names - cost_table.COSTS.keys() == UNKNOWN.keys() | HELD
    assert cost_table.COSTS.keys() <= names | {"TargetEncoderModel"}  # Spark 3.5 has none


@pytest.mark.nightly
@pytest.mark.slow
def test_every_fitted_stage_tells_its_entries(tool: Any, rows: DataFrame) -> None:
    for name in tool.stages():
        stage = tool.one_of(name, rows)
        unknown = [s for _, s in flatten(stage) if type(s).__name__ in UNKNOWN]
        assert [type(s).__name__ for s in unknown] == ([name] if name in UNKNOWN else [])
        assert len(cost_table.unknown(stage)) == len(unknown)
        assert all(cost_table.entries_of(s) > 0 for _, s in flatten(stage) if s not in unknown), name
        assert all(filled > 0 for filled in cost_table.filled_by_model(stage).values()), name


def test_more_models_cost_more(spark: SparkSession, rows: DataFrame) -> None:
    one = LogisticRegression(maxIter=1).fit(rows)
    two, hundred = (OneVsRestModel(models=[one] * n).setFeaturesCol("features") for n in (2, 100))
    assert cost_table.of_stage(hundred) == pytest.approx(50 * cost_table.of_stage(two), rel=0.1)
    assert cost_table.of_stage(two) > 2 * cost_table.of_stage(one)


def test_larger_stages_cost_more(spark: SparkSession, rows: DataFrame) -> None:
    to = {"inputCol": "features", "outputCol": "o"}
    sizes: list[tuple[Any, Any]] = [
        tuple(FMRegressor(labelCol="target", factorSize=k, maxIter=1).fit(rows) for k in (2, 16)),
        tuple(KMeans(k=k, seed=1).fit(rows) for k in (2, 6)),
        tuple(BisectingKMeans(k=k, seed=1).fit(rows) for k in (2, 6)),
        tuple(MinHashLSH(numHashTables=k, **to).fit(rows) for k in (1, 9)),
        tuple(VectorSlicer(indices=list(range(k)), **to) for k in (1, 9)),
        tuple(PolynomialExpansion(degree=k, **to) for k in (2, 9)),
        tuple(FeatureHasher(inputCols=["text", "number"][:k], outputCol="o") for k in (1, 2)),
    ]
    for small, large in sizes:
        assert cost_table.of_stage(large) > cost_table.of_stage(small), small


def test_hashed_words_are_few_entries_of_many(spark: SparkSession) -> None:
    """What reads them costs by the words of a text, not by the size of the vector."""
    data = spark.createDataFrame([("a b c", 0.0), ("c d", 1.0)] * 4, "text string, label double")
    stages: list[Any] = [Tokenizer(inputCol="text", outputCol="words"), HashingTF(inputCol="words", outputCol="counts")]
    for stage in (IDF(inputCol="counts", outputCol="weighed"), LogisticRegression(featuresCol="weighed", maxIter=1)):
        stages.append(stage.fit(PipelineModel(stages).transform(data)))
    filled = cost_table.filled_by_model(PipelineModel(stages))
    assert filled["counts"] == filled["weighed"] == cost_table.WORDS
    assert cost_table.entries_of(stages[-1]) == stages[-1].numFeatures == 2**18
    assert cost_table.of_model(PipelineModel(stages)) < 0.1 * cost_table.of_stage(stages[-1])


class Word2VecModel(Transformer):
    """The class of another library, under the name of one of Spark's."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset


class Boosted(LogisticRegressionModel):
    """Another library's classifier, which OneVsRest can fit as it does one of Spark's."""


def test_stages_without_a_figure_are_named(spark: SparkSession, rows: DataFrame) -> None:
    own, statement = Word2VecModel(), SQLTransformer(statement="SELECT * FROM __THIS__ LIMIT 9")
    assembler = VectorAssembler(inputCols=["number"], outputCol="o")
    one = LogisticRegression(maxIter=1).fit(rows)
    asked = OneVsRestModel(models=[one, Boosted(one._java_obj)])
    drops = SQLTransformer(statement="SELECT * EXCEPT (`user`) FROM __THIS__")
    assert cost_table.unknown(PipelineModel([assembler, drops])) == []
    [warning] = cost_table.unknown(PipelineModel([assembler, statement, own, asked]))
    names = f"SQLTransformer {statement.uid}, Word2VecModel {own.uid}, OneVsRestModel {asked.uid}"
    assert warning.startswith(f"serving costs of {names} are not known: each counts as 2 us per row")
    assert cost_table.of_stage(statement) == cost_table.of_stage(own) == cost_table.DEFAULT[0]
    assert cost_table.of_stage(drops) == 0
