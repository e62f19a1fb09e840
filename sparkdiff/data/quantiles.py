"""Exact quantiles of a column by counting. They do not depend on the partitions, and no row is collected."""

import functools
import itertools
import math
import operator
from collections.abc import Iterable, Sequence

from pyspark.ml.feature import Bucketizer
from pyspark.sql import Column, DataFrame, Window, functions as F

ACCURACY = 10_000
"""Accuracy of the guess: its rank error is at most n / ACCURACY. It changes the cost of the exact values, not the
values.
"""


class ChangedRowsError(Exception):
    """A DataFrame had other values when it was read again."""


def quantiles(df: DataFrame, column: Column, shares: Sequence[float]) -> list[float]:
    """For each share the smallest value v of a double column with count(value <= v) >= share * count (numpy's `inverted_cdf`).

    Null and NaN are ignored; the result is empty if there are no other values. Reads the rows twice, and a third time
    if a quantile is none of the guesses: then the rows between two guesses, a few ten-thousandths of all rows, are
    sorted.

    Raises:
        ChangedRowsError: the rows differ between two readings.
    """
    value = F.when(column == 0, 0.0).otherwise(column)  # -0.0 equals 0.0, but not for Bucketizer
    values = df.select(value.alias("value")).where("value IS NOT NULL AND NOT isnan(value)")
    guesses = _guessed(values, shares)
    if not guesses:
        return []
    # Half-open buckets: one for each guess, and one for the values between two guesses.
    bounds = {b + 0.0 for g in guesses for b in (g, math.nextafter(g, math.inf))} | {-math.inf, math.inf}
    rows = Bucketizer(splits=sorted(bounds), inputCol="value", outputCol="bucket").transform(values)
    counted = rows.groupBy("bucket").agg(F.count("value").alias("rows"), F.min("value"), F.max("value"))
    buckets = sorted(tuple(row) for row in counted.collect())
    places = located(shares, [n for _, n, _, _ in buckets])
    found = {(i, rank): buckets[i][2] for i, rank in places if buckets[i][2] == buckets[i][3]}
    wanted = {(buckets[i][0], rank): (i, rank) for i, rank in places if (i, rank) not in found}
    if wanted:
        found |= {wanted[at]: value for at, value in _ranked(rows, sorted(wanted)).items()}
    if len(found) < len(set(places)):
        raise ChangedRowsError
    return [found[place] + 0.0 for place in places]


def located(shares: Iterable[float], counts: Sequence[int]) -> list[tuple[int, int]]:
    """The bucket of each quantile, given the ordered bucket sizes, and its rank in the bucket, from 1."""
    below = [0, *itertools.accumulate(counts)]
    out = []
    for share in shares:
        rank = min(max(1, math.ceil(share * below[-1])), below[-1])
        i = next(i for i, n in enumerate(below[1:]) if n >= rank)
        out.append((i, rank - below[i]))
    return out


def _guessed(values: DataFrame, shares: Sequence[float]) -> list[float]:
    """Approximate values at these shares and slightly below and above, by Spark."""
    near = {min(1.0, max(0.0, share + d)) for share in shares for d in (-2 / ACCURACY, 0.0, 2 / ACCURACY)}
    row = values.agg(F.percentile_approx("value", sorted(near), ACCURACY)).first()
    return [] if row is None or row[0] is None else sorted(set(row[0]))


def _ranked(rows: DataFrame, wanted: Iterable[tuple[float, int]]) -> dict[tuple[float, int], float]:
    """The values at these ranks of their buckets."""
    ranks = {bucket: [r for _, r in group] for bucket, group in itertools.groupby(wanted, key=operator.itemgetter(0))}
    inside = rows.where(F.col("bucket").isin(list(ranks)))
    at = F.row_number().over(Window.partitionBy("bucket").orderBy("value"))
    is_wanted = functools.reduce(
        operator.or_, ((F.col("bucket") == bucket) & F.col("rank").isin(found) for bucket, found in ranks.items())
    )
    return {(r["bucket"], r["rank"]): r["value"] for r in inside.withColumn("rank", at).where(is_wanted).collect()}
