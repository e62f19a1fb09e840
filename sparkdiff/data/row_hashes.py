"""Hashes of rows, by which rows are split and identified, and numbers that distinguish equal rows."""

from pyspark.sql import Column, DataFrame, Window, functions as F
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
from sparkdiff.pipeline.column_names import col_by_name, read_by_name

SALTS = (1, 2)
VARIANT = "variant"  # Spark 3.5 has no class for it
# The number of a row among equal rows, 2, 3, ...; null for the first of them, and for rows that equal no other.
COPY = "__sparkdiff_copy"
HASH = "__sparkdiff_hash"
FEW_ROWS, FEW_PARTITIONS = 20_000, 2
"""If some rows are equal, the rows pass a shuffle, which makes 200 partitions by default. An estimator reads the rows
in each of its steps, with a task for each partition; so up to FEW_ROWS rows are put into FEW_PARTITIONS partitions.
"""


def row_hash(df: DataFrame, *salt: object) -> Column:
    """Hash of all columns, independent of the place and order of the row.

    Columns that share a name are left out, because they cannot be read.
    """
    alone = read_by_name(df)
    columns = [
        col_by_name(f.name) if is_hashed(f.dataType) else F.to_json(F.struct(col_by_name(f.name)))
        for f in sorted(df.schema.fields, key=lambda f: f.name)
        if f.name in alone
    ]
    return F.xxhash64(*columns, *(F.lit(s) for s in salt))


def is_hashed(kind: DataType) -> bool:
    """True if Spark can hash values of this type (not if they contain a map or a variant)."""
    if isinstance(kind, StructType):
        return all(is_hashed(f.dataType) for f in kind.fields)
    if isinstance(kind, ArrayType):
        return is_hashed(kind.elementType)
    if isinstance(kind, UserDefinedType):
        return is_hashed(kind.sqlType())
    return not isinstance(kind, MapType) and kind.typeName() != "variant"


def with_copies(df: DataFrame) -> DataFrame:
    """The rows with the column COPY, if some of them are equal in all columns that can be read; else the DataFrame
    itself. Runs a job.

    Equal rows may be numbered in any order, because they cannot be distinguished. The numbers do not depend on
    partitions, and adding rows changes none of them. Without equal rows, all rows stay in their partitions.

    Raises:
        InputError: Spark failed on the rows; the message has the cause.
    """
    content = coin(df)
    with jvm.as_input_error("Spark failed while reading the data"):
        found = df.groupBy(content).count().agg(F.max("count"), F.sum("count")).first()
    most, rows = found or (0, 0)
    if (most or 0) < 2:
        return df
    # Values with equal hashes, such as 0.0 and -0.0, are ordered by other hashes.
    number = F.row_number().over(Window.partitionBy(HASH).orderBy(*row_hashes(df)))
    dealt = df.withColumn(HASH, content)
    if rows <= FEW_ROWS:
        dealt = dealt.repartition(FEW_PARTITIONS, HASH)
    return dealt.withColumn(COPY, F.when(number > 1, number)).drop(HASH)


def coin(df: DataFrame, *salt: object) -> Column:
    """A hash that assigns each row to a split, a block or a sample. It depends on the content of the row, on its number
    among equal rows (`with_copies`), and on the salt.

    For a row that equals no other row and has no null, it equals `row_hash`.
    """
    rows = df.drop(COPY)
    # A null adds nothing to a hash. So the names of the null columns are added, to distinguish rows that are null in
    # different columns.
    nulls = [F.when(col_by_name(name).isNull(), name) for name in sorted(read_by_name(rows))]
    return row_hash(rows, *salt, *nulls, *(col_by_name(name) for name in df.columns if name == COPY))


def row_hashes(df: DataFrame) -> list[Column]:
    """Two independent hashes of a row. Columns that share a name are left out, because they cannot be read."""
    alone = read_by_name(df)
    parts = [p for f in df.schema.fields if f.name in alone for p in hash_arguments(col_by_name(f.name), f.dataType)]
    # A salt after the values would not help: two rows with equal hashes would have equal hashes with it, too.
    return [F.xxhash64(F.lit(salt), *parts) for salt in SALTS]


def hash_arguments(c: Column, kind: DataType, *, signs: bool = False) -> list[Column]:
    """The arguments of `xxhash64` for a column, such that different values of its type have different arguments.

    `xxhash64` itself skips nulls, concatenates arrays, treats strings as equal if their collation does, and treats
    -0.0 as 0.0. (Inside arrays and vectors -0.0 still equals 0.0, as in Spark's own operators.)

    Args:
        signs: whether to distinguish -0.0 from 0.0 inside arrays and vectors too, which takes time for each entry.
    """
    null = c.isNull()
    if isinstance(kind, NullType):
        return [null]
    if kind.typeName() == VARIANT:
        return [null, F.to_json(F.struct(c.alias("value")))]
    if isinstance(kind, UserDefinedType):
        return hash_arguments(F.unwrap_udt(c), kind.sqlType(), signs=signs)
    if isinstance(kind, StringType):
        return [null, c.cast("binary")]
    if isinstance(kind, (DoubleType, FloatType)):
        return [null, c, F.when(c == 0, c.cast("string"))]
    if isinstance(kind, StructType):
        return [null, *(p for f in kind.fields for p in hash_arguments(c.getField(f.name), f.dataType, signs=signs))]
    if isinstance(kind, MapType):
        entry = StructType().add("key", kind.keyType, False).add("value", kind.valueType, kind.valueContainsNull)
        return hash_arguments(F.map_entries(c), ArrayType(entry, containsNull=False), signs=signs)
    if isinstance(kind, ArrayType):
        return [null, F.size(c), *_elements(c, kind, signs)]
    return [null, c]


def _elements(c: Column, kind: ArrayType, signs: bool) -> list[Column]:
    """Hash input for the elements of an array whose size is hashed already."""
    nested = isinstance(kind.elementType, (ArrayType, StructType, MapType, UserDefinedType, NullType))
    if nested or kind.elementType.typeName() == VARIANT:
        return [F.transform(c, lambda x: F.xxhash64(*hash_arguments(x, kind.elementType, signs=signs)))]
    values = c.cast("array<binary>") if isinstance(kind.elementType, StringType) else c
    signs = signs and isinstance(kind.elementType, (DoubleType, FloatType))
    zeros = [F.transform(c, lambda x: F.when(x == 0, x.cast("string")))] if signs else []
    if not kind.containsNull:
        return [values, *zeros]
    some = F.exists(c, lambda x: x.isNull())
    return [some, F.when(some, F.transform(c, lambda x: x.isNull())), values, *zeros]
