"""LabelModel on Spark: probabilities by plain stages, what it tells of the functions, and wrong votes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import InputError, LabelModel, LabelModelModel
from sparkdiff.labeling.estimates import triplets
from sparkdiff.labeling.votes import counted

VOTES = {
    "large": "CASE WHEN amount > 0.7 THEN 1 WHEN amount < 0.2 THEN 0 END",
    "new device": "CASE WHEN `is new` THEN 1 END",
    "known": "IF(known > 0.5, 0, NULL)",
    "guess": "CASE WHEN guess > 0.9 THEN 1 WHEN guess < 0.5 THEN 0 END",
}


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    random = np.random.default_rng(3)
    y = random.random(4000) < 0.4
    noise = random.random((4000, 4))
    table = [
        (
            float(0.5 * noise[i, 0] + 0.5 * y[i]), bool(noise[i, 1] < (0.5 if y[i] else 0.1)),
            float(noise[i, 2] if y[i] else min(1.0, noise[i, 2] + 0.3)), float(np.clip(noise[i, 3] + 0.4 * y[i], 0, 1)),
            float(y[i]), float(y[i]) if i < 200 else None,
        )
        for i in range(4000)
    ]  # fmt: skip
    schema = "amount double, `is new` boolean, known double, guess double, truth double, label double"
    return spark.createDataFrame(table, schema).coalesce(2).cache()


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> LabelModelModel:
    return LabelModel(VOTES, labelCol="label").fit(rows)


def test_spark_computes_the_posterior(rows: DataFrame, model: LabelModelModel) -> None:
    votes = counted(rows, VOTES, None, None, 0)
    estimate = triplets(votes.patterns, votes.weights)
    found = model.transform(rows).limit(300)
    cast = [f"CAST(({told}) AS INT) AS v{i}" for i, told in enumerate(VOTES.values())]
    table = found.selectExpr("probability", "probability_0", *cast).collect()
    patterns = np.array([[-1 if r[f"v{i}"] is None else r[f"v{i}"] for i in range(4)] for r in table])
    wanted = estimate.posterior(patterns)
    np.testing.assert_allclose([r["probability"].toArray() for r in table], wanted, atol=1e-12)
    np.testing.assert_allclose([r["probability_0"] for r in table], wanted[:, 0], atol=1e-12)


def test_the_result_is_plain_spark(rows: DataFrame, model: LabelModelModel, tmp_path: Path) -> None:
    assert [type(s).__name__ for s in model.pipelineModel.stages] == ["SQLTransformer", "VectorAssembler"]
    model.pipelineModel.write().save(f"file://{tmp_path / 'plain'}")
    plain = PipelineModel.load(f"file://{tmp_path / 'plain'}")
    model.write().save(f"file://{tmp_path / 'model'}")
    again = LabelModelModel.load(f"file://{tmp_path / 'model'}")
    first = [r["probability"] for r in model.transform(rows).limit(50).collect()]
    for other in (plain, again):
        assert [r["probability"] for r in other.transform(rows).limit(50).collect()] == first
    assert again.summary.asdict() == model.summary.asdict() and again.getOrDefault("votes") == VOTES
    LabelModel(VOTES, method="em").write().save(f"file://{tmp_path / 'estimator'}")
    assert LabelModel.load(f"file://{tmp_path / 'estimator'}").getOrDefault("method") == "em"


@pytest.mark.parametrize("method", ["triplets", "em"])
def test_it_is_better_than_the_majority(rows: DataFrame, method: str) -> None:
    found = LabelModel(VOTES, labelCol="label", method=method).fit(rows)
    agreement = found.summary.agreement
    assert agreement is not None and agreement["rows"] == 200 and agreement["labelModel"] >= agreement["majority"]
    told = {f["name"]: f for f in found.summary.functions}
    assert told["new device"]["classes"] == [1] and told["large"]["classes"] == [0, 1]
    assert all(0 < f["coverage"] <= 1 and f["conflicts"] <= f["overlaps"] <= f["coverage"] for f in told.values())
    assert "majority vote" in str(found.summary) and "new device" in str(found.summary)


def test_within_a_pipeline_and_with_weights(rows: DataFrame) -> None:
    doubled = rows.selectExpr("*", "IF(amount > 0.5, 2, 0) AS w")
    found = Pipeline(stages=[LabelModel(VOTES, weightCol="w", probabilityCol="p")]).fit(doubled).stages[0]
    assert found.summary.rows == 2 * rows.where("amount > 0.5").count() and "p_1" in found.transform(rows).columns


def test_a_registered_udf_votes(spark: SparkSession, rows: DataFrame) -> None:
    spark.udf.register("by_amount", lambda amount: 1 if amount > 0.6 else None, "int")
    found = LabelModel({**VOTES, "udf": "by_amount(amount)"}).fit(rows.limit(500))
    assert {f["name"]: f["classes"] for f in found.summary.functions}["udf"] == [1]


@pytest.mark.parametrize(
    ("votes", "more", "message"),
    [
        ({"a": "1"}, {}, "needs 3 functions or more, got 1"),
        (
            {**VOTES, "b": "amount > 0.5"},
            {},
            r"the vote 'b' \(amount > 0.5\) is true or false.*CASE WHEN amount > 0.5 THEN 1 END",
        ),
        ({**VOTES, "b": "amont"}, {}, "the vote 'b' .* can't be computed"),
        ({**VOTES, "b": "'1'"}, {}, "is string: a vote is the number of a class"),
        ({**VOTES, "b": "-1"}, {}, "'b' is -1 in some rows: .*; null abstains"),
        ({**VOTES, "b": "0.5"}, {}, "'b' is 0.5 in some rows"),
        ({**VOTES, "b": "2"}, {"numClasses": 2}, "'b' is 2 in some rows, but numClasses=2"),
        (dict.fromkeys("abc", "CAST(NULL AS INT)"), {}, r"no function votes on any row \(a, b, c\)"),
        (VOTES, {"labelCol": "lable"}, "labelCol='lable' is not a column .*label"),
        (VOTES, {"classBalance": [0.5, 0.6]}, "classBalance must be 2 shares"),
        (VOTES, {"method": "snorkel"}, "method must be one of auto, triplets, em"),
        ({**VOTES, "b": "2"}, {"method": "triplets"}, "method='triplets' is for two classes, and the votes name 3"),
        (VOTES, {"metod": "em"}, "unknown option 'metod' of LabelModel. Did you mean 'method'"),
        ([1, 2, 3], {}, "votes must be SQL expressions by name"),
        (["1", "1", "0"], {}, "names an expression twice"),
    ],
)
def test_wrong_votes_are_named(rows: DataFrame, votes: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LabelModel(votes, **more).fit(rows)


def test_copies_and_contradictions_are_told(rows: DataFrame) -> None:
    more = {
        "again": VOTES["large"],
        "against": "CASE WHEN amount > 0.7 THEN 0 WHEN amount < 0.2 THEN 1 END",
        "no": "INT(NULL)",
    }
    warnings = sparkdiff.LabelModel({**VOTES, **more}).fit(rows).summary.warnings
    assert any("'large' and 'again' agree on all" in w for w in warnings)
    assert any("'large' and 'against' contradict each other on all" in w for w in warnings)
    assert "'no' abstains on all rows" in warnings
