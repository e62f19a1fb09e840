"""What the exact cuts of `timeCol` cost beside Spark's percentile_approx, and how far that is off.

    python benchmarks/time_cuts.py --rows 4000000

Prints a row per partitioning of the same rows: seconds of both (the least of three), how many of the 50 cuts are the exact ones,
and the share of the rows after the first cut.
"""

import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from common import markdown, parse, parser, write
from pyspark.sql import SparkSession, functions as F

from sparkdiff.data.splits import ACCURACY, quantiles

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
    p = parser(__doc__)
    p.add_argument("--rows", type=int, default=4_000_000)
    p.add_argument("--partitions", type=int, nargs="+", default=[1, 8, 31])
    given = parse(p, rows=20_000, partitions=[2])
    spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    seconds = F.lit(1.7e9) + F.abs(F.xxhash64("id")) % 31_000_000_000_000 / 1e6
    results: list[dict[str, Any]] = []
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
            after = [int((values > cuts[0]).sum()) for cuts in (approximate, exact)]
            found = {"partitions": partitions, "approximateSeconds": about, "exactSeconds": sure, "sameCuts": same}
            results.append({**found, "rowsAfterTheFirst": after})
    print(f"{given.rows:,} rows\n")
    cells = [
        [
            str(r["partitions"]),
            f"{r['approximateSeconds']:.2f}",
            f"{r['exactSeconds']:.2f}",
            f"{r['exactSeconds'] / r['approximateSeconds']:.1f}",
            f"{r['sameCuts']} of {len(SHARES)}",
            " and ".join(f"{n:,}" for n in r["rowsAfterTheFirst"]),
        ]
        for r in results
    ]
    print(markdown(["partitions", "approximate, s", "exact, s", "ratio", "same cuts", "rows after the first"], cells))
    ratios = {f"{r['partitions']} partitions, ratio": r["exactSeconds"] / r["approximateSeconds"] for r in results}
    write(given, results, ratios)


if __name__ == "__main__":
    main()
