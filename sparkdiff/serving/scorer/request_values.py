"""Columns that a scorer reads from requests, and the conversion of their values to the types of the schema."""

from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np

from sparkdiff.errors import InputError

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
