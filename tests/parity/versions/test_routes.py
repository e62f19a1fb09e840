"""The two ways back into Spark: by the Scala constructor, and by the saved data where no constructor can be called."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from py4j.protocol import Py4JError
from pyspark.ml import PipelineModel
from pyspark.ml.classification import LinearSVC, LogisticRegression, MultilayerPerceptronClassifier, NaiveBayes
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, VectorAssembler
from pyspark.ml.regression import FMRegressor, LinearRegression, RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import InputError, SparkdiffError, jvm
from sparkdiff.jvm import folders, sessions
from tests.support import plain_spark


@pytest.mark.slow
def test_either_route_serves_without_torch_and_sparkdiff(
    df: DataFrame, fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = df.withColumn("id", F.monotonically_increasing_id())
    rows.write.parquet(str(tmp_path / "rows"))
    rows = rows.sparkSession.read.parquet(str(tmp_path / "rows"))
    linear = fitted["linear"].copy({fitted["linear"].featuresCol: "scaled"})
    model = PipelineModel([fitted["assembler"], fitted["scaler"], linear])
    network = sparkdiff.translate(model)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.25
    written = []
    for constructors in (True, False):
        monkeypatch.setattr(sessions, "has_constructors", lambda constructors=constructors: constructors)
        back = sparkdiff.write_back(model, network)
        back.write().save(str(tmp_path / f"model {constructors}"))
        written.append([r.prediction for r in back.transform(rows).orderBy("id").select("prediction").collect()])
    assert written[0] == written[1]
    assert len(written[0]) == 120
    models = [tmp_path / f"model {constructors}" for constructors in (True, False)]
    assert plain_spark.predictions(models, tmp_path / "rows") == written
    before = model.transform(rows).orderBy("id").select("prediction").collect()
    assert written[0] != [r.prediction for r in before]


def test_both_routes_build_the_same_stage(fitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, and matrices in the storage order that the stage's class wants."""
    random = np.random.default_rng(1)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("pca", {"pc": random.normal(size=(3, 2)), "explainedVariance": np.array([0.7, -0.0])}),
        (
            "logistic",
            {
                "coefficientMatrix": random.normal(size=(1, 3)),
                "interceptVector": np.full(1, -0.0),
                "numClasses": 2,
                "isMultinomial": False,
            },
        ),
        (
            "softmax",
            {
                "coefficientMatrix": random.normal(size=(3, 3)),
                "interceptVector": np.full(3, 5e-324),
                "numClasses": 3,
                "isMultinomial": True,
            },
        ),
    ]
    for name, weights in cases:
        for constructors in (True, False):
            monkeypatch.setattr(sessions, "has_constructors", lambda constructors=constructors: constructors)
            built = jvm.rebuild(fitted[name], weights)
            assert (type(built), built.uid) == (type(fitted[name]), name)
            assert jvm.defined_params(built) == jvm.defined_params(fitted[name])
            for weight, value in weights.items():
                if isinstance(value, np.ndarray):
                    assert getattr(built, weight).toArray().tobytes() == value.tobytes()
                if isinstance(value, np.ndarray) and value.ndim == 2:
                    assert getattr(built, weight).isTransposed == getattr(fitted[name], weight).isTransposed


def test_both_routes_make_the_same_stage_with_none_to_copy_from(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Params that aren't finite, set or default; all kinds of weights."""
    random = np.random.default_rng(2)
    logs, vector = np.log(np.full((2, 3), 1 / 3)), random.normal(size=3)
    scale = {"coefficients": vector, "intercept": -0.0, "scale": 0.25}
    logistic = {
        "coefficientMatrix": random.normal(size=(3, 3)),
        "interceptVector": np.full(3, 5e-324),
        "numClasses": 3,
        "isMultinomial": True,
    }
    cases: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
        (StandardScaler(inputCol="features", outputCol="out", withMean=True), {"std": vector**2, "mean": vector}, {}),
        (PCA(inputCol="features", k=2), {"pc": random.normal(size=(3, 2)), "explainedVariance": np.ones(2)}, {}),
        (LinearRegression(loss="huber", predictionCol="p"), scale, {}),
        (LogisticRegression(thresholds=[0.5, 1.0, 0.5], probabilityCol=""), logistic, {"numFeatures": 3}),
        (NaiveBayes(), {"pi": logs[:, 0], "theta": logs, "sigma": np.empty((0, 0))}, {}),
        (LinearSVC(threshold=math.inf), {"coefficients": vector, "intercept": 1.5}, {}),
        (MultilayerPerceptronClassifier(layers=[3, 2]), {"weights": random.normal(size=8)}, {}),
        (OneHotEncoder(inputCols=["a", "b"], dropLast=False, handleInvalid="keep"), {"categorySizes": [3, 40]}, {}),
        (FMRegressor(), {"intercept": 1.0, "linear": vector, "factors": random.normal(size=(3, 8))}, {}),
    ]
    for estimator, weights, beside in cases:
        made = []
        for constructors in (True, False):
            monkeypatch.setattr(sessions, "has_constructors", lambda constructors=constructors: constructors)
            made.append(jvm.model_with_weights(estimator, weights, beside))
        one, other = made
        assert (type(one), one.uid) == (type(other), other.uid)
        assert one.uid == estimator.uid
        assert jvm.java_params(one) == jvm.java_params(other)
        said, same = jvm.defined_params(one), jvm.defined_params(other)
        for params in (said, same):  # the default column's name has a uid of the Python object's
            params["default"].pop("outputCol", None)
        assert said == same
        for name, value in weights.items():
            if isinstance(value, np.ndarray) and name != "weights":
                for model in made:
                    assert getattr(model, name).toArray().tobytes() == value.tobytes(), name
                if value.ndim == 2:
                    assert getattr(one, name).isTransposed == getattr(other, name).isTransposed


def test_a_stage_made_from_nothing_has_the_uid_that_it_is_given(
    spark: SparkSession, tmp_path: Path, route: str
) -> None:
    hot = jvm.set_uid(OneHotEncoder(inputCols=["id"], outputCols=["hot"]), "grown_hot")
    stages = [
        jvm.model_with_weights(hot, {"categorySizes": [3]}),
        jvm.set_uid(VectorAssembler(inputCols=["hot"], outputCol="all"), "grown_assembler"),
    ]
    model = PipelineModel(stages)
    model.save(str(tmp_path / "model"))
    for same in (model, PipelineModel.load(str(tmp_path / "model"))):
        assert [stage.uid for stage in same.stages] == ["grown_hot", "grown_assembler"]
        assert [row["all"].toArray().tolist() for row in same.transform(spark.range(2)).collect()] == [[1, 0], [0, 1]]


def test_a_weight_that_the_stage_does_not_have_is_named(fitted: dict[str, Any], route: str) -> None:
    said = "has no constructor for std, mean, middle" if route == "constructor" else "its saved data lack middle"
    with pytest.raises(SparkdiffError, match=f"scaler: .*{said}"):
        jvm.rebuild(fitted["scaler"], {name: np.ones(3) for name in ("std", "mean", "middle")})


@pytest.mark.parametrize("given", ["conf", "context"])
def test_where_the_saved_data_lie_for_a_moment(
    spark: SparkSession, fitted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    used = []
    make = folders.tempfile.mkdtemp

    def watched(suffix: Any = None, prefix: Any = None, dir: Any = None) -> str:
        used.append(dir)
        return str(make(suffix, prefix, dir))

    monkeypatch.setattr(folders.tempfile, "mkdtemp", watched)
    monkeypatch.setattr(sessions, "has_constructors", lambda: False)
    weights = {"std": np.ones(3), "mean": np.zeros(3)}
    try:
        if given == "conf":
            spark.conf.set("spark.sparkdiff.cacheDir", f"file://{tmp_path}/cache folder")
            jvm.rebuild(fitted["scaler"], weights)
        else:
            (tmp_path / "cache folder").mkdir()
            with jvm.scratch(tmp_path / "cache folder"):
                jvm.rebuild(fitted["scaler"], weights)
    finally:
        spark.conf.unset("spark.sparkdiff.cacheDir")
    assert set(used) == {tmp_path / "cache folder"}  # also to see whether it can be written
    assert list((tmp_path / "cache folder").iterdir()) == []


def test_a_cluster_needs_a_folder_that_all_see(fitted: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    conf = {"spark.master": "yarn"}
    cluster = SimpleNamespace(conf=SimpleNamespace(get=lambda key, default=None: conf.get(key, default)))
    for module in (folders, sessions):
        monkeypatch.setattr(module, "session", lambda: cluster)
    with pytest.raises(InputError, match="cacheDir is unset and the master is yarn"):
        jvm.rebuild(fitted["scaler"], {"std": np.ones(3), "mean": np.zeros(3)})


class LockedDown:
    """A py4j that refuses one call, as clusters with shared access do."""

    def __init__(self, allowed: Any):
        self._allowed = allowed

    def __getattr__(self, name: str) -> Any:
        if name == "getConstructors":
            raise Py4JError("py4j.security.Py4JSecurityException: Method getConstructors() is not whitelisted")
        return LockedDown(getattr(self._allowed, name))

    def __call__(self, *arguments: Any) -> Any:
        return LockedDown(self._allowed(*arguments))


def test_the_route_is_chosen_by_what_can_be_called(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    assert jvm.has_constructors()
    monkeypatch.setattr(sessions, "session", lambda: LockedDown(spark))
    assert not jvm.has_constructors()
    monkeypatch.setattr(sessions, "session", object)  # Connect: no sparkContext
    assert not jvm.has_constructors()


def test_the_summary_warns_where_an_older_spark_could_not_load(
    spark: SparkSession, df: DataFrame, fitted: dict[str, Any], tmp_path: Path
) -> None:
    vectors = fitted["assembler"].transform(df)
    trees = RandomForestRegressor(featuresCol="vector", labelCol="count", numTrees=2, predictionCol="side")
    forest = trees.fit(vectors)
    model = PipelineModel([fitted["assembler"], forest, fitted["glr"]])
    tuner = sparkdiff.FineTuner(
        pipeline=model, maxEpochs=1, validationFraction=0.4, predictionCol="prediction", verbosity=0, rowsAreNew=True
    )
    found = [w for w in tuner.fit(df).summary.warnings if "cannot be loaded" in w]
    forest.save(str(tmp_path / "forest"))
    columns = spark.read.parquet(str(tmp_path / "forest" / "treesMetadata")).columns
    if "treeID" in columns:  # the name that Spark 3.5 and 4.0 look for
        assert found == []
    else:
        said = (
            f"saved by Spark {spark.version}, {forest.uid} cannot be loaded by Spark 3.5 and 4.0: save with the Spark"
        )
        assert len(found) == 1
        assert found[0].startswith(said)
