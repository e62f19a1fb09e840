"""Columns that a scorer reads from requests, and the conversion of a request's rows (a dict, dicts, pandas or Arrow) to
columns of numbers and of Python objects, of the schema's types.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.linalg import DenseVector, SparseVector
from pyspark.sql import Row
from torch import Tensor

from sparkdiff.errors import InputError, did_you_mean, kind_of
from sparkdiff.pipeline.column_tensors import VECTOR, from_arrow
from sparkdiff.tensors.rows import Rows, SparseRows, beyond, offsets_of

WHOLE = {kind: 2**bits - 1 for kind, bits in (("tinyint", 7), ("smallint", 15), ("int", 31), ("bigint", 63))}
"""Largest number of each integer type."""


def nan_is_null(kind: str) -> bool:
    """True if a type has no NaN, so that NaN stands for null, as `df.toPandas()` writes integers that may be null."""
    return kind in WHOLE or kind == "boolean" or kind.startswith("decimal")


@dataclass(frozen=True)
class InputColumn:
    """A column that a scorer reads from requests.

    Attributes:
        name: its spelling in the pipeline.
        path: the column, then the fields of the nested structs.
        kind: its type in Spark, as `simpleString`; empty without a schema.
        exact: if any number is NaN or larger in magnitude than this, each vector is kept dense or sparse as it is, as in
            `from_arrow`; never if this is inf.
    """

    name: str
    path: tuple[str, ...]
    kind: str = ""
    exact: float = float("inf")

    @property
    def vectors(self) -> bool:
        """True if the column holds vectors or arrays, according to its type in the schema."""
        return self.kind.startswith(("vector", "array<"))

    def bad(self, value: Any, why: str) -> InputError:
        return InputError(f"column {self.name!r} holds {short_repr(value)}, {why}")


def short_repr(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def plain(v: Any) -> Any:
    """A numpy or pandas value as a Python value. float32 and int32 stay, as their text or hash in Spark differs."""
    if v is None or isinstance(v, (str, bool, int, np.float32, np.int32)):
        return v
    if isinstance(v, float):
        return float(v)
    if isinstance(v, np.generic):
        return (v.astype(f"{v.dtype.kind}8[us]") if v.dtype.kind in "mM" else v).item()  # that of ns would be a number
    if isinstance(v, (list, tuple)) or (isinstance(v, np.ndarray) and v.ndim):
        return [plain(x) for x in v]
    return None if type(v).__name__ in ("NAType", "NaTType") else v


def as_type(v: Any, source: InputColumn, kind: str) -> Any:
    """A plain value converted to the schema's type of its column."""
    if v is None:
        return None
    if kind.startswith("array<"):
        if not isinstance(v, list):
            raise source.bad(v, f"but the schema has {kind}")
        return [as_type(x, source, kind[6:-1]) for x in v]
    if isinstance(v, (int, float, np.number, Decimal)) and not isinstance(v, bool):
        try:
            if v != v and nan_is_null(kind):
                return None
            found = _number_as_type(v, kind)
        except (OverflowError, ArithmeticError, ValueError):
            found = None
        rounded = isinstance(v, (float, np.floating)) and abs(float(v)) >= 2.0 ** (np.finfo(type(v)).nmant + 1)
        if found is not None and kind in WHOLE and rounded:
            raise source.bad(
                v,
                f"a float that several numbers of the schema's {kind} become, as toPandas() writes them beside null: convert the "
                "column to Int64 before, or pass df.toArrow()",
            )
        if found is not None:
            return found
        raise source.bad(v, f"but the schema has {kind}")
    is_other = kind in ("double", "float", *WHOLE) or kind.startswith("decimal")
    if is_other or (kind == "string") != isinstance(v, str) or (kind == "boolean" and not isinstance(v, bool)):
        raise source.bad(v, f"but the schema has {kind}")
    return v


def _number_as_type(v: Any, kind: str) -> Any:
    """A number converted to this type; None if the type has no such number."""
    if kind in ("double", "float"):
        with np.errstate(over="ignore"):
            return float(v) if kind == "double" else np.float32(float(v))
    if kind in WHOLE:
        if not -WHOLE[kind] - 1 <= v <= WHOLE[kind] or v != int(v):
            return None
        return int(v) if kind == "bigint" else np.int32(v)
    if kind.startswith("decimal"):  # its text has as many digits behind the point as the type says
        precision, scale = map(int, kind[8:-1].split(","))
        given = v if isinstance(v, (Decimal, int)) else repr(float(v))
        found = Decimal(given).quantize(Decimal(1).scaleb(-scale), context=Context(prec=min(precision, 38)))
        return found if found == Decimal(given) else None
    return None if kind in ("string", "boolean") else v


DECIMAL = "decimal(38,18)"
"""Type that Spark gives to a Python Decimal without a schema."""


def objects(column: "Column", source: InputColumn) -> list[Any]:
    """Values of a column as Python objects, null as None."""
    values = column.to_list()
    kind = source.kind
    if not kind or kind.startswith("vector"):
        found = [v if type(v) is str else plain(v) for v in values]
        if isinstance(column, ListColumn):
            return [as_type(v, source, DECIMAL) if isinstance(v, Decimal) else v for v in found]
        return found
    if kind == "string":
        return [v if type(v) is str else as_type(plain(v), source, kind) for v in values]
    return [as_type(plain(v), source, kind) for v in values]


# Numbers ----------------------------------------------------------------------------------------------------------------


def _scalars(values: Sequence[Any], source: InputColumn) -> tuple[Rows, Tensor]:
    out = torch.tensor([np.nan if v is None else _double(v, source) for v in values], dtype=torch.float64)
    null = torch.tensor([v is None for v in values], dtype=torch.bool)
    return _of_type(out, null, source)


def _double(v: Any, source: InputColumn) -> float:
    if isinstance(v, (str, bytes, bytearray)):
        raise source.bad(v, f"which is no number but {kind_of(v)}")
    try:
        return float(v)
    except (TypeError, ValueError):
        raise source.bad(v, f"which is no number but {kind_of(v)}") from None
    except OverflowError:
        raise InputError(f"column {source.name!r} holds a number too large for a double") from None


def _of_type(x: Tensor, null: Tensor, source: InputColumn) -> tuple[Rows, Tensor]:
    """Numbers (n,) and null flags, checked and rounded to the column's type; like `as_type` for objects."""
    if nan_is_null(source.kind):
        null = x.isnan()
    if top := WHOLE.get(source.kind):
        wrong = x[~null & ~((x >= -top - 1) & (x <= top) & (x == x.floor()))]
        if len(wrong):
            v = float(wrong[0])
            raise source.bad(int(v) if v.is_integer() else v, f"but the schema has {source.kind}")
    return rounded(x, source), null


def rounded(x: Rows, source: InputColumn) -> Rows:
    """Numbers rounded to the column's type."""
    return x.float().double() if isinstance(x, Tensor) and source.kind in ("float", "array<float>") else x


def _vectors(values: Sequence[Any], source: InputColumn) -> Rows:
    values = [_of_json(v, source) if isinstance(v, Mapping) else v for v in values]
    sizes = [_size(v, source) for v in values]
    if min(sizes) != max(sizes):
        raise InputError(f"column {source.name!r} holds vectors of {min(sizes)} and of {max(sizes)} entries")
    sparse = [isinstance(v, SparseVector) for v in values]
    try:
        stored = [v.values if isinstance(v, SparseVector) else np.array(v, np.float64) for v in values]
        numbers = torch.from_numpy(np.concatenate(stored).astype(np.float64))
    except (TypeError, ValueError):
        raise source.bad(values[0], "which is no vector of numbers") from None
    if not any(sparse):
        return rounded(numbers.view(len(values), sizes[0]), source)
    indices = np.concatenate([v.indices if isinstance(v, SparseVector) else np.arange(sizes[0]) for v in values])
    rows = SparseRows(
        torch.from_numpy(indices.astype(np.int64)), numbers, offsets_of(torch.tensor([*map(len, stored)])), sizes[0]
    )
    return rows if all(sparse) or beyond(rows, source.exact) else rows.to_dense()


def _of_json(v: Mapping[str, Any], source: InputColumn) -> DenseVector | SparseVector:
    """Vector from Spark's JSON form."""
    try:
        stored = [NOT_FINITE[x] if isinstance(x, str) else float(x) for x in v["values"]]
        if v["type"] not in (0, 1):
            raise ValueError("no type of a vector")
        return DenseVector(stored) if v["type"] else SparseVector(v["size"], v["indices"], stored)
    except (TypeError, ValueError, LookupError, AssertionError, OverflowError):
        raise source.bad(v, "which is no number, and no vector in the form that Spark writes in JSON") from None


NOT_FINITE = {"NaN": np.nan, "Infinity": np.inf, "-Infinity": -np.inf}
"""Nonfinite doubles, by the text that Spark writes for them in JSON."""


def _size(v: Any, source: InputColumn) -> int:
    if v is None:
        raise source.bad(None, "and a vector may not be null: fill it, or leave the row out")
    if isinstance(v, (DenseVector, SparseVector)):
        return int(v.size) if isinstance(v, SparseVector) else len(v.array)
    if not isinstance(v, (list, tuple, np.ndarray)) or (isinstance(v, np.ndarray) and v.ndim != 1):
        raise source.bad(v, "in place of a vector")
    if any(isinstance(x, (str, bytes, np.timedelta64, np.datetime64, type(None))) for x in v):  # numbers to numpy
        raise source.bad(v, "which is no vector of numbers: an entry of an array may not be null or text")
    return len(v)


# Columns ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ListColumn:
    """A column as a list of objects."""

    values: Sequence[Any]

    def to_list(self) -> Sequence[Any]:
        return self.values

    def numbers(self, source: InputColumn) -> tuple[Rows, Tensor]:
        values = self.values
        v = next((v for v in values if v is not None and not isinstance(v, (float, int))), None)
        if source.vectors or isinstance(v, (list, tuple, np.ndarray, DenseVector, SparseVector, Mapping)):
            return _vectors(values, source), torch.zeros(len(values), dtype=torch.bool)
        if v is None:
            return _scalars(values, source)
        if isinstance(v, (np.generic, Decimal)) or plain(v) is None:
            return _scalars([float(x) if isinstance(x, Decimal) else plain(x) for x in values], source)
        raise source.bad(v, f"which is no number but {kind_of(v)}")


@dataclass(frozen=True)
class NumpyColumn:
    """A column of plain numbers, whose only missing value is NaN."""

    array: "np.ndarray[Any, Any]"

    def to_list(self) -> list[Any]:
        return list(self.array if self.array.dtype in (np.float32, np.int32) else self.array.tolist())

    def numbers(self, source: InputColumn) -> tuple[Rows, Tensor]:
        if source.vectors:
            return ListColumn(self.to_list()).numbers(source)
        out = torch.from_numpy(self.array.astype(np.float64))
        return _of_type(out, torch.zeros(len(out), dtype=torch.bool), source)


@dataclass(frozen=True)
class ArrowColumn:
    """A column from Arrow."""

    array: pa.Array

    def to_list(self) -> list[Any]:
        values: list[Any] = self.array.to_pylist()
        narrow = _NARROW.get(_element(self.array.type))
        return [_narrowed(v, narrow) for v in values] if narrow else values

    def numbers(self, source: InputColumn) -> tuple[Rows, Tensor]:
        kind = self.array.type
        if is_list(kind) or pa.types.is_struct(kind):
            return self._vectors(source), torch.zeros(len(self.array), dtype=torch.bool)
        if source.vectors or not (_is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            wanted = "vectors" if source.vectors else "numbers"
            raise InputError(f"column {source.name!r} is {kind}, and the pipeline reads {wanted} from it")
        null = torch.from_numpy(np.array(self.array.is_null()))
        found = from_arrow(self.array)
        assert isinstance(found, Tensor)
        return _of_type(found, null, source)

    def _vectors(self, source: InputColumn) -> Rows:
        array, kind = self.array, self.array.type
        if array.null_count:
            raise source.bad(None, "and a vector may not be null: fill it, or leave the row out")
        if is_list(kind):
            if not _is_number(kind.value_type):
                raise InputError(f"column {source.name!r} is {kind}, and the pipeline reads numbers from it")
            array = array.cast(pa.list_(kind.value_type))
            if array.flatten().null_count:
                raise InputError(f"column {source.name!r} holds an array with null, and an entry may not be null")
        elif [kind.field(i).name for i in range(kind.num_fields)] != [field.name for field in VECTOR]:
            raise InputError(f"column {source.name!r} is {kind}, and the pipeline reads numbers from it")
        return rounded(from_arrow(array, exact=source.exact), source)


_NARROW: dict[Any, Callable[[Any], Any]] = {
    pa.float32(): np.float32,
    pa.int32(): np.int32,
    pa.int16(): np.int32,
    pa.int8(): np.int32,
}
"""Numpy types of the values of Arrow types, where Spark's text or hash differs from that of Python's own numbers."""
Column = ListColumn | NumpyColumn | ArrowColumn
"""A column of a request: `to_list` returns its values as Python objects, and `numbers` a tensor or sparse rows, with
flags (n,) bool of its null rows, which are NaN in the tensor.
"""


def _element(kind: pa.DataType) -> pa.DataType:
    return _element(kind.value_type) if is_list(kind) else kind


def is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _narrowed(v: Any, narrow: Callable[[Any], Any]) -> Any:
    return [_narrowed(x, narrow) for x in v] if isinstance(v, list) else None if v is None else narrow(v)


class RequestTable:
    """The rows of a request as a table, from which columns are read by name."""

    def __init__(self, names: Sequence[str], column: Callable[[str], Column], rows: int):
        self.names, self.column, self.rows = list(names), column, rows

    def read(self, source: InputColumn, casefold: Callable[[str], str]) -> Column:
        column = self.column(spelling_of(source.path[0], self.names, casefold))
        for field in source.path[1:]:
            if isinstance(column, ArrowColumn) and pa.types.is_struct(column.array.type):
                names = [inner.name for inner in column.array.type]
                place = names.index(spelling_of(field, names, casefold))
                column = _arrow(column.array.flatten()[place])
                continue
            column = ListColumn([None if v is None else field_of(v, field, source, casefold) for v in column.to_list()])
        return column


def spelling_of(name: str, names: Sequence[str], casefold: Callable[[str], str]) -> str:
    """The spelling of column `name` among `names`, equal up to case unless Spark is case-sensitive.

    Raises:
        InputError: no name matches, or several do.
    """
    found = [n for n in names if isinstance(n, str) and casefold(n) == casefold(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"the rows have {len(found)} columns that match {name!r}, {found}: leave out all but one")
    hint = did_you_mean(name, [n for n in names if isinstance(n, str)])
    raise InputError(
        f"the rows have no column {name!r}, which the pipeline reads; for null, give it with the value None. {hint}"
    )


def is_twofold(names: Collection[Any], casefold: Callable[[str], str]) -> bool:
    """True if two of these names mean the same column."""
    try:
        return len(set(map(casefold, names))) < len(names)
    except TypeError:  # keys that are no strings name no column
        return is_twofold([name for name in names if isinstance(name, str)], casefold)


def fields_of(value: Any) -> Any:
    """A pyspark Row as a dict; any other value unchanged."""
    return dict(zip(getattr(value, "__fields__", ()), value, strict=False)) if isinstance(value, Row) else value


def field_of(value: Any, field: str, source: InputColumn, casefold: Callable[[str], str]) -> Any:
    fields = fields_of(value)
    if not isinstance(fields, Mapping):
        raise source.bad(value, f"which has no field {field!r}")
    return fields[spelling_of(field, list(fields), casefold)]


def value_of(row: Mapping[str, Any], source: InputColumn, casefold: Callable[[str], str]) -> Any:
    """Value of a column in a dict."""
    name = source.path[0]
    value: Any = row[name if name in row else spelling_of(name, list(row), casefold)]
    for name in source.path[1:]:
        if value is None:
            return None
        value = field_of(value, name, source, casefold)
    return value


def table_of_dicts(rows: Sequence[Mapping[str, Any]], casefold: Callable[[str], str]) -> "DictRows":
    dicts = [fields_of(row) for row in rows]
    for row in dicts:
        if not isinstance(row, Mapping):
            raise InputError(f"a list of rows must hold dicts, got {kind_of(row)}")
    return DictRows(dicts, casefold)


class DictRows(RequestTable):
    """Rows given as dicts."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], casefold: Callable[[str], str]):
        super().__init__((), lambda _name: ListColumn(()), len(rows))
        self.dicts, self.casefold = rows, casefold

    @cached_property
    def twofold(self) -> list[tuple[Any, ...]]:
        """Distinct tuples of the rows' keys in which two keys name the same column."""
        return [names for names in set(map(tuple, self.dicts)) if is_twofold(names, self.casefold)]

    def read(self, source: InputColumn, casefold: Callable[[str], str]) -> Column:
        name = source.path[0]
        for names in self.twofold:
            spelling_of(name, names, casefold)
        if len(source.path) == 1:
            try:
                return ListColumn([row[name] for row in self.dicts])
            except KeyError:
                pass
        return ListColumn([value_of(row, source, casefold) for row in self.dicts])


def table_of_pandas(frame: Any) -> RequestTable:
    def column(name: str) -> Column:
        series = frame[name]
        # extension types of numbers with a null mask
        masked = getattr(getattr(series.dtype, "numpy_dtype", None), "kind", "") in ("f", "i", "u")
        if hasattr(series.dtype, "pyarrow_dtype") or masked:
            return _arrow(series.array.__arrow_array__())
        if type(series.dtype).__name__ == "SparseDtype":
            series = series.sparse.to_dense()
        if isinstance(series.dtype, np.dtype) and series.dtype.kind in "fiub":
            return NumpyColumn(series.to_numpy())
        return ListColumn([None if v is None or _is_missing(v) else v for v in series.astype(object).tolist()])

    return RequestTable([c for c in frame.columns if isinstance(c, str)], column, len(frame))


def _is_missing(v: Any) -> bool:
    """True for a missing value of a pandas column that is not of plain numbers, where NaN means missing, too."""
    return (isinstance(v, float) and v != v) or type(v).__name__ in ("NAType", "NaTType")


def table_of_arrow(table: "pa.Table | pa.RecordBatch") -> RequestTable:
    def column(name: str) -> Column:
        return _arrow(table.column(table.schema.get_field_index(name)))

    return RequestTable(table.schema.names, column, table.num_rows)


def _arrow(found: "pa.Array | pa.ChunkedArray") -> ArrowColumn:
    found = found.combine_chunks() if isinstance(found, pa.ChunkedArray) else found
    return ArrowColumn(found.dictionary_decode() if pa.types.is_dictionary(found.type) else found)


def table_of(rows: Any, casefold: Callable[[str], str]) -> RequestTable:
    """Table of rows of any accepted kind.

    Raises:
        InputError: `rows` is of another kind.
    """
    if isinstance(rows, (pa.Table, pa.RecordBatch)):
        return table_of_arrow(rows)
    if hasattr(rows, "iloc") and hasattr(rows, "columns"):
        return table_of_pandas(rows)
    if isinstance(rows, Sequence) and not isinstance(rows, (str, bytes)):
        return table_of_dicts(rows, casefold)
    way = ": df.toPandas() or df.toArrow() returns rows, and model.transform(df) scores them in Spark"
    raise InputError(
        f"predict() takes a dict, a list of dicts, a pandas DataFrame or an Arrow table, got {kind_of(rows)}"
        f"{way if hasattr(rows, 'isStreaming') else ''}"
    )
