"""ONNX graphs built by arithmetic: operations on a `Value` add nodes. A value has n rows and a fixed number of columns."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

OPSET, ML_OPSET, IR_VERSION = 21, 5, 10
"""Versions of ONNX's operators, of ai.onnx.ml's operators, and of the file format; onnxruntime supports them from 1.20
on.
"""
Array = np.ndarray[Any, Any]
Number = float | int | bool | Array | torch.Tensor


class NotExportableError(Exception):
    """A stage cannot be exported to ONNX; the message is the reason. Never leaves the package."""


def _binary_operator(operator: str, kind: str = "") -> Callable[["Value", "Value | Number"], "Value"]:
    """Method that applies a binary operator to a value and another value or a constant.

    The result has type `kind`, or the type of the operands.
    """
    return lambda self, other: self.graph.binary_node(operator, self, other, kind)


def _reversed_operator(operator: str) -> Callable[["Value", Number], "Value"]:
    """Method that applies a binary operator to a constant and a value, in this order."""
    return lambda self, other: self.graph.binary_node(operator, other, self)


def _elementwise_operator(operator: str, kind: str = "") -> Callable[["Value"], "Value"]:
    """Method that applies an elementwise operator to a value; the result has type `kind`, or the value's type."""
    return lambda self: self.graph.node(operator, [self], self.width, kind or self.kind)


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """A value of the graph, (n, width); arithmetic adds nodes to the graph.

    A column of numbers has width 1. Constants are broadcast along the rows.

    Attributes:
        kind: numpy's name of the type: "float64", "float32", "int64" or "bool".
        scalar: True for a column of numbers, not of vectors.
        stored: flags of the entries that Spark's sparse vectors store, (n, width) bool; None if all are stored, or if
            no later stage depends on which are.
    """

    graph: "GraphWriter"
    name: str
    width: int
    kind: str = "float64"
    scalar: bool = False
    stored: "Value | None" = None

    def number(self) -> "Value":
        """The same value as a column of numbers, not of vectors of one entry."""
        return dataclasses.replace(self, scalar=True)

    def vector(self) -> "Value":
        return dataclasses.replace(self, scalar=False)

    __add__ = _binary_operator("Add")
    __sub__ = _binary_operator("Sub")
    __rsub__ = _reversed_operator("Sub")
    __mul__ = _binary_operator("Mul")
    __truediv__ = _binary_operator("Div")
    __rtruediv__ = _reversed_operator("Div")
    __gt__ = _binary_operator("Greater", "bool")
    __ge__ = _binary_operator("GreaterOrEqual", "bool")
    __lt__ = _binary_operator("Less", "bool")
    __le__ = _binary_operator("LessOrEqual", "bool")
    equals = _binary_operator("Equal", "bool")
    __and__ = _binary_operator("And", "bool")
    __or__ = _binary_operator("Or", "bool")
    __invert__ = _elementwise_operator("Not", "bool")
    __neg__ = _elementwise_operator("Neg")
    abs = _elementwise_operator("Abs")
    exp = _elementwise_operator("Exp")
    log = _elementwise_operator("Log")
    sqrt = _elementwise_operator("Sqrt")
    floor = _elementwise_operator("Floor")
    isnan = _elementwise_operator("IsNaN", "bool")
    isinf = _elementwise_operator("IsInf", "bool")

    def isfinite(self) -> "Value":
        return ~(self.isnan() | self.isinf())

    def is_negative_zero(self) -> "Value":
        return self.equals(0.0) & (1.0 / self < 0.0)

    def stored_as(self, storage: str) -> "Value":
        """The same value, stored as Spark stores vectors of this `storage`: sparkdiff.tensors.rows.stored_as."""
        there = ~self.equals(0.0)
        many = (there.double().sum() + 1.0) * 1.5 >= float(self.width)
        return dataclasses.replace(self, stored=there | many if storage == "compressed" else there)

    def as_in(self, other: "Value") -> "Value":
        """The same value with the same entries stored as in `other`, and 0 elsewhere."""
        there = self if other.stored is None else self.graph.where(other.stored, self, 0.0)
        return dataclasses.replace(there, stored=other.stored)

    def without_zeros(self, of: "Value") -> "Value":
        """The same value, computed from `of`, stored as by sparkdiff.tensors.rows.without_zeros."""
        return self if of.stored is None else dataclasses.replace(self, stored=~self.equals(0.0) | of.stored.all())

    def to(self, kind: str) -> "Value":
        """The same value in another type."""
        if kind == self.kind:
            return self
        return self.graph.node("Cast", [self], self.width, kind, to=self.graph.type_of(kind))

    def double(self) -> "Value":
        return self.to("float64")

    def power(self, exponent: float) -> "Value":
        return self.graph.binary_node("Pow", self, exponent)

    def sum(self) -> "Value":
        """Sum of each row, (n, 1)."""
        return self.reduce_rows("ReduceSum")

    def max(self) -> "Value":
        """Maximum of each row, (n, 1)."""
        return self.reduce_rows("ReduceMax")

    def any(self) -> "Value":
        """True for rows with any True entry, (n, 1)."""
        return self.double().max() > 0.5

    def all(self) -> "Value":
        return ~(~self).any()

    def reduce_rows(self, operator: str) -> "Value":
        return self.graph.node(operator, [self, self.graph.whole([1])], 1, self.kind, keepdims=1)

    def running_sum(self) -> "Value":
        """Cumulative sums along each row."""
        return self.graph.node("CumSum", [self, self.graph.constant(np.int64(1))], self.width, self.kind)

    def first_largest(self) -> "Value":
        """Index of the first largest entry of each row, (n, 1); requires that none is NaN."""
        return self.graph.node("ArgMax", [self], 1, "int64", axis=1, keepdims=1).double()

    def matmul(self, matrix: Number) -> "Value":
        """Product with a constant matrix: (n, d) @ (d, k) -> (n, k)."""
        held = as_array(matrix)
        return self.graph.node("MatMul", [self, self.graph.constant(held)], held.shape[1], self.kind)

    def columns(self, indices: Number) -> "Value":
        """Columns with these indices (k,)."""
        held = as_array(indices).astype(np.int64).reshape(-1)
        out = self.graph.node("Gather", [self, self.graph.constant(held)], len(held), self.kind, axis=1)
        return out if self.stored is None else dataclasses.replace(out, stored=self.stored.columns(held))

    def column(self, index: int) -> "Value":
        return self.columns(np.array([index]))

    def gather_from(self, table: Number, width: int) -> "Value":
        """Rows of a constant table (m, width) at the indices that this value (n, 1) holds; (n, width)."""
        held, at = self.graph.constant(as_array(table).reshape(-1, width)), self.to("int64")
        flat = self.graph.node("Squeeze", [at, self.graph.whole([1])], 0, "int64")
        return self.graph.node("Gather", [held, flat], width, str(as_array(table).dtype), axis=0)

    def lookup(self, keys: Number, values: Number, default: float) -> "Value":
        """Each entry looked up in a constant map from `keys` to `values`; `default` for entries that are no key."""
        if not len(as_array(keys)):
            return self.graph.where(self.isnan(), default, default)
        tensors = {"keys_tensor": keys, "values_tensor": values, "default_tensor": np.array([default])}
        held = {name: self.graph.tensor("", as_array(given).astype(np.float64)) for name, given in tensors.items()}
        return self.graph.node("LabelEncoder", [self], self.width, domain="ai.onnx.ml", **held)


class GraphWriter:
    """The nodes and constants of a graph.

    Attributes:
        refused: flags of the rows that a stage refuses in Spark, with the reasons.
    """

    def __init__(self) -> None:
        import onnx

        self.onnx = onnx
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.refused: list[tuple[Value, str]] = []
        self._made = 0

    def _name(self) -> str:
        self._made += 1
        return f"sparkdiff/{self._made}"  # no column has such a name

    def type_of(self, kind: str) -> int:
        return int(self.onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)))

    def tensor(self, name: str, value: Array) -> Any:
        return self.onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)

    def constant(self, value: Any) -> Value:
        """A constant of any shape; doubles stay doubles."""
        held = np.asarray(value)
        name = self._name()
        self.constants.append(self.onnx.numpy_helper.from_array(held.copy(), name))
        return Value(self, name, held.shape[-1] if held.ndim else 1, str(held.dtype))

    def whole(self, numbers: Sequence[int]) -> Value:
        return self.constant(np.array(numbers, np.int64))

    def node(
        self,
        operator: str,
        inputs: Sequence[Value],
        width: int,
        kind: str = "float64",
        *,
        domain: str = "",
        **settings: Any,
    ) -> Value:
        """Add an operator to the graph; return its output, which has this width."""
        name = self._name()
        names = [value.name for value in inputs]
        self.nodes.append(self.onnx.helper.make_node(operator, names, [name], domain=domain, **settings))
        return Value(self, name, width, kind)

    def binary_node(self, operator: str, a: "Value | Number", b: "Value | Number", kind: str = "") -> Value:
        """Add an operator with two operands, of which one may be a constant, to the graph; return its output."""
        like = a if isinstance(a, Value) else b
        assert isinstance(like, Value)
        x, y = (self.as_value(v, like.kind) for v in (a, b))
        return self.node(operator, [x, y], max(x.width, y.width), kind or like.kind)

    def as_value(self, value: "Value | Number", kind: str = "float64") -> Value:
        return value if isinstance(value, Value) else self.constant(as_array(value).astype(kind))

    def where(self, condition: Value | Array, yes: "Value | Number", no: "Value | Number") -> Value:
        kind = next((v.kind for v in (yes, no) if isinstance(v, Value)), "float64")
        parts = [self.as_value(condition, "bool"), self.as_value(yes, kind), self.as_value(no, kind)]
        return self.node("Where", parts, max(p.width for p in parts), kind)

    def beside(self, parts: Sequence[Value]) -> Value:
        """Concatenation of the columns of all parts."""
        if len(parts) == 1:
            return parts[0].vector()
        return self.node("Concat", parts, sum(p.width for p in parts), parts[0].kind, axis=1)

    def refuse(self, rows: Value, why: str) -> None:
        """Record the flags `rows` (n, w) bool: Spark would fail on each row with any True entry."""
        self.refused.append((rows.any(), why))


def as_array(value: Any) -> Array:
    """A parameter, a constant or a number as a numpy array."""
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
