"""distill: true labels where they are, a teacher's probabilities elsewhere, none of which looks like a true label."""

from typing import Any

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.classification import DecisionTreeClassifier, LinearSVC, LogisticRegression
from pyspark.ml.feature import Imputer, SQLTransformer, VectorAssembler
from pyspark.sql import DataFrame, functions as F

from sparkdiff import InputError, LabelModel, distill
from tests.support.small_data import pipeline


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    """`label` is null, or NaN, in most rows."""
    known = F.when(F.col("number") < 50, F.col("kind")).when(F.col("number") < 60, F.lit(float("nan")))
    return df.limit(200).withColumn("label", known).coalesce(1).cache()


@pytest.fixture(scope="module")
def teacher(df: DataFrame) -> PipelineModel:
    return pipeline(df, LogisticRegression(featuresCol="x", labelCol="kind", maxIter=5))


def vectors(df: DataFrame, column: str) -> np.ndarray[Any, Any]:
    return np.stack([r[column].toArray() for r in df.select(column).collect()])


def test_a_teacher_labels_what_nobody_has(rows: DataFrame, teacher: PipelineModel) -> None:
    found = distill(teacher, rows, labelCol="label", outputCol="soft")
    assert found.columns == [*rows.columns, "soft"]
    soft, guess = vectors(found, "soft"), vectors(teacher.transform(rows), "probability")
    label = np.array([np.nan if r["label"] is None else r["label"] for r in found.collect()])
    known = ~np.isnan(label)
    assert known.sum() == 50
    assert np.array_equal(soft[known], np.eye(3)[label[known].astype(int)]) and np.array_equal(
        soft[~known], guess[~known]
    )
    cooler = vectors(distill(teacher, rows, labelCol=None, outputCol="soft", temperature=2.0), "soft")
    np.testing.assert_allclose(cooler, np.sqrt(guess) / np.sqrt(guess).sum(1, keepdims=True), rtol=1e-12)


def test_a_sure_teacher_gives_no_true_labels(df: DataFrame, rows: DataFrame) -> None:
    sure = pipeline(
        df.limit(40), DecisionTreeClassifier(featuresCol="x", labelCol="kind", maxDepth=8, minInstancesPerNode=1)
    )
    assert vectors(sure.transform(rows), "probability").max() == 1.0
    soft = vectors(distill(sure, rows, labelCol=None, outputCol="soft"), "soft")
    assert 1 - 1e-8 < soft.max() < 1 and np.abs(soft.sum(1) - 1).max() < 1e-8


def test_a_low_temperature_leaves_a_distribution(rows: DataFrame, teacher: PipelineModel) -> None:
    cold = vectors(distill(teacher, rows, labelCol=None, outputCol="soft", temperature=1e-4), "soft")
    np.testing.assert_allclose(cold.sum(1), 1.0, atol=1e-8)


def test_a_teacher_that_drops_rows_is_refused(rows: DataFrame, teacher: PipelineModel) -> None:
    some = PipelineModel([SQLTransformer(statement="SELECT * FROM __THIS__ WHERE number < 150"), *teacher.stages])
    with pytest.raises(InputError, match=f"150 rows of {rows.count()}"):
        distill(some, rows, labelCol="label", outputCol="soft")


def test_a_teacher_that_overwrites_columns(rows: DataFrame, teacher: PipelineModel) -> None:
    few = rows.limit(20).withColumn("wind", F.when(F.col("number") > 5, F.col("wind"))).cache()
    imputer = Imputer(inputCols=["wind"], outputCols=["wind"]).fit(few)
    turned = SQLTransformer(statement="SELECT * EXCEPT (label), 2 - label AS label FROM __THIS__")
    for stages in ([imputer], [imputer, turned]):
        found = distill(PipelineModel([*stages, *teacher.stages]), few, labelCol="label", outputCol="soft")
        assert found.drop("soft").schema == few.schema
        kept = [[r[c] for c in few.columns if c not in ("soft", "label")] for r in found.collect()]
        assert kept == [[r[c] for c in few.columns if c != "label"] for r in few.collect()]
        label = [int(r["label"]) for r in few.collect()]
        assert np.array_equal(vectors(found, "soft"), np.eye(3)[label])
    some = SQLTransformer(statement=f"SELECT {', '.join(few.columns)} FROM __THIS__")
    with pytest.raises(InputError, match=r"the teacher selects columns, so that those of the data .*'wind'"):
        distill(PipelineModel([imputer, some, *teacher.stages]), few, labelCol="label", outputCol="soft")
    full = few.na.drop()  # a selection that changes nothing loses nothing
    found = distill(PipelineModel([some, *teacher.stages]), full, labelCol="label", outputCol="soft")
    assert found.drop("soft").collect() == full.collect()
    with pytest.raises(InputError, match="the data have 2 columns of the name 'wind'"):
        distill(teacher, few.select("*", F.lit(1).alias("wind")), labelCol="label", outputCol="soft")


def test_rules_teach_too(rows: DataFrame) -> None:
    votes = {name: f"IF({name} > 0, 1, 0)" for name in ("temp", "wind", "hum", "noise")}
    labels = LabelModel(votes, method="em").fit(rows)
    soft = vectors(distill(labels, rows, labelCol=None, outputCol="soft"), "soft")
    np.testing.assert_allclose(soft, vectors(labels.transform(rows), "probability"), atol=1e-9)


def test_what_cannot_teach_says_so(df: DataFrame, rows: DataFrame, teacher: PipelineModel) -> None:
    svc = pipeline(df.limit(50), LinearSVC(featuresCol="x", labelCol="rain", maxIter=1))
    for model, data, options, said in (
        (svc, rows, {}, "PipelineModel has no probabilityCol, .*LinearSVC and regressions do not"),
        (svc, rows, {"probabilityCol": "rawPredict"}, "column 'rawPredict' is not there"),
        (teacher, rows, {"probabilityCol": "prediction"}, "column 'prediction' is double"),
        (teacher, rows, {"temperature": 0}, "temperature must be a finite number above 0, got 0"),
        (teacher, rows, {"outputCol": "wind"}, "outputCol='wind' is a column of the data already"),
        (teacher, rows, {"labelCol": "lable"}, "labelCol='lable' is not a column.*'label'"),
        (teacher, rows, {"labelCol": "hour"}, "labelCol='hour' is string, but must be a class"),
        (
            teacher,
            rows,
            {"labelCol": "number"},
            r"labelCol='number' holds \d+ in 1 rows, but the teacher has the classes 0 to 2",
        ),
        (teacher, rows.withColumn("probability", F.lit(1)), {}, "have a column 'probability' already"),
        (teacher, rows.drop("wind"), {}, "the teacher cannot predict these rows: .*wind"),
    ):
        with pytest.raises(InputError, match=said):
            distill(model, data, **{"labelCol": "label", "outputCol": "soft", **options})
    two = LogisticRegression(featuresCol="x", labelCol="rain", probabilityCol="p", maxIter=1)
    x = VectorAssembler(inputCols=["wind"], outputCol="x").transform(df.limit(50))
    with pytest.raises(InputError, match=r"'label' holds 2 in .* rows, but the teacher has the classes 0 to 1"):
        distill(two.fit(x), x.withColumn("label", F.lit(2)), labelCol="label", outputCol="soft")
