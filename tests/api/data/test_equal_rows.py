"""Equal rows: each falls on a side, and into a block and a fold, by a coin of its own, whatever its label."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.data import folds, row_hashes
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, SPLIT, Source, training_rows, with_splits
from sparkdiff.options import Options
from sparkdiff.tuning.search.splitting import FOLD, TEST, SearchSplit, divided, in_folds

pytestmark = pytest.mark.once  # hashes of our own: no stack changes them

TABLES, ROWS, VALUES = 200, 400, (24, 96, 675)  # of x: with y = 0 and y = 1 there are twice as many distinct rows


def by_side(df: DataFrame) -> DataFrame:
    (rows,) = with_splits([Source(df)], Options())
    return rows.withColumn("held", F.col(SPLIT) == "validation")


def of_search(df: DataFrame) -> DataFrame:
    return divided(df, SearchSplit(0.2, 0.2)).rows.withColumn("held", F.col(SPLIT) == TEST)


def of_search_in_folds(df: DataFrame) -> DataFrame:
    return in_folds(df, SearchSplit(0.2, 0.0), 5).withColumn("held", F.col(FOLD) == 0)


def of_cross_fitting(df: DataFrame) -> DataFrame:
    train, chooses, own = (source.data for source in in_five([Source(df)])[0])
    others = train.unionByName(chooses).withColumn("held", F.lit(False))
    return others.unionByName(own.withColumn("held", F.lit(True)))


def in_five(sources: list[Source], **options: int) -> list[list[Source]]:
    """The sources of each of five folds."""
    o = Options.of({"numFolds": 5, **options})
    numbered = folds.numbered_sources(sources, o)
    return [folds.fold_sources(numbered, o, fold) for fold in range(5)]


@pytest.mark.parametrize("deal", [by_side, of_search, of_search_in_folds, of_cross_fitting])
def test_the_loss_of_held_out_rows_is_that_of_new_rows(
    spark: SparkSession, deal: Callable[[DataFrame], DataFrame]
) -> None:
    """Each x is predicted by the mean of its labels in training, drawn a little to 1/2."""
    drawn = spark.range(TABLES * ROWS, numPartitions=2).withColumn("table", F.col("id") % TABLES).drop("id")
    drawn = drawn.select("table", F.explode(F.array(*map(F.lit, VALUES))).alias("values"))
    drawn = drawn.withColumn("x", (F.rand(3) * F.col("values")).cast("long"))
    rows = drawn.withColumn("y", (F.rand(4) < 0.1 + (F.col("x") * 37 % 80) / 100).cast("long"))
    found = deal(rows).groupBy("values", "table", "x", "held", "y").count().toPandas()
    for values, own in found.groupby("values"):
        counts = np.zeros((TABLES, values, 2, 2))
        np.add.at(counts, tuple(own[name].astype(int) for name in ("table", "x", "held", "y")), own["count"])
        train, held = counts[:, :, 0], counts[:, :, 1]
        p = (train[..., 1] + 0.5) / (train.sum(2) + 1)
        losses, true = np.stack([-np.log(1 - p), -np.log(p)], 2), 0.1 + (np.arange(values) * 37 % 80) / 100
        of_new_rows = (np.stack([1 - true, true], 1) * losses).sum(2).mean(1)
        off = (held * losses).sum((1, 2)) / held.sum((1, 2)) - of_new_rows
        assert abs(off.mean()) < 2 * off.std() / np.sqrt(TABLES)
