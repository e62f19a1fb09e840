"""Java objects: classes by name, arrays, and the conversion of Python values to those of the JVM."""

import functools
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from pyspark.ml.common import _py2java
from pyspark.ml.linalg import Vectors
from pyspark.sql.types import StructType

from sparkdiff.jvm.sessions import session

JACKSON = "com.fasterxml.jackson"


def packages() -> Any:
    """Packages of the JVM."""
    context: Any = session().sparkContext
    return context._jvm


def in_java(value: Any) -> Any:
    """The JVM's object for a vector, matrix or plain value of pyspark."""
    return _py2java(session().sparkContext, value)


def no_params() -> Any:
    """An empty ParamMap, for `copyValues`."""
    return packages().org.apache.spark.ml.param.ParamMap.empty()


def class_named(name: str) -> Any:
    """A Java class by name, found with Spark's own loader."""
    return _java_class(packages(), name)


@functools.cache
def _java_class(jvm: Any, name: str) -> Any:
    """The class of this name, cached, because each call of Java takes as long as building a tree."""
    java = jvm.java.lang
    return java.Class.forName(name, True, java.Thread.currentThread().getContextClassLoader())


def scala_object(name: str) -> Any:
    """A Scala object by name."""
    return _singleton(packages(), name)


@functools.cache
def _singleton(jvm: Any, name: str) -> Any:
    return _java_class(jvm, f"{name}$").getField("MODULE$").get(None)


def schema_after(stage: Any, schema: StructType, casefold: Callable[[str], str]) -> StructType:
    """The schema of the rows after a Spark stage, from `transformSchema`, which refuses the same column types as the
    stage's transform.

    Raises:
        SparkError: the stage refuses a column.
    """
    before = session()._jsparkSession.parseDataType(schema.json())
    fields = StructType.fromJson(json.loads(stage._to_java().transformSchema(before).json())).fields
    # An overwritten column is listed twice, and transform replaces it.
    return StructType([*{casefold(f.name): f for f in fields}.values()])


def each(collection: Any) -> Iterator[Any]:
    """Yield the elements of a Scala collection."""
    iterator = collection.iterator()
    while iterator.hasNext():
        yield iterator.next()


def array(kind: Any, items: Sequence[Any]) -> Any:
    """A Java array of a class."""
    arrays = packages().java.lang.reflect.Array
    out, put = arrays.newInstance(kind, len(items)), arrays.set
    for i, item in enumerate(items):  # `out[i] = item` would get the length each time
        put(out, i, item)
    return out


def doubles(values: Any) -> Any:
    """A Java double[] of these values, made without a call of py4j for each."""
    return in_java(Vectors.dense(np.asarray(values, np.float64))).toArray()


def longs(values: Any) -> Any:
    """A Java long[] of these values, made without a call of py4j for each."""
    return _whole(values, "[J")


def ints(values: Any) -> Any:
    """A Java int[] of these values, made without a call of py4j for each."""
    return _whole(values, "[I")


def _whole(values: Any, kind: str) -> Any:
    return mapper().readValue(json.dumps(np.asarray(values, np.int64).tolist()), class_named(kind))


def mapper() -> Any:
    """Spark's own Jackson mapper, set to read fields: SplitData.getSplit asserts on leaves."""
    return _set_up(packages())


@functools.cache
def _set_up(_jvm: Any) -> Any:
    mapper = class_named(f"{JACKSON}.databind.ObjectMapper").getConstructor(array(class_named("java.lang.Class"), []))
    mapper = mapper.newInstance(array(class_named("java.lang.Object"), []))
    mapper.registerModule(scala_object(f"{JACKSON}.module.scala.DefaultScalaModule"))

    def constant(owner: str, name: str) -> Any:
        return class_named(f"{JACKSON}.annotation.{owner}").getField(name).get(None)

    for accessor, visibility in (("GETTER", "NONE"), ("IS_GETTER", "NONE"), ("FIELD", "ANY")):
        mapper.setVisibility(constant("PropertyAccessor", accessor), constant("JsonAutoDetect$Visibility", visibility))
    return mapper
