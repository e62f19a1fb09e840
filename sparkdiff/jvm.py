"""The only file that knows py4j: rebuilds fitted stages by their Scala constructors, and asks Spark about plans and files."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.errors import InputError, SparkdiffError

SparkError = (Py4JError, PySparkException)
"""What Spark raises through Python."""


def session() -> SparkSession:
    """The running SparkSession.

    Raises:
        InputError: none is running, or it was stopped.
    """
    try:
        spark = SparkSession.active()  # in a thread of the user's own, where none is active, the one started last
    except PySparkException:
        spark = None
    if spark is None or spark.sparkContext._jsc is None:
        raise InputError(
            "no running SparkSession: start one (SparkSession.builder.getOrCreate()) and load the model again"
        )
    return spark


def check_alive(stage: Any) -> None:
    """Refuse a stage whose SparkSession was stopped, before py4j fails with an AssertionError.

    Raises:
        InputError: names the stage.
    """
    java = getattr(stage, "_java_obj", None)
    try:
        session()
        if java is not None:
            java.uid()
    except (InputError, Py4JError, AttributeError, AssertionError, OSError) as e:
        raise InputError(
            f"{stage.uid}: its SparkSession is not running (stopped?); start a session and load the model again"
        ) from e


def rebuild(stage: Any, weights: Mapping[str, Any]) -> Any:
    """A new fitted stage of the same Scala class, uid and Params (set and default) with these weights.

    The constructor is chosen by its parameter types: (String uid, then one parameter per weight, in their order). Numpy
    vectors and matrices go over in one piece each.

    Raises:
        SparkdiffError: no public constructor takes these weights.
    """
    context: Any = session().sparkContext
    jvm = context._jvm
    old = stage.copy()  # copy() also carries Params that were set in Python over to the Java object
    java = old._java_obj
    values = list(weights.values())
    for constructor in java.getClass().getConstructors():
        types = [t.getName() for t in constructor.getParameterTypes()]
        if len(types) != len(values) + 1 or types[0] != "java.lang.String":
            continue
        if not all(_fits(v, t) for v, t in zip(values, types[1:], strict=True)):
            continue
        arguments = context._gateway.new_array(jvm.java.lang.Object, len(types))
        arguments[0] = java.uid()
        for i, (value, name) in enumerate(zip(values, weights, strict=True), start=1):
            arguments[i] = _to_java(context, value, _is_row_major(stage, name))
        new = constructor.newInstance(arguments)
        java.copyValues(new, jvm.org.apache.spark.ml.param.ParamMap.empty())
        # Python objects have defaults of their own (an unset outputCol is <uid>__output of a uid made up by __init__).
        return old._copyValues(JavaParams._from_java(new))
    raise SparkdiffError(f"{stage.uid}: {java.getClass().getName()} has no constructor for {', '.join(weights)}")


def _fits(value: Any, java_type: str) -> bool:
    if isinstance(value, np.ndarray):
        return java_type.rsplit(".", 1)[-1] in (
            ("Vector", "DenseVector") if value.ndim == 1 else ("Matrix", "DenseMatrix")
        )
    return java_type == {bool: "boolean", int: "int", float: "double"}[type(value)]


def _to_java(context: Any, value: Any, row_major: bool) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 1:
        return _py2java(context, Vectors.dense(value))
    rows, columns = value.shape
    return _py2java(context, DenseMatrix(rows, columns, value.ravel("C" if row_major else "F"), row_major))


def _is_row_major(stage: Any, name: str) -> bool:
    # A column-major coefficient matrix builds, and fails in LogisticRegressionModel.transform.
    return bool(getattr(getattr(stage, name, None), "isTransposed", False))


def defined_params(stage: Any) -> dict[str, dict[str, Any]]:
    """A stage's Params as {"set": {name: value}, "default": {name: value}}."""
    return {
        "set": {p.name: v for p, v in stage._paramMap.items()},
        "default": {p.name: v for p, v in stage._defaultParamMap.items()},
    }


def java_params(stage: Any) -> str | None:
    """The Params of a stage's Java object, which may lag behind those set in Python; None where it has none."""
    java = getattr(stage, "_java_obj", None)
    return None if java is None else str(java.extractParamMap().toString())


def with_uid(new: Any, old: Any) -> Any:
    """`new` with the uid and the Params of `old`; for stages that exist in Python only."""
    new._resetUid(old.uid)
    return old._copyValues(new)


NOT_IN_THE_PLAN = re.compile(r"Python|InPandas|InArrow|subquery#|exists#|list#")
"""In a plan's text: Python code, which the text only names, and subqueries, whose files are not among the plan's."""


@contextlib.contextmanager
def full_plan_text(spark: SparkSession) -> Iterator[None]:
    """Plan texts are cut at 25 fields by default; inside this context they are whole."""
    key = "spark.sql.debug.maxToStringFields"
    before = spark.conf.get(key, None)
    spark.conf.set(key, "1000000")
    try:
        yield
    finally:
        spark.conf.unset(key) if before is None else spark.conf.set(key, before)


def plan_facts(df: DataFrame, *, after_stages: bool = False) -> dict[str, Any] | None:
    """What decides a DataFrame's content without running a job: plan text and input files with length and mtime.

    None where the content can't be told that way: a leaf that isn't files, a UDF, or a nondeterministic expression. After
    ML stages, whose own functions show as UDFs too, only Python code counts as one.
    """
    try:
        plan = df._jdf.queryExecution().optimizedPlan()
        with full_plan_text(df.sparkSession):
            text = plan.canonicalized().toString()
    except (Py4JError, PySparkException, AttributeError):
        return None
    if not plan.deterministic() or NOT_IN_THE_PLAN.search(text) or ("UDF" in text and not after_stages):
        return None
    files, relations, leaves = [], [], plan.collectLeaves()
    for i in range(leaves.size()):
        leaf = leaves.apply(i)
        if not leaf.getClass().getName().endswith("LogicalRelation"):
            return None
        relation = leaf.relation()
        if not relation.getClass().getName().endswith("HadoopFsRelation"):
            return None
        relations.append(
            [relation.dataSchema().json(), relation.partitionSchema().json(), relation.options().toString()]
        )
        files += _file_facts(df.sparkSession, relation.location().inputFiles())
    # The canonicalized text has lost the names; the analyzed one has them, with ids that differ between sessions.
    return {"plan": text, "columns": df.columns, "relations": relations, "files": sorted(files)}


def _file_facts(spark: Any, uris: Any) -> list[list[Any]]:
    jvm, conf, out = spark._jvm, spark._jsparkSession.sessionState().newHadoopConf(), []
    for uri in uris:
        path = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI.create(uri))
        status = path.getFileSystem(conf).getFileStatus(path)
        out.append([uri, status.getLen(), status.getModificationTime()])
    return out


def cause(error: BaseException) -> str:
    """The innermost message of an error raised by Spark, in one line; of Python code, its exception."""
    raised = re.findall(r"^\w+(?:Error|Exception): .*$", str(error), re.MULTILINE)
    if "from the Python worker" in str(error) and raised:
        return str(raised[-1])
    java: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    if isinstance(error, Py4JJavaError) or java is not None:
        java = java.java_exception if isinstance(java, Py4JJavaError) else java
        with contextlib.suppress(Exception):
            while java.getCause() is not None:
                java = java.getCause()
            if java.getMessage():
                return str(java.getMessage()).split("\n", 1)[0]
    return str(error).strip().split("\n", 1)[0]


def slots(spark: SparkSession) -> int | None:
    """How many tasks can run at once on the executors that are there now; None where it can't be told."""
    try:
        context: Any = spark.sparkContext._jsc.sc()
        return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))
    except (Py4JError, PySparkException, AttributeError, TypeError):
        return None


@contextlib.contextmanager
def cancellable(spark: SparkSession, tag: str) -> Iterator[None]:
    """Inside, the jobs that this thread starts can be ended by `cancel(spark, tag)` from another one."""
    try:
        context = spark.sparkContext
    except (PySparkException, AttributeError):  # Spark Connect has no context, but tags
        spark.addTag(tag)
    else:
        context.setJobGroup(tag, "sparkdiff: training", interruptOnCancel=True)
    yield


def cancel(spark: SparkSession, tag: str) -> None:
    """End the jobs that were started under this tag."""
    try:
        context = spark.sparkContext
    except (PySparkException, AttributeError):
        spark.interruptTag(tag)
    else:
        context.cancelJobGroup(tag)
