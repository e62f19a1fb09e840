"""Stages that stay in Spark whatever their settings are, with the reasons; and the Params in which these stages, and
stages of unknown classes, name their columns.
"""

from sparkdiff.stages.base import leave_in_spark

INPUTS = ("inputCol", "inputCols", "featuresCol", "offsetCol", "userCol", "itemCol", "itemsCol")
OUTPUTS = (
    "outputCol",
    "outputCols",
    "predictionCol",
    "rawPredictionCol",
    "probabilityCol",
    "linkPredictionCol",
    "leafCol",
    "quantilesCol",
    "topicDistributionCol",
    "varianceCol",
)
STRINGS = "its input is strings, which torch cannot hold"
WORDS = "its input is words, which torch cannot hold; its output of counts enters torch as sparse rows"

for _name, _reason in {
    "Tokenizer": STRINGS,
    "RegexTokenizer": STRINGS,
    "StopWordsRemover": STRINGS,
    "NGram": STRINGS,
    "IndexToString": "its output is strings, which torch cannot hold, so no stage could train through it",
    "SQLTransformer": "its statement may read and write any column and drop rows",
    "BucketedRandomProjectionLSHModel": "its output is arrays of hash values, which have no gradient; it has nothing to train",
    "MinHashLSHModel": "its output is arrays of hash values, which have no gradient; it has nothing to train",
}.items():
    leave_in_spark(f"pyspark.ml.feature.{_name}", _reason)

leave_in_spark("pyspark.ml.feature.StringIndexerModel", STRINGS, passed_over=True, own_attributes=True)
leave_in_spark("pyspark.ml.feature.CountVectorizerModel", WORDS, makes_sparse=True)
leave_in_spark("pyspark.ml.feature.HashingTF", WORDS, makes_sparse=True)
leave_in_spark(
    "pyspark.ml.feature.FeatureHasher",
    "it hashes names and strings, which torch cannot hold; its output of numbers enters torch as sparse rows",
    makes_sparse=True,
)
leave_in_spark(
    "pyspark.ml.clustering.BisectingKMeansModel",
    "its output is the index of a cluster in a tree of centres, which has no gradient",
)
leave_in_spark(
    "pyspark.ml.clustering.LocalLDAModel",
    "it infers the topics of each row by iterations whose number depends on the row; torch has no fixed "
    "computation for it",
)
leave_in_spark(
    "pyspark.ml.clustering.DistributedLDAModel",
    "its topics are stored in a distributed graph; toLocal() returns a local model, which also stays in Spark",
)
leave_in_spark("pyspark.ml.fpm.FPGrowthModel", "its input and output are sets of items, and it has nothing to train")
