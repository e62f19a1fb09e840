"""ALS and Word2Vec models with any weights, and rows for them."""

from typing import Any

import numpy as np
from pyspark.ml.feature import Word2Vec
from pyspark.ml.recommendation import ALS
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.jvm import embeddings

USERS, ITEMS = (-(2**31), -7, 0, 3, 2**31 - 1), (0, 2, 5)
WORDS = ("a", "b", "naïve", "two words", "'quoted'\n")


def fitted(spark: SparkSession) -> tuple[Any, Any]:
    """An ALSModel and a Word2VecModel, to be rebuilt with other weights."""
    ratings = [(u, i, float(u + i)) for u in USERS[1:4] for i in ITEMS]
    df = spark.createDataFrame(ratings, ["user", "item", "rating"]).coalesce(1)
    spoken = spark.createDataFrame([(list(WORDS),)], ["words"]).coalesce(1)
    return (
        ALS(rank=3, maxIter=1, seed=1, numUserBlocks=1, numItemBlocks=1).fit(df),
        Word2Vec(vectorSize=3, minCount=1, maxIter=1, seed=1, inputCol="words", outputCol="vector").fit(spoken),
    )


def als(base: Any, random: np.random.Generator, size: float = 1.0) -> Any:
    """Factors of any size; those of the first user hold what float32 can just hold, and what it can't add up."""

    def table(ids: tuple[int, ...]) -> embeddings.Table:
        return np.array(ids), (size * random.normal(size=(len(ids), 3))).astype(np.float32)

    users, items = table(USERS), table(ITEMS)
    users[1][0], users[1][1] = (1e-40, 0.0, -0.0), (2e37, 2e37, -2e37)
    return embeddings.als(base, users, items)


def word2vec(base: Any, random: np.random.Generator, size: float = 1.0) -> Any:
    vectors = (size * random.normal(size=(len(WORDS), 3))).astype(np.float32)
    vectors[0] = (1e-40, 0.0, 2e37)
    return embeddings.word2vec(base, sorted(WORDS), vectors)


def pairs(spark: SparkSession) -> DataFrame:
    """Every user with every item, known or not, as numbers of several types; partitions of which one is empty."""
    every = [(u, i, float(u), i) for u in (*USERS, 1, 99) for i in (*ITEMS, 1, -5)]
    return spark.createDataFrame(every, "user int, item int, fractional double, long long").repartition(3).cache()


def documents(spark: SparkSession) -> DataFrame:
    rows: list[list[str | None]] = [
        [],
        ["a"],
        ["nobody knows"],
        ["a", "b", "a", "naïve"],
        ["two words", "two", "words"],
        ["'quoted'\n", "", None],
        ["b"] * 40 + ["x"] * 9,
        [None, None],
        ["A", "b "],
    ]
    return spark.createDataFrame([(r,) for r in rows], "words array<string>").repartition(3).cache()
