"""Each way to be wrong about trees, and any change of a leaf, a threshold or a weight however small, gets noticed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.classification import DecisionTreeClassifier, GBTClassifier, RandomForestClassifier
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import DecisionTreeRegressor, GBTRegressor, RandomForestRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F
from torch import Tensor

from sparkdiff.jvm import trees
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.routing import Router
from tests.support.changed_entries import Outputs
from tests.support.random_trees import differing, edges, reaching

WIDTH = 3
CLASSES = 3


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outputs]:
    """Spark's outputs of a fitted stage, by the name of its estimator, on all combinations of what its splits tell apart."""
    random = np.random.default_rng(0)
    # Thresholds at 0.1 more than a double that float32 has not, and five categories in no order.
    x = np.stack([random.integers(0, 5, 400) + 0.1, random.integers(0, 3, 400) / 3, random.integers(0, 5, 400)], 1)
    effect = np.array([3.0, -1.0, 0.5, 4.0, -2.0])[x[:, 2].astype(int)]
    y = x[:, 0] * (1 + x[:, 1]) + effect + random.normal(size=400)
    grade = np.digitize(y, [1.0, 4.0])
    rows = [(Vectors.dense(v), float(a), float(b), float(b > 0)) for v, a, b in zip(x, y, grade, strict=True)]
    attributes = [{"idx": i, "name": f"x{i}"} for i in range(2)]
    nominal = [{"idx": 2, "name": "x2", "vals": list("abcde")}]
    metadata = {"ml_attr": {"attrs": {"numeric": attributes, "nominal": nominal}, "num_attrs": WIDTH}}
    df = spark.createDataFrame(rows, ["features", "y", "grade", "odd"]).coalesce(1)
    df = df.withColumn("features", F.col("features").alias("features", metadata=metadata)).cache()
    estimators: list[Any] = [
        DecisionTreeClassifier(labelCol="grade", maxDepth=4, leafCol="leaf").setThresholds([0.5, 0.2, 0.3]),
        RandomForestClassifier(labelCol="grade", numTrees=3, maxDepth=3, seed=1, subsamplingRate=0.5, leafCol="leaf"),
        GBTClassifier(labelCol="odd", maxIter=3, maxDepth=3, seed=1, leafCol="leaf").setThresholds([0.1, 0.9]),
        DecisionTreeRegressor(labelCol="y", maxDepth=4, minInstancesPerNode=30, leafCol="leaf", varianceCol="variance"),
        RandomForestRegressor(labelCol="y", numTrees=3, maxDepth=3, minInstancesPerNode=40, seed=1, leafCol="leaf"),
        GBTRegressor(labelCol="y", maxIter=3, maxDepth=3, minInstancesPerNode=40, seed=1, leafCol="leaf"),
    ]
    by_name, found = {type(e).__name__: e for e in estimators}, {}

    def of(name: str) -> Outputs:
        if name not in found:
            stage = by_name[name].fit(df)
            nodes = trees.read(stage)
            assert (nodes.numCategories >= 0).any()
            rows_of = np.concatenate([edges(nodes, WIDTH), reaching(nodes, WIDTH)])
            data: DataFrame = spark.createDataFrame([(Vectors.dense(v),) for v in rows_of], ["features"]).coalesce(1)
            found[name] = Outputs(stage, data, tmp_path_factory.mktemp(name))
        return found[name]

    return of


NAMES = [
    "DecisionTreeClassifier",
    "RandomForestClassifier",
    "GBTClassifier",
    "DecisionTreeRegressor",
    "RandomForestRegressor",
    "GBTRegressor",
]


@pytest.mark.parametrize("name", NAMES)
def test_every_change_is_seen(made: Callable[[str], Outputs], name: str) -> None:
    outputs = made(name)
    assert outputs.ok(outputs.network)
    module = outputs.network.module(0)
    for parameter, p in module.named_parameters():
        for at in np.ndindex(*p.shape):
            for step in (1, -1):
                network = outputs.network.clone()
                q = getattr(network.module(0), parameter)
                with torch.no_grad():  # a split by the least there is: rows lie on both sides of it
                    far = torch.tensor(step * math.inf, dtype=torch.float64)
                    moved = q[at] + 1e-6 * step * max(1, abs(float(q[at])))
                    q[at] = q[at].nextafter(far) if parameter == "thresholds" else moved
                # A forest counts a leaf's shares only, which a leaf of one class keeps.
                pure = name == "RandomForestClassifier" and parameter == "leaves" and bool(p[at] == p[at[0]].sum())
                assert outputs.ok(network) == pure, f"{parameter}{list(at)} changed, and parity is ok: {not pure}"


# What one can be wrong about -------------------------------------------------------------------------------------------


def rerouted(module: Any, nodes: Nodes) -> None:
    module.router = Router(nodes)


def seeing(module: Any, change: Callable[[Tensor], Tensor]) -> None:
    """Rows are changed before they are routed."""
    route = module.route
    module.route = lambda x: route(change(x))
    module.total = lambda x: module.leaf_sums(module.route(x))


def strictly_less(module: Any) -> None:
    with torch.no_grad():
        module.thresholds.copy_(module.thresholds.nextafter(torch.tensor(-math.inf, dtype=torch.float64)))


def thresholds_in_float32(module: Any) -> None:
    with torch.no_grad():
        module.thresholds.copy_(module.thresholds.float().double())


def complement(module: Any) -> None:
    """The categories that go left go right."""
    nodes: Nodes = module.nodes
    values, ends, out = nodes.values, nodes.ends, []
    for j in range(len(nodes)):
        own = values[nodes.starts[j] : ends[j]]
        out.append(np.setdiff1d(np.arange(nodes.numCategories[j]), own) if nodes.numCategories[j] >= 0 else own)
    rerouted(module, nodes.replace(values=np.concatenate(out), ends=np.cumsum([len(v) for v in out])))


def unseen_categories(module: Any) -> None:
    """What is no category goes the other way."""
    subsets = module.router.subsets
    last = subsets.begins + subsets.sizes.long()
    subsets.flags[last] = ~subsets.flags[last]


def nodes_for_leaves(module: Any) -> None:
    """Leaves numbered as nodes are, in pre-order, as scikit-learn's apply does."""
    nodes: Nodes = module.nodes
    own = torch.from_numpy(np.flatnonzero(nodes.leaf) - nodes.roots()[nodes.leaf])
    column = own.double()
    module.leaf_column = lambda leaves: column[leaves.long()][:, 0] if module.single else column[leaves.long()]


def leaves_by_level(module: Any) -> None:
    """Leaves numbered level by level."""
    nodes: Nodes = module.nodes
    depth, tree = nodes.depth()[nodes.leaf], module.tree.numpy()
    order = np.lexsort((np.arange(len(depth)), depth, tree))
    number = np.empty(len(order))
    number[order] = np.arange(len(order)) - module.first.numpy()[tree[order]]
    column = torch.from_numpy(number)
    module.leaf_column = lambda leaves: column[leaves.long()][:, 0] if module.single else column[leaves.long()]


def probability_of_m(module: Any) -> None:
    raw_and_probability = module.raw_and_probability
    module.raw_and_probability = lambda margin: (raw_and_probability(margin)[0], raw_and_probability(margin / 2)[1])


def ignores_weights(module: Any) -> None:
    module.share = lambda: torch.full_like(module.treeWeights, module.factor)


def counts_as_votes(module: Any) -> None:
    module.table = lambda: module.leaves


def votes_as_counts(module: Any) -> None:
    module.table = lambda: module.leaves / module.leaves.sum(1, keepdim=True)


def argmax_of_raw(module: Any) -> None:
    module.cuts = None


def sum_of_trees(module: Any) -> None:
    module.margin_from_sums = lambda total: total


def unbiased_variance(module: Any) -> None:
    count = torch.from_numpy(module.nodes.impurityStats[module.nodes.leaf])[:, 0]
    variances = module.variances
    module.variances = lambda: variances() * count / (count - 1)


def leaf_of_the_node(module: Any) -> None:
    """A class's prediction in place of the class weights."""
    module.leaves.data.copy_(torch.nn.functional.one_hot(module.leaves.argmax(1), CLASSES).double())


ALL, CLASSIFIERS = tuple(NAMES), tuple(NAMES[:3])
TRAPS: list[tuple[Callable[[Any], None], tuple[str, ...]]] = [
    (strictly_less, ALL),
    (thresholds_in_float32, ALL),
    (lambda module: seeing(module, lambda x: x.float().double()), ALL),
    (lambda module: seeing(module, lambda x: torch.where(x.isnan(), -math.inf, x)), ALL),
    (lambda module: seeing(module, lambda x: x.nan_to_num(0.0)), ALL),
    (complement, ALL),
    (unseen_categories, ALL),
    (nodes_for_leaves, ALL),
    (leaves_by_level, ALL),
    (probability_of_m, ("GBTClassifier",)),
    (ignores_weights, ("GBTClassifier", "GBTRegressor")),
    (counts_as_votes, ("RandomForestClassifier",)),
    (votes_as_counts, ("DecisionTreeClassifier",)),
    (argmax_of_raw, ("DecisionTreeClassifier", "GBTClassifier")),
    (sum_of_trees, ("RandomForestRegressor",)),
    (unbiased_variance, ("DecisionTreeRegressor",)),
    (leaf_of_the_node, ("DecisionTreeClassifier", "RandomForestClassifier")),
]
TRAP_NAMES = [
    "<",
    "float32 thresholds",
    "float32 rows",
    "NaN left",
    "NaN is 0",
    "complement",
    "unseen",
    "node numbers",
    "level order",
    "p of m",
    "no weights",
    "counts as votes",
    "votes as counts",
    "no thresholds",
    "sum",
    "n - 1",
    "prediction",
]


@pytest.mark.parametrize(
    ("trap", "name"),
    [
        pytest.param(trap, name, id=f"{label}, {name}")
        for (trap, names), label in zip(TRAPS, TRAP_NAMES, strict=True)
        for name in names
    ],
)
def test_every_trap_is_seen(made: Callable[[str], Outputs], trap: Callable[[Trees], None], name: str) -> None:
    outputs = made(name)
    network: Network = outputs.network.clone()
    assert outputs.ok(network)
    trap(network.module(0))  # type: ignore[arg-type]
    assert not outputs.ok(network)


def test_a_field_that_holds_no_parameter_is_compared(made: Callable[[str], Outputs]) -> None:
    nodes = trees.read(made("GBTRegressor").stage)
    assert differing(nodes, nodes) == []
    categorical = np.flatnonzero(nodes.categorical)[0]
    values = nodes.values.copy()
    values[nodes.starts[categorical]] += 1
    assert differing(nodes.replace(values=values), nodes) == ["values"]
    assert differing(nodes.replace(gain=nodes.gain + 1e-9), nodes) == ["gain"]
