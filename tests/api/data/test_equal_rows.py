"""Equal rows: each falls on a side, and into a block and a fold, by a coin of its own, whatever its label."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import Bucketizer, OneHotEncoder, VectorAssembler
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, SPLIT, Source, training_rows, with_splits
from sparkdiff.evaluation import prediction_differences
from sparkdiff.options import Options
from sparkdiff.proof.division import Division, divide, inner
from sparkdiff.search.search_options import Settings
from sparkdiff.search.splitting import divide_rows
from tests.support.small_data import tune

TABLES, ROWS, VALUES = 80, 400, (24, 675)  # of x: with y = 0 and y = 1 there are twice as many distinct rows


def by_side(df: DataFrame) -> DataFrame:
    (rows,) = with_splits([Source(df)], Options())
    return rows.withColumn("held", F.col(SPLIT) == "validation")


def on_both_sides(parts: Sequence[Source]) -> DataFrame:
    """The rows that fit, and those that are held out."""
    train, held = (source.data for source in parts)
    return train.withColumn("held", F.lit(False)).unionByName(held.withColumn("held", F.lit(True)))


def of_search(df: DataFrame) -> DataFrame:
    return on_both_sides(divide_rows(df, Settings(validationFraction=0.2, testFraction=0.2))[1].proves[0])


def of_search_in_folds(df: DataFrame) -> DataFrame:
    return on_both_sides(divide_rows(df, Settings(validationFraction=0.2, testFraction=0.0, numFolds=5))[1].explores)


def of_a_fold_that_proves(df: DataFrame) -> DataFrame:
    return on_both_sides(in_five(df).proves[0])


def of_the_half_that_proves(df: DataFrame) -> DataFrame:
    return on_both_sides(divide([Source(df)], Options(validationFraction=0.4)).proves[0])


def of_the_rows_that_choose_in_a_fold(df: DataFrame) -> DataFrame:
    train, chooses, _ = inner(in_five(df).proves[0], Options(numFolds=5))
    return on_both_sides([train, chooses])


def in_five(df: DataFrame) -> Division:
    return divide([Source(df)], Options(numFolds=5))


DEALS = [
    by_side,
    of_search,
    of_search_in_folds,
    of_a_fold_that_proves,
    of_the_half_that_proves,
    of_the_rows_that_choose_in_a_fold,
]


@pytest.mark.nightly
@pytest.mark.parametrize("deal", DEALS)
def test_the_loss_of_held_out_rows_is_that_of_new_rows(
    spark: SparkSession, deal: Callable[[DataFrame], DataFrame]
) -> None:
    """Each x is predicted by the mean of its labels in training, drawn a little to 1/2."""
    drawn = spark.range(TABLES * ROWS, numPartitions=2).withColumn("table", F.col("id") % TABLES).drop("id")
    drawn = drawn.select("table", F.explode(F.array(*map(F.lit, VALUES))).alias("values"))
    drawn = drawn.withColumn("x", (F.rand(3) * F.col("values")).cast("long"))
    rows = drawn.withColumn("y", (F.rand(4) < 0.1 + (F.col("x") * 37 % 80) / 100).cast("long"))
    found = deal(rows).groupBy("values", "table", "x", "held", "y").count().toPandas()
    for values in VALUES:
        own = found[found["values"] == values]
        counts = np.zeros((TABLES, values, 2, 2))
        np.add.at(counts, tuple(own[name].astype(int) for name in ("table", "x", "held", "y")), own["count"])
        train, held = counts[:, :, 0], counts[:, :, 1]
        p = (train[..., 1] + 0.5) / (train.sum(2) + 1)
        losses, true = np.stack([-np.log(1 - p), -np.log(p)], 2), 0.1 + (np.arange(values) * 37 % 80) / 100
        of_new_rows = (np.stack([1 - true, true], 1) * losses).sum(2).mean(1)
        off = (held * losses).sum((1, 2)) / held.sum((1, 2)) - of_new_rows
        assert abs(off.mean()) < 2 * off.std() / np.sqrt(TABLES)


def counted(df: DataFrame, *columns: str, **options: object) -> Counter[tuple[object, ...]]:
    """How many rows have these values, this side and this block."""
    (rows,) = with_splits([Source(df)], Options.of(options))
    return Counter(map(tuple, rows.select(*columns, SPLIT, BLOCK).collect()))


def test_the_sides_of_equal_rows_depend_on_their_number_alone(spark: SparkSession) -> None:
    few = spark.range(900, numPartitions=3).select((F.col("id") % 3).alias("x"), F.lit("a").alias("name"))
    alone = spark.range(100).select((F.col("id") + 1000).alias("x"), F.lit("b").alias("name"))
    before = counted(few.union(alone), "x", "name")
    assert counted(alone.union(few).repartition(5).select("name", "x"), "x", "name") == before
    more = counted(few.union(few.limit(100)).union(alone), "x", "name")
    assert before <= more  # a copy more moves no row
    assert counted(alone, "x", "name") <= before  # nor do rows that have copies
    held = sum(n for (_, name, side, _), n in before.items() if name == "a" and side == "validation")
    assert held == pytest.approx(180, abs=4 * np.sqrt(900 * 0.16))
    assert len({block for (_, name, _, block), _ in before.items() if name == "a"}) > 600  # of 2,048


def test_copies_of_one_row_are_dealt(spark: SparkSession) -> None:
    rows = counted(spark.range(20_000, numPartitions=4).select(F.lit(1).alias("x")), "x")
    held = sum(n for (_, side, _), n in rows.items() if side == "validation")
    assert held == pytest.approx(4000, abs=4 * np.sqrt(20_000 * 0.16))


def test_rows_that_differ_in_where_a_null_is_are_not_equal(spark: SparkSession) -> None:
    """Of 4,096 rows of ones and nulls, of which a hash that skips nulls knows 13."""
    bits = [F.when((F.col("id") / 2**k).cast("long") % 2 == 1, 1).alias(f"x{k}") for k in range(12)]
    rows = spark.range(4096).select(*bits)
    names = rows.columns
    found = counted(rows, *names)
    held = [key[-2] == "validation" for key in found]
    ones = [sum(v == 1 for v in key[:12]) for key in found]
    for k in (5, 6, 7):
        own = [h for h, n in zip(held, ones, strict=True) if n == k]
        assert np.mean(own) == pytest.approx(0.2, abs=4 * np.sqrt(0.16 / len(own)))
    assert counted(rows.where("x0 = 1"), *names) <= found


def test_a_block_lies_in_one_fold(spark: SparkSession) -> None:
    rows = spark.range(1500, numPartitions=2).select((F.col("id") % 5).alias("x"), (F.col("id") % 2).alias("y"))
    of_block: dict[int, set[int]] = {}
    total, found = 0, in_five(rows)
    for fold, sources in enumerate([found.explores, *found.proves]):
        own = with_splits(sources, Options(numFolds=5))[1].toPandas()
        total += len(own)
        assert own.groupby(["x", "y"]).size().between(8, 60).all()  # of 150
        for block in own[BLOCK]:
            of_block.setdefault(int(block) % MAX_BLOCKS, set()).add(fold)
        assert sorted(training_rows(sources, Options(numFolds=5)).columns) == ["x", "y"]
    assert total == 1500
    assert max(map(len, of_block.values())) == 1


def test_a_sample_of_rows_to_compare_has_its_share_of_each(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = spark.range(2000, numPartitions=2).select((F.col("id") % 4).cast("double").alias("x"))
    model = Pipeline(stages=[Bucketizer(splits=[0, 2, 4], inputCol="x", outputCol="prediction")]).fit(rows)
    seen: list[DataFrame] = []

    def stop(models: object, graphs: object, df: DataFrame, columns: object) -> None:
        seen.append(df)
        raise InputError("seen")

    monkeypatch.setattr(prediction_differences, "_count_differences", stop)
    with pytest.raises(InputError, match="seen"):
        prediction_differences.predictions(model, model, rows, sample=200)
    assert [r["count"] for r in seen[0].groupBy("x").count().collect()] == pytest.approx([50] * 4, abs=25)


def coded(spark: SparkSession, n: int = 3000) -> DataFrame:
    """Eight values of one column and three of another: 48 distinct rows with the label, whose log-loss is 0.57."""
    rows = spark.range(n, numPartitions=2)
    made = rows.select(
        (F.rand(1) * 8).cast("long").alias("c"), (F.rand(2) * 3).cast("long").alias("d"), F.rand(3).alias("u")
    )
    return made.select("c", "d", (F.col("u") < 0.1 + F.col("c") / 10).cast("double").alias("label")).cache()


@pytest.mark.nightly
def test_the_metric_of_few_distinct_rows_is_true(spark: SparkSession, folder: Path) -> None:
    rows = coded(spark)
    encoder = OneHotEncoder(inputCols=["c", "d"], outputCols=["co", "do"])
    assembler = VectorAssembler(inputCols=["co", "do"], outputCol="features")
    pipeline = Pipeline(stages=[encoder, assembler, LogisticRegression(regParam=0.05, maxIter=5)])
    evaluator = MulticlassClassificationEvaluator().setMetricName("logLoss")
    true = evaluator.evaluate(pipeline.fit(rows).transform(rows))
    for numFolds in (0, 2):
        found = tune(pipeline, rows, folder, labelCol="label", maxEpochs=8, numFolds=numFolds)
        assert found.summary.metrics["validation"]["before"] == pytest.approx(true, abs=0.06)
        assert evaluator.evaluate(found.pipelineModel.transform(rows)) == pytest.approx(true, abs=0.02)
        assert not any("occur in train" in text for text in found.summary.warnings)


def test_a_table_that_was_loaded_twice_is_told(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    found = tune(numeric, df.union(df), folder, maxEpochs=1)
    [text] = [text for text in found.summary.warnings if "occur in train" in text]
    assert "more rows occur twice than chance explains" in text
    assert text.endswith("drop duplicates before the split, or give the copies of a row one value of groupCol")


def test_a_fold_has_few_partitions_whatever_a_shuffle_has(spark: SparkSession) -> None:
    """An estimator reads them in each of its steps, with a task for each partition."""
    rows = spark.range(300).selectExpr("cast(id % 100 as double) x", "cast(id % 2 as double) label")
    was = spark.conf.get("spark.sql.shuffle.partitions")
    spark.conf.set("spark.sql.shuffle.partitions", "50")
    try:
        train = training_rows(in_five(rows).proves[0], Options(numFolds=5)).cache()
        assert train.rdd.getNumPartitions() == 2
        train.unpersist()
    finally:
        spark.conf.set("spark.sql.shuffle.partitions", str(was))


def test_the_training_rows_of_a_fold_keep_their_order_and_places(spark: SparkSession) -> None:
    rows, o = (
        spark.range(300).selectExpr("cast(id % 100 as double) x", "cast(id % 2 as double) label"),
        Options(numFolds=5),
    )
    for sources in (in_five(rows).explores, *in_five(rows).proves, inner(in_five(rows).proves[0], o)):
        dealt = [df.where(df[SPLIT] == "train").select("x", "label") for df in with_splits(sources, o)]
        found, expected = training_rows(sources, o), functools.reduce(DataFrame.union, dealt)
        assert found.columns == ["x", "label"]
        assert found.rdd.glom().collect() == expected.rdd.glom().collect()
