"""What the exact cuts of `timeCol` cost beside Spark's percentile_approx, and how far that is off.

    python benchmarks/time_cuts.py --rows 4000000

Prints a row per partitioning of the same rows: seconds of both (the least of three), how many of the 50 cuts are the exact ones,
and the share of the rows after the first cut.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from pyspark.sql import SparkSession, functions as F

from sparkdiff.data.quantiles import ACCURACY, quantiles

SHARES = [0.8 + 0.2 * k / 50 for k in range(50)]


def least(make: Callable[[], Any]) -> tuple[float, Any]:
    """The least time of three, in seconds, and the result."""
    times, out = [], None
    for _ in range(3):
        start = time.perf_counter()
        out = make()
        times.append(time.perf_counter() - start)
    return min(times), out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--partitions", type=int, nargs="+", default=[1, 8, 31])
    given = parser.parse_args()
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    seconds = F.lit(1.7e9) + F.abs(F.xxhash64("id")) % 31_000_000_000_000 / 1e6
    names = f"{'partitions':>10} {'approximate':>12} {'exact':>7} {'ratio':>6} {'same cuts':>9} {'after the first':>24}"
    print(f"{given.rows:,} rows\n{names}")
    with tempfile.TemporaryDirectory() as folder:
        for partitions in given.partitions:
            spark.range(given.rows).withColumn("t", seconds).repartition(partitions).write.parquet(
                f"{folder}/{partitions}"
            )
            df = spark.read.option("maxPartitionBytes", "1g").parquet(f"{folder}/{partitions}")
            about, approximate = least(
                lambda: df.agg(F.percentile_approx("t", SHARES, ACCURACY)).first()[0]  # noqa: B023
            )
            sure, exact = least(lambda: quantiles(df, F.col("t"), SHARES))  # noqa: B023
            values = df.toPandas()["t"].to_numpy()
            assert exact == np.quantile(values, SHARES, method="inverted_cdf").tolist()
            same = sum(a == e for a, e in zip(approximate, exact, strict=True))
            after = " and ".join(f"{(values > cuts[0]).sum():,}" for cuts in (approximate, exact))
            print(f"{partitions:>10} {about:>11.2f}s {sure:>6.2f}s {sure / about:>6.1f} {same:>6}/50 {after:>24}")


if __name__ == "__main__":
    main()
