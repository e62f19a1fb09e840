"""Boosted trees that grow in this process are those that Spark's own fit returns, and what is special is left to Spark."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.feature import StringIndexer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GBTRegressor, RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.jvm import trees
from sparkdiff.tuning import in_process_fits

Make = Callable[..., DataFrame]


@pytest.fixture
def rows(spark: SparkSession) -> Make:
    def make(n: int, levels: Sequence[int], *, seed: int = 0, classes: bool = False, **columns: Any) -> DataFrame:
        """Rows of numbers (level 0) and categories, many of them equal, zero or -0.0."""
        rng = np.random.default_rng(seed)
        x = np.column_stack(
            [rng.integers(0, k, n) if k else rng.normal(size=n).round(1 + 5 * (j % 2)) for j, k in enumerate(levels)]
        ).astype(float)
        x[rng.random(n) < 0.3, 0] = 0.0
        x[rng.random(n) < 0.1, 0] = -0.0
        score = 2 * x[:, 0] + np.sin(2 * x[:, 1]) + x[:, -1] % 3 + rng.normal(size=n)
        label = (score > np.median(score)).astype(float) if classes else score
        given = {"x": x, "label": label, "weight": rng.uniform(0.5, 2, n)} | columns
        data = [
            (Vectors.dense(v), float(y), float(w))
            for v, y, w in zip(given["x"], given["label"], given["weight"], strict=True)
        ]
        nominal = [{"idx": j, "num_vals": k} for j, k in enumerate(levels) if k > 2]
        binary = [{"idx": j} for j, k in enumerate(levels) if k == 2]
        numeric = [{"idx": j} for j, k in enumerate(levels) if not k]
        kinds = {"nominal": nominal, "binary": binary, "numeric": numeric}
        told = {"attrs": {kind: each for kind, each in kinds.items() if each}, "num_attrs": len(levels)}
        df = spark.createDataFrame(data, ["x", "label", "weight"])
        return df.select(F.col("x").alias("features", metadata={"ml_attr": told}), "label", "weight")

    return make


@pytest.fixture
def grown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls of the function that grows the trees."""
    calls: list[Any] = []
    boost = in_process_fits.boost

    def watched(*given: Any) -> Any:
        calls.append(given)
        return boost(*given)

    monkeypatch.setattr(in_process_fits, "boost", watched)
    return calls


def fit(estimator: Any, rows: DataFrame) -> Any:
    return in_process_fits.fit(estimator, rows)[0]


def check_refused_alike(estimator: Any, rows: DataFrame) -> None:
    with pytest.raises(Exception) as theirs:  # noqa: PT011
        estimator.fit(rows)
    with pytest.raises(type(theirs.value)):
        fit(estimator, rows)


def outputs(model: Any, rows: DataFrame) -> np.ndarray[Any, Any]:
    out = model.transform(rows)
    raw = [c for c in ("rawPrediction", "probability") if c in out.columns]
    return np.array(out.select("prediction", *(vector_to_array(c)[1].alias(c) for c in raw)).collect())


SETTINGS: list[tuple[Any, Mapping[str, Any], Sequence[int], Mapping[str, Any]]] = [
    (GBTRegressor, {"maxIter": 8}, (0, 0, 0, 5), {}),
    (GBTRegressor, {"maxIter": 4, "maxDepth": 8, "maxBins": 7, "stepSize": 0.7}, (0, 0, 2, 0, 6), {}),
    (GBTRegressor, {"maxIter": 5, "lossType": "absolute", "weightCol": "weight"}, (0, 0, 12), {}),
    (GBTRegressor, {"maxIter": 5, "lossType": "ABSOLUTE"}, (0, 0, 12), {}),
    (GBTRegressor, {"maxIter": 3, "lossType": "Squared"}, (0, 0), {}),
    (GBTRegressor, {"maxIter": 3, "maxDepth": 0}, (0, 0), {}),
    (GBTRegressor, {"maxIter": 3, "minInstancesPerNode": 40, "minInfoGain": 0.05}, (0, 0, 3), {}),
    (GBTRegressor, {"maxIter": 3, "weightCol": "weight", "minWeightFractionPerNode": 0.1}, (0, 0, 4), {}),
    (GBTRegressor, {"maxIter": 3}, (0, 0), {"label": np.full(700, 2.5)}),
    (GBTRegressor, {"maxIter": 3}, (0, 0, 0), {"x": np.zeros((700, 3))}),
    (GBTRegressor, {"maxIter": 2}, (0, 0), {"x": np.random.default_rng(1).normal(size=(700, 2)) * 1e150}),
    (GBTClassifier, {"maxIter": 8}, (0, 0, 20, 3), {"classes": True}),
    (GBTClassifier, {"maxIter": 30, "stepSize": 1.0, "maxDepth": 3}, (0, 0, 2), {"classes": True}),
    (GBTClassifier, {"maxIter": 3, "weightCol": "weight"}, (0, 0), {"label": np.zeros(700)}),
    (GBTClassifier, {"maxIter": 3, "lossType": "LOGISTIC"}, (0, 0), {"classes": True}),
]


@pytest.mark.parametrize("case", range(len(SETTINGS)))
def test_outputs_are_those_of_sparks_own_fit(case: int, rows: Make, grown: list[Any]) -> None:
    kind, params, levels, given = SETTINGS[case]
    estimator, df = kind(**params), rows(700, levels, seed=case, **given)
    assert in_process_fits.can_fit(estimator)
    spark, ours = estimator.fit(df), fit(estimator, df)
    assert len(grown) == 1
    np.testing.assert_allclose(outputs(ours, df), outputs(spark, df), rtol=1e-9, atol=1e-9)
    assert (type(ours), ours.uid) == (type(spark), spark.uid)
    set_here, set_there = ({p.name: m.getOrDefault(p) for p in m.params if m.isSet(p)} for m in (ours, spark))
    assert set_here == set_there
    if "label" not in given:  # of equal labels rounding decides on gains
        np.testing.assert_allclose(ours.featureImportances.toArray(), spark.featureImportances.toArray(), atol=0.02)


def test_nodes_are_those_of_sparks_own_fit(rows: Make) -> None:
    """Where no two splits are equally good: many rows a node, and numbers without ties."""
    estimator, df = GBTRegressor(maxIter=5, minInstancesPerNode=25), rows(3000, (0, 0, 0, 0))
    x = np.random.default_rng(7).normal(size=(3000, 4))
    df = rows(3000, (0, 0, 0, 0), x=x, label=np.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2])
    spark, ours = (trees.read(model) for model in (estimator.fit(df), fit(estimator, df)))
    for name in ("offsets", "leftChild", "rightChild", "featureIndex", "rawCount", "numCategories"):
        assert (getattr(ours, name) == getattr(spark, name)).all(), name
    for name in ("values", "prediction", "gain", "impurity", "impurityStats"):
        np.testing.assert_allclose(getattr(ours, name), getattr(spark, name), rtol=1e-9, atol=1e-12, err_msg=name)


def test_trees_depend_on_no_order_of_rows(rows: Make) -> None:
    estimator, df = GBTRegressor(maxIter=3), rows(500, (0, 0, 4))
    one, other = (trees.read(fit(estimator, part)) for part in (df, df.orderBy(F.rand(1)).repartition(5)))
    for name in ("values", "prediction", "featureIndex", "impurityStats"):
        assert (getattr(one, name) == getattr(other, name)).all(), name


def test_a_pipeline_is_fitted_like_by_spark(spark: SparkSession, grown: list[Any]) -> None:
    rng = np.random.default_rng(3)
    data = [(float(v), "abc"[i % 3], float(v > 0) + (i % 3)) for i, v in enumerate(rng.normal(size=300))]
    df = spark.createDataFrame(data, ["number", "word", "label"])
    stages = [
        StringIndexer(inputCol="word", outputCol="index", handleInvalid="keep"),
        VectorAssembler(inputCols=["number", "index"], outputCol="features"),
        GBTRegressor(maxIter=3),
    ]
    pipeline = Pipeline(stages=stages)
    spark_, ours = pipeline.fit(df), fit(pipeline, df)
    assert [s.uid for s in ours.stages] == [s.uid for s in spark_.stages] and len(grown) == 1
    np.testing.assert_allclose(outputs(ours, df), outputs(spark_, df), rtol=1e-9, atol=1e-9)


def test_other_settings_are_left_to_spark(spark: SparkSession) -> None:
    for params in (
        {"subsamplingRate": 0.5},
        {"featureSubsetStrategy": "sqrt"},
        {"validationIndicatorCol": "held"},
        {"maxDepth": in_process_fits.DEEPEST + 1},
        {"maxIter": 0},
        {"maxDepth": 10, "maxBins": 10_000},
        {"maxMemoryInMB": 20_000},
    ):
        assert not in_process_fits.can_fit(GBTRegressor(**params)), params
    other = [StringIndexer(inputCol="word", outputCol="index"), Pipeline(stages=[]), RandomForestRegressor()]
    assert not any(map(in_process_fits.can_fit, other))
    assert in_process_fits.can_fit(Pipeline(stages=[*other[:1], GBTRegressor()]))


def test_what_spark_refuses_it_refuses_itself(rows: Make, grown: list[Any]) -> None:
    x = np.random.default_rng(0).normal(size=(50, 2))
    category = np.column_stack([x[:, 0], np.arange(50) % 5])
    for kind, given, levels in (
        (GBTRegressor, {"label": np.where(np.arange(50) == 7, np.nan, 1.0)}, (0, 0)),
        (GBTRegressor, {"x": np.where(np.arange(100).reshape(50, 2) == 3, np.inf, 1.0)}, (0, 0)),
        (GBTClassifier, {"label": np.arange(50) % 3}, (0, 0)),
        (GBTRegressor, {"weight": -np.ones(50)}, (0, 0)),
        (GBTRegressor, {"x": np.where(np.arange(50)[:, None] < 25, np.nan, x)}, (0, 0)),
        (GBTRegressor, {"x": category}, (0, 4)),  # a category that the metadata don't know
        (GBTRegressor, {"x": category}, (0, 40)),  # more categories than maxBins
    ):
        estimator, df = kind(maxIter=2, weightCol="weight"), rows(50, levels, **given)
        check_refused_alike(estimator, df)
    assert not grown


def test_a_schema_that_spark_refuses_is_refused_by_spark(rows: Make, grown: list[Any]) -> None:
    df, classes = rows(50, (0, 0)), rows(50, (0, 0), classes=True)
    three = {"ml_attr": {"type": "nominal", "vals": ["a", "b", "c"]}}
    for estimator, given in (
        (GBTRegressor(maxIter=2), df.withColumn("prediction", F.lit(0.0))),
        (GBTRegressor(maxIter=2, labelCol="no"), df),
        (GBTRegressor(maxIter=2, weightCol="no"), df),
        (GBTClassifier(maxIter=2).setThresholds([0.2, 0.3, 0.5]), classes),
        (GBTClassifier(maxIter=2), classes.withColumn("label", F.col("label").alias("label", metadata=three))),
    ):
        try:
            expected = estimator.fit(given)
        except Exception as theirs:  # Spark's versions refuse different ones of them
            with pytest.raises(type(theirs)):
                fit(estimator, given)
        else:
            np.testing.assert_allclose(outputs(fit(estimator, given), df), outputs(expected, df), rtol=1e-9)


@pytest.mark.parametrize(
    "given",
    [
        {"label": np.arange(60) * 1e160},
        {"x": np.random.default_rng(1).normal(size=(60, 2)) * 1e301},
        {"weight": np.full(60, 1e3) + np.random.default_rng(1).random(60)},
        {
            "weight": np.where(np.arange(60) < 3, 1e-15, 1.1),
            "x": np.arange(120).reshape(60, 2) * [[0], [0], [0], *[[1]] * 57],
        },
    ],
    ids=["squares overflow", "middles overflow", "rounding of large weights", "zeros of tiny weights"],
)
def test_rows_on_which_rounding_decides_are_left_to_spark(given: Any, rows: Make, grown: list[Any]) -> None:
    fit(GBTRegressor(maxIter=2, weightCol="weight"), rows(60, (0, 0), **given))
    assert not grown


def test_vectors_of_other_widths_than_told_are_left_to_spark(rows: Make, spark: SparkSession, grown: list[Any]) -> None:
    """Each width in a partition of its own."""
    df = rows(50, (0, 0))
    told = F.col("features").alias("features", metadata=df.schema["features"].metadata)
    wide = spark.createDataFrame([(Vectors.dense(1.0, 2.0, 3.0), 1.0, 1.0)] * 9, ["features", "label", "weight"])
    mixed = df.coalesce(1).union(wide.coalesce(1).select(told, "label", "weight"))
    check_refused_alike(GBTRegressor(maxIter=2), mixed)
    assert not grown


def test_whole_weights_are_exact(rows: Make, grown: list[Any]) -> None:
    estimator, df = (
        GBTRegressor(maxIter=3, weightCol="weight", maxBins=6),
        rows(300, (0, 0, 3), weight=np.arange(1, 301)),
    )
    np.testing.assert_allclose(outputs(fit(estimator, df), df), outputs(estimator.fit(df), df), rtol=1e-9, atol=1e-9)
    assert len(grown) == 1


def test_large_rows_and_unknown_widths_are_left_to_spark(
    rows: Make, grown: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    estimator, df = GBTRegressor(maxIter=2), rows(60, (0, 0, 3))
    bare = df.select(F.col("features").alias("features", metadata={"no": "ml_attr"}), "label")
    assert (outputs(fit(estimator, bare), df) == outputs(estimator.fit(bare), df)).all()
    monkeypatch.setattr(in_process_fits, "MOST_VALUES", 3 * 59)
    assert (outputs(fit(estimator, df), df) == outputs(estimator.fit(df), df)).all()
    assert not grown
    monkeypatch.setattr(in_process_fits, "MOST_VALUES", 3 * 60)
    fit(estimator, df)
    assert len(grown) == 1


LOGISTIC: list[tuple[Mapping[str, Any], int]] = [
    ({}, 2),
    ({"regParam": 0.1, "elasticNetParam": 0.5, "weightCol": "weight"}, 2),
    ({"family": "multinomial", "fitIntercept": False}, 2),
    ({"family": "Auto", "regParam": 0.01, "standardization": False}, 3),
    ({"maxIter": 3, "thresholds": [0.2, 0.3, 0.5]}, 3),
]


@pytest.mark.parametrize("case", range(len(LOGISTIC)))
def test_a_logistic_regression_is_that_of_sparks_own_fit(case: int, rows: Make, spark: SparkSession) -> None:
    params, classes = LOGISTIC[case]
    df = rows(600, (0, 0, 0, 2), seed=case)
    cuts = np.quantile([row[0] for row in df.select("label").collect()], np.arange(1, classes) / classes)
    label = sum((F.col("label") > float(cut)).cast("double") for cut in cuts)
    df, estimator = df.withColumn("label", label), LogisticRegression(**params)
    (ours, here), theirs = in_process_fits.fit(estimator, df), estimator.fit(df)
    assert here and in_process_fits.can_fit(estimator)
    assert (type(ours), ours.uid, ours.numClasses) == (type(theirs), theirs.uid, theirs.numClasses)
    set_here, set_there = ({p.name: m.getOrDefault(p) for p in m.params if m.isSet(p)} for m in (ours, theirs))
    assert set_here == set_there
    np.testing.assert_allclose(outputs(ours, df), outputs(theirs, df), rtol=1e-6, atol=1e-6)


def test_what_is_special_to_a_logistic_regression_is_left_to_spark(rows: Make) -> None:
    x = np.random.default_rng(0).normal(size=(60, 2))
    two = {"ml_attr": {"type": "nominal", "vals": ["a", "b"]}}
    for given, params, metadata in (
        ({"label": np.zeros(60)}, {}, None),
        ({"label": np.arange(60) % 3}, {"family": "binomial"}, None),
        ({"label": np.arange(60) % 3}, {}, two),
        ({"label": np.arange(60) % 3}, {"thresholds": [0.5, 0.5]}, None),
        ({"label": np.arange(60) % 2 + 0.5}, {}, None),
        ({"label": np.arange(60) % 2, "weight": -np.ones(60)}, {"weightCol": "weight"}, None),
        ({"label": np.arange(60) % 2, "x": np.where(x > 2, np.nan, x)}, {}, None),
        ({"label": np.arange(60) % 2, "x": x * 1e160}, {}, None),
        (
            {"label": np.arange(60) % 2, "x": x * [1, 0] + [0, 0.1], "weight": np.full(60, 0.7)},
            {"weightCol": "weight"},
            None,
        ),
    ):
        df = rows(60, (0, 0), **{"x": x} | given)
        if metadata is not None:
            df = df.withColumn("label", F.col("label").alias("label", metadata=metadata))
        estimator = LogisticRegression(**params)
        try:
            estimator.fit(df)
        except Exception as theirs:  # as Spark's versions do
            with pytest.raises(type(theirs)):
                fit(estimator, df)
        else:
            assert not in_process_fits.fit(estimator, df)[1]


def test_other_settings_of_a_logistic_regression_are_left_to_spark(rows: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    bounded = LogisticRegression(lowerBoundsOnIntercepts=Vectors.dense([0.0]))
    assert not any(map(in_process_fits.can_fit, (bounded, LogisticRegression(maxIter=0))))
    estimator, df = LogisticRegression(maxIter=5), rows(60, (0, 0, 0), classes=True)
    assert in_process_fits.fit(estimator, df)[1]
    monkeypatch.setattr(in_process_fits, "MOST_PRODUCTS", 60 * 3 * 5 - 1)
    assert not in_process_fits.fit(estimator, df)[1]
