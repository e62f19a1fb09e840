"""The only place that knows py4j: rebuilds fitted stages, with or without a JVM handle, and asks Spark about plans and files."""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyspark
from py4j.java_collections import JavaArray
from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.find_spark_home import _find_spark_home
from pyspark.ml import PipelineModel
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import DenseMatrix, Vectors
from pyspark.ml.util import MLReader, MLWriter
from pyspark.ml.wrapper import JavaParams
from pyspark.sql import SparkSession
from pyspark.util import VersionUtils

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.machine import paths

SparkError = (Py4JError, PySparkException)
"""What Spark raises through Python."""
VERSION = VersionUtils.majorMinorVersion(pyspark.__version__)


def session() -> SparkSession:
    """The running SparkSession, classic or Spark Connect.

    Raises:
        InputError: none is running, or it was stopped.
    """
    try:
        spark = SparkSession.active()  # in a thread of the user's own, where none is active, the one started last
    except PySparkException:
        spark = None
    if spark is None or (in_process(spark) and spark.sparkContext._jsc is None):
        raise InputError(
            "no running SparkSession: start one (SparkSession.builder.getOrCreate()) and load the model again"
        )
    return spark


SPARKS_OWN_LOG = "org/apache/spark/log4j2-"
"""Where Spark keeps what it logs by unless the user has a file for that: everything down to INFO."""


def join_submit() -> None:
    """Join the JVM that spark-submit has started, so that a SparkConf knows what it was told, and log warnings only from here on.

    Where the user has said how to log, by `spark.log.level` or a log4j2 file, that holds.
    """
    if (
        "PYSPARK_GATEWAY_PORT" not in os.environ
    ):  # no spark-submit: a JVM of our own, which starts with the session's settings
        return
    try:
        SparkContext._ensure_initialized()
        conf: Any = SparkConf()
        conf._jconf.initializeLogIfNecessary(False)
        jvm: Any = SparkContext._jvm
        log4j = jvm.org.apache.logging.log4j
        source = log4j.LogManager.getContext(False).getConfigLocation()
        if SPARKS_OWN_LOG in str(source) and not conf.contains("spark.log.level"):
            jvm.org.apache.spark.util.Utils.setLogLevel(log4j.Level.WARN)
    except (Py4JError, AttributeError, TypeError):
        return  # a cluster's py4j that allows too little: it logs as it does


def in_process(spark: SparkSession) -> bool:
    """Whether this process is Spark's driver; with Spark Connect it is not, and there is no SparkContext."""
    return hasattr(spark, "sparkContext")


def check_java() -> None:
    """Look for Java as Spark's scripts would, where this process is about to start it.

    Raises:
        InputError: there is none, or it is too old for this Spark.
    """
    if SparkSession.getActiveSession() is not None or "PYSPARK_GATEWAY_PORT" in os.environ:
        return
    if Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home()) / "conf", "spark-env.sh").exists():
        return  # which may choose another one
    home, needed = os.environ.get("JAVA_HOME"), 17 if VERSION >= (4, 0) else 8
    java, told = ("java", "the java on PATH") if not home else (f"{home}/bin/java", f"JAVA_HOME={home}")
    way = f"set JAVA_HOME to the folder of a Java {17 if needed == 17 else '8, 11 or 17'}"
    try:
        asked = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        missing = f"{told} holds no bin/java that runs" if home else "JAVA_HOME is unset, and no java on PATH runs"
        raise InputError(f"{missing}: {way}") from e
    found = re.search(r'version "(?:1\.)?(\d+)', asked.stderr + asked.stdout)
    if asked.returncode or (found and int(found[1]) < needed):
        what = "doesn't run" if asked.returncode or not found else f"is Java {found[1]}"
        raise InputError(f"{told} {what}, and Spark {pyspark.__version__} needs Java {needed} or later: {way}")


def ml_context(spark: SparkSession) -> Any:
    """What pyspark.ml's readers and writers take: the SparkContext where there is one (3.5 knows nothing else)."""
    return spark.sparkContext if in_process(spark) else spark


def model_at(path: str | Path) -> str:
    """The URL by which this Spark loads the model that is saved at a path, whatever its name."""
    where = paths.address(path)
    # Spark 3.5 reads metadata through Hadoop's text files, for which a path ends at a comma outside of braces.
    return where.replace(",", "{\\,}") if VERSION < (4, 0) else where


class Writer(MLWriter):
    """An MLWriter for classes that exist in Python only, also through Spark Connect."""

    @property
    def sc(self) -> Any:
        return ml_context(self.sparkSession)

    def _handleOverwrite(self, path: str) -> None:
        if in_process(self.sparkSession):
            super()._handleOverwrite(path)  # type: ignore[misc]
        else:
            PipelineModel([]).write().handleOverwrite(path, True)  # type: ignore[attr-defined]


class Reader(MLReader[Any]):
    """An MLReader for classes that exist in Python only, also through Spark Connect."""

    @property
    def sc(self) -> Any:
        return ml_context(self.sparkSession)


def has_constructors() -> bool:
    """Whether Scala constructors can be called: not through Spark Connect, nor where a cluster's py4j allows too little."""
    try:
        context: Any = session().sparkContext
        context._jvm.org.apache.spark.ml.param.ParamMap.empty().getClass().getConstructors()
    except (Py4JError, PySparkException, AttributeError, TypeError):
        return False
    return True


def check_alive(stage: Any) -> None:
    """Refuse a stage whose SparkSession was stopped, before py4j fails with an AssertionError.

    Raises:
        InputError: names the stage.
    """
    java = getattr(stage, "_java_obj", None)
    try:
        session()
        if isinstance(java, JavaObject):
            java.uid()
        elif java is not None and not isinstance(java, str):  # Connect: a fitted model on the server
            _ask(stage)
    except (InputError, *SparkError, AttributeError, AssertionError, OSError) as e:
        raise InputError(
            f"{stage.uid}: its SparkSession is not running (stopped?); start a session and load the model again"
        ) from e


def _ask(stage: Any) -> None:
    """Call a method of a model on a Spark Connect server; raises what comes of it where the server has lost the model."""
    try:
        stage._call_java("toString")  # one of the few that every model's server lets through
    except PySparkException as e:
        if "NoSuchElementException" not in str(e):  # a generalized linear model's own, where no link was set
            raise


def shared_folder(cacheDir: str | None = None) -> Path | None:
    """The folder that the option or, without it, the conf `spark.sparkdiff.cacheDir` names, made where it is missing.

    None where neither names one, and a temporary folder will do, as Spark runs on one machine.

    Raises:
        InputError: a temporary folder won't do; or the folder isn't in this machine's file system, or can't be written to.
    """
    spark = session()
    given = cacheDir or spark.conf.get("spark.sparkdiff.cacheDir", None)
    if given is None:
        master = spark.conf.get("spark.master", None) or ""
        if not master.startswith("local"):
            raise InputError(
                f"cacheDir is unset and the master is {master}: set cacheDir (or conf spark.sparkdiff.cacheDir) to a folder "
                "that Spark and this process both see as files"
            )
        return None
    path = paths.folder("cacheDir", given)
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as e:
        raise InputError(
            f"cacheDir={given!r} cannot be used: {e.strerror}; give a folder that can be written to"
        ) from e
    paths.check_writable("cacheDir", given, path)
    return path


def sees(spark: SparkSession, folder: Path) -> bool:
    """Whether Spark finds a file that this process puts into a folder. Runs no job."""
    if in_process(spark):
        return True
    with tempfile.NamedTemporaryFile(prefix="seen-by-spark-", dir=folder) as file:
        try:
            return bool(spark.read.text(paths.address(file.name)).columns)
        except PySparkException:
            return False


_scratch: contextvars.ContextVar[Path | None] = contextvars.ContextVar("scratch", default=None)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Inside this context, what `rebuild` has to write for a moment lies below a folder that Spark sees, too."""
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch_folder() -> Path | None:
    """Where that is; None where a temporary folder will do."""
    return _scratch.get() or shared_folder()


@contextlib.contextmanager
def by_arrow() -> Iterator[None]:
    """Inside, pandas' frames travel by Arrow, as with Spark Connect they always do."""
    spark, key = session(), "spark.sql.execution.arrow.pyspark.enabled"
    before = spark.conf.get(key, None) if in_process(spark) else "true"
    if before != "true":
        spark.conf.set(key, "true")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_dtype is deprecated")  # PySpark 3.5 asks pandas in words of old
            yield
    finally:
        if before is None:
            spark.conf.unset(key)
        elif before != "true":
            spark.conf.set(key, before)


@contextlib.contextmanager
def saved(stage: Any) -> Iterator[str]:
    """The address of a stage saved for a moment, in a folder that Spark and this process both see."""
    with tempfile.TemporaryDirectory(prefix=".stage-", dir=scratch_folder()) as name:
        where = f"file://{name}/stage"
        stage.write().save(where)
        yield where


def rebuild(stage: Any, weights: Mapping[str, Any]) -> Any:
    """A new fitted stage of the same class, uid and Params (set and default) with these weights.

    The names are those of the stage's saved data, in the order of its Scala constructor: one description for two routes.
    Where constructors can be called, one is; elsewhere the stage is saved, its data rewritten, and loaded.

    Raises:
        SparkdiffError: no constructor takes these weights, or the saved data lack one.
    """
    return rebuilt(stage, lambda old: _constructed(old, weights), lambda old: _rewritten(old, weights))


def rebuilt(stage: Any, construct: Callable[[Any], Any], rewrite: Callable[[Any], Any]) -> Any:
    """`rebuild` for a class whose constructor or saved data are of another form.

    Args:
        construct, rewrite: a copy of the stage -> a new one with other weights, by a Scala constructor or by way of files.
    """
    old = stage.copy()  # copy() also carries Params that were set in Python over to the Java object
    new = construct(old) if has_constructors() else rewrite(old)
    # Python objects have defaults of their own (an unset outputCol is <uid>__output of a uid made up by __init__).
    new = old._copyValues(new._resetUid(stage.uid))
    for param in [p for p in new._paramMap if not old.isSet(p.name)]:  # Java alone knows that ALS sets blockSize
        del new._paramMap[param]
    return new


def with_params(stage: Any, values: Mapping[str, Any]) -> Any:
    """A new stage like `stage` with these values (numbers, numpy vectors) in its Params; what is the same isn't set."""
    new = {name: ml_value(value, None) for name, value in values.items()}
    return stage.copy({stage.getParam(n): v for n, v in new.items() if stage.getOrDefault(n) != v})


def rebuild_around(stage: Any, weights: Mapping[str, Any], inner: Callable[[Any, Any], Any]) -> Any:
    """`rebuild` for a class of spark.ml whose constructor takes (String uid, a model of spark.mllib).

    Args:
        inner: (the JVM's packages, the Java object of the stage) -> the mllib model with these weights.
    """

    def construct(old: Any) -> Any:
        context: Any = session().sparkContext
        return made_of(old, inner(context._jvm, old._java_obj))

    return rebuilt(stage, construct, lambda old: _rewritten(old, weights))


def idf(stage: Any, values: np.ndarray) -> Any:
    """An IDFModel like `stage` with other inverse document frequencies (d,); docFreq and numDocs are kept."""

    def inner(jvm: Any, java: Any) -> Any:
        vector = jvm.org.apache.spark.mllib.linalg.Vectors.fromML(
            _py2java(session().sparkContext, Vectors.dense(values))
        )
        return jvm.org.apache.spark.mllib.feature.IDFModel(vector, java.docFreq(), java.numDocs())

    return rebuild_around(stage, {"idf": values}, inner)


def made_of(old: Any, *arguments: Any) -> Any:
    """A model of the same class, uid and Params by the constructor that takes (String uid, *arguments), all of them Java's.

    Raises:
        SparkdiffError: there is none of so many arguments.
    """
    context: Any = session().sparkContext
    java, kind = old._java_obj, old._java_obj.getClass()
    for constructor in kind.getConstructors():
        if len(constructor.getParameterTypes()) == len(arguments) + 1:
            every = context._gateway.new_array(context._jvm.java.lang.Object, len(arguments) + 1)
            for i, argument in enumerate((java.uid(), *arguments)):
                every[i] = argument
            new = constructor.newInstance(every)
            java.copyValues(new, context._jvm.org.apache.spark.ml.param.ParamMap.empty())
            return JavaParams._from_java(new)
    raise SparkdiffError(f"{java.uid()}: {kind.getName()} has no constructor of {len(arguments)} weights")


def _constructed(old: Any, weights: Mapping[str, Any]) -> Any:
    """By the constructor that takes (String uid, then one parameter per weight), chosen by their types.

    Numpy vectors and matrices go over in one piece each.
    """
    matrices = [name for name, value in weights.items() if isinstance(value, np.ndarray) and value.ndim == 2]
    like = {name: getattr(old, name, None) for name in matrices}
    return JavaParams._from_java(_made(old._java_obj, old._java_obj.getClass(), weights, like))


def _made(java: Any, kind: Any, weights: Mapping[str, Any], like: Mapping[str, Any]) -> Any:
    """A Java model of this class with the uid and Params of a Java stage, its matrices in the storage order of others."""
    context: Any = session().sparkContext
    jvm = context._jvm
    values = list(weights.values())
    for constructor in kind.getConstructors():
        types = [t.getName() for t in constructor.getParameterTypes()]
        if len(types) != len(values) + 1 or types[0] != "java.lang.String":
            continue
        if not all(_fits(v, t) for v, t in zip(values, types[1:], strict=True)):
            continue
        arguments = context._gateway.new_array(jvm.java.lang.Object, len(types))
        arguments[0] = java.uid()
        for i, (value, name) in enumerate(zip(values, weights, strict=True), start=1):
            # A column-major coefficient matrix builds, and fails in LogisticRegressionModel.transform.
            arguments[i] = _py2java(context, ml_value(value, like.get(name)))
        new = constructor.newInstance(arguments)
        java.copyValues(new, jvm.org.apache.spark.ml.param.ParamMap.empty())
        return new
    raise SparkdiffError(f"{java.uid()}: {kind.getName()} has no constructor for {', '.join(weights)}")


def model_class(estimator: Any) -> Any:
    """The Java class of what an unfitted estimator of pyspark.ml fits; its Params are carried over to its Java object.

    Raises:
        InputError: no constructor can be called.
    """
    if not has_constructors():
        raise InputError(
            f"{type(estimator).__name__}: a model can't be made from nothing here (Spark Connect, or a cluster that allows no "
            "constructors); make it in a classic session of the same Spark version, save it there and load it here"
        )
    estimator._transfer_params_to_java()
    kind = estimator._java_obj.getClass()
    name = kind.getName().replace("Regressor", "Regression").replace("Classifier", "Classification")
    return kind.getClassLoader().loadClass(f"{name}Model")


def fitted(estimator: Any, weights: Mapping[str, Any]) -> Any:
    """The model that an unfitted estimator would have come to, had it found these weights: its uid, Params and defaults.

    Args:
        weights: all of them, as of `rebuild`.

    Raises:
        InputError: no constructor can be called.
    """
    kind = model_class(estimator)
    row_major = dict.fromkeys(weights, SimpleNamespace(isTransposed=True))
    return JavaParams._from_java(_made(estimator._java_obj, kind, weights, row_major))


def _rewritten(old: Any, weights: Mapping[str, Any]) -> Any:
    """By way of files: the stage saved, the weights in the one row of its data replaced, and the stage loaded."""
    with saved(old) as where:
        data = read_rows(f"{where}/data")
        if data.num_rows != 1:
            raise SparkdiffError(
                f"{old.uid}: its saved data have several rows; its translation needs a to_spark of its own"
            )
        missing = [name for name in weights if name not in data.column_names]
        if missing:
            raise SparkdiffError(
                f"{old.uid}: its saved data lack {', '.join(missing)}; they hold {', '.join(data.column_names)}"
            )
        for name, value in weights.items():
            was, place = data[name][0].as_py(), data.column_names.index(name)
            new = ml_value(value, SimpleNamespace(**was) if isinstance(was, dict) else None)
            data = data.set_column(place, data.schema.field(place), _arrow([new], data.schema.field(place).type))
        write_rows(f"{where}/data", data)
        return type(old).load(model_at(where))


def read_rows(where: str) -> pa.Table:
    """The rows of a folder of Parquet that Spark saved to an address of `saved`. Runs no job."""
    tables = []
    for path in sorted(Path(where.removeprefix("file://")).glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            tables.append(file.read())
    return pa.concat_tables(tables)


def write_rows(where: str, data: pa.Table) -> None:
    """Put a table in the place of such a folder. Its schema, as it was read, carries the metadata that tell Spark of vectors.

    Runs no job; rows that are sent through Spark take a Python process and a tenth of a second for each partition.
    """
    folder = Path(where.removeprefix("file://"))
    shutil.rmtree(folder)  # with the checksums of the files that were there
    folder.mkdir()
    pq.write_table(data, folder / "part-00000.parquet")


def table_of(rows: Iterable[Sequence[Any]], schema: pa.Schema) -> pa.Table:
    """Rows in Spark's Python values as a table of a schema that `read_rows` found."""
    columns = list(zip(*rows, strict=True)) or [()] * len(schema)
    return pa.Table.from_arrays([_arrow(c, f.type) for c, f in zip(columns, schema, strict=True)], schema=schema)


def _arrow(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array([_plain(value, kind) for value in values], kind)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value as Arrow takes it: vectors and matrices as Spark stores them, integers as floats where floats are wanted."""
    value = value.__UDT__.serialize(value) if hasattr(value, "__UDT__") else value
    if value is None:
        return None
    if pa.types.is_struct(kind):
        values = value if isinstance(value, Mapping) else dict(zip([f.name for f in kind], value, strict=True))
        return {f.name: _plain(values[f.name], f.type) for f in kind}
    if pa.types.is_list(kind):
        return [_plain(v, kind.value_type) for v in value]
    return float(value) if pa.types.is_floating(kind) else value


def ml_value(value: Any, like: Any) -> Any:
    """A numpy vector or matrix as Spark's, a matrix in the storage order of another one; a number as it is."""
    if not isinstance(value, np.ndarray):
        return value
    if value.ndim == 1:
        return Vectors.dense(value)
    rows, columns = value.shape
    row_major = bool(getattr(like, "isTransposed", False))
    return DenseMatrix(rows, columns, value.ravel("C" if row_major else "F"), row_major)


def _fits(value: Any, java_type: str) -> bool:
    if isinstance(value, np.ndarray):
        return java_type.rsplit(".", 1)[-1] in (
            ("Vector", "DenseVector") if value.ndim == 1 else ("Matrix", "DenseMatrix")
        )
    return java_type == {bool: "boolean", int: "int", float: "double"}[type(value)]


def defined_params(stage: Any) -> dict[str, dict[str, Any]]:
    """A stage's Params as {"set": {name: value}, "default": {name: value}}."""
    return {
        "set": {p.name: v for p, v in stage._paramMap.items()},
        "default": {p.name: v for p, v in stage._defaultParamMap.items()},
    }


def java_params(stage: Any) -> str | None:
    """The Params of a stage's Java object, which may lag behind those set in Python; None where it has none."""
    java = getattr(stage, "_java_obj", None)
    if not isinstance(java, JavaObject):
        return None
    params = java.extractParamMap()
    text = str(params.toString())
    if "@" in text:  # an array's text is its address
        pairs = [params.toSeq().apply(i) for i in range(params.size())]
        text = "\n".join(f"{pair.param().name()}: {_listed(pair.value())}" for pair in pairs)
    return text


def _listed(value: Any) -> Any:
    return [_listed(v) for v in value] if isinstance(value, JavaArray) else value


def default_output(stage: Any) -> Any:
    """The outputCol of a stage on which none is set: `<uid>__output`.

    A loaded stage's Python object has made up a uid of its own for it. Classic Spark takes that one over; behind Connect,
    Spark knows nothing of it.
    """
    java = getattr(stage, "_java_obj", None)
    in_python = java is None or isinstance(java, JavaObject)
    return stage.getOrDefault("outputCol") if in_python else f"{stage.uid}__output"


def with_uid(new: Any, old: Any) -> Any:
    """`new` with the uid and the Params of `old`; for stages that exist in Python only."""
    new._resetUid(old.uid)
    return old._copyValues(new)


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
                # Of a barrier stage the first line only says that a task failed; the next one says why.
                first, _, rest = str(java.getMessage()).partition("\n")
                return first_sentences(
                    rest if first.endswith("finished unsuccessfully.") and rest else f"{first}\n{rest}"
                )
    text = str(error)
    causes = list(re.finditer(r"^Caused by: [\w.$]+: (?=.)", text, re.MULTILINE))  # Connect tells them as text
    return first_sentences(text[causes[-1].end() :] if causes else text)


def first_sentences(message: str) -> str:
    """The first line of a message of Spark's and those on which its last sentence goes on, in one line.

    What follows sentences that are whole are traces, plans and pieces of code.
    """
    lines = message.strip().splitlines()
    out = lines[:1]
    for line in lines[1:]:
        whole = re.search(r"[.;!?)\]]$|SQLSTATE: \w+$", out[-1])
        if whole or not line.strip() or re.match(r"\s+at |\s*[+:]-|'|==|(Caused|Driver|JVM)\b", line):
            break
        out.append(line.strip())
    return " ".join(out).strip()


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
    if in_process(spark):
        spark.sparkContext.setJobGroup(tag, "sparkdiff: training", interruptOnCancel=True)
    else:
        spark.addTag(tag)
    yield


def cancel(spark: SparkSession, tag: str) -> None:
    """End the jobs that were started under this tag."""
    if in_process(spark):
        spark.sparkContext.cancelJobGroup(tag)
    else:
        spark.interruptTag(tag)
