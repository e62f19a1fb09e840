"""Columns of numbers without nulls, read straight from the data pages of a Parquet file.

Arrow decodes two levels for every entry of a list, which takes more time than the entries themselves. Where all lists
are of one length, these levels are bytes that repeat, and the values lie in the page as they do in memory. What is not
of this form, as dictionaries and nulls, is Arrow's to read.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from sparkdiff.data.stream.manifest import BatchColumn

# Names and numbers of the Parquet format (parquet.thrift)
_DTYPES = {"DOUBLE": "<f8", "FLOAT": "<f4", "INT64": "<i8"}
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "ZSTD": "zstd", "GZIP": "gzip"}
_TYPE, _SIZE, _COMPRESSED_SIZE, _DATA_PAGE = 1, 2, 3, 5  # fields of a page's header, and of its data page:
_VALUES, _ENCODING, _DEFINITION, _REPETITION = 1, 2, 3, 4
_PLAIN, _RLE = 0, 3
_HEADER_BYTES = 512


class _NotPlain(Exception):
    """The column is not of the form that is read here."""


# What bytes raise that are not what they should be: Arrow, which then reads them, says what is wrong.
_ERRORS = (_NotPlain, IndexError, KeyError, TypeError, ValueError, RecursionError, pa.ArrowException)


def read(path: Path, file: pq.ParquetFile, columns: Sequence[BatchColumn]) -> dict[str, npt.NDArray[Any]]:
    """The values of those of these columns that are of the simple form: (rows,) or, of lists, (rows, width)."""
    leaves: dict[str, list[int]] = {}
    for i in range(len(file.schema)):
        leaves.setdefault(file.schema.column(i).path.split(".")[0], []).append(i)
    out = {}
    with path.open("rb", buffering=0) as raw:
        for column in columns:
            if column.kind != "sparse" and len(found := leaves.get(column.name, [])) == 1:
                try:
                    out[column.name] = _column(raw.fileno(), file, found[0], column)
                except _ERRORS:
                    continue
    return out


def _column(raw: int, file: pq.ParquetFile, number: int, column: BatchColumn) -> npt.NDArray[Any]:
    leaf, footer = file.schema.column(number), file.metadata
    lists = column.kind == "dense"
    _need(leaf.physical_type in _DTYPES and leaf.logical_type.type == "NONE")
    _need((leaf.max_repetition_level, leaf.path.count(".")) == ((1, 2) if lists else (0, 0)))
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    chunks = [group.column(number) for group in groups]
    for group, chunk in zip(groups, chunks, strict=True):
        _need(chunk.num_values == group.num_rows * column.width and not chunk.has_dictionary_page)
        _need(chunk.compression in _CODECS)
    out = np.empty((footer.num_rows, column.width) if lists else footer.num_rows, _DTYPES[leaf.physical_type])
    filled, room = 0, out.reshape(-1)
    for chunk in chunks:
        end = filled + chunk.num_values
        _chunk(raw, chunk, room[filled:end], leaf.max_definition_level, column.width if lists else 0)
        filled = end
    return out


def _chunk(raw: int, chunk: Any, room: npt.NDArray[Any], level: int, width: int) -> None:
    """Fill the room with the values of a column chunk: lists of this width, or scalars where it is 0."""
    codec, filled = _CODECS[chunk.compression], 0
    at, end = chunk.data_page_offset, chunk.data_page_offset + chunk.total_compressed_size
    while at < end:
        header, length = _header(os.pread(raw, min(_HEADER_BYTES, end - at), at))
        size, compressed = header[_SIZE], header[_COMPRESSED_SIZE]
        number = header[_DATA_PAGE][_VALUES]
        _need(0 <= number <= len(room) - filled)
        _need(0 <= compressed <= end - at - length and 0 <= size <= (room.itemsize + 4) * number + 1024)
        body: Any = os.pread(raw, compressed, at + length)
        _need(len(body) == compressed)
        if codec:
            body = pa.decompress(body, decompressed_size=size, codec=codec)
        page = memoryview(body)
        if width:
            _need(header[_DATA_PAGE][_REPETITION] == _RLE)
            levels, page = _levels(page)
            _need(_begin_lists(levels, filled % width, number, width))
        if level:
            _need(header[_DATA_PAGE][_DEFINITION] == _RLE)
            levels, page = _levels(page)
            _need(_all_are(level, levels, number))
        _need(len(page) == number * room.itemsize)
        room[filled : filled + number] = np.frombuffer(page, room.dtype)
        filled += number
        at += length + compressed
    _need(filled == len(room))


def _need(condition: bool) -> None:
    if not condition:
        raise _NotPlain


def _header(data: bytes) -> tuple[dict[int, Any], int]:
    """The header of a page of plain values, and its length."""
    header, length = _struct(data, 0)
    _need(header[_TYPE] == 0 and header[_DATA_PAGE][_ENCODING] == _PLAIN)
    return header, length


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
    """The fields of a struct by number, as Thrift's compact protocol writes it, and where it ends."""
    fields: dict[int, Any] = {}
    number = 0
    while head := data[at]:
        at += 1
        if head >> 4:
            number += head >> 4
        else:
            number, at = _integer(data, at)
        kind = head & 15
        if kind in (1, 2):
            fields[number] = kind == 1
        elif kind in (4, 5, 6):
            fields[number], at = _integer(data, at)
        elif kind == 8:  # bytes, as of a page's least value: passed over
            size, at = _varint(data, at)
            at += size
        elif kind == 12:
            fields[number], at = _struct(data, at)
        else:
            raise _NotPlain
    return fields, at + 1


def _integer(data: bytes, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return value >> 1 ^ -(value & 1), at


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while (byte := data[at]) & 128:
        value |= (byte & 127) << shift
        shift, at = shift + 7, at + 1
    return value | byte << shift, at + 1


def _levels(page: memoryview) -> tuple[memoryview, memoryview]:
    """The levels that a page begins with, and the rest of it."""
    end = 4 + int.from_bytes(page[:4], "little")
    _need(end <= len(page))
    return page[4:end], page[end:]


def _all_are(level: int, levels: memoryview, number: int) -> bool:
    """Whether so many levels are written as runs of this level."""
    at = 0
    while number > 0 and at < len(levels):
        head, at = _varint(levels, at)
        if head & 1 or not head or levels[at] != level:
            return False
        number, at = number - (head >> 1), at + 1
    return number == 0


def _begin_lists(levels: memoryview, first: int, number: int, width: int) -> bool:
    """Whether of so many repetition levels (bits: 0 begins a list) every width-th is 0 and no other; a list that began
    before has `first` entries.

    The levels are a sequence of runs. Where bytes that end with a list are repeated, so is what they say.
    """
    data = np.frombuffer(levels, np.uint8)
    at, entry, end = 0, first, first + number  # up to here all is as it should be
    last_at, last_entry = 0, first if first % width == 0 else -1
    while entry < end and at < len(levels):
        head, at = _varint(levels, at)
        if head & 1:
            bits = np.unpackbits(data[at : at + (head >> 1)], bitorder="little")[: end - entry]
            if ((np.arange(entry, entry + len(bits)) % width != 0) != bits).any() or not len(bits):
                return False
            at, entry = at + (head >> 1), entry + len(bits)
        else:
            run, inside = head >> 1, entry % width
            ones = bool(levels[at])
            if not run or (not 0 < inside <= width - run if ones else inside or (run > 1 and width > 1)):
                return False
            at, entry = at + 1, entry + run
        if entry > end:
            return False
        if entry % width == 0:
            if last_entry >= 0:
                period, entries = at - last_at, entry - last_entry
                times = min(_repeated(data[last_at:], period), (end - entry) // entries)
                at, entry = at + times * period, entry + times * entries
            last_at, last_entry = at, entry
    return entry == end


def _repeated(data: npt.NDArray[np.uint8], period: int) -> int:
    """How many times the first `period` bytes follow themselves."""
    if len(data) < 2 * period or (data[:period] != data[period : 2 * period]).any():
        return 0
    unequal = data[period:] != data[:-period]
    first = int(unequal.argmax())
    return (first if unequal[first] else len(unequal)) // period
