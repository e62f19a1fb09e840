"""The four laws for the six classes of trees: any shape, any Params, rows on every threshold; and that all nodes survive."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pyspark.ml.classification import DecisionTreeClassifier, GBTClassifier, RandomForestClassifier
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import DecisionTreeRegressor, GBTRegressor, RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.jvm import sessions, trees
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.base import REGISTRY, StageModule, class_name
from sparkdiff.testing import check_stages, perturb_parameters
from tests.support.law_examples import generated
from tests.support.random_trees import WIDTH, differing, grown, rows
from tests.support.stages_and_rows import COLUMNS, sparse

TREES = 3
CLASSES = {"DecisionTreeClassifier": (2, 3), "RandomForestClassifier": (2, 3), "GBTClassifier": (2,)}
MANY = 11
AT_ONCE = 8  # their plans are larger than others'
IN_A_JOB = AT_ONCE // 2
FEW = 4
Base = Callable[..., Any]


@pytest.fixture(scope="session")
def base(spark: SparkSession) -> Base:
    """A fitted stage by the name of its estimator and, of a classifier, the number of classes; made when first asked for."""
    made: dict[tuple[str, int], Any] = {}
    data = [(Vectors.dense(np.arange(WIDTH) * (i % 5) / 3.0), float(i % 2)) for i in range(20)]
    df = spark.createDataFrame(data, ["features", "label"]).coalesce(1).cache()
    estimators: list[Any] = [
        DecisionTreeClassifier(maxDepth=1),
        RandomForestClassifier(numTrees=TREES, maxDepth=1, seed=1),
        GBTClassifier(maxIter=TREES, maxDepth=1, seed=1),
        DecisionTreeRegressor(maxDepth=1),
        RandomForestRegressor(numTrees=TREES, maxDepth=1, seed=1),
        GBTRegressor(maxIter=TREES, maxDepth=1, seed=1),
    ]
    by_name = {type(e).__name__: e for e in estimators}

    def of(name: str, classes: int = 0) -> Any:
        if (name, classes) not in made:
            label = F.col("label").alias("label", metadata={"ml_attr": {"type": "nominal", "num_vals": classes}})
            rows_of = df.withColumn("label", label) if classes else df
            made[name, classes] = by_name[name].fit(rows_of)
        return made[name, classes]

    return of


@pytest.fixture(scope="session")
def table(spark: SparkSession) -> DataFrame:
    """300 adversarial rows, stored like those of `features`."""
    data = [(Vectors.dense(v) if i % 2 else sparse(v), Vectors.dense(v), sparse(v)) for i, v in enumerate(rows(300))]
    return spark.createDataFrame(data, list(COLUMNS)).repartition(2).cache()


def all_moved(module: StageModule, generator: torch.Generator) -> None:
    """Every parameter, also those that train on request only."""
    for p in module.parameters():
        p.requires_grad_()
    perturb_parameters(module, generator)


def check(stages: list[Any], df: DataFrame) -> None:
    """The laws; and no field of a node changes that holds no parameter, by whichever way it goes back."""
    for first in range(0, len(stages), IN_A_JOB):
        check_stages(stages[first : first + IN_A_JOB], df, perturb=all_moved)
    generator = torch.Generator().manual_seed(1)
    for stage in stages:
        before = trees.read(stage)
        module = REGISTRY[class_name(stage)].from_spark(stage)
        assert differing(trees.read(module.to_spark(stage)), before) == []
        all_moved(module, generator)
        after = trees.read(module.to_spark(stage))
        learned = {"prediction", "impurityStats", "values"}
        assert set(differing(after, before)) <= learned
        assert np.array_equal(after.prediction[~after.leaf], before.prediction[~before.leaf])
        assert np.array_equal(after.impurityStats[~after.leaf], before.impurityStats[~before.leaf])


def params(random: np.random.Generator, name: str, classes: int) -> dict[str, Any]:
    """Params of a fitted stage: which columns it shows, and all that decides what they hold."""
    out: dict[str, Any] = {"featuresCol": str(random.choice(COLUMNS))}
    if random.random() < 0.5:
        out["leafCol"] = "leaf"
    if name == "DecisionTreeRegressor" and random.random() < 0.7:
        out["varianceCol"] = "variance"
    if classes:
        shown = str(random.choice(["rpl", "rpl", "rp", "rl", "pl", "r", "p", "l"]))
        names = ("rawPredictionCol", "probabilityCol", "predictionCol")
        out |= {n: "" for n, letter in zip(names, "rpl", strict=True) if letter not in shown}
        if random.random() < 0.4:
            out["thresholds"] = random.permutation([0.0, 0.2, 1.0][:classes] + [0.1] * (classes - 3)).tolist()
        if name != "GBTClassifier" and random.random() < 0.5:
            out["impurity"] = "entropy"
    return out


def stage(base: Base, random: np.random.Generator, name: str, classes: int = 0) -> Any:
    """A boosted one has fewer or more trees than the fitted one that it is made of."""
    old, boosted = base(name, classes), name.startswith("GBT")
    count = 1 if name.startswith("Decision") else int(random.integers(1, 2 * TREES)) if boosted else TREES
    weights = random.choice([1.0, 0.1, 0.0, -0.5, 3.0, 1e-9], count) if boosted else None
    new = trees.rebuild(old, grown(random, count, 0 if name.startswith("GBT") else classes), weights)
    return new.copy({new.getParam(k): v for k, v in params(random, name, classes).items()})


seeds = st.lists(st.integers(0, 2**32 - 1), min_size=AT_ONCE, max_size=AT_ONCE, unique=True)
NAMES = [
    "DecisionTreeClassifier",
    "RandomForestClassifier",
    "GBTClassifier",
    "DecisionTreeRegressor",
    "RandomForestRegressor",
    "GBTRegressor",
]


@pytest.mark.parametrize("count", [FEW, pytest.param(AT_ONCE, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("name", NAMES)
@generated(1)
@given(drawn=seeds)
def test_trees(table: DataFrame, base: Base, name: str, count: int, drawn: list[int]) -> None:
    """As many of each number of classes."""
    kinds = CLASSES.get(name, (0,))
    stages = [stage(base, np.random.default_rng(s), name, kinds[i % len(kinds)]) for i, s in enumerate(drawn[:count])]
    check(stages, table)


def test_many_classes_and_a_single_leaf(table: DataFrame, base: Base) -> None:
    random = np.random.default_rng(5)
    leaf = trees.rebuild(base("DecisionTreeRegressor"), Nodes.of([grown_leaf()]))
    leaf = leaf.copy({leaf.featuresCol: "mixed", leaf.leafCol: "leaf", leaf.varianceCol: "v"})
    check(
        [leaf, *(stage(base, random, name, MANY) for name in ("DecisionTreeClassifier", "RandomForestClassifier"))],
        table,
    )


def grown_leaf() -> list[dict[str, Any]]:
    """The records of a tree of one leaf that no row was fitted on."""
    split = {"featureIndex": -1, "leftCategoriesOrThreshold": [], "numCategories": -1}
    return [
        {
            "prediction": 0.25,
            "impurity": 0.0,
            "gain": -1.0,
            "impurityStats": [0.0, 0.0, 0.0],
            "rawCount": 0,
            "leftChild": -1,
            "rightChild": -1,
            "split": split,
        }
    ]


def test_more_and_fewer_trees_by_both_routes(base: Base) -> None:
    old, random = base("GBTRegressor", 0), np.random.default_rng(7)
    for count in (1, 2 * TREES):
        nodes, weights = grown(random, count, 0), random.normal(size=count)
        built = []
        for constructors in (True, False):
            with patch.object(sessions, "has_constructors", return_value=constructors):
                built.append(trees.rebuild(old, nodes, weights))
        one, other = built
        assert one.toDebugString == other.toDebugString
        assert one.treeWeights == other.treeWeights == weights.tolist()
        assert one.getNumTrees == other.getNumTrees == count
        names = [[tree.uid for tree in model.trees] for model in (old, one, other)]
        assert all(uids[:TREES] == names[0][:count] and len({*uids}) == count for uids in names[1:])


@pytest.mark.nightly  # test_both_routes_build_the_same_stage compares them node by node, for each class
def test_trees_without_constructors(table: DataFrame, base: Base) -> None:
    random = np.random.default_rng(6)
    kinds = {"GBTClassifier": 2, "GBTRegressor": 0, "DecisionTreeClassifier": 3}
    stages = [stage(base, random, name, classes) for name, classes in kinds.items()]
    with patch.object(sessions, "has_constructors", return_value=False):
        check(stages, table)
