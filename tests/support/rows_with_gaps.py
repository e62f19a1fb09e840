"""Rows with gaps for stages that tell null from NaN, and from what stands for a missing value."""

from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession

NAN, INF = float("nan"), float("inf")
VALUES = [None, NAN, -INF, INF, -0.0, 0.0, 5e-324, -5e-324, 0.1, 0.5, 1.0, 1.5, 2.0, -1.0, -2.25, 3.0, 700.0, -1e300]
INDICES = [0.0, 1.0, 2.0, 3.0, 5.0, None, NAN, -1.0, 0.5, 2147483647.0, INF]
VALID = [0.0, 1.0, None, 4.0, 2.0]
VECTORS = [Vectors.dense(NAN, -2.0, 0.0), Vectors.sparse(3, [0], [-1.0])]
SCHEMA = "x double, y double, z double, b double, i double, j double, n int, f float"


def numbers(spark: SparkSession) -> DataFrame:
    """`x`, `y` and `z` hold null, NaN and extremes in different rows, `b` numbers from -1 to 3 and null; `i` and `j` are indices,
    those of `j` valid ones; `n` are whole numbers, `f` floats and `v` vectors. One of the partitions is empty.
    """
    size = len(VALUES)
    inside = [None if v is None or v != v else min(max(v, -1.0), 3.0) for v in VALUES]
    rows = [
        (
            VALUES[k % size],
            VALUES[(k + 5) % size],
            VALUES[(7 * k) % size],
            inside[k % size],
            INDICES[k % len(INDICES)],
            VALID[k % len(VALID)],
            None if k % 3 == 0 else k - 5,
            [None, NAN, 0.1, 1.5, -3.25][k % 5],
            VECTORS[k % len(VECTORS)],
        )
        for k in range(2 * size)
    ]
    empty = spark.createDataFrame([], SCHEMA)
    schema = empty.schema.add("v", VectorUDT())
    return spark.createDataFrame(rows, schema).coalesce(2).union(spark.createDataFrame([], schema)).cache()
