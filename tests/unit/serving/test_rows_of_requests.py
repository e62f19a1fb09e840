"""Rows of a request as columns, text as Java has it, and columns as Arrow: without Spark."""

import dataclasses
import random
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from sparkdiff.errors import InputError
from sparkdiff.serving.scorer import java_text as java
from sparkdiff.serving.scorer.java_text import NotServedError
from sparkdiff.serving.scorer.requests import (
    WHOLE,
    ArrowColumn,
    Column,
    InputColumn,
    ListColumn,
    objects,
    table_of,
    table_of_arrow,
    table_of_pandas,
)
from sparkdiff.serving.scorer.schedule import InputPlaces, Schedule
from sparkdiff.serving.scorer.scorer import concatenation, result_arrow
from sparkdiff.serving.scorer.text.counts import HashingTF
from sparkdiff.tensors.rows import dense


def of_kind(kind: str) -> InputColumn:
    return InputColumn("x", ("x",), kind)


@pytest.mark.parametrize("value", [None, 1.0, "a", np.array(3.0), ["1", "2"], [1.0, b"2"]])
def test_a_column_of_vectors_takes_vectors_only(value: Any) -> None:
    with pytest.raises(InputError, match="column 'x' holds"):
        ListColumn([value]).numbers(of_kind("vector"))


@pytest.mark.parametrize(
    "column", [ListColumn([np.float64(1), "2"]), ListColumn([None, pd.NA, b"2"]), ListColumn([10**400])]
)
def test_what_is_no_number_is_refused(column: Column) -> None:
    with pytest.raises(InputError, match="column 'x' holds"):
        column.numbers(of_kind(""))


def test_a_type_of_the_schema_is_kept() -> None:
    assert list(map(str, objects(ListColumn([1, 1.5, Decimal("1.50")]), of_kind("decimal(10,2)")))) == [
        "1.00",
        "1.50",
        "1.50",
    ]
    for kind, value in [("boolean", 1), ("decimal(10,2)", 1.005), ("decimal(3,2)", 100), ("double", 10**400)]:
        with pytest.raises(InputError, match="but the schema has"):
            objects(ListColumn([value]), of_kind(kind))


@pytest.mark.parametrize("dtype", ["Float32", "float[pyarrow]"])
def test_single_precision_is_kept(dtype: str) -> None:
    frame = pd.DataFrame({"x": pd.Series([0.1, None], dtype=dtype)})
    found = objects(table_of_pandas(frame).column("x"), of_kind(""))
    assert type(found[0]) is np.float32
    assert found[1] is None
    fixed = ArrowColumn(pa.array([[0.1, 0.2]], pa.list_(pa.float32(), 2)))
    assert type(objects(fixed, of_kind(""))[0][0]) is np.float32


def test_lists_and_large_numbers_of_arrow() -> None:
    for kind in (pa.list_(pa.int64()), pa.large_list(pa.int64()), pa.list_(pa.int64(), 2)):
        found, _ = ArrowColumn(pa.array([[1, 2**53 + 1]], kind)).numbers(of_kind(""))
        assert found.tolist() == [[1.0, 2.0**53]]  # type: ignore[union-attr]
        with pytest.raises(InputError, match="an array with null"):
            ArrowColumn(pa.array([[1, None]], kind)).numbers(of_kind(""))
    found, null = ArrowColumn(pa.array([2**53 + 1, None])).numbers(of_kind("bigint"))
    assert found[0] == 2.0**53  # type: ignore[index]
    assert null.tolist() == [False, True]
    with pytest.raises(InputError, match="reads numbers"):
        ArrowColumn(pa.array([["1"]])).numbers(of_kind(""))


def test_decimals_of_arrow_become_the_nearest_doubles() -> None:
    values = [Decimal(i).scaleb(-7) for i in random.Random(0).choices(range(10**17), k=999)]
    column = pa.array([*values, None], pa.decimal128(20, 7))
    found, null = ArrowColumn(column).numbers(of_kind(""))
    assert dense(found)[:-1].tolist() == list(map(float, values))
    assert null.nonzero().tolist() == [[999]]
    lists, _ = ArrowColumn(pa.array([[v] for v in values], pa.list_(column.type))).numbers(of_kind(""))
    assert dense(lists).flatten().tolist() == list(map(float, values))


def test_half_precision_of_arrow() -> None:
    half = np.float16(0.1)
    found, null = ArrowColumn(pa.array([half, None])).numbers(of_kind(""))
    assert dense(found)[0] == float(half)
    assert null.tolist() == [False, True]
    assert dense(ArrowColumn(pa.array([[half]])).numbers(of_kind(""))[0]).tolist() == [[float(half)]]


@pytest.mark.parametrize("dtype", ["Float64", "double[pyarrow]", "Sparse[float64]"])
def test_nan_in_floats_of_pandas_is_no_null(dtype: str) -> None:
    ones = pd.Series([1.0, 0.0] if "Sparse" in dtype else [1.0, 0.0, None]).astype(dtype)
    found, null = table_of_pandas(pd.DataFrame({"x": ones / ones})).column("x").numbers(of_kind(""))
    assert str(dense(found).tolist()) == str([1.0, *[float("nan")] * (len(ones) - 1)])
    assert null.tolist() == [False, False, True][: len(ones)]


@pytest.mark.parametrize("kind", ["int", "bigint", "decimal(10,2)", "boolean"])
def test_nan_is_null_where_the_type_has_none(kind: str) -> None:
    """As `df.toPandas()` writes integers that may be null."""
    pandas = table_of_pandas(pd.DataFrame({"x": [1.0, np.nan]})).column("x")
    for column in (
        pandas,
        ListColumn([1.0, np.nan]),
        ListColumn([np.float32(1), np.nan]),
        ArrowColumn(pa.array([1.0, np.nan])),
    ):
        assert column.numbers(of_kind(kind))[1].tolist() == [False, True]
        assert column.numbers(of_kind("double"))[1].tolist() == [False, False]
        if kind != "boolean":
            assert objects(column, of_kind(kind)) == [1, None]
    row = Schedule((InputPlaces(of_kind(kind), 0, 1, 2),), (), (), 3, False, ())
    assert [row.of_row({"x": np.nan}, ())[i] for i in (1, 2)] == [torch.tensor([True]), [None]]


@pytest.mark.parametrize(("kind", "value"), [("int", 3.5), ("int", 2**40), ("tinyint", 128), ("bigint", np.inf)])
def test_a_number_that_is_none_of_the_integers_of_the_schema(kind: str, value: Any) -> None:
    source, pandas = of_kind(kind), table_of_pandas(pd.DataFrame({"x": [1, None, value]})).column("x")
    row = Schedule((InputPlaces(source, 0, 1),), (), (), 2, False, ())
    for read in (
        lambda: ListColumn([None, value]).numbers(source),
        lambda: objects(ListColumn([None, value]), source),
        lambda: ArrowColumn(pa.array([None, value])).numbers(source),
        lambda: pandas.numbers(source),
        lambda: row.of_row({"x": value}, ()),
    ):
        with pytest.raises(InputError, match=rf"column 'x' holds {value}, but the schema has {kind}$"):
            read()
    for v in (-WHOLE[kind] - 1, WHOLE[kind]):
        assert ListColumn([v]).numbers(source)[0].tolist() == [float(v)] and objects(ListColumn([v]), source) == [v]


def test_a_row_with_two_spellings_of_a_column_is_refused() -> None:
    """As a DataFrame with both is, and only if the pipeline reads it."""
    read = Schedule((InputPlaces(of_kind(""), 0),), (), (), 1, False, ())
    assert read.of_row({"X": 1.0, "y": 2.0, "Y": 3.0, 5: 0}, ())[0].tolist() == [1.0]
    frame = pd.DataFrame({"x": [1.0], "X": [2.0]})
    rows = [{"x": 1.0, "y": 0.0}, {"x": 1.0, "X": 2.0}]
    for act in (
        lambda: read.of_row(rows[1], ()),
        lambda: read.of_table(table_of(rows, str.lower), ()),
        lambda: read.of_table(table_of(frame, str.lower), ()),
    ):
        with pytest.raises(InputError, match=r"2 columns that match 'x', \['x', 'X'\]: leave out all but one"):
            act()
    sensitive = dataclasses.replace(read, sensitive=True)
    assert [v.tolist() for v in sensitive.of_table(table_of(rows, str), ())] == [[1.0, 1.0]]


def test_an_array_of_single_precision_is_rounded() -> None:
    wished = [[float(np.float32(0.1))]]
    for column in (ListColumn([[0.1]]), ListColumn([np.array([0.1])]), ArrowColumn(pa.array([[0.1]]))):
        assert dense(column.numbers(of_kind("array<float>"))[0]).tolist() == wished


def test_types_of_arrow_are_kept_in_pandas_and_in_structs() -> None:
    price = pa.array([Decimal("1.10"), None], pa.decimal128(10, 2))
    inner = pa.StructArray.from_arrays([price, pa.array([0.1, 0.2], pa.float32())], ["price", "share"])
    whole = pa.StructArray.from_arrays([inner], ["in"], mask=pa.array([False, True]))
    frame = pd.DataFrame({"price": pd.Series(price.to_pylist(), dtype=pd.ArrowDtype(price.type))})
    table = table_of_arrow(pa.table({"s": whole}))
    for column in (
        table_of_pandas(frame).column("price"),
        table.read(InputColumn("s.in.price", ("s", "in", "price")), str.lower),
    ):
        assert list(map(str, objects(column, of_kind("")))) == ["1.10", "None"]
    share = objects(table.read(InputColumn("s.in.Share", ("s", "IN", "Share")), str.lower), of_kind(""))
    assert share == [np.float32(0.1), None]
    assert type(share[0]) is np.float32
    with pytest.raises(InputError, match="no column 'shares'"):
        table.read(InputColumn("s.in.shares", ("s", "in", "shares")), str.lower)


@pytest.mark.parametrize("value", [np.datetime64(1, "ns"), np.timedelta64(1, "ns"), np.timedelta64(1, "D")])
def test_a_time_of_numpy_is_no_number(value: Any) -> None:
    for given in (value, [value], np.array([value])):
        with pytest.raises(InputError, match=r"column 'x' holds .* no (number|vector)"):
            ListColumn([given]).numbers(of_kind(""))
    with pytest.raises(InputError, match="but the schema has double"):
        objects(ListColumn([value]), of_kind("double"))
    assert objects(ListColumn([type(value)("NaT")]), of_kind("")) == [None]


def test_columns_of_arrow_have_one_type() -> None:
    texts = [result_arrow([None], None, "string"), result_arrow(["a"], None, "string")]
    assert concatenation(texts).type == pa.string()
    assert concatenation([result_arrow([[]], None, "array<string>")]).type == pa.list_(pa.string())
    whole = result_arrow(torch.tensor([2.0**31, torch.nan]).double(), torch.tensor([False, True]), "bigint")
    assert whole.to_pylist() == [2**31, None]


def test_a_search_goes_on_as_in_java() -> None:
    assert java.split(java.pattern(r"(?<=,)|\s"), "a, b") == ["a,", " b"]
    assert [m[0] for m in java.matches(java.pattern("a*?"), "aa")] == ["", "", ""]
    assert [m[0] for m in java.matches(java.pattern("x?"), "axb")] == ["", "x", "", ""]


def test_a_pattern_may_say_the_halves_of_a_character() -> None:
    assert java.pattern(r"[\uD83D\uDE00]").search("a\U0001f600")
    for lone in (r"\uD83D", r"\uDE00", r"\uD83Da"):
        with pytest.raises(NotServedError, match="half of a character"):
            java.pattern(lone)


def test_a_modifier_letter_has_a_case() -> None:
    assert java.lower("\u02b0\u03a3", {}) == "\u02b0\u03c2"
    assert java.lower("a\u03a3\u1d2c", {}) == "a\u03c3\u1d2c"


@pytest.mark.parametrize("value", [0.0, -0.0, float("nan")])
def test_hashes_of_both_precisions_are_told_apart(value: float) -> None:
    one = HashingTF(1 << 20, False, False)
    both = [one.run([[value]])[0].indices.tolist(), one.run([[np.float32(value)]])[0].indices.tolist()]  # type: ignore[union-attr]
    assert both == [[one.slot_hash(value) % one.width], [one.slot_hash(np.float32(value)) % one.width]]
    assert both[0] != both[1] or java.hash_of_double(value) == java.hash_of_float(value)
