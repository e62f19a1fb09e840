"""Labels of class probabilities: which rows train and which decide, how they are weighted, and which labels are refused."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyspark.ml.functions import array_to_vector
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError
from sparkdiff.data import soft_labels
from sparkdiff.data.soft_labels import SoftLabels
from sparkdiff.data.splits import REFERENCE, TRAIN, VALIDATION, Source
from sparkdiff.options import Options

ROWS, KNOWN = 600, 200


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """The first 200 rows have true labels, the others probabilities; half of these are in groups without a true label."""
    random = np.random.default_rng(4)
    chances = random.dirichlet([1.0, 1.0, 2.0], ROWS)
    number = np.arange(ROWS)
    true = number < KNOWN
    chances[true] = np.eye(3)[number[true] % 3]
    chances[-1] = [0.5, 0.5, 0.0]
    table = pa.table(
        {
            "number": number,
            "soft": [list(c) for c in chances],
            "weight": 1.0 + number % 4,
            "user": np.where(true, number % 20, np.where(number % 2, number % 20, 100 + number % 40)),
            "when": np.where(true, number * 2.0, number / 2.0),
            "held": number % 5 == 0,
        }
    )
    schema = "number long, soft array<double>, weight double, user long, when double, held boolean"
    given = spark.createDataFrame([tuple(row.values()) for row in table.to_pylist()], schema)
    return given.withColumn("soft", array_to_vector("soft")).coalesce(1).cache()


def hardened(df: DataFrame, weightCol: str | None = None, **options: Any) -> tuple[SoftLabels, dict[str, Any]]:
    """What is made of the rows, and its rows by split as numpy arrays."""
    found = soft_labels.explode_classes([Source(df)], Options.of(options), "soft", weightCol, 3)
    frames = {
        s.split: s.df.select("number", "soft", found.weightCol, "user", "when", "held").toPandas()
        for s in found.sources
    }
    return found, frames


def test_training_rows_weigh_what_their_probabilities_are(rows: DataFrame) -> None:
    found, frames = hardened(rows, "weight")
    train, held = frames[TRAIN], frames[VALIDATION]
    given = {r["number"]: r["soft"].toArray() for r in rows.collect()}
    sums = train.groupby("number")[found.weightCol].sum()
    np.testing.assert_allclose(sums, 1.0 + sums.index.to_numpy() % 4, rtol=1e-12)
    for number in (KNOWN, ROWS - 2, ROWS - 1):
        mine = train[train["number"] == number].set_index("soft")[found.weightCol]
        wanted = {k: p * (1 + number % 4) for k, p in enumerate(given[number]) if p > 0}
        assert mine.to_dict() == pytest.approx(wanted, rel=1e-15)
    assert set(held["number"]) < set(range(KNOWN)) and set(range(KNOWN, ROWS)) < set(train["number"])
    assert (held["soft"] == held["number"] % 3).all() and (held[found.weightCol] == 1 + held["number"] % 4).all()
    assert not set(held["number"]) & set(train["number"]) and 20 <= len(held) <= 60
    assert (found.soft, found.certain, found.held) == (ROWS - KNOWN, KNOWN - len(held), len(held)) and not found.leftOut
    assert (
        "400 training rows" in found.sentence() and f"{len(held)} validation rows have true labels" in found.sentence()
    )


def test_groups_stay_whole_and_those_without_labels_train(rows: DataFrame) -> None:
    found, frames = hardened(rows, groupCol="user", validationFraction=0.4)
    train, held = (set(frames[s]["user"]) for s in (TRAIN, VALIDATION))
    assert held and not train & held and held < set(range(20)) and set(range(100, 140, 2)) <= train
    lost = set(range(ROWS)) - set(frames[TRAIN]["number"]) - set(frames[VALIDATION]["number"])
    assert found.leftOut == len(lost) > 0 and f"{found.leftOut} rows with probabilities" in found.sentence()
    users = {r["number"]: r["user"] for r in rows.select("number", "user").collect()}
    assert all(n >= KNOWN and users[n] in held for n in lost)


def test_nothing_later_trains(rows: DataFrame) -> None:
    found, frames = hardened(rows, timeCol="when")
    train, held = frames[TRAIN], frames[VALIDATION]
    assert train["when"].max() <= held["when"].min() and len(held) == pytest.approx(0.2 * KNOWN, abs=1)
    assert set(held["number"]) < set(range(KNOWN)) and found.leftOut == 0  # the rows without labels end before
    later = rows.withColumn("when", F.when(F.col("number") < KNOWN, F.col("when")).otherwise(F.col("number")))
    found, frames = hardened(later, timeCol="when")
    assert found.leftOut > 200 and frames[TRAIN]["when"].max() <= frames[VALIDATION]["when"].min()


def test_a_column_may_say_which_rows_decide(rows: DataFrame) -> None:
    found, frames = hardened(rows, validationIndicatorCol="held")
    assert set(frames[VALIDATION]["number"]) == set(range(0, KNOWN, 5)) and not frames[TRAIN]["held"].any()
    assert found.leftOut == (ROWS - KNOWN) // 5
    with pytest.raises(InputError, match="validationIndicatorCol='held' holds null in 120 rows"):
        hardened(rows.withColumn("held", F.when(~F.col("held"), False)), validationIndicatorCol="held")


def test_given_sides_and_reference_rows_stay(rows: DataFrame) -> None:
    known, guessed = rows.where(f"number < {KNOWN}"), rows.where(f"number >= {KNOWN}")
    numbers = known.withColumn("soft", (F.col("number") % 3).cast("double"))
    sources = [Source(guessed), Source(numbers.limit(50), VALIDATION), Source(rows, REFERENCE)]
    found = soft_labels.explode_classes(sources, Options(), "soft", None, 3)
    counts = {s.split: s.df.count() for s in found.sources}
    assert counts == {TRAIN: 3 * (ROWS - KNOWN) - 1, VALIDATION: 50, REFERENCE: KNOWN} and found.held == 50
    assert soft_labels.has_vector_labels(sources, "soft") and not soft_labels.has_vector_labels(sources[1:], "soft")


@pytest.mark.parametrize(
    ("label", "said"),
    [
        ([0.5, 0.5], r"labelCol='soft' holds \[0.5, 0.5\] in 2 rows: 2 probabilities, but the pipeline has 3 classes"),
        ([0.7, 0.6, -0.3], r"holds \[0.7, 0.6, -0.3\] in 2 rows: an entry is negative or NaN"),
        ([float("nan"), 1.0, 0.0], r"holds \[nan, 1.0, 0.0\] in 2 rows: an entry is negative or NaN"),
        ([0.5, 0.3, 0.1], r"holds \[0.5, 0.3, 0.1\] in 2 rows: the sum is 0.9, not 1"),
        (None, r"labelCol='soft' is null in 2 of 42 rows: .*sparkdiff.distill"),
    ],
)
def test_labels_that_are_no_probabilities_are_named(spark: SparkSession, label: Any, said: str) -> None:
    table = [(float(i), [1.0, 0.0, 0.0]) for i in range(40)] + [(50.0 + i, label) for i in range(2)]
    df = spark.createDataFrame(table, "number double, soft array<double>").coalesce(1)
    df = df.withColumn("soft", F.when(F.col("soft").isNotNull(), array_to_vector(F.col("soft"))))
    with pytest.raises(InputError, match=said):
        soft_labels.explode_classes([Source(df)], Options(), "soft", None, 3)
    if label is None:
        with pytest.raises(InputError, match="is null in all 2 rows"):
            soft_labels.explode_classes([Source(df.where("number > 45"))], Options(), "soft", None, 3)


def test_columns_that_are_not_there_are_named(rows: DataFrame) -> None:
    with pytest.raises(InputError, match=r"weightCol='wait' is not a column of the data, .*Did you mean 'weight'"):
        hardened(rows, "wait")
    with pytest.raises(InputError, match="groupCol='users' is not a column"):
        hardened(rows, groupCol="users")
    with pytest.raises(InputError, match="'__sparkdiff_true', a name that sparkdiff reserves"):
        hardened(rows.withColumn("__sparkdiff_true", F.lit(1)))


def test_without_true_labels_time_is_no_error(rows: DataFrame) -> None:
    found, frames = hardened(rows.where(f"number >= {KNOWN}"), timeCol="when")
    assert found.held == 0 < found.leftOut and not len(frames[VALIDATION])


def test_reference_rows_need_true_labels(rows: DataFrame) -> None:
    def made(reference: DataFrame) -> SoftLabels:
        return soft_labels.explode_classes([Source(rows), Source(reference, REFERENCE)], Options(), "soft", None, 3)

    some = made(rows.where("number >= 150 AND number < 260"))
    assert some.leftOutReference == 60 and "60 rows with probabilities among the reference rows" in some.sentence()
    with pytest.raises(InputError, match="none of the reference rows has a true label in labelCol='soft'"):
        made(rows.where("number >= 260"))


def test_weights_are_checked_as_those_of_hard_labels(rows: DataFrame) -> None:
    with pytest.raises(InputError, match="weightCol='weight' is string, but must be a number"):
        hardened(rows.withColumn("weight", F.col("weight").cast("string")), "weight")
    with pytest.raises(InputError, match=r"weightCol='weight' holds -1.0 in 1 rows"):
        hardened(rows.withColumn("weight", F.expr("IF(number = 3, -1D, weight)")), "weight")


def test_a_column_that_a_model_made_is_doubted(rows: DataFrame) -> None:
    mark = {"ml_attr": {"num_attrs": 3}}
    assert "made labelCol='soft'" in hardened(rows.withMetadata("soft", mark))[0].sentence()
    assert "warning" not in hardened(rows)[0].sentence()
