"""Trees and ensembles of trees through py4j, all nodes in one call, or through the saved Parquet files without a
JVM.
"""

import functools
import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pyspark.ml.wrapper import JavaParams

from sparkdiff.errors import SparkdiffError
from sparkdiff.jvm import files, rebuilding, sessions
from sparkdiff.jvm.nodes import Array, Nodes

STORE = "org.apache.spark.ml.tree.DecisionTreeModelReadWrite"
JACKSON = "com.fasterxml.jackson"


def is_ensemble(stage: Any) -> bool:
    """Whether a fitted tree stage is an ensemble, whose trees have their own uids and Params."""
    return not type(stage).__name__.startswith("DecisionTree")


def read(stage: Any) -> Nodes:
    """The nodes of a fitted tree, or of all trees of an ensemble."""
    if not sessions.has_constructors():
        return _loaded(stage)
    gateway, java = _gateway(), stage._java_obj
    build = _object(f"{STORE}$NodeData")
    trees = gateway.java.util.ArrayList()
    for tree in java.trees() if is_ensemble(stage) else [java]:
        trees.add(build.build(tree.rootNode(), 0)._1())
    return Nodes.of(json.loads(_mapper().writeValueAsString(trees), parse_constant=float))


def rebuild(stage: Any, nodes: Nodes, treeWeights: Array | None = None) -> Any:
    """A new fitted stage of the same class, uid and Params (set and default, also each tree's own) with these nodes.

    Args:
        nodes: the nodes of as many trees as the stage has, in any shape.
        treeWeights: (T,), of a gradient-boosted ensemble only.
    """
    old = stage.copy()  # copy() also carries Params that were set in Python over to the Java object
    new: Any
    if sessions.has_constructors():
        new = JavaParams._from_java(_constructed(old, nodes, treeWeights))
    else:
        new = _rewritten(old, nodes, treeWeights)
    # Python objects have defaults of their own, see jvm.rebuild.
    return old._copyValues(new._resetUid(stage.uid))


def _constructed(old: Any, nodes: Nodes, treeWeights: Array | None) -> Any:
    java = old._java_obj
    trees = list(java.trees()) if is_ensemble(old) else [java]
    # An ensemble's trees are read with its own impurity, whatever theirs say (EnsembleModelReadWrite.loadImpl).
    impurity = old.getOrDefault("impurity")
    none = _gateway().org.apache.spark.ml.param.ParamMap.empty()
    classes, new = _classes(trees[0]), []
    make = _constructor(trees[0].getClass(), 3 + len(classes))
    for tree, root in zip(trees, roots(nodes, impurity), strict=True):
        made = make(tree.uid(), root, tree.numFeatures(), *classes)
        new.append(tree.copyValues(made, none))
    if not is_ensemble(old):
        return new[0]
    boosted = type(old).__name__.startswith("GBT")
    weights = [_doubles(old.treeWeights if treeWeights is None else treeWeights)] if boosted else []
    ensemble = _array(trees[0].getClass(), new)
    made = _made(java.getClass(), java.uid(), ensemble, *weights, java.numFeatures(), *_classes(java))
    return java.copyValues(made, none)


def fitted(
    estimator: Any, nodes: Nodes, numFeatures: int, *, treeWeights: Array | None = None, numClasses: int = 2
) -> Any:
    """The model that an unfitted tree estimator would return with these nodes; see jvm.fitted.

    Args:
        nodes: one tree per tree of the ensemble; each gets its own uid.
        treeWeights: (T,), of a gradient-boosted ensemble.
        numClasses: of a classifier.

    Raises:
        InputError: no constructor can be called, or these are not valid trees on vectors of that many features.
    """
    kind, java = rebuilding.model_class(estimator), estimator._java_obj
    boosted, classes = "GBT" in kind.getName(), [numClasses] if "Classification" in kind.getName() else []
    voting = [] if boosted else classes
    nodes.check(numFeatures, estimator.uid)
    made = roots(nodes, estimator.getImpurity() if voting else "variance")
    if is_ensemble(estimator):
        tree, prefix = (
            ("classification.DecisionTreeClassification", "dtc")
            if voting
            else ("regression.DecisionTreeRegression", "dtr")
        )
        member = _class(f"org.apache.spark.ml.{tree}Model")
        make = _constructor(member, 3 + len(voting))
        members = [make(f"{prefix}_{uuid.uuid4().hex[-12:]}", root, numFeatures, *voting) for root in made]
        weights = [_doubles(treeWeights)] if boosted else []
        new = _made(kind, java.uid(), _array(member, members), *weights, numFeatures, *classes)
    else:
        new = _made(kind, java.uid(), made[0], numFeatures, *classes)
    return JavaParams._from_java(java.copyValues(new, _gateway().org.apache.spark.ml.param.ParamMap.empty()))


def roots(nodes: Nodes, impurity: str) -> list[Any]:
    """The root of each tree as a Java object, given the impurity of the nodes' statistics ("variance" for a
    regression).
    """
    kind = _class(f"[[L{STORE}$NodeData;")
    trees = _mapper().readValue(json.dumps(nodes.records()), kind)
    build = _object(STORE)
    return [build.buildTreeFromNodes(tree, impurity) for tree in trees]


def _constructor(kind: Any, count: int) -> Callable[..., Any]:
    """The constructor of a class with `count` arguments; it is unique for the counts used here."""
    for constructor in kind.getConstructors():
        if len(constructor.getParameterTypes()) == count:
            anything = _class("java.lang.Object")
            return lambda *arguments: constructor.newInstance(_array(anything, arguments))
    raise SparkdiffError(f"{kind.getName()} has no constructor of {count} arguments")


def _made(kind: Any, *arguments: Any) -> Any:
    return _constructor(kind, len(arguments))(*arguments)


def _classes(java: Any) -> list[int]:
    return [java.numClasses()] if "Classification" in java.getClass().getName() else []


def _gateway() -> Any:
    context: Any = sessions.session().sparkContext
    return context._jvm


def _class(name: str) -> Any:
    """A Java class by name, as Spark's own loader finds it."""
    return _found(_gateway(), name)


@functools.cache
def _found(gateway: Any, name: str) -> Any:
    """Cached, because each call of Java costs as much as a tree."""
    java = gateway.java.lang
    return java.Class.forName(name, True, java.Thread.currentThread().getContextClassLoader())


def _object(name: str) -> Any:
    """A Scala object by name."""
    return _singleton(_gateway(), name)


@functools.cache
def _singleton(gateway: Any, name: str) -> Any:
    return _found(gateway, f"{name}$").getField("MODULE$").get(None)


def _array(kind: Any, items: Sequence[Any]) -> Any:
    """A Java array of a class."""
    out = _gateway().java.lang.reflect.Array.newInstance(kind, len(items))
    for i, item in enumerate(items):
        out[i] = item
    return out


def _doubles(values: Any) -> Any:
    """A double[]."""
    return _array(_class("java.lang.Double").getField("TYPE").get(None), np.asarray(values, np.float64).tolist())


def _mapper() -> Any:
    """Spark's own Jackson, set to look at fields: SplitData.getSplit asserts on leaves."""
    return _set_up(_gateway())


@functools.cache
def _set_up(gateway: Any) -> Any:
    mapper = _class(f"{JACKSON}.databind.ObjectMapper").getConstructor(_array(_class("java.lang.Class"), []))
    mapper = mapper.newInstance(_array(_class("java.lang.Object"), []))
    mapper.registerModule(_object(f"{JACKSON}.module.scala.DefaultScalaModule"))

    def constant(owner: str, name: str) -> Any:
        return _class(f"{JACKSON}.annotation.{owner}").getField(name).get(None)

    for accessor, visibility in (("GETTER", "NONE"), ("IS_GETTER", "NONE"), ("FIELD", "ANY")):
        mapper.setVisibility(constant("PropertyAccessor", accessor), constant("JsonAutoDetect$Visibility", visibility))
    return mapper


# Without a JVM ----------------------------------------------------------------------------------------------------------


def _loaded(stage: Any) -> Nodes:
    """Read from the stage's saved data."""
    with files.saved(stage) as where:
        return _nodes_in(where, ensemble=is_ensemble(stage))


def _nodes_in(where: str, *, ensemble: bool) -> Nodes:
    data = files.read_rows(f"{where}/data")
    trees: dict[int, list[dict[str, Any]]] = {}
    for row in data.to_pylist():  # the columns' names differ between versions, and a single tree's rows are its nodes
        tree, node = (row[data.column_names[0]], row[data.column_names[1]]) if ensemble else (0, row)
        trees.setdefault(tree, []).append(node)
    return Nodes.of(sorted(trees[t], key=lambda node: node["id"]) for t in sorted(trees))


def _rewritten(old: Any, nodes: Nodes, treeWeights: Array | None) -> Any:
    """Through files: save the stage, replace its data, and load it."""
    with files.saved(old) as where:
        schema = files.read_rows(f"{where}/data").schema
        if is_ensemble(old):
            rows = [(t, node) for t, tree in enumerate(nodes.records()) for node in tree]
        else:
            rows = [tuple(node[name] for name in schema.names) for node in nodes.records()[0]]
        files.write_rows(f"{where}/data", files.table_of(rows, schema))
        if treeWeights is not None:
            meta = files.read_rows(f"{where}/treesMetadata")
            new = [(*row[:2], treeWeights[row[0]]) for row in zip(*meta.to_pydict().values(), strict=True)]
            files.write_rows(f"{where}/treesMetadata", files.table_of(new, meta.schema))
        return type(old).load(sessions.model_at(where))
