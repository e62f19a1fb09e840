"""Stages that stay in Spark whatever their settings, and why."""

from __future__ import annotations

from sparkdiff.stages.base import leave_in_spark

STRINGS = "its input is strings, which never enter torch"
WORDS = "its input is words, which never enter torch; the counts that it makes do, as sparse rows"

for _name, _reason in {
    "StringIndexerModel": STRINGS,
    "Tokenizer": STRINGS,
    "RegexTokenizer": STRINGS,
    "StopWordsRemover": STRINGS,
    "NGram": STRINGS,
    "CountVectorizerModel": WORDS,
    "HashingTF": WORDS,
    "FeatureHasher": "it hashes names and strings, which never enter torch; the numbers that it makes do, as sparse rows",
    "IndexToString": "its output is strings, which never enter torch, so that nothing behind it could train",
    "SQLTransformer": "its statement may read and write any column and drop rows",
    "BucketedRandomProjectionLSHModel": "its output is arrays of hash values, which pass no gradient on; it has nothing to train",
    "MinHashLSHModel": "its output is arrays of hash values, which pass no gradient on; it has nothing to train",
}.items():
    leave_in_spark(f"pyspark.ml.feature.{_name}", _reason)

leave_in_spark(
    "pyspark.ml.clustering.BisectingKMeansModel",
    "its output is the number of a cluster, found on the way down a tree of centres: it passes no gradient on",
)
leave_in_spark(
    "pyspark.ml.clustering.LocalLDAModel",
    "it infers each row's topics by iterations of its own, as many as the row takes, which no fixed computation reproduces",
)
leave_in_spark(
    "pyspark.ml.clustering.DistributedLDAModel",
    "its topics live in a graph on the cluster; toLocal() gives a model without it, which stays in Spark, too",
)
leave_in_spark(
    "pyspark.ml.fpm.FPGrowthModel", "its input and output are sets of items, related by rules: it has nothing to train"
)
