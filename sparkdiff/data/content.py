"""The content of a DataFrame as a few numbers that do not depend on the order and the partitions of its rows."""

from typing import Any

from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import (
    ArrayType,
    DataType,
    DoubleType,
    FloatType,
    MapType,
    NullType,
    StringType,
    StructType,
    UserDefinedType,
)

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.pipeline.names import quoted, read_by_name

SALTS = (1, 2)
VARIANT = "variant"  # Spark 3.5 has no class of it


def content(df: DataFrame) -> list[Any]:
    """Schema, number of rows, and two independent sums of the rows' hashes. Runs one job, which reads all rows.

    Raises:
        InputError: Spark failed on the rows; says why.
    """
    sums = [F.sum(h.cast("decimal(20,0)")) for h in row_hashes(df)]  # a sum of longs overflows
    try:
        row = df.agg(F.count(F.lit(1)), *sums).first()
    except jvm.SparkError as e:
        raise InputError(f"Spark failed while reading the data: {jvm.cause(e)}") from e
    return [df.schema.json(), [str(v) for v in row or ()]]


def row_hashes(df: DataFrame) -> list[Column]:
    """Two independent hashes of a row. Columns that share a name are left out, because they cannot be read."""
    alone = read_by_name(df)
    parts = [p for f in df.schema.fields if f.name in alone for p in hashed(quoted(f.name), f.dataType)]
    # A salt after the values would add nothing: two rows of one hash would have one hash with it, too.
    return [F.xxhash64(F.lit(salt), *parts) for salt in SALTS]


def hashed(c: Column, kind: DataType) -> list[Column]:
    """The input of `xxhash64` for a column, so that different values of its type have different inputs.

    `xxhash64` itself skips nulls, concatenates arrays, treats strings as equal if their collation does, and treats
    -0.0 as 0.0. (Inside arrays and vectors -0.0 still equals 0.0, as in Spark's own operators.)
    """
    null = c.isNull()
    if isinstance(kind, NullType):
        return [null]
    if kind.typeName() == VARIANT:
        return [null, F.to_json(F.struct(c.alias("value")))]
    if isinstance(kind, UserDefinedType):
        return hashed(F.unwrap_udt(c), kind.sqlType())
    if isinstance(kind, StringType):
        return [null, c.cast("binary")]
    if isinstance(kind, (DoubleType, FloatType)):
        return [null, c, F.when(c == 0, c.cast("string"))]
    if isinstance(kind, StructType):
        return [null, *(part for f in kind.fields for part in hashed(c.getField(f.name), f.dataType))]
    if isinstance(kind, MapType):
        entry = StructType().add("key", kind.keyType, False).add("value", kind.valueType, kind.valueContainsNull)
        return hashed(F.map_entries(c), ArrayType(entry, containsNull=False))
    if isinstance(kind, ArrayType):
        return [null, F.size(c), *_elements(c, kind)]
    return [null, c]


def _elements(c: Column, kind: ArrayType) -> list[Column]:
    """The elements of an array whose size is known."""
    nested = isinstance(kind.elementType, (ArrayType, StructType, MapType, UserDefinedType, NullType))
    if nested or kind.elementType.typeName() == VARIANT:
        return [F.transform(c, lambda x: F.xxhash64(*hashed(x, kind.elementType)))]
    values = c.cast("array<binary>") if isinstance(kind.elementType, StringType) else c
    if not kind.containsNull:
        return [values]
    some = F.exists(c, lambda x: x.isNull())
    return [some, F.when(some, F.transform(c, lambda x: x.isNull())), values]
