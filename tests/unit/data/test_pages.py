"""What is read straight from Parquet's pages is what Arrow reads; what is not of their simple form is left to Arrow."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings, strategies as st

from sparkdiff.data.stream import pages
from sparkdiff.data.stream.manifest import BatchColumn

DTYPES = {"float64": torch.float64, "float32": torch.float32, "int64": torch.int64}


def lists(values: Any, lengths: Any, *, nullable: bool = True) -> pa.ListArray:
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    values = pa.array(values)
    return pa.ListArray.from_arrays(offsets, values, type=pa.list_(pa.field("element", values.type, nullable=nullable)))


def read(path: Path, *columns: BatchColumn) -> dict[str, npt.NDArray[Any]]:
    with pq.ParquetFile(str(path)) as file:
        return pages.read(path, file, columns)


def dense(width: int, dtype: str = "float64") -> BatchColumn:
    return BatchColumn("c0", "features", "dense", width, DTYPES[dtype])


def scalar(name: str, dtype: str = "float64") -> BatchColumn:
    return BatchColumn(name, name, "scalar", 1, DTYPES[dtype])


@pytest.mark.parametrize("compression", ["snappy", "none", "zstd"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1000, 1), (700, 3), (500, 8), (333, 11), (90, 100), (8, 1), (40, 257)])
def test_values_are_arrows(tmp_path: Path, rows: int, width: int, dtype: str, compression: str) -> None:
    random = np.random.default_rng(rows)
    values = random.integers(0, 2**63, rows * width).view(dtype)[: rows * width]
    label = np.where(random.random(rows) < 0.1, np.nan, 1.0)
    for nullable in (True, False):
        table = pa.table({"c0": lists(values, [width] * rows, nullable=nullable), "label": label})
        pq.write_table(
            table,
            tmp_path / "f",
            use_dictionary=False,
            compression=compression,
            data_page_size=3000,
            row_group_size=300,
        )
        found = read(tmp_path / "f", dense(width, dtype), scalar("label"))
        assert found["c0"].shape == (rows, width) and found["c0"].dtype == dtype
        assert found["c0"].tobytes() == values.tobytes() and found["label"].tobytes() == label.tobytes()


@pytest.mark.parametrize("options", [{"use_dictionary": True}, {"data_page_version": "2.0"}, {"compression": "lz4"}])
def test_what_the_writer_did_otherwise_is_left_to_arrow(tmp_path: Path, options: dict[str, Any]) -> None:
    table = pa.table({"c0": lists(np.ones(600), [3] * 200), "label": np.ones(200)})
    pq.write_table(table, tmp_path / "f", **({"use_dictionary": False} | options))
    assert not read(tmp_path / "f", dense(3), scalar("label"))


NOT_PLAIN: dict[str, pa.Array] = {
    "a null": pa.array([[1.0, 2.0, 3.0]] * 20 + [None]),
    "a null entry": pa.array([[1.0, 2.0, 3.0]] * 20 + [[1.0, None, 3.0]]),
    "an empty list": pa.array([[1.0, 2.0, 3.0]] * 20 + [[]]),
    "a null, as many entries": pa.array([[1.0, 2.0, 3.0]] * 20 + [None, [1.0, 2.0, 3.0, 4.0, 5.0]]),
    "lengths that cancel out": pa.array([[1.0, 2.0, 3.0]] * 20 + [[1.0, 2.0], [1.0, 2.0, 3.0, 4.0]]),
    "scalars": pa.array([1.0] * 21),
    "lists of structs": pa.array([[{"x": 1.0}] * 3] * 21),
    "lists of lists": pa.array([[[1.0]] * 3] * 21),
    "a struct": pa.array([{"x": 1.0}] * 21),
    "dates": pa.array([[0, 1, 2]] * 21, pa.list_(pa.timestamp("us"))),
    "text": pa.array([["a", "b", "c"]] * 21),
}


@pytest.mark.parametrize("what", NOT_PLAIN)
def test_what_is_not_lists_of_one_length_is_left_to_arrow(tmp_path: Path, what: str) -> None:
    pq.write_table(pa.table({"c0": NOT_PLAIN[what]}), tmp_path / "f", use_dictionary=False)
    assert not read(tmp_path / "f", dense(3))


def test_a_scalar_with_nulls_and_a_column_that_is_missing_are_left_to_arrow(tmp_path: Path) -> None:
    table = pa.table({"label": pa.array([1.0] * 50 + [None]), "weight": np.ones(51)})
    pq.write_table(table, tmp_path / "f", use_dictionary=False)
    assert list(read(tmp_path / "f", scalar("label"), scalar("weight"), scalar("block"))) == ["weight"]


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_bytes_that_are_not_a_page_are_left_to_arrow(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever bytes of the first header are another, nothing else is raised, and no other number of values comes out."""
    path = tmp_path_factory.getbasetemp() / "bytes.parquet"
    pq.write_table(pa.table({"c0": lists(np.arange(90.0), [3] * 30)}), path, use_dictionary=False, compression="none")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    for at in data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=4)):
        content[start + at] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found = read(path, dense(3))
    assert all(x.shape == (30, 3) for x in found.values())


# ---- levels


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def encoded(levels: list[int], packed: int, least: int) -> bytes:
    """Levels as runs of at least `least` equal ones, and between them groups of eight bits, at most `packed` together."""
    out, at = b"", 0
    while at < len(levels):
        run = next((i for i, x in enumerate(levels[at:]) if x != levels[at]), len(levels) - at)
        if run >= least:
            out, at = out + varint(run << 1) + bytes([levels[at]]), at + run
        else:
            bits = (levels[at : at + 8 * packed] + [0] * 8)[: -(-min(8 * packed, len(levels) - at) // 8) * 8]
            groups = len(bits) // 8
            out, at = out + varint(groups << 1 | 1) + np.packbits(bits, bitorder="little").tobytes(), at + len(bits)
    return out


@given(
    width=st.integers(1, 70), rows=st.integers(1, 200), first=st.integers(0, 69), packed=st.integers(1, 63),
    least=st.integers(1, 20), wrong=st.none() | st.integers(0, 10**6), short=st.integers(0, 20),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_levels_begin_lists_where_they_should(
    width: int, rows: int, first: int, packed: int, least: int, wrong: int | None, short: int
) -> None:
    """However the levels are cut into runs, and wherever a page begins and ends; one wrong level is found."""
    levels = [int(i % width != 0) for i in range(first, max(first + 1, width * rows - short))]
    if wrong is not None:
        levels[wrong % len(levels)] ^= 1
    data = memoryview(encoded(levels, packed, least))
    assert pages._begin_lists(data, first, len(levels), width) is (wrong is None)
    with suppress(IndexError):
        assert not pages._begin_lists(data[:-1], first, len(levels), width)


def test_a_run_beyond_the_last_level_is_left_to_arrow() -> None:
    assert not pages._begin_lists(memoryview(varint(20 << 1) + b"\0"), 0, 16, 1)
