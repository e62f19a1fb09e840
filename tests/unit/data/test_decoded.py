"""Rows that are read from files again and again lie decoded on the disk, and are the same rows."""

import errno
import fcntl
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparkdiff.data.stream import decoded_rows
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.files import Files
from sparkdiff.tensors.rows import SparseRows
from tests.support.cache_on_disk import Cache
from tests.support.full_disk import no_room


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces that were read from Parquet files."""
    names: list[str] = []
    before = Files.read

    def noted(self: Files, pieces: list[Any]) -> Any:
        for piece, batch in zip(pieces, before(self, pieces), strict=True):
            names.append(piece.path)
            yield batch

    monkeypatch.setattr(Files, "read", noted)
    return names


def epochs(stream: Stream, numbers: Iterable[int | None], batchSize: int = 32, **options: Any) -> list[torch.Tensor]:
    """All that the epochs yield, one below the other."""
    out = []
    for number in numbers:
        for batch in stream.batches("train", batchSize=batchSize, epoch=number, **options):
            for x in batch.values():
                out += [x.indices, x.values, x.offsets] if isinstance(x, SparseRows) else [x]
    return [x.clone() for x in out]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(
        torch.equal(x.nan_to_num(-1e9), y.nan_to_num(-1e9)) for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 3), (5, 12)])
def test_each_file_is_decoded_once(sparse: bool, rank: int, world: int, tmp_path: Path, read: list[str]) -> None:
    folder = Cache(tmp_path / "cache", sparse=sparse).folder
    whole = {"rank": rank, "world": world}
    with Stream(folder, backend="arrow") as stream:
        expected = epochs(stream, range(3), **whole)
    read.clear()
    with Stream(folder, backend="arrow", inMemory=False) as stream:
        assert same(epochs(stream, range(3), **whole), expected)
        assert len(read) == len(set(read)) > 0
        assert {p.suffix for p in folder.rglob("*") if p.is_file()} == {".json", ".parquet"}
    read.clear()
    with Stream(folder, backend="arrow", inMemory=False, decoded=False) as stream:
        assert same(epochs(stream, range(3), **whole), expected)
        assert len(read) == 3 * len(set(read))


PREADV = os.preadv
UNEVEN = {"train": 2 * [[700, 40, 900], [1500], [3, 800], [1000, 1, 1, 600]]}
"""Rows of each file of each shard."""


@pytest.mark.parametrize("batchSize", [200, 2000, 6000])  # fewer and more rows of a shard than are copied alone
@pytest.mark.parametrize(("rank", "world"), [(0, 1), (1, 2), (2, 7)])
@pytest.mark.parametrize("direct", [False, True])
def test_rows_of_long_steps_come_in_the_order_of_memory(
    batchSize: int, rank: int, world: int, direct: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of an epoch that goes on, and where they pass over the system's cache."""
    monkeypatch.setattr(decoded_rows, "LARGE", 0.0 if direct else 1.0)
    folder = Cache(tmp_path / "cache", splits=UNEVEN).folder
    options = {"rank": rank, "world": world, "batchSize": batchSize}
    with Stream(folder, backend="arrow") as stream:
        expected = [epochs(stream, [0, 1, None, 2], first=first, **options) for first in (0, 1)]
    with Stream(folder, backend="arrow", inMemory=False) as stream:
        for first in (0, 1):
            assert same(epochs(stream, [0, 1, None, 2], first=first, **options), expected[first])
        assert stream.decoded.direct == direct


@pytest.mark.parametrize("sparse", [False, True])
def test_a_file_system_that_cannot_pass_over_its_cache(
    sparse: bool, tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as older ones in memory: it refuses to open, or to read."""
    folder = Cache(tmp_path / "cache", sparse=sparse).folder
    with Stream(folder, backend="arrow") as stream:
        expected = epochs(stream, range(3))
    monkeypatch.setattr(decoded_rows, "LARGE", 0.0)
    for refused in ("open", "preadv"):
        read.clear()
        with monkeypatch.context() as m, Stream(folder, backend="arrow", inMemory=False) as stream:
            m.setattr(decoded_rows.os, refused, refusing(getattr(os, refused)))
            assert same(epochs(stream, range(3)), expected)
            assert not stream.decoded.direct
            assert len(read) == len(set(read)) > 0


def test_a_kernel_without_the_advice_on_forks(tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows stay decoded."""

    class Plain(mmap.mmap):
        def madvise(self, *args: Any) -> None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(decoded_rows.mmap, "mmap", Plain)
    with Stream(Cache(tmp_path / "cache").folder, backend="arrow", inMemory=False) as stream:
        epochs(stream, range(3))
        assert len(read) == len(set(read)) > 0
        assert stream.decoded.enabled


def refusing(before: Any) -> Any:
    """`os.open` with O_DIRECT, or `os.preadv` of such a file, as where a file system knows it not."""

    def call(file: Any, *args: Any) -> Any:
        given = fcntl.fcntl(file, fcntl.F_GETFL) if before is PREADV else args[0]
        if given & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        return before(file, *args)

    return call


def test_batches_keep_their_rows_when_memory_is_used_again(tmp_path: Path) -> None:
    folder = Cache(tmp_path / "cache", splits=UNEVEN).folder
    with Stream(folder, backend="arrow") as stream:
        expected = epochs(stream, range(3), 2000)
    made, before = list[mmap.mmap](), mmap.mmap
    with Stream(folder, backend="arrow", inMemory=False) as stream, pytest.MonkeyPatch.context() as m:
        m.setattr(decoded_rows.mmap, "mmap", lambda *a: made.append(before(*a)) or made[-1])
        batches = [b for n in range(3) for b in stream.batches("train", batchSize=2000, epoch=n)]
        assert same([x for b in batches for x in b.values() if isinstance(x, torch.Tensor)], expected)
        assert len(stream.decoded._buffers._free) == 8
        stream.leave()
        assert not stream.decoded._buffers._free
        assert len(made) <= 2 * len(UNEVEN["train"]) < 2 * sum(map(len, UNEVEN["train"]))  # of two epochs


def test_without_an_epoch_the_second_reading_is_kept(tmp_path: Path, read: list[str]) -> None:
    """What is read once, as by the comparison with Spark, is not written."""
    with Stream(Cache(tmp_path / "cache").folder, backend="arrow", inMemory=False) as stream:
        found = [epochs(stream, [None]) for _ in range(4)]
        assert len(read) == 2 * len(set(read))
        assert all(same(found[0], other) for other in found)


def test_a_disk_without_room_and_one_that_is_lost(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are read as before."""
    folder = Cache(tmp_path / "cache").folder
    with Stream(folder, backend="arrow") as stream:
        expected = epochs(stream, range(3))
    read.clear()
    with monkeypatch.context() as m, Stream(folder, backend="arrow", inMemory=False) as stream:
        m.setattr(decoded_rows, "SHARE", 0.0)
        assert same(epochs(stream, range(3)), expected)
        assert len(read) == 3 * len(set(read))
    for room in (0, 1000):  # found out at once, and in the midst
        read.clear()
        with no_room(room), Stream(folder, backend="arrow", inMemory=False) as stream:
            assert same(epochs(stream, range(3)), expected)
            assert len(read) > 2 * len(set(read))
            assert os.fstat(stream.decoded._file.fileno()).st_size == 0  # others need the disk more
    for large in (1.0, 0.0):
        monkeypatch.setattr(decoded_rows, "LARGE", large)
        with Stream(folder, backend="arrow", inMemory=False) as stream:
            first = epochs(stream, range(1))
            assert stream.decoded._file is not None
            os.ftruncate(stream.decoded._file.fileno(), 0)
            assert same(first + epochs(stream, range(1, 3)), expected)


class LongRows(Cache):
    """Sparse rows of far more entries than are expected of one, which take little room in Parquet."""

    ENTRIES = 1000

    def table(self, rows: int) -> pa.Table:
        self.columns[-1]["width"] = self.ENTRIES
        table, offsets = super().table(rows), np.arange(0, rows * self.ENTRIES + 1, self.ENTRIES, dtype=np.int32)
        entries = [np.tile(np.arange(self.ENTRIES, dtype=np.int32), rows), np.ones(rows * self.ENTRIES)]
        for name, values in zip(("c2_i", "c2_v"), entries, strict=True):
            at = table.column_names.index(name)
            table = table.set_column(at, name, pa.ListArray.from_arrays(offsets, values))
        self.tables[-1] = table
        return table


def test_unexpectedly_large_rows_leave_half_of_the_disk(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = LongRows(tmp_path / "cache", sparse=True).folder
    with Stream(folder, backend="arrow") as stream:
        expected = epochs(stream, range(3))
    read.clear()
    monkeypatch.setattr(decoded_rows.shutil, "disk_usage", lambda path: SimpleNamespace(free=4_000_000))
    with Stream(folder, backend="arrow", inMemory=False) as stream:
        assert same(epochs(stream, range(3)), expected)
        assert 0 < os.fstat(stream.decoded._file.fileno()).st_size < 2_000_000
        assert len(set(read)) < len(read) < 3 * len(set(read))
