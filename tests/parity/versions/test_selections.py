"""A last stage that drops columns or puts them last: everything takes it, and it changes no other column."""

from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import jvm
from sparkdiff.evaluation.prediction_differences import predictions
from sparkdiff.jvm import sessions
from sparkdiff.jvm.selections import Selection
from sparkdiff.pipeline.translation import translated_graph
from sparkdiff.serving.compact.deletion import deletions
from sparkdiff.store.model_digests import UnidentifiableError, check_reads_its_input_only

pytestmark = pytest.mark.skipif(sessions.VERSION < (4, 0), reason="Spark 3.5 has no `* EXCEPT`")


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    x = np.random.default_rng(0).normal(size=(200, 2))
    data = [(float(a), float(b), float(2 * a - b + i % 3)) for i, (a, b) in enumerate(x)]
    return spark.createDataFrame(data, ["a", "b", "y"]).cache()


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=["a", "b"], outputCol="grown_all"),
        StandardScaler(inputCol="grown_all", outputCol="grown_scaled", withMean=True),
        LinearRegression(featuresCol="grown_scaled", labelCol="y"),
    ]
    return Pipeline(stages=stages).fit(rows)


ADDED = ("grown_all", "grown_scaled")


def with_last(model: PipelineModel, last: tuple[str, ...]) -> PipelineModel:
    return PipelineModel([*model.stages, jvm.selecting(ADDED, last, "odd uid-1")])


def test_only_statements_that_do_nothing_else_are_known(spark: SparkSession) -> None:
    def of(statement: str) -> Selection | None:
        return jvm.selection_of(SQLTransformer(statement=statement))

    assert of("SELECT * EXCEPT (`a b`, `c``d`), `a b`, `c``d` FROM __THIS__") == (("a b", "c`d"), ("a b", "c`d"))
    assert of("select * except(a, b) from __THIS__") == (("a", "b"), ())
    others = (
        "SELECT * EXCEPT (a) FROM __THIS__ WHERE b > 0",
        "SELECT * EXCEPT (a), b FROM __THIS__",
        "SELECT a FROM __THIS__",
        "SELECT * EXCEPT (a), b + 1 AS c FROM __THIS__",
        "SELECT * EXCEPT (a) FROM other",
        "SELECT * FROM __THIS__",
    )
    assert [of(statement) for statement in others] == [None] * len(others)
    assert jvm.selection_of(SQLTransformer()) is None


@pytest.mark.parametrize("last", [(), ADDED])
def test_every_verb_takes_the_stage(
    model: PipelineModel, rows: DataFrame, last: tuple[str, ...], tmp_path: Path
) -> None:
    given = with_last(model, last)
    shown = given.transform(rows)
    assert shown.columns == ["a", "b", "y", "prediction", *last]
    expected = [row.prediction for row in model.transform(rows).collect()]
    assert sparkdiff.verify(given, rows).ok
    graph = translated_graph(given, rows)
    assert [v.uid for v in graph.vertices if v.module is None] == ["odd_uid_1"]
    assert ("grown_all" in graph.writers) == bool(last)
    scorer = sparkdiff.Scorer(given, rows)
    served = scorer.predict([row.asDict() for row in rows.collect()])
    assert [row["prediction"] for row in served] == pytest.approx(expected)
    exported = sparkdiff.export(given, tmp_path / "model.onnx", outputCols=["prediction"], schema=rows)
    assert exported.sparkStages == ()
    given.write().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert [row.prediction for row in loaded.transform(rows).collect()] == expected
    # What compact folds away, the statement doesn't name any more.
    small = sparkdiff.compact(given, keepCols=["prediction"])
    assert len(small.stages) == 3 - (not last and len(small.stages) < 3)
    assert [row.prediction for row in small.transform(rows).collect()] == pytest.approx(expected)
    assert small.transform(rows).columns[:4] == shown.columns[:4]
    for deletion in deletions(given, rows.schema):
        assert "grown_scaled" not in deletion.pipeline.transform(rows).columns
    assert {n.column for n in predictions(given, loaded, rows).numbers} == {"prediction"}


def test_it_reads_its_input_only(model: PipelineModel) -> None:
    check_reads_its_input_only(with_last(model, ()).stages[-1])
    with pytest.raises(UnidentifiableError, match="may call functions"):
        check_reads_its_input_only(SQLTransformer(statement="SELECT * FROM __THIS__ JOIN other"))
