"""A text classifier with few labels and twenty rules: what examples/rules.yaml runs.

Paragraphs of docstrings: SciPy's (0) or scikit-learn's (1)? Of the training rows 50 have labels. Twenty rules, each a word that
somebody who knows both packages would name, vote on the others; `LabelModel` learns how often each is right, and `distill` makes
class probabilities, on which FineTuner trains the pipeline that the 50 labels gave.
"""

from typing import Any

from gallery import paragraphs
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import IDF, HashingTF, StopWordsRemover, Tokenizer
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff

SCIPY = (
    "distribution",
    "p-value",
    "hypothesis",
    "jacobian",
    "minimiz",
    "scipy",
    "callback",
    "quantile",
    "hessian",
    "random variable",
)
SKLEARN = (
    "estimator",
    "classifier",
    "sklearn",
    "sample_weight",
    "n_features",
    "forest",
    "regularization",
    "n_jobs",
    "metadata",
    "ensemble",
)
VOTES = {
    word: f"CASE WHEN lower(text) LIKE '%{word.replace('_', chr(92) * 2 + '_')}%' THEN {label} END"
    for label, words in enumerate((SCIPY, SKLEARN))
    for word in words
}
LABELLED = 50


def divided(spark: SparkSession, seed: int = 0) -> dict[str, DataFrame]:
    """Paragraphs by a hash of their text: training, validation and test; of the training rows, 50 have a label."""
    part = F.pmod(F.xxhash64("text", F.lit(seed)), F.lit(5))
    rows = spark.createDataFrame(paragraphs()).coalesce(1).withColumn("part", part)
    first = rows.where("part < 3").orderBy(F.xxhash64("text", F.lit(seed), F.lit("label"))).limit(LABELLED)
    known = {row["text"] for row in first.select("text").collect()}
    seen = F.col("text").isin(known) | (F.col("part") >= 3)
    rows = rows.withColumn("checked", F.when(seen, F.col("label")))
    splits = {"train": "part < 3", "validation": "part = 3", "test": "part = 4"}
    return {name: rows.where(where).drop("part") for name, where in splits.items()}


def label_model(train: DataFrame) -> Any:
    """How often each rule is right, learned from the votes alone."""
    return sparkdiff.LabelModel(votes=VOTES, labelCol="checked").fit(train)


def soft(spark: SparkSession, split: str) -> DataFrame:
    """The rows of a split: `checked` as a vector where there is a label, else what the rules say."""
    rows = divided(spark)
    return sparkdiff.distill(label_model(rows["train"]), rows[split], labelCol="checked", outputCol="soft")


def train(spark: SparkSession) -> DataFrame:
    return soft(spark, "train").drop("label")


def validation(spark: SparkSession) -> DataFrame:
    return soft(spark, "validation").drop("label")


def test(spark: SparkSession) -> DataFrame:
    return soft(spark, "test").drop("label")


def pipeline(train: DataFrame) -> PipelineModel:
    """What the 50 labels alone give."""
    stages = [
        Tokenizer(inputCol="text", outputCol="all"),
        StopWordsRemover(inputCol="all", outputCol="words"),
        HashingTF(inputCol="words", outputCol="counts", numFeatures=1024),
        IDF(inputCol="counts", outputCol="features"),
        LogisticRegression(labelCol="checked", regParam=0.1),
    ]
    return Pipeline(stages=stages).fit(train.where("checked IS NOT NULL"))
