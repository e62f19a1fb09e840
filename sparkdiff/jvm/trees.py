"""Trees and ensembles of trees, read and built through py4j, with one call for all nodes, or through their saved
Parquet files if no JVM can be called.
"""

import functools
import json
import uuid
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.ml.wrapper import JavaParams

from sparkdiff.jvm import folders, rebuilding, sessions, stage_files
from sparkdiff.jvm.java_objects import (
    array,
    class_named,
    doubles,
    mapper,
    no_params,
    packages,
    scala_object,
)
from sparkdiff.jvm.nodes import Array, Nodes

STORE = "org.apache.spark.ml.tree.DecisionTreeModelReadWrite"
MEMBERS = (
    ("org.apache.spark.ml.regression.DecisionTreeRegressionModel", "dtr"),
    ("org.apache.spark.ml.classification.DecisionTreeClassificationModel", "dtc"),
)
"""The class of an ensemble's trees, and Spark's prefix for the uids of these trees: first for regression (also the
trees of a boosted classifier), then for classification by vote.
"""
SPLIT = pa.struct(
    {"featureIndex": pa.int32(), "leftCategoriesOrThreshold": pa.list_(pa.float64()), "numCategories": pa.int32()}
)
NODE = pa.struct(
    {
        "id": pa.int32(),
        "prediction": pa.float64(),
        "impurity": pa.float64(),
        "impurityStats": pa.list_(pa.float64()),
        "rawCount": pa.int64(),
        "gain": pa.float64(),
        "leftChild": pa.int32(),
        "rightChild": pa.int32(),
        "split": SPLIT,
    }
)
"""A node in saved data. For an ensemble it is a column beside the tree's number, for a single tree the whole row."""


def is_ensemble(stage: Any) -> bool:
    """True if a tree stage, fitted or not, is an ensemble, whose trees have their own uids and Params."""
    return bool(stage.hasParam("subsamplingRate"))


def is_boosted(stage: Any) -> bool:
    """True if a tree stage is an ensemble whose trees have weights."""
    return bool(stage.hasParam("stepSize"))


def read(stage: Any) -> Nodes:
    """Nodes of a fitted tree, or of all trees of an ensemble."""
    if not sessions.has_constructors():
        return _read_from_files(stage)
    java, build = stage._java_obj, scala_object(f"{STORE}$NodeData")
    trees = packages().java.util.ArrayList()
    for tree in java.trees() if is_ensemble(stage) else [java]:
        trees.add(build.build(tree.rootNode(), 0)._1())
    return Nodes.of(json.loads(mapper().writeValueAsString(trees), parse_constant=float))


def rebuild(stage: Any, nodes: Nodes, treeWeights: Array | None = None, numFeatures: int | None = None) -> Any:
    """A new fitted stage of the same class, uid and Params (set and default, also each tree's own) with these nodes.

    Args:
        nodes: the nodes of as many trees as the stage has, of any shape; a gradient-boosted ensemble may get more or
            fewer.
        treeWeights: (T,), only for a gradient-boosted ensemble.
        numFeatures: number of entries of the vectors that it reads; None keeps it.
    """
    return rebuilding.rebuild_with(
        stage,
        lambda old: _rebuild_by_constructor(old, nodes, treeWeights, numFeatures),
        lambda old: _rebuild_by_files(old, nodes, treeWeights, numFeatures),
    )


def _rebuild_by_constructor(old: Any, nodes: Nodes, treeWeights: Array | None, numFeatures: int | None) -> Any:
    java = old._java_obj
    features = java.numFeatures() if numFeatures is None else numFeatures
    trees = list(java.trees()) if is_ensemble(old) else [java]
    kind, classes, none = trees[0].getClass(), _classes(trees[0]), no_params()
    make = _maker(kind.getName())
    # An ensemble's trees are read with the ensemble's impurity, whatever theirs is (EnsembleModelReadWrite.loadImpl).
    made = roots(nodes, old.getOrDefault("impurity"))
    new = [
        tree.copyValues(make(tree.uid(), root, features, *classes), none)
        for tree, root in zip(trees, made, strict=not is_boosted(old))
    ]
    new += [make(uid, root, features) for uid, root in zip(_uids(len(made) - len(new)), made[len(new) :], strict=True)]
    if not is_ensemble(old):
        return JavaParams._from_java(new[0])
    weights = [doubles(old.treeWeights if treeWeights is None else treeWeights)] if is_boosted(old) else []
    return rebuilding.made_of(old, array(kind, new), *weights, features, *_classes(java))


def model_with_nodes(
    estimator: Any, nodes: Nodes, numFeatures: int, *, treeWeights: Array | None = None, numClasses: int = 2
) -> Any:
    """The model that an unfitted tree estimator would return if its fit gave these nodes; see `jvm.model_with_weights`.

    Args:
        nodes: one tree per tree of the ensemble; each gets its own uid.
        treeWeights: (T,), for a gradient-boosted ensemble.
        numClasses: number of classes of a classifier.

    Raises:
        InputError: these are not valid trees on vectors of that many features.
    """
    nodes.check(numFeatures, estimator.uid)
    classes = [numClasses] if estimator.hasParam("probabilityCol") else []
    voting = [] if is_boosted(estimator) else classes  # a boosted classifier's trees are regressions
    kind, prefix = MEMBERS[bool(voting)]
    uids = _uids(nodes.trees, prefix)
    if not sessions.has_constructors():
        return _write_and_load(estimator, nodes, numFeatures, classes, treeWeights, kind, uids)
    model = rebuilding.model_class(estimator)
    made = roots(nodes, estimator.getImpurity() if voting else "variance")
    if is_ensemble(estimator):
        make = _maker(kind)
        members = [make(uid, root, numFeatures, *voting) for uid, root in zip(uids, made, strict=True)]
        made = [array(class_named(kind), members), *([doubles(treeWeights)] if is_boosted(estimator) else [])]
    return rebuilding.construct_model(estimator._java_obj, model, [*made, numFeatures, *classes])


def first(stage: Any, count: int) -> Any:
    """A new model like a gradient-boosted one, with only its first trees; needs constructors (`has_constructors`)."""
    old = stage.copy()
    java, lang = old._java_obj, packages().java.lang
    trees = java.trees()
    kept = lang.reflect.Array.newInstance(trees[0].getClass(), count)
    lang.System.arraycopy(trees, 0, kept, 0, count)
    weights = doubles(old.treeWeights[:count])
    new = rebuilding.made_of(old, kept, weights, java.numFeatures(), *_classes(java))
    return old._copyValues(new._resetUid(stage.uid))


def _maker(kind: str) -> Any:
    """Constructor of a Java class, for use on many trees: it takes one call of py4j per tree; a constructor that was
    found by reflection takes ten.
    """
    return functools.reduce(getattr, kind.split("."), packages())


def roots(nodes: Nodes, impurity: str) -> list[Any]:
    """Root of each tree as a Java object, given the impurity of the nodes' statistics ("variance" for a regression)."""
    kind, read, build = class_named(f"[L{STORE}$NodeData;"), mapper().readValue, scala_object(STORE).buildTreeFromNodes
    return [build(read(json.dumps(tree), kind), impurity) for tree in nodes.records()]  # all at once may fill the heap


def _uids(count: int, prefix: str = MEMBERS[0][1]) -> list[str]:
    """New uids for trees of an ensemble, in Spark's form."""
    return [f"{prefix}_{uuid.uuid4().hex[-12:]}" for _ in range(count)]


def _classes(java: Any) -> list[int]:
    return [java.numClasses()] if java.hasParam("probabilityCol") else []


# Without a JVM ----------------------------------------------------------------------------------------------------------


def _read_from_files(stage: Any) -> Nodes:
    """Nodes from the stage's saved data."""
    with stage_files.save_temporarily(stage) as where:
        data = stage_files.read_rows(f"{where}/data")
    ensemble = is_ensemble(stage)
    trees: dict[int, list[dict[str, Any]]] = {}
    for row in data.to_pylist():  # column names differ between versions; a single tree's rows are its nodes
        tree, node = (row[data.column_names[0]], row[data.column_names[1]]) if ensemble else (0, row)
        trees.setdefault(tree, []).append(node)
    return Nodes.of(sorted(trees[t], key=lambda node: node["id"]) for t in sorted(trees))


def _rebuild_by_files(old: Any, nodes: Nodes, treeWeights: Array | None, numFeatures: int | None) -> Any:
    """Rebuild through files: save the stage, replace its data, and load it."""
    with stage_files.save_temporarily(old) as where:
        if numFeatures is not None:
            stage_files.change_metadata(where, numFeatures=numFeatures)
        schema = stage_files.read_rows(f"{where}/data").schema
        if is_ensemble(old):
            rows = [(t, node) for t, tree in enumerate(nodes.records()) for node in tree]
        else:
            rows = [tuple(node[name] for name in schema.names) for node in nodes.records()[0]]
        stage_files.write_rows(f"{where}/data", stage_files.table_of(rows, schema))
        if treeWeights is not None:
            meta = stage_files.read_rows(f"{where}/treesMetadata")
            told = [about for _, about, _ in sorted(zip(*meta.to_pydict().values(), strict=True))][: nodes.trees]
            told += [_member(MEMBERS[0][0], uid) for uid in _uids(nodes.trees - len(told))]
            each = zip(range(nodes.trees), told, np.asarray(treeWeights).tolist(), strict=True)
            stage_files.write_rows(f"{where}/treesMetadata", stage_files.table_of(each, meta.schema))
            stage_files.change_metadata(where, numTrees=nodes.trees)
        return type(old).load(folders.model_at(where))


def _write_and_load(
    estimator: Any,
    nodes: Nodes,
    numFeatures: int,
    classes: list[int],
    treeWeights: Array | None,
    kind: str,
    uids: list[str],
) -> Any:
    """The model of an estimator, loaded from files like those of Spark's writer.

    The columns of treesMetadata have the names that Spark 3.5 and 4.0 expect; later versions read them by position.

    Args:
        classes: the number of classes of a classifier.
        kind, uids: class and uids of the trees of an ensemble. Like constructed trees, they have only default Params.
    """
    model, metadata = rebuilding.model_metadata(estimator)
    metadata |= {"numFeatures": numFeatures, **dict(zip(["numClasses"], classes, strict=False))}
    records, schema = nodes.records(), pa.schema(list(NODE))
    rows: list[tuple[Any, ...]] = [tuple(node[name] for name in schema.names) for tree in records for node in tree]
    with stage_files.folder() as where:
        if is_ensemble(estimator):
            metadata["numTrees"] = nodes.trees
            rows = [(t, node) for t, tree in enumerate(records) for node in tree]
            schema = pa.schema({"treeID": pa.int32(), "nodeData": NODE})
            told = [_member(kind, uid) for uid in uids]
            weights = np.ones(nodes.trees) if treeWeights is None else treeWeights
            about = pa.schema({"treeID": pa.int32(), "metadata": pa.string(), "weights": pa.float64()})
            each = zip(range(nodes.trees), told, weights.tolist(), strict=True)
            stage_files.write_rows(f"{where}/treesMetadata", stage_files.table_of(each, about))
        stage_files.write_text(f"{where}/metadata", json.dumps(metadata))
        stage_files.write_rows(f"{where}/data", stage_files.table_of(rows, schema))
        return model.load(folders.model_at(where))


def _member(kind: str, uid: str) -> str:
    """Metadata of a new tree of an ensemble, which has only default Params."""
    return json.dumps(rebuilding.saved_metadata(kind, uid, {}, {}))
