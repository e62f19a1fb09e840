"""ALS fine-tuned: on ratings, on preferences by rank, and as a feature of a regression; Word2Vec in front of a classifier."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator
from pyspark.ml.feature import Tokenizer, VectorAssembler, Word2Vec
from pyspark.ml.recommendation import ALS
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff.jvm import embeddings
from tests.support.small_data import sides, tune

USERS, ITEMS, RANK = 60, 40, 3


@pytest.fixture(scope="module")
def ratings(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Ratings of a third of all pairs, with noise, rounded to what all processors find; preferences, and how sure they are."""
    random = np.random.default_rng(0)
    u, v = random.normal(size=(USERS, RANK)), random.normal(size=(ITEMS, RANK))
    rows = [
        (i, j, r, float(r > 0.5), 1 + abs(r), float(random.normal()))
        for i in range(USERS)
        for j in range(ITEMS)
        if random.random() < 0.6 and (r := round(float(u[i] @ v[j] + 0.3 * random.normal()), 9)) is not None
    ]
    path = f"file://{tmp_path_factory.mktemp('ratings')}/ratings.parquet"
    schema = "user int, item long, rating double, preference double, confidence double, other double"
    spark.createDataFrame(rows, schema).coalesce(1).write.parquet(path)
    return spark.read.parquet(path).cache()


def als(**params: object) -> ALS:
    return ALS(rank=RANK, maxIter=2, seed=1, numUserBlocks=1, numItemBlocks=1, **params)


@pytest.fixture(scope="module")
def recommender(ratings: DataFrame) -> PipelineModel:
    return Pipeline(stages=[als(regParam=0.5)]).fit(ratings)


def test_on_ratings(ratings: DataFrame, recommender: PipelineModel, shared: Path, tmp_path: Path) -> None:
    with pytest.raises(sparkdiff.InputError, match="names no label column; set labelCol"):
        tune(recommender, ratings, shared)
    found = tune(recommender, ratings, shared, labelCol="rating", learningRate=0.03, maxEpochs=6)
    assert found.summary.decision == "tuned", found.summary.reason
    held = sides(ratings)["validation"]
    metrics = found.summary.metrics["validation"]
    for model, value in ((recommender, metrics["before"]), (found.pipelineModel, metrics["after"])):
        error = (F.col("prediction") - F.col("rating")) ** 2
        theirs = model.transform(held).agg(F.avg(error)).first()[0]
        assert value == pytest.approx(theirs, rel=1e-12)  # also the product is Spark's float
    assert found.summary.parity["after"]["maxAbsDiff"] == {"prediction": 0.0}
    new, old = found.pipelineModel.stages[0], recommender.stages[0]
    assert (type(new), new.uid, new.rank) == (type(old), old.uid, old.rank)
    for (ids, one), (known, other) in zip(embeddings.factor_tables(new), embeddings.factor_tables(old), strict=True):
        assert np.array_equal(ids, known)
        assert one.dtype == np.float32
        assert not np.array_equal(one, other)
    found.pipelineModel.write().save(f"file://{tmp_path}/model")
    again = PipelineModel.load(f"file://{tmp_path}/model").stages[0]
    for (ids, one), (known, other) in zip(embeddings.factor_tables(again), embeddings.factor_tables(new), strict=True):
        assert np.array_equal(ids, known) and np.array_equal(one, other)
    assert {row["id"] for row in new.recommendForAllUsers(1).selectExpr("user as id").collect()} <= set(range(USERS))


def test_pairs_that_all_were_chosen_say_nothing(ratings: DataFrame, recommender: PipelineModel, shared: Path) -> None:
    """Spark's own fit takes all other pairs for 0; a tuning that sees the chosen ones alone would predict 1 for any pair."""
    chosen = ratings.withColumn("chosen", F.lit(1.0))
    for metric in (None, "areaUnderROC"):
        with pytest.raises(
            sparkdiff.InputError, match=r"'chosen' holds 1\.0 in all .*pairs that were not chosen, with 0"
        ):
            tune(recommender, chosen, shared, labelCol="chosen", metric=metric)


@pytest.mark.nightly
def test_on_preferences_by_rank(ratings: DataFrame, shared: Path) -> None:
    """Of implicit feedback: rows are ranked, or weighted by confidence as in Spark's own objective."""
    model = Pipeline(stages=[als(implicitPrefs=True, ratingCol="preference", regParam=0.5)]).fit(ratings)
    common = {"labelCol": "preference", "learningRate": 0.03, "maxEpochs": 5}
    ranked = tune(model, ratings, shared, loss="auc", guard=1.0, **common)
    assert ranked.summary.decision == "tuned", ranked.summary.reason
    assert (ranked.summary.metric, ranked.summary.metricDirection) == ("areaUnderROC", "larger")
    held = sides(ratings)["validation"].cache()
    area = BinaryClassificationEvaluator(rawPredictionCol="prediction", labelCol="preference", numBins=0)
    shown = ranked.pipelineModel.transform(held).withColumn("prediction", F.col("prediction").cast("double"))
    assert ranked.summary.metrics["validation"]["after"] == pytest.approx(area.evaluate(shown), abs=1e-12)
    weighted = tune(model, ratings, shared, weightCol="confidence", guard=1.0, **common)
    error = F.col("confidence") * (F.col("prediction") - F.col("preference")) ** 2
    theirs = model.transform(held).agg(F.sum(error) / F.sum("confidence")).first()[0]
    assert weighted.summary.metrics["validation"]["before"] == pytest.approx(theirs, rel=1e-12)
    with pytest.raises(sparkdiff.InputError, match=r"holds .* needs class indices 0 to 1"):
        tune(model, ratings, shared, loss="auc", labelCol="rating")


@pytest.mark.nightly
def test_as_a_feature(ratings: DataFrame, shared: Path) -> None:
    model = Pipeline(
        stages=[
            als(regParam=0.5),
            VectorAssembler(inputCols=["prediction", "other"], outputCol="x"),
            LinearRegression(featuresCol="x", labelCol="rating", predictionCol="final", regParam=0.3),
        ]
    ).fit(ratings)
    plan = sparkdiff.plan(model)
    assert [s.trainable for s in plan.stages] == [True, False, True]
    assert plan.cacheCols == ("user", "item", "other")
    found = tune(model, ratings, shared, learningRate=0.03, maxEpochs=5)
    assert found.summary.decision == "tuned", found.summary.reason
    assert any("userFactors" in name for name in found.summary.stages)
    some = ratings.limit(200)
    for step, ok in ((0.0, True), (1e-7, True), (1e-5, False)):  # behind Spark's floats parity is to 1e-6
        network = sparkdiff.translate(found.pipelineModel)
        with torch.no_grad():
            network.head.intercept.add_(step)
        assert sparkdiff.verify(found.pipelineModel, some, network).ok is ok
    plain = VectorAssembler(inputCols=["user", "other"], outputCol="x")
    alone = Pipeline(stages=[plain, LinearRegression(featuresCol="x", labelCol="rating")]).fit(ratings)
    network = sparkdiff.translate(alone)
    with torch.no_grad():
        network.head.intercept.add_(1e-7)
    assert not sparkdiff.verify(alone, some, network).ok


def test_few_rows_don_t_move_a_user(ratings: DataFrame, recommender: PipelineModel, shared: Path) -> None:
    rare = ratings.where("user <> 3 OR item < 6")
    found = tune(recommender, rare, shared, labelCol="rating", learningRate=0.03, maxEpochs=3, guard=1.0)
    assert any("userFactors" in w and "fewer than 5 training rows" in w for w in found.summary.warnings)
    ids, new = embeddings.factor_tables(found.pipelineModel.stages[0])[0]
    old = embeddings.factor_tables(recommender.stages[0])[0][1]
    still = [int(i) for i, a, b in zip(ids, new, old, strict=True) if np.array_equal(a, b)]
    assert still == [3]


def test_unknown_ids_are_named(ratings: DataFrame, recommender: PipelineModel, shared: Path) -> None:
    more = ratings.withColumn("user", F.when(F.col("user") == 5, 777).otherwise(F.col("user")))
    with pytest.raises(
        sparkdiff.InputError, match=r"column 'user' holds 777, which is not among the userFactors of ALS_\w+"
    ):
        tune(recommender, more, shared, labelCol="rating")


# Words ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Texts of 0 to 11 of 40 words, and whether they please; some words have never been heard before."""
    random = np.random.default_rng(0)
    known = [f"w{i}" for i in range(40)]
    good = random.normal(size=40)
    rows = []
    for _ in range(1500):
        k = random.integers(0, 40, random.integers(0, 12))
        pleases = good[k].mean() if len(k) else 0.0
        rows.append((" ".join(known[j] for j in k), float(random.random() < 1 / (1 + np.exp(-4 * pleases)))))
    path = f"file://{tmp_path_factory.mktemp('said')}/said.parquet"
    spark.createDataFrame(rows, ["text", "label"]).coalesce(1).write.parquet(path)
    return spark.read.parquet(path).cache()


def test_words_in_front_of_a_classifier(said: DataFrame, shared: Path) -> None:
    few = said.where("NOT text LIKE '%w39%'")
    model = Pipeline(
        stages=[
            Tokenizer(inputCol="text", outputCol="words"),
            Word2Vec(vectorSize=4, minCount=3, seed=1, inputCol="words", outputCol="meaning"),
            LogisticRegression(featuresCol="meaning"),
        ]
    ).fit(few)
    plan = sparkdiff.plan(model)
    assert [(s.role, s.trainable) for s in plan.stages] == [
        ("referenced", False),
        ("translated", True),
        ("translated", True),
    ]
    assert plan.stages[1].reason == "a differentiable path leads to the loss; Spark counts its words"
    assert sparkdiff.verify(model, said).ok
    network = sparkdiff.translate(model)
    assert network.reference is not None
    assert network.reference.stages[0].uid == model.stages[0].uid
    found = tune(model, said, shared, learningRate=0.03, maxEpochs=8)
    assert found.summary.decision == "tuned", found.summary.reason
    new, old = found.pipelineModel.stages[1], model.stages[1]
    assert not np.array_equal(embeddings.vocabulary(new)[1], embeddings.vocabulary(old)[1])
    assert embeddings.vocabulary(new)[0] == embeddings.vocabulary(old)[0]
    assert found.summary.parity["after"]["ok"]
    assert found.summary.parity["after"]["rows"] > len(
        said.head(1000)
    )  # words were put together again for Spark's stage
    assert tune(model, said, shared, learningRate=0.03, maxEpochs=1).summary.cache["hit"]
