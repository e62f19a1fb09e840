"""LabelModel on Spark: probabilities by plain stages, what it tells of the functions, and wrong votes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, LabelModel, LabelModelModel
from sparkdiff.labeling import votes as votes_module
from sparkdiff.labeling.estimates import Estimate, em, triplets
from sparkdiff.labeling.posterior_stages import stages_of
from sparkdiff.labeling.votes import count_vote_patterns
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.unfitted_form import check_unfitted

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
            float(0.5 * noise[i, 0] + 0.5 * y[i]),
            bool(noise[i, 1] < (0.5 if y[i] else 0.1)),
            float(noise[i, 2] if y[i] else min(1.0, noise[i, 2] + 0.3)),
            float(np.clip(noise[i, 3] + 0.4 * y[i], 0, 1)),
            float(y[i]),
            float(y[i]) if i < 200 else None,
        )
        for i in range(4000)
    ]
    schema = "amount double, `is new` boolean, known double, guess double, truth double, label double"
    return spark.createDataFrame(table, schema).coalesce(2).cache()


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> LabelModelModel:
    return LabelModel(VOTES, labelCol="label").fit(rows)


def test_votes_are_no_labels_that_a_pipeline_has_seen(model: LabelModelModel) -> None:
    """What was learned from votes may stand in an unfitted Pipeline."""
    assert check_unfitted(Pipeline(stages=[model, LogisticRegression()]), rowsAreNew=False) == []


def test_a_rare_class_is_not_made_frequent(spark: SparkSession) -> None:
    """Ten rules, class 1 in 2% of the rows: EM is slow there, and triplets can't tell the share."""
    random = np.random.default_rng(3)
    right, y = random.uniform(0.6, 0.9, 10), (random.random(20_000) < 0.02).astype(int)
    votes = np.where(random.random((20_000, 10)) < right, y[:, None], 1 - y[:, None]).astype(float)
    votes[random.random((20_000, 10)) > 0.3] = np.nan
    df = spark.createDataFrame(pd.DataFrame({**{f"v{j}": votes[:, j] for j in range(10)}, "y": y}))
    model = LabelModel([f"v{j}" for j in range(10)]).fit(df)
    p = model.transform(df).select("probability_1").toPandas()["probability_1"].to_numpy()
    assert model.summary.method == "em" and model.summary.balance[1] == pytest.approx(y.mean(), rel=0.5)
    assert -np.log(np.where(y == 1, p, 1 - p)).mean() < -np.log(np.where(y == 1, y.mean(), 1 - y.mean())).mean()
    [warning] = LabelModel([f"v{j}" for j in range(10)], method="triplets").fit(df).summary.warnings
    assert "it can't tell the shares of the classes from these votes" in warning


def test_spark_computes_the_posterior(rows: DataFrame) -> None:
    votes = count_vote_patterns(rows, VOTES, None, None, 0)
    estimate = triplets(votes.patterns, votes.weights)
    found = LabelModel(VOTES, method="triplets").fit(rows).transform(rows).limit(300)
    cast = [f"CAST(({told}) AS INT) AS v{i}" for i, told in enumerate(VOTES.values())]
    table = found.selectExpr("probability", "probability_0", *cast).collect()
    patterns = np.array([[-1 if r[f"v{i}"] is None else r[f"v{i}"] for i in range(4)] for r in table])
    wanted = estimate.posterior(patterns)
    np.testing.assert_allclose([r["probability"].toArray() for r in table], wanted, atol=1e-12)
    np.testing.assert_allclose([r["probability_0"] for r in table], wanted[:, 0], atol=1e-12)


@pytest.mark.nightly
def test_thirty_classes(spark: SparkSession) -> None:
    k, m = 30, 10
    random = np.random.default_rng(5)
    estimate = Estimate(random.dirichlet(np.ones(k)), random.dirichlet(np.ones(k + 1), (m, k)))
    patterns = random.integers(-1, k, (40, m))
    names = [f"v{j}" for j in range(m)]
    cells = [[None if v < 0 else int(v) for v in row] for row in patterns]
    table = spark.createDataFrame(cells, ", ".join(f"{n} int" for n in names))
    plain = stages_of(names, estimate, "p")
    found = np.stack([r["p"].toArray() for r in plain.transform(table).select("p").collect()])
    np.testing.assert_allclose(found, estimate.posterior(patterns), atol=1e-12)
    # A number for each vote in each class: with the differences of all pairs of classes there were k - 1 times as many.
    assert len(plain.stages[0].getStatement()) < 40 * k * (k + 1) * m


def test_unknown_votes_abstain_and_log_odds_never_overflow(spark: SparkSession) -> None:
    tables = np.full((3, 2, 3), 1e-300)
    tables[:, 0, 0] = tables[:, 1, 1] = tables[:, :, 2] = 1.0
    plain = stages_of(["a", "b", "c"], Estimate(np.array([0.25, 0.75]), tables), "p")
    one = "SELECT double('{}') a, {} b, {} c"
    rows = [
        ("NaN", "null", "0.5"),
        ("2", "-1", "double('inf')"),
        ("-0", "0", "0L"),
        ("1", "1", "CAST(1 AS DECIMAL(5, 2))"),
    ]
    found = [plain.transform(spark.sql(one.format(*row))).first()["p"].toArray() for row in rows]
    np.testing.assert_allclose(found, [[0.25, 0.75]] * 2 + [[1 - 1e-9, 0], [0, 1 - 1e-9]], atol=1e-15)


def test_minus_zero_is_class_zero_among_many(spark: SparkSession) -> None:
    """Spark looks for more than ten values in a set, to which -0.0 is another number."""
    plain = stages_of(["v"] * 3, Estimate(np.full(12, 1 / 12), np.full((3, 12, 13), 1e-3) + np.eye(12, 13)), "p")
    found = plain.transform(spark.sql("SELECT double('-0.0') v")).first()
    assert found is not None and found["p_0"] > 0.99


def test_the_columns_of_the_data_pass_as_they_are(spark: SparkSession) -> None:
    """Types, nullability, metadata, and names that SQL or the statement itself use."""
    names = ["a.b", "a`c", "row", "vote_0", "scores", "p_votes", "select"]
    copies = (f"id `{n.replace('`', '``')}`" for n in names)
    base = spark.range(3).selectExpr("id", "array(id) list", "named_struct('x', id) s", *copies)
    base = StringIndexer(inputCol="id", outputCol="indexed").fit(base).transform(base)
    base = VectorAssembler(inputCols=["id", "indexed"], outputCol="vector").transform(base)
    tables = np.full((3, 2, 3), 1 / 3)
    plain = stages_of(["vote_0", "scores", "`a.b` + row"], Estimate(np.array([0.5, 0.5]), tables), "p")
    found = plain.transform(base)
    assert found.columns[: len(base.columns)] == base.columns
    for field in base.schema.fields:
        assert found.schema[field.name] == field and found.schema[field.name].metadata == field.metadata
    assert [r[: len(base.columns)] for r in found.collect()] == [tuple(r) for r in base.collect()]
    assert found.select("p_0", "id").where("id > 0").count() == 2


def test_the_columns_of_the_data_stay_what_they_are_to_spark(
    rows: DataFrame, model: LabelModelModel, tmp_path: Path
) -> None:
    """Only wanted ones are read, and they are known by the data that they come from."""
    rows.withColumn("other", F.lit(1)).write.parquet(f"file://{tmp_path}/rows")
    data = rows.sparkSession.read.parquet(f"file://{tmp_path}/rows")
    found = model.transform(data)
    plan = found.select("probability", "truth")._jdf.queryExecution().executedPlan().toString()
    assert "ReadSchema" in plan and "other" not in plan
    assert found.where(data.other > 0).count() == 4000
    assert found.drop(data.label).columns == [c for c in found.columns if c != "label"]


def test_a_vote_by_a_window(rows: DataFrame) -> None:
    window = "CASE WHEN row_number() OVER (ORDER BY amount DESC) <= 1000 THEN 1 END"
    found = LabelModel({**VOTES, "window": window}).fit(rows)
    assert {f["name"]: f["coverage"] for f in found.summary.functions}["window"] == 0.25
    assert found.transform(rows).where("probability_1 IS NULL").count() == 0


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
    assert agreement is not None and agreement["labelModel"] >= agreement["majority"]
    assert 150 < agreement["rows"] <= 200  # those with votes
    told = {f["name"]: f for f in found.summary.functions}
    assert told["new device"]["classes"] == [1] and told["large"]["classes"] == [0, 1]
    assert all(0 < f["coverage"] <= 1 and f["conflicts"] <= f["overlaps"] <= f["coverage"] for f in told.values())
    assert "majority vote" in str(found.summary) and "new device" in str(found.summary)


def test_a_label_column_without_labels_is_named(rows: DataFrame, model: LabelModelModel) -> None:
    found = LabelModel(VOTES, labelCol="label").fit(rows.withColumn("label", F.lit(None).cast("double")))
    assert found.summary.agreement is None
    assert "labelCol='label' is null in all rows, so no label is used or compared with" in found.summary.warnings
    assert not any("null in all rows" in w for w in model.summary.warnings)


def test_within_a_pipeline_and_with_weights(rows: DataFrame) -> None:
    doubled = rows.selectExpr("*", "IF(amount > 0.5, 2, 0) AS w")
    found = Pipeline(stages=[LabelModel(VOTES, weightCol="w", probabilityCol="p")]).fit(doubled).stages[0]
    assert found.summary.rows == rows.where("amount > 0.5").count() and "p_1" in found.transform(rows).columns


def test_a_registered_udf_votes(spark: SparkSession, rows: DataFrame) -> None:
    spark.udf.register("by_amount", lambda amount: 1 if amount > 0.6 else None, "int")
    found = LabelModel({**VOTES, "udf": "by_amount(amount)"}).fit(rows.limit(500))
    assert {f["name"]: f["classes"] for f in found.summary.functions}["udf"] == [1]
    assert found.transform(rows.limit(9)).where("probability_1 > 0").count() == 9


@pytest.mark.parametrize(
    ("votes", "more", "message"),
    [
        ({"a": "1"}, {}, "needs 3 labeling functions or more, got 1"),
        (
            {**VOTES, "b": "amount > 0.5"},
            {},
            r"the vote 'b' \(amount > 0.5\) is true or false.*CASE WHEN amount > 0.5 THEN 1 END",
        ),
        ({**VOTES, "b": "amont"}, {}, "the vote 'b' .* can't be computed"),
        ({**VOTES, "b": "'1'"}, {}, "is string: a vote is the number of a class"),
        (
            {**VOTES, "b": "amount, known"},
            {},
            r"the vote 'b' \(amount, known\) can't be computed",
        ),
        ({**VOTES, "b": "array(1)"}, {}, r"the vote 'b' .* is array<int>: a vote is the number of a class"),
        ({**VOTES, "b": "IF('__THIS__' = '', 1, 0)"}, {}, "the vote 'b' .* contains __THIS__"),
        ({**VOTES, "b": "current_date()"}, {}, "the vote 'b' .* is date: a vote is the number of a class"),
        ({**VOTES, "b": "1) + (1"}, {}, r"the vote 'b' \(1\) \+ \(1\) can't be computed"),
        ({**VOTES, "b": "INT(substr('x', 1))"}, {}, r"Spark failed while it computed the vote 'b' \(INT.*malformed"),
        (
            {**VOTES, "b": "7"},
            {},
            "'b' is 7 in some rows, but no vote and no label is 2, 3, 4, 5, 6: .* numClasses=8 if",
        ),
        ({**VOTES, "": "7"}, {}, "votes must be SQL expressions by name.*got '': '7'"),
        ({**VOTES, "b": True}, {}, "votes must be SQL expressions by name.*got 'b': True"),
        (VOTES, {"classBalance": [0.5, float("nan")]}, "classBalance must be 2 shares"),
        ({**VOTES, "b": "-1"}, {}, "'b' is -1 in some rows: .*; null abstains"),
        ({**VOTES, "b": "0.5"}, {}, "'b' is 0.5 in some rows"),
        ({**VOTES, "b": "2"}, {"numClasses": 2}, "'b' is 2 in some rows, but numClasses=2"),
        (dict.fromkeys("abc", "CAST(NULL AS INT)"), {}, r"no function votes on any row \(a, b, c\)"),
        (
            {**VOTES, "id": "CAST(amount * 1e6 AS BIGINT)"},
            {},
            r"'id' is \d+ in some rows, so there would be .* classes.*no id",
        ),
        ({**VOTES, "b": "amount AS vote"}, {}, r"the vote 'b' \(amount AS vote\) can't be computed"),
        ({**VOTES, "b": "max(IF(known > 0.5, 0, 1))"}, {}, "the vote 'b' .* can't be computed"),
        (
            {**VOTES, "b": "IF(rand(7) < amount, 0, 1)"},
            {},
            "the vote 'b' .* can differ from one evaluation to the next",
        ),
        (VOTES, {"probabilityCol": "a.b"}, "probabilityCol='a.b' must be a name without dots"),
        (VOTES, {"probabilityCol": "Truth"}, r"probabilityCol='Truth' would add columns .* already \(truth\): drop"),
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


def test_classes_that_nobody_votes_for_are_told(rows: DataFrame) -> None:
    labelled = rows.selectExpr("*", "IF(amount > 0.9, 2, label) AS third")
    for more in ({"numClasses": 3}, {"labelCol": "third"}):
        warnings = LabelModel(VOTES, **more).fit(labelled).summary.warnings
        [warning] = [w for w in warnings if "no function votes for class 2" in w]
        assert ("the label of" in warning) == ("labelCol" in more)
    with pytest.raises(InputError, match=r"have no rows"):
        LabelModel(VOTES).fit(rows.limit(0))


def test_copies_and_contradictions_are_told(rows: DataFrame) -> None:
    more = {
        "again": VOTES["large"],
        "against": "CASE WHEN amount > 0.7 THEN 0 WHEN amount < 0.2 THEN 1 END",
        "no": "NULL",
    }
    warnings = sparkdiff.LabelModel({**VOTES, **more}).fit(rows).summary.warnings
    assert any("'large' and 'again' agree on all" in w for w in warnings)
    assert any("'large' and 'against' contradict each other on all" in w for w in warnings)
    assert "'no' abstains on all rows" in warnings


def test_each_class_is_computed_as_by_numpy(spark: SparkSession) -> None:
    """Three classes; and votes that are no class of the model abstain, as they would have in fit, or have been refused there."""
    random = np.random.default_rng(1)
    y = random.integers(0, 3, 600)
    table = [[float(c if random.random() < 0.7 else random.integers(0, 3)) for _ in range(4)] for c in y]
    rows = spark.createDataFrame(table, "a double, b double, c double, d double").coalesce(1)
    votes = {"a": "a -- a note", "b": "IF(d = 0, NULL, b)", "c": "CAST(c AS INT)", "d": "IF(a = 0, DOUBLE('NaN'), d)"}
    found = LabelModel(votes, method="em").fit(rows)
    counts = count_vote_patterns(rows, votes, None, None, 0)
    estimate = em(counts.patterns, counts.weights, 3)
    strange = [[float("nan"), 1.0, 1.0, 1.0], [1.7, -1.0, 3.0, 1e300], [float("inf"), None, None, None]]
    fresh = spark.createDataFrame([*table[:200], *strange], rows.schema).coalesce(1)
    patterns = np.array(
        [[-1 if x is None or x not in (0, 1, 2) else int(x) for x in row] for row in [*table[:200], *strange]]
    )
    patterns[:200, 1][patterns[:200, 3] == 0] = -1
    patterns[:200, 3][patterns[:200, 0] == 0] = -1
    made = np.array([r["probability"].toArray() for r in found.transform(fresh).select("probability").collect()])
    np.testing.assert_allclose(made, estimate.posterior(patterns), atol=1e-9)


@pytest.mark.parametrize("value", ["NULL", "DOUBLE('NaN')", "-1", "DOUBLE('Infinity')"])
def test_weights_that_are_none(rows: DataFrame, value: str) -> None:
    weighted = rows.selectExpr("*", f"IF(amount > 0.9, {value}, 1) AS w")
    with pytest.raises(InputError, match=r"weightCol='w' holds .* in [0-9,]+ rows; a weight must be finite and >= 0"):
        LabelModel(VOTES, weightCol="w").fit(weighted)


def test_the_scale_of_weights_says_nothing(rows: DataFrame) -> None:
    few = rows.limit(300).selectExpr("*", "0.01 + amount AS w", "1000 + amount * 100000 AS large").cache()
    first, second = (LabelModel(VOTES, weightCol=w, method="em").fit(few).summary for w in ("w", "large"))
    for f, g in zip(first.functions, second.functions, strict=True):
        assert f["accuracy"] == pytest.approx(g["accuracy"], abs=1e-9)
    assert first.rows == second.rows == 300 and first.warnings == second.warnings


def test_a_sample_keeps_labelled_rows(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votes_module, "MOST", 30)
    monkeypatch.setattr(votes_module, "SAMPLE", 10)
    few = rows.selectExpr("*", "IF(amount < 0.1, label, NULL) AS few")
    found = count_vote_patterns(few, VOTES, "few", None, 0)
    labelled, known = few.where("few IS NOT NULL").count(), found.known >= 0
    assert found.sampled and 0 < labelled <= 30
    assert found.rows[known].sum() == labelled and 0 < found.rows[~known].sum() < 60
    ratio = (found.weights / found.rows)[~known].mean() / (found.weights / found.rows)[known].mean()
    assert ratio == pytest.approx((4000 - labelled) / 10)


def test_a_param_that_is_set_alone_is_checked() -> None:
    one = LabelModel()
    one.set(one.votes, ["1", "0", "IF(a, 1, 0)"])
    assert one.getOrDefault("votes") == {v: v for v in ("1", "0", "IF(a, 1, 0)")}
    with pytest.raises(InputError, match="method must be one of"):
        one.set(one.method, "snorkel")


def test_existing_columns_and_fits_to_streams_are_refused(
    spark: SparkSession, rows: DataFrame, model: LabelModelModel, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"columns of these names already \(probability, probability_0, .*\): drop"):
        model.transform(model.transform(rows))
    rows.limit(20).write.parquet(f"file://{tmp_path / 'rows'}")
    stream = spark.readStream.schema(rows.schema).parquet(f"file://{tmp_path / 'rows'}")
    with pytest.raises(InputError, match=r"fit\(\) reads all rows, and these are a stream"):
        LabelModel(VOTES).fit(stream)
    assert model.transform(stream).isStreaming
    assert LabelModel(VOTES, numClasses=np.int64(2)).getOrDefault("numClasses") == 2  # type: ignore[call-overload]


def test_a_name_twice_in_the_data(rows: DataFrame) -> None:
    with pytest.raises(InputError, match="labelCol='label' matches 2 columns, 'label', 'Label': rename all but one"):
        LabelModel(VOTES, labelCol="label").fit(rows.selectExpr("*", "label AS Label"))


def test_within_a_pipeline_it_is_its_plain_stages(rows: DataFrame, model: LabelModelModel) -> None:
    outer = PipelineModel([model])
    assert [type(s).__name__ for _, s in flatten(outer)] == ["SQLTransformer", "VectorAssembler"]
    soft = sparkdiff.distill(outer, rows.limit(20), labelCol=None, outputCol="soft")
    assert soft.count() == 20


def test_a_param_of_the_fit_stays(rows: DataFrame, model: LabelModelModel) -> None:
    few, column = rows.limit(3), model.probabilityCol
    assert model.transform(few, {column: "probability"}).columns == model.transform(few).columns
    for change in ({column: "p"}, {model.votes: VOTES | {"more": "1"}}):
        with pytest.raises(
            InputError, match=r"LabelModelModel_\w+ was fitted with its (probabilityCol|votes): set this on the"
        ):
            model.transform(few, change)


def test_the_label_is_found_by_sparks_rule(rows: DataFrame) -> None:
    """`spark.sql.caseSensitive` decides which columns match; of several that match none is taken."""
    spark = rows.sparkSession
    spark.conf.set("spark.sql.caseSensitive", "true")
    try:
        both = rows.withColumn("Label", F.lit("text"))
        with pytest.raises(InputError, match="labelCol='Label' holds string"):
            LabelModel(VOTES, labelCol="Label").fit(both)
        with pytest.raises(InputError, match="labelCol='LABEL' is not a column of the data"):
            LabelModel(VOTES, labelCol="LABEL").fit(both)
    finally:
        spark.conf.unset("spark.sql.caseSensitive")
    with pytest.raises(InputError, match="labelCol='LABEL' matches 2 columns, 'label', 'Label'"):
        LabelModel(VOTES, labelCol="LABEL").fit(both)
