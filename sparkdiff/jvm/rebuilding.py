"""Fitted stages rebuilt with new weights, through JVM constructors or through their saved files."""

import functools
import importlib
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from py4j.java_collections import JavaArray
from py4j.java_gateway import JavaObject
from pyspark.ml.common import _java2py
from pyspark.ml.linalg import DenseMatrix, Matrix, Vector, Vectors
from pyspark.ml.wrapper import JavaParams
from pyspark.sql.types import ArrayType, BooleanType, DataType, DoubleType, IntegerType, StructField, StructType

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.jvm import sessions
from sparkdiff.jvm.folders import model_at
from sparkdiff.jvm.java_objects import array, class_named, each, in_java, ints, no_params
from sparkdiff.jvm.stage_files import _arrow, folder, read_rows, save_temporarily, write_rows, write_text

ROW_MAJOR = SimpleNamespace(isTransposed=True)
SQL_TYPES = {bool: BooleanType(), int: IntegerType(), float: DoubleType()}


def rebuild(
    stage: Any,
    weights: Mapping[str, Any],
    *,
    beside: Mapping[str, Any] | None = None,
    inner: Callable[[], Any] | None = None,
) -> Any:
    """A new fitted stage of the same class, uid and Params (set and default) with these weights.

    The names of the weights are those in the stage's saved data, in the order of its Scala constructor. If constructors
    can be called (`has_constructors`), the constructor makes the stage; otherwise the stage is saved, its data are
    changed, and it is loaded again.

    Args:
        weights: by name; the number of features may differ from that of the stage.
        beside: further entries of the saved data, such as numFeatures, which the constructor does not take.
        inner: makes the Java object with these weights, for a class whose constructor takes (String uid, one object),
            mostly a model of spark.mllib.

    Raises:
        InputError: the stage is written in Python, so it has neither a constructor nor saved data of Spark.
        SparkdiffError: no constructor takes these weights, or the saved data lack one.
    """
    if not isinstance(stage, JavaParams):
        raise InputError(
            f"{stage.uid}: {type(stage).__name__} is written in Python, so it has no weights in saved data of Spark "
            f"({', '.join(weights)}): name those that are Params in weight_params of its StageModule, or define to_spark"
        )

    def construct(old: Any) -> Any:
        if inner is not None:
            return made_of(old, inner())
        matrices = {
            name: getattr(old, name, None)
            for name, value in weights.items()
            if isinstance(value, np.ndarray) and value.ndim == 2
        }
        return _construct_with_weights(old._java_obj, old._java_obj.getClass(), weights, matrices)

    return rebuild_with(stage, construct, lambda old: _rebuild_by_files(old, {**weights, **(beside or {})}))


def rebuild_with(stage: Any, construct: Callable[[Any], Any], rewrite: Callable[[Any], Any]) -> Any:
    """Rebuild a stage like `rebuild`, for a class whose constructor or saved data have another form.

    Args:
        construct, rewrite: a copy of the stage -> a new one with other weights, through a Scala constructor or through
            files.
    """
    old = stage.copy()  # copy() also transfers Params that were set in Python to the Java object
    new = construct(old) if sessions.has_constructors() else rewrite(old)
    # Python objects have their own defaults (an unset outputCol is <uid>__output, with a uid that __init__ makes up).
    new = old._copyValues(new._resetUid(stage.uid))
    for param in [p for p in new._paramMap if not old.isSet(p.name)]:  # only Java has the blockSize that ALS sets
        del new._paramMap[param]
    return new


def with_params(stage: Any, values: Mapping[str, Any]) -> Any:
    """A new stage like `stage` with these values (numbers, numpy vectors) in its Params; unchanged values are not
    set.
    """
    new = {name: ml_value(value, None) for name, value in values.items()}
    return stage.copy({stage.getParam(n): v for n, v in new.items() if stage.getOrDefault(n) != v})


def made_of(old: Any, *arguments: Any) -> Any:
    """A model of the same class, uid and Params, made by the constructor with (String uid, *arguments), all Java
    objects.

    Raises:
        SparkdiffError: no constructor takes that many arguments.
    """
    return construct_model(old._java_obj, old._java_obj.getClass(), arguments)


def construct_model(
    java: Any, kind: Any, arguments: Sequence[Any], fits: Callable[[list[str]], bool] | None = None, wanted: str = ""
) -> Any:
    """A model of this Java class, made by the constructor with (String uid, *arguments), with the uid and Params of a
    Java stage.

    Args:
        fits: takes the names of a constructor's types, and returns whether the arguments have these types.
        wanted: the constructor that is sought, for the message.

    Raises:
        SparkdiffError: there is no such constructor.
    """
    uid = java.uid()
    for found in kind.getConstructors():
        types = found.getParameterTypes()
        if len(types) == len(arguments) + 1 and (fits is None or fits([t.getName() for t in types])):
            made = found.newInstance(array(class_named("java.lang.Object"), [uid, *arguments]))
            return python_model(java.copyValues(made, no_params()))
    wanted = wanted or f"of {len(arguments)} weights"
    raise SparkdiffError(f"{uid}: {kind.getName()} has no constructor {wanted}")


def python_model(java: Any) -> Any:
    """The Python object of a Java model, like `JavaParams._from_java`, but for an ensemble without Python objects for
    its trees. These would take a second for 300 trees, and the first search for Params would make them if `trees` is a
    cached property.
    """
    module, _, name = java.getClass().getName().replace("org.apache.spark", "pyspark", 1).rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if not isinstance(getattr(kind, "trees", None), functools.cached_property):
        return JavaParams._from_java(java)
    stage = kind()
    stage.__dict__["trees"] = ()
    stage._java_obj = java
    stage._create_params_from_java()
    stage._resetUid(java.uid())
    stage._transfer_params_from_java()
    del stage.__dict__["trees"]
    return stage


def _construct_with_weights(java: Any, kind: Any, weights: Mapping[str, Any], like: Mapping[str, Any]) -> Any:
    """Construct a model by the constructor with (String uid, then one parameter per weight) whose types fit the
    weights.

    Numpy vectors and matrices are passed in one call each, matrices in the storage order of those in `like`.
    """

    def fits(types: list[str]) -> bool:
        pairs = zip(weights.values(), types[1:], strict=True)
        return types[0] == "java.lang.String" and all(_fits(value, kind) for value, kind in pairs)

    # A column-major coefficient matrix can be constructed, but fails in LogisticRegressionModel.transform.
    values = [
        ints(value) if isinstance(value, list) else in_java(ml_value(value, like.get(name)))
        for name, value in weights.items()
    ]
    return construct_model(java, kind, values, fits, f"for {', '.join(weights)}")


def set_uid(stage: Any, uid: str) -> Any:
    """Give a newly made unfitted stage or transformer another uid, in Python and in Java, whose uid is written to saved
    files. Returns the stage.
    """
    kind = type(stage)
    java = f"{kind.__module__.replace('pyspark', 'org.apache.spark', 1)}.{kind.__name__}"
    stage._java_obj = stage._new_java_obj(java, uid)
    return stage._resetUid(uid)


def model_class(estimator: Any) -> Any:
    """Java class of the model that an unfitted estimator of pyspark.ml fits; transfers the estimator's Params to its
    Java object.

    Needs constructors (`has_constructors`).
    """
    estimator._transfer_params_to_java()
    kind = estimator._java_obj.getClass()
    return kind.getClassLoader().loadClass(_model_name(kind.getName()))


def model_with_weights(
    estimator: Any,
    weights: Mapping[str, Any],
    beside: Mapping[str, Any] | None = None,
    inner: Callable[[], Any] | None = None,
) -> Any:
    """The model that an unfitted estimator would return with these weights: with its uid, Params and defaults.

    If constructors can be called, the constructor is used; otherwise the model's files are written, and it is loaded.

    Args:
        weights: all weights, as in `rebuild`; a list holds whole numbers, with `inner` any numbers.
        beside: entries of the saved data that the constructor does not take, such as the numFeatures of a
            LogisticRegression.
        inner: as in `rebuild`.

    Raises:
        SparkdiffError: no constructor takes these weights.
    """
    if not sessions.has_constructors():
        return _write_and_load(estimator, {**weights, **(beside or {})})
    kind = model_class(estimator)
    if inner is not None:
        return construct_model(estimator._java_obj, kind, [inner()])
    return _construct_with_weights(estimator._java_obj, kind, weights, dict.fromkeys(weights, ROW_MAJOR))


def _write_and_load(estimator: Any, weights: Mapping[str, Any]) -> Any:
    """Write files like those of Spark's writer (metadata, and a row with the weights), and load them."""
    kind, metadata = model_metadata(estimator)
    row = {name: ml_value(value, ROW_MAJOR) for name, value in weights.items()}
    schema = StructType([StructField(name, _sql_type(value)) for name, value in row.items()])
    with folder() as where:
        write_text(f"{where}/metadata", json.dumps(metadata))
        rows = sessions.session().createDataFrame([tuple(row.values())], schema)
        rows.coalesce(1).write.parquet(f"{where}/data")
        return kind.load(model_at(where))


def model_metadata(estimator: Any) -> tuple[Any, dict[str, Any]]:
    """Python class of the model that an unfitted estimator of pyspark.ml fits, and the metadata that Spark would save
    with such a model.
    """
    kind = getattr(sys.modules[type(estimator).__module__], _model_name(type(estimator).__name__))
    own, params = kind(), (estimator._paramMap, estimator._defaultParamMap)
    given, defaults = ({p.name: _json(v) for p, v in part.items() if own.hasParam(p.name)} for part in params)
    name = f"{kind.__module__.replace('pyspark', 'org.apache.spark', 1)}.{kind.__name__}"
    return kind, saved_metadata(name, estimator.uid, given, defaults)


def saved_metadata(name: str, uid: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata of a saved stage of this Java class, with set and default Params as JSON values."""
    return {
        "class": name,
        "timestamp": 0,
        "sparkVersion": sessions.session().version,
        "uid": uid,
        "paramMap": given,
        "defaultParamMap": defaults,
    }


def _sql_type(value: Any) -> DataType:
    if isinstance(value, list):
        return ArrayType(SQL_TYPES[type(value[0])], False)
    return SQL_TYPES.get(type(value)) or type(value).__UDT__


def _json(value: Any) -> Any:
    """Value of a Param in Spark's JSON, which has text for numbers that aren't finite."""
    if isinstance(value, list):
        return [_json(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Inf" if value > 0 else "-Inf"
    return value


def _model_name(estimator: str) -> str:
    return f"{estimator.replace('Regressor', 'Regression').replace('Classifier', 'Classification')}Model"


def _rebuild_by_files(old: Any, weights: Mapping[str, Any]) -> Any:
    """Rebuild through files: save the stage, replace the weights in the row of its data, and load it."""
    with save_temporarily(old) as where:
        data = read_rows(f"{where}/data")
        if data.num_rows != 1:
            raise SparkdiffError(f"{old.uid}: its saved data have several rows; its translation must define to_spark")
        missing = [name for name in weights if name not in data.column_names]
        if missing:
            raise SparkdiffError(
                f"{old.uid}: its saved data lack {', '.join(missing)}; they contain {', '.join(data.column_names)}"
            )
        for name, value in weights.items():
            was, place = data[name][0].as_py(), data.column_names.index(name)
            new = ml_value(value, SimpleNamespace(**was) if isinstance(was, dict) else None)
            data = data.set_column(place, data.schema.field(place), _arrow([new], data.schema.field(place).type))
        write_rows(f"{where}/data", data)
        return type(old).load(model_at(where))


def ml_value(value: Any, like: Any) -> Any:
    """A numpy vector or matrix as Spark's, a matrix in the storage order of `like`; anything else unchanged."""
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
    if isinstance(value, (Vector, Matrix)):
        return java_type.rsplit(".", 1)[-1] == ("Vector" if isinstance(value, Vector) else "Matrix")
    return java_type == {bool: "boolean", int: "int", float: "double", list: "[I"}[type(value)]


def defined_params(stage: Any) -> dict[str, dict[str, Any]]:
    """Params of a stage as {"set": {name: value}, "default": {name: value}}."""
    return {
        "set": {p.name: v for p, v in stage._paramMap.items()},
        "default": {p.name: v for p, v in stage._defaultParamMap.items()},
    }


def defaults(stage: Any) -> dict[str, Any]:
    """Defaults of a stage's Params by name, as in its Java object.

    The Python object of a loaded stage has the defaults of its own class instead, among them a seed computed from the
    class name, which differs between processes. Without a Java object, only these exist.
    """
    found = {p.name: v for p, v in stage._defaultParamMap.items()}
    java = getattr(stage, "_java_obj", None)
    if not isinstance(java, JavaObject):
        return found
    context = sessions.session().sparkContext
    for param in stage.params:
        if java.hasParam(param.name) and java.hasDefault(java.getParam(param.name)):
            value = java.getDefault(java.getParam(param.name)).get()
            listed = isinstance(value, JavaArray)
            found[param.name] = [_java2py(context, v) for v in value] if listed else _java2py(context, value)
    return found


def java_params(stage: Any) -> str | None:
    """Params of a stage's Java object as text, which may be older than the Params in Python; None without a Java
    object.
    """
    java = getattr(stage, "_java_obj", None)
    if not isinstance(java, JavaObject):
        return None
    params = java.extractParamMap()
    text = str(params.toString())
    if "@" in text:  # the text of an array is its address
        text = "\n".join(f"{pair.param().name()}: {_arrays_as_lists(pair.value())}" for pair in each(params.toSeq()))
    return text


def _arrays_as_lists(value: Any) -> Any:
    return [_arrays_as_lists(v) for v in value] if isinstance(value, JavaArray) else value


def default_output(stage: Any) -> Any:
    """The outputCol of a stage that has none set: `<uid>__output`.

    The Python object of a loaded stage computes this default with a uid that it has made up. Classic Spark uses that
    one; Spark Connect does not know it and uses the stage's real uid.
    """
    java = getattr(stage, "_java_obj", None)
    in_python = java is None or isinstance(java, JavaObject)
    return stage.getOrDefault("outputCol") if in_python else f"{stage.uid}__output"


def with_uid(new: Any, old: Any) -> Any:
    """The stage `new` with the uid and the Params of `old`; for stages that exist only in Python."""
    return old._copyValues(new._resetUid(old.uid))
