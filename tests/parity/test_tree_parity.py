"""Fitted trees there and back: saved, loaded and compared on rows that reach every leaf, by either way into Spark."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import DecisionTreeClassifier, GBTClassifier, RandomForestClassifier
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import DecisionTreeRegressor, GBTRegressor, RandomForestRegressor
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff import Network, jvm
from sparkdiff.jvm import sessions, trees
from sparkdiff.jvm.nodes import Nodes
from tests.support.random_trees import differing, reaching
from tests.support.readable_uids import named

WIDTH = 5
NAMES = ["dtc", "rfc", "gbtc", "dtr", "rfr", "gbtr"]


@pytest.fixture(scope="session")
def data(spark: SparkSession) -> DataFrame:
    """800 rows of ties and missing values, their last feature one of six categories in no order."""
    random = np.random.default_rng(2)
    x = np.stack(
        [
            random.integers(0, 9, 800) / 10,
            random.normal(size=800),
            random.integers(0, 3, 800),
            random.normal(size=800) * 1e-7,
            random.integers(0, 6, 800),
        ],
        1,
    )
    effect = np.array([3.0, -1.0, 0.5, 4.0, -2.0, 0.0])[x[:, 4].astype(int)]
    y = 5 * x[:, 0] * (1 + x[:, 2]) + effect * np.sign(x[:, 1]) + 1e7 * x[:, 3] + random.normal(size=800)
    rows = [
        (Vectors.dense(v), float(a), float(np.digitize(a, [1, 4])), float(a > 2)) for v, a in zip(x, y, strict=True)
    ]
    attributes = {
        "numeric": [{"idx": i, "name": f"x{i}"} for i in range(4)],
        "nominal": [{"idx": 4, "name": "x4", "vals": list("abcdef")}],
    }
    metadata = {"ml_attr": {"attrs": attributes, "num_attrs": WIDTH}}
    df = spark.createDataFrame(rows, ["features", "y", "grade", "odd"]).repartition(2)
    return df.withColumn("features", F.col("features").alias("features", metadata=metadata)).cache()


@pytest.fixture(scope="session")
def stages(data: DataFrame) -> Callable[[str], Any]:
    """A fitted stage by its uid; made when first asked for."""
    few = {"maxDepth": 5, "seed": 1, "leafCol": "leaf", "minInstancesPerNode": 5}
    ensemble = {**few, "subsamplingRate": 0.7}
    kinds: dict[str, tuple[type, dict[str, Any]]] = {
        "dtc": (DecisionTreeClassifier, {"labelCol": "grade", "impurity": "entropy", **few}),
        "rfc": (RandomForestClassifier, {"labelCol": "grade", "numTrees": 3, **ensemble}),
        "gbtc": (GBTClassifier, {"labelCol": "odd", "maxIter": 3, "stepSize": 0.3, **ensemble}),
        "dtr": (DecisionTreeRegressor, {"labelCol": "y", "varianceCol": "variance", **few}),
        "rfr": (RandomForestRegressor, {"labelCol": "y", "numTrees": 3, **ensemble}),
        "gbtr": (GBTRegressor, {"labelCol": "y", "maxIter": 3, "lossType": "absolute", **ensemble}),
    }
    made: dict[str, Any] = {}

    def of(name: str) -> Any:
        if name not in made:
            cls, given = kinds[name]
            made[name] = named(name, cls, **given).fit(data)
            if name == "dtc":
                made[name].setThresholds([0.2, 0.5, 0.3])
        return made[name]

    return of


def moved(stage: Any) -> Network:
    """Its network with leaves, thresholds and weights moved."""
    network, generator = sparkdiff.translate(stage), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in network.stages.values():
            for name, p in module.named_parameters():
                noise = torch.rand(p.shape, generator=generator, dtype=p.dtype)
                p.add_((1e-9 if name == "thresholds" else 0.2) * p.abs().clamp_min(0.1) * noise)
            module.project_()  # type: ignore[operator]
    return network


def rows_of(spark: SparkSession, nodes: Nodes) -> DataFrame:
    """Rows that reach every leaf, on thresholds and just beside them; and NaN, extremes, and what is no category."""
    at = reaching(nodes, WIDTH)
    beside = np.concatenate([at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf)])
    strange = at[:, None].repeat(5, 1)
    for k, value in enumerate((np.nan, np.inf, -np.inf, -1.0, 2.5)):
        strange[:, k, np.random.default_rng(k).integers(WIDTH, size=len(at))] = value
    every = np.concatenate([beside, strange.reshape(-1, WIDTH)])
    return spark.createDataFrame([(i, Vectors.dense(v)) for i, v in enumerate(every)], ["id", "features"]).coalesce(1)


def shown(model: Any, df: DataFrame) -> list[Any]:
    columns = [c for c in model.transform(df).columns if c != "features"]
    return model.transform(df).orderBy("id").select(columns).collect()


def members(stage: Any) -> list[Any]:
    """What is to be known about the trees of an ensemble, besides their nodes."""
    return [(t.uid, type(t), jvm.defined_params(t), t.numFeatures) for t in getattr(stage, "trees", [])]


@pytest.mark.parametrize("route", ["constructor", pytest.param("saved data", marks=pytest.mark.nightly)], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(
    spark: SparkSession, stages: Callable[[str], Any], tmp_path: Path, name: str, route: str
) -> None:
    stage = stages(name)
    before = trees.read(stage)
    network = moved(stage)
    back = sparkdiff.write_back(stage, network)
    assert type(back) is type(stage) and back.uid == name
    assert jvm.defined_params(back) == jvm.defined_params(stage)
    back.write().save(str(tmp_path / "back"))
    loaded = type(back).load(str(tmp_path / "back"))
    assert members(back) == members(stage)
    stage.write().save(str(tmp_path / "stage"))
    assert members(loaded) == members(type(stage).load(str(tmp_path / "stage")))

    after = trees.read(back)
    learned = "impurityStats" if name in ("dtc", "rfc") else "prediction"
    assert {"values", learned} <= set(differing(after, before)) <= {"values", learned, "prediction"}
    assert differing(trees.read(loaded), after) == []
    df = rows_of(spark, after).cache()
    found = shown(loaded, df)
    assert found == shown(back, df) and len(found) > 100
    assert found != shown(stage, df)
    leaves = np.array([r.leaf for r in found])  # (n,) or (n, T)
    for t, tree in enumerate(np.split(after.leaf, after.offsets[1:-1])):
        assert set(leaves.reshape(len(found), -1)[:, t]) == set(range(tree.sum()))
    parity = sparkdiff.verify(loaded, df)
    assert parity.ok and parity.labelDisagreements == 0
    again = sparkdiff.translate(loaded)
    for p, q in zip(again.parameters(), network.parameters(), strict=True):
        assert torch.equal(p, q)
    assert loaded.featureImportances == stage.featureImportances
    if name.startswith("gbt"):
        assert loaded.treeWeights == network.module(0).treeWeights.tolist() != stage.treeWeights


@pytest.mark.parametrize("name", NAMES)
def test_both_routes_build_the_same_stage(
    stages: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    stage, network = stages(name), moved(stages(name))
    built = []
    for constructors in (True, False):
        monkeypatch.setattr(sessions, "has_constructors", lambda constructors=constructors: constructors)
        built.append(sparkdiff.write_back(stage, network))
    monkeypatch.undo()
    one, other = built
    assert differing(trees.read(one), trees.read(other)) == []
    assert members(one) == members(other) == members(stage)
    assert jvm.defined_params(one) == jvm.defined_params(other)
    assert getattr(one, "treeWeights", None) == getattr(other, "treeWeights", None)
    assert one.toDebugString == other.toDebugString


def test_a_search_and_pipelines_around_trees(spark: SparkSession, data: DataFrame, tmp_path: Path) -> None:
    estimator = GBTRegressor(labelCol="y", maxDepth=2, seed=1, featuresCol="all")
    inner = Pipeline(stages=[VectorAssembler(inputCols=["features", "odd"], outputCol="all"), estimator])
    grid = ParamGridBuilder().addGrid(estimator.maxIter, [2]).build()
    search = CrossValidator(
        estimator=Pipeline(stages=[inner]),
        estimatorParamMaps=grid,
        evaluator=RegressionEvaluator(labelCol="y"),
        numFolds=2,
    )
    model = Pipeline(stages=[search]).fit(data)
    network = sparkdiff.translate(model)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p += 0.25 if name.endswith("leaves") else 0.0
    back = sparkdiff.write_back(model, network)
    assert sparkdiff.verify(back, data).ok
    assert type(back.stages[0]) is type(model.stages[0])
    back.write().save(str(tmp_path / "model"))
    loaded = PipelineModel.load(str(tmp_path / "model"))
    assert sparkdiff.verify(loaded, data, network=network).ok
    new, old = (m.stages[0].bestModel.stages[0].stages[1] for m in (loaded, model))
    assert members(new) == members(old)
    assert new.featureImportances == old.featureImportances
    shift = (
        loaded.transform(data).select("prediction").first()[0] - model.transform(data).select("prediction").first()[0]
    )
    assert shift == pytest.approx(0.25 * sum(old.treeWeights))


@pytest.fixture
def compiled(spark: SparkSession) -> Iterator[None]:
    """Spark with code generation, which a million rows are worth."""
    own = {name: spark.conf.get(name) for name in ("spark.sql.codegen.wholeStage", "spark.sql.codegen.factoryMode")}
    for name, value in zip(own, ("true", "FALLBACK"), strict=True):
        spark.conf.set(name, value)
    yield
    for name, value in own.items():
        spark.conf.set(name, value)


@pytest.mark.slow
@pytest.mark.parametrize("number", [30_000, pytest.param(1_000_000, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", ["rfc", "gbtc", pytest.param("dtc", marks=pytest.mark.nightly)])  # a forest of one
def test_no_label_differs_on_many_rows(
    spark: SparkSession, stages: Callable[[str], Any], name: str, number: int, compiled: None
) -> None:
    """Every value lies on a threshold, the double before or the double behind."""
    stage = sparkdiff.write_back(stages(name), moved(stages(name)))
    nodes = trees.read(stage)
    columns = []
    for f in range(WIDTH):
        cuts = np.unique(nodes.values[nodes.starts[nodes.continuous & (nodes.featureIndex == f)]])
        values = np.concatenate([cuts, np.nextafter(cuts, np.inf), np.nextafter(cuts, -np.inf), np.arange(7.0)])
        choice = F.pmod(F.xxhash64("id", F.lit(f)), F.lit(len(values))).cast("int")
        columns.append(F.element_at(F.array(*map(F.lit, values.tolist())), choice + 1).alias(f"x{f}"))
    rows = spark.range(number, numPartitions=4).select(*columns)
    rows = VectorAssembler(inputCols=[f"x{f}" for f in range(WIDTH)], outputCol="features").transform(rows)
    parity = sparkdiff.verify(stage, rows)
    assert parity.ok and parity.rows == number
    assert parity.labelDisagreements == 0
    seen = stage.transform(rows).select(F.array_distinct(F.collect_set("prediction"))).first()[0]
    assert len(seen) == stage.numClasses


@pytest.mark.slow
@pytest.mark.parametrize("number", [50, pytest.param(1000, marks=pytest.mark.nightly)])
def test_many_trees(spark: SparkSession, tmp_path: Path, number: int) -> None:
    """In time and memory that grow with the nodes, of which a tree has 127."""
    random = np.random.default_rng(0)

    def there_and_back(number: int) -> tuple[Nodes, Any, Any, float]:
        one = Nodes.of([full(random) for _ in range(number)])
        estimator = GBTRegressor(maxDepth=6, maxIter=number, leafCol="leaf")
        begun = time.monotonic()
        stage = trees.model_with_nodes(estimator, one, WIDTH, treeWeights=np.full(number, 0.01))
        network = sparkdiff.translate(stage)
        with torch.no_grad():
            network.module(0).leaves += 1.0
        return one, network, sparkdiff.write_back(stage, network), time.monotonic() - begun

    there_and_back(2)  # what is loaded once
    *_, fifth = there_and_back(number // 5)
    one, network, back, spent = there_and_back(number)
    assert len(one) == 127 * number and spent < 12 * fifth + 5  # in time by the square it would be 25 of them
    back.write().save(str(tmp_path / "model"))
    loaded = type(back).load(str(tmp_path / "model"))
    values = random.choice([*np.linspace(-2, 2, 9), np.nan], (300, WIDTH))
    df = spark.createDataFrame([(Vectors.dense(v),) for v in values], ["features"])
    assert sparkdiff.verify(loaded, df, network=network).ok
    assert differing(trees.read(loaded), one.replace(prediction=one.prediction + one.leaf)) == []


def full(random: np.random.Generator, depth: int = 6) -> list[dict[str, Any]]:
    """The records of a full tree in pre-order, its thresholds among nine values."""

    def grow(level: int) -> None:
        here = len(out)
        split = level < depth
        out.append(
            {
                "prediction": float(random.normal()),
                "impurity": 0.5,
                "gain": 0.1 if split else -1.0,
                "rawCount": 5,
                "impurityStats": [5.0, 1.0, 2.0],
                "leftChild": here + 1 if split else -1,
                "rightChild": here + 2 ** (depth - level) if split else -1,
                "split": {
                    "featureIndex": int(random.integers(WIDTH)) if split else -1,
                    "numCategories": -1,
                    "leftCategoriesOrThreshold": [float(random.choice(np.linspace(-2, 2, 9)))] if split else [],
                },
            }
        )
        if split:
            grow(level + 1)
            grow(level + 1)

    out: list[dict[str, Any]] = []
    grow(0)
    return out
