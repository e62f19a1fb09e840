"""The stream's contract, the same for both back ends, from memory and from files; the caches are made with pyarrow."""

import copy
import hashlib
import pickle
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, strategies as st

import sparkdiff.data.stream.batches as streams
from sparkdiff.data.stream import files as readers
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.manifest import DamagedCacheError, Manifest
from sparkdiff.data.stream.order import scaled_weights, step_bounds
from sparkdiff.errors import InputError
from sparkdiff.tensors.rows import SparseRows
from tests.support.cache_on_disk import BACKENDS, SPARSE_WIDTH, TRAIN, WIDTH, Cache, Entries, needs_petastorm, numbers


def counts(random: np.random.Generator, size: int, file: int) -> Any:
    return random.integers(1, 9, size).astype(float)


def mostly_counts(random: np.random.Generator, size: int, file: int) -> Any:
    return random.choice([0.1, np.nan, -0.0, 1e300], size) if file == 4 else counts(random, size, file)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    return Cache(tmp_path_factory.mktemp("original") / "cache")


@pytest.fixture
def cache(original: Cache, tmp_path: Path) -> Cache:
    shutil.copytree(original.folder, tmp_path / "cache")
    cache = copy.deepcopy(original)
    cache.folder = tmp_path / "cache"
    return cache


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[True, False], ids=["memory", "files"])
def in_memory(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def stream(cache: Cache, backend: str, in_memory: bool) -> Iterator[Stream]:
    with Stream(cache.folder, backend=backend, inMemory=in_memory, seed=5) as stream:
        yield stream


def serve(stream: Stream, split: str, **options: Any) -> Any:
    return stream.batches(split, **options)


def blocks(batches: Any) -> list[list[int]]:
    return [batch["block"].tolist() for batch in batches]


def flat(batches: Any) -> list[int]:
    return [number for batch in blocks(batches) for number in batch]


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert list(one) == list(other)
    for name in one:
        x, y = one[name], other[name]
        if isinstance(x, SparseRows):
            pairs = [(x.indices, y.indices), (x.values, y.values), (x.offsets, y.offsets)]
            assert x.width == y.width
        else:
            pairs = [(x, y)]
        for a, b in pairs:
            assert a.dtype == b.dtype and a.shape == b.shape
            assert torch.equal(a.nan_to_num(-99.0), b.nan_to_num(-99.0))


# ---- what is served


def test_back_ends_and_modes_serve_the_same_batches(cache: Cache, stream: Stream) -> None:
    with Stream(cache.folder, backend="arrow", inMemory=True, seed=5) as reference:
        for split in ("train", "validation", "test"):
            for epoch in (None, 0, 3):
                for rank, world in ((0, 1), (1, 3), (5, 8), (4, 11)):
                    same: dict[str, Any] = {"batchSize": 16, "epoch": epoch, "rank": rank, "world": world}
                    expected, batches = list(serve(reference, split, **same)), list(serve(stream, split, **same))
                    assert len(batches) == len(expected) == stream.steps(split, 16)
                    for one, other in zip(batches, expected, strict=True):
                        assert_same(one, other)


@pytest.mark.parametrize("epoch", [None, 2])
def test_values_are_those_of_the_files(cache: Cache, stream: Stream, epoch: int | None) -> None:
    table = pa.concat_tables(cache.tables)
    features = np.array(table["c0"].to_pylist())
    scalar = np.array([np.nan if x is None else x for x in table["c1"].to_pylist()])
    for batch in serve(stream, "train", batchSize=32, epoch=epoch):
        rows = batch["block"].numpy()
        assert {name: (x.dtype, x.shape[1:]) for name, x in batch.items()} == {
            "c0": (torch.float64, (WIDTH,)),
            "c1": (torch.float64, ()),
            "label": (torch.float64, ()),
            "block": (torch.int64, ()),
        }
        np.testing.assert_array_equal(batch["c0"], features[rows])
        np.testing.assert_array_equal(batch["c1"], scalar[rows])
        np.testing.assert_array_equal(batch["label"], table["label"].to_numpy()[rows])
    assert np.isnan(scalar).any()


@pytest.mark.parametrize("world", [1, 2, 3, 8, 12])
def test_every_row_once_an_epoch(cache: Cache, stream: Stream, world: int) -> None:
    for epoch in (None, 0, 1):
        ranks = [blocks(serve(stream, "train", batchSize=16, epoch=epoch, rank=r, world=world)) for r in range(world)]
        assert {len(batches) for batches in ranks} == {stream.steps("train", 16)}
        seen = [number for batches in ranks for batch in batches for number in batch]
        assert sorted(seen) == list(range(stream.rows("train")))
        whole = blocks(serve(stream, "train", batchSize=16, epoch=epoch))
        for step, batch in enumerate(whole):  # the number of processes does not change what a step sees
            assert batch == [number for batches in ranks for number in batches[step]]


def test_a_step_takes_its_share_of_every_shard(cache: Cache, stream: Stream) -> None:
    steps = stream.steps("train", 48)
    served = blocks(serve(stream, "train", batchSize=48, epoch=4))
    assert stream.rows("train") == sum(map(sum, TRAIN)) and steps == -(-stream.rows("train") // 48) == len(served)
    for shard in cache.blocks("train"):
        shares = [len(set(shard) & set(batch)) for batch in served]
        assert shares == [len(shard) * (t + 1) // steps - len(shard) * t // steps for t in range(steps)]


def test_without_an_epoch_rows_come_as_they_lie(cache: Cache, stream: Stream) -> None:
    served = flat(serve(stream, "train", batchSize=16))
    for shard in cache.blocks("train"):
        assert [number for number in served if number in set(shard)] == shard


def test_the_order_depends_on_seed_epoch_and_shard_only(cache: Cache, stream: Stream) -> None:
    state = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    first, second = (flat(serve(stream, "train", batchSize=16, epoch=epoch)) for epoch in (0, 1))
    assert first != second
    assert first == flat(serve(stream, "train", batchSize=16, epoch=0))
    with Stream(cache.folder, backend=stream.backend, inMemory=stream.inMemory, seed=-6) as other:
        assert flat(serve(other, "train", batchSize=16, epoch=0)) != first
    assert torch.equal(state[0], torch.get_rng_state())
    assert state[1:] == (str(np.random.get_state()), random.getstate())


def test_shards_of_the_same_size_have_different_orders(tmp_path: Path, in_memory: bool) -> None:
    cache = Cache(tmp_path / "cache", splits={"train": [[20, 20]] * 8})
    with Stream(cache.folder, backend="arrow", inMemory=in_memory) as stream:
        served = flat(serve(stream, "train", batchSize=64, epoch=0))
    orders = {tuple(number % 40 for number in served if number // 40 == v) for v in range(8)}
    assert len(orders) == 8 and {len(order) for order in orders} == {40}


def test_pieces_and_their_rows_are_mixed(tmp_path: Path, backend: str, in_memory: bool) -> None:
    cache = Cache(tmp_path / "cache", splits={"train": [[1500] * 4, *([[]] * 7)]})
    with Stream(cache.folder, backend=backend, inMemory=in_memory) as stream:
        served = np.array(flat(serve(stream, "train", batchSize=100, epoch=0)))
        pieces = [tuple(np.unique(part // 1500)) for part in served.reshape(4, 1500)]
        assert sorted(pieces) == [(0,), (1,), (2,), (3,)]  # a piece is held as long as its rows last
        orders = {tuple(flat(serve(stream, "train", batchSize=6000, epoch=e))[::1500]) for e in range(8)}
        assert len({tuple(n // 1500 for n in order) for order in orders}) > 4
        for part in served.reshape(4, 1500):
            assert abs(np.corrcoef(part, np.arange(1500))[0, 1]) < 0.1
            assert np.abs(np.diff(part)).mean() == pytest.approx(500, rel=0.1)  # of a random permutation: n/3
            assert np.abs(np.argsort(part) - np.arange(1500)).mean() == pytest.approx(500, rel=0.1)


def test_a_rank_without_rows_takes_its_steps(stream: Stream) -> None:
    for split, steps in (("validation", 3), ("test", 0)):
        for rank in range(8):
            batches = list(serve(stream, split, batchSize=1, epoch=0, rank=rank, world=8))
            assert len(batches) == stream.steps(split, 1) == steps
            for batch in batches:
                n = len(batch["block"])
                assert n == 0 or (split, rank) in (("validation", 1), ("validation", 4))
                assert batch["c0"].shape == (n, WIDTH) and batch["c1"].shape == (n,)
                assert (batch["c0"].dtype, batch["block"].dtype) == (torch.float64, torch.int64)


@pytest.mark.parametrize("world", [1, 8])  # 8: consecutive rows of one shard
def test_batches_are_the_consumers_own(stream: Stream, world: int) -> None:
    expected = [{k: x.clone() for k, x in batch.items()} for batch in serve(stream, "train", batchSize=64, world=world)]
    for _ in range(2):
        for batch, other in zip(serve(stream, "train", batchSize=64, world=world), expected, strict=True):
            assert_same(batch, other)
            for x in batch.values():
                x.fill_(-1)  # neither read-only memory nor what later epochs are served from


@pytest.mark.parametrize("size", [1, 3000, 10000])
def test_chunks_do_not_show(stream: Stream, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = blocks(serve(stream, "train", batchSize=16, epoch=0))
    monkeypatch.setattr(streams, "_CHUNK_BYTES", size)
    assert blocks(serve(stream, "train", batchSize=16, epoch=0)) == expected


def test_from_memory_a_file_is_read_once(cache: Cache, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    stream.decoded.enabled = False  # test_decoded has the rows that are kept beside the cache
    opened: list[str] = []
    read = readers.BACKENDS[stream.backend]

    def noted(paths: list[Path], columns: Any) -> Any:
        opened.extend(map(str, paths))
        return read(paths, columns)

    monkeypatch.setitem(readers.BACKENDS, stream.backend, noted)
    for epoch in range(3):
        assert len(flat(serve(stream, "train", batchSize=16, epoch=epoch))) == stream.rows("train")
    files = [str(cache.folder / p["path"]) for shard in cache.splits["train"] for p in shard if p["rows"]]
    assert sorted(opened) == sorted(files * (1 if stream.inMemory else 3))


def test_ranks_may_be_served_by_turns(stream: Stream) -> None:
    ranks = [serve(stream, "train", batchSize=16, epoch=1, rank=rank, world=2) for rank in range(2)]
    together = [a["block"].tolist() + b["block"].tolist() for a, b in zip(*ranks, strict=True)]
    assert [sorted(b) for b in together] == [sorted(b) for b in blocks(serve(stream, "train", batchSize=16, epoch=1))]


def test_float32_and_several_row_groups(cache: Cache, backend: str, in_memory: bool) -> None:
    cache.columns[0]["dtype"] = "float32"
    float32 = pa.list_(pa.float32())
    for shard in cache.splits["train"]:
        for piece in shard:
            table = pq.read_table(cache.folder / piece["path"], partitioning=None)
            table = table.set_column(0, "c0", table["c0"].cast(float32))
            piece.update(cache.write(piece["path"], table, row_group_size=25))
    cache.save()
    with Stream(cache.folder, backend=backend, inMemory=in_memory) as stream:
        batches = list(serve(stream, "train", batchSize=64))
    assert {batch["c0"].dtype for batch in batches} == {torch.float32}
    order = [number for batch in batches for number in batch["block"].tolist()]
    assert sorted(order) == list(range(stream.rows("train")))
    features = np.array(pa.concat_tables(cache.tables)["c0"].to_pylist(), dtype=np.float32)
    np.testing.assert_array_equal(torch.cat([batch["c0"] for batch in batches]), features[order])


@pytest.mark.parametrize("entries", [numbers, counts, mostly_counts])
@pytest.mark.parametrize("epoch", [None, 1])
def test_sparse_columns(
    tmp_path: Path, in_memory: bool, epoch: int | None, entries: Entries, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 30_000)
    cache = Cache(tmp_path / "cache", sparse=True, entries=entries)
    table = pa.concat_tables(cache.tables)
    indices, values = table["c2_i"].to_pylist(), [np.array(v).tobytes() for v in table["c2_v"].to_pylist()]
    with Stream(cache.folder, inMemory=in_memory) as stream:
        assert stream.backend == "arrow"
        seen = 0
        for batch in serve(stream, "train", batchSize=16, epoch=epoch):
            x, rows = batch["c2"], batch["block"].tolist()
            assert isinstance(x, SparseRows) and len(x) == len(rows) and x.width == SPARSE_WIDTH
            assert (x.indices.dtype, x.values.dtype, x.offsets.dtype) == (torch.int64, torch.float64, torch.int64)
            assert x.offsets[0] == 0 and x.offsets[-1] == len(x.indices) == len(x.values)
            for i, row in enumerate(rows):
                own = slice(int(x.offsets[i]), int(x.offsets[i + 1]))
                assert x.indices[own].tolist() == indices[row] and x.values[own].numpy().tobytes() == values[row]
            seen += len(rows)
        assert seen == stream.rows("train")
        empty = [batch["c2"] for batch in serve(stream, "validation", batchSize=1, rank=0, world=8)]
        assert [len(x) for x in empty] == [0, 0, 0] and {x.width for x in empty} == {SPARSE_WIDTH}


def test_only_what_floats_hold_exactly_is_kept_as_floats(tmp_path: Path) -> None:
    held = {}
    for entries in (numbers, counts, mostly_counts):
        with Stream(Cache(tmp_path / entries.__name__, sparse=True, entries=entries).folder) as stream:
            list(serve(stream, "train", batchSize=16))
            held[entries.__name__] = stream._tables["train"][2]["c2"].values.dtype
    assert held == {"numbers": torch.float64, "counts": torch.float32, "mostly_counts": torch.float64}


# ---- back ends


def test_petastorm_refuses_sparse_columns(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", sparse=True)
    with pytest.raises(InputError, match=r"sparse columns \['text'\].*stream='arrow'"):
        Stream(cache.folder, backend="petastorm")


@needs_petastorm
def test_petastorm_is_opened_on_files_and_closed(
    cache: Cache, in_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import petastorm as library

    make, readers, urls = library.make_batch_reader, [], []

    def counted(dataset_urls: list[str], **options: Any) -> Any:
        urls.extend(dataset_urls)
        assert options["workers_count"] == 1 and options["shuffle_row_groups"] is False
        readers.append(make(dataset_urls, **options))
        return readers[-1]

    monkeypatch.setattr(library, "make_batch_reader", counted)
    with Stream(cache.folder) as stream:
        assert stream.backend == "petastorm"  # auto takes it where it can
    with Stream(cache.folder, backend="petastorm", inMemory=in_memory) as stream:
        assert not readers
        assert len(flat(serve(stream, "train", batchSize=16, epoch=0))) == stream.rows("train")
    files = [cache.folder / p["path"] for shard in cache.splits["train"] for p in shard if p["rows"]]
    assert sorted(urls) == sorted(f"file://{file}" for file in files)
    assert len(readers) >= 2 and all(reader.stopped for reader in readers)
    with Stream(cache.folder, backend="petastorm", inMemory=in_memory) as stream:
        next(batches := serve(stream, "train", batchSize=16, epoch=0))
        early = not all(reader.stopped for reader in readers)
    assert early is not in_memory and all(reader.stopped for reader in readers) and next(batches, None) is None


def test_without_petastorm(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petastorm", None)
    assert Stream(cache.folder).backend == "arrow"
    with pytest.raises(InputError, match=r"pip install sparkdiff\[petastorm\].*stream='arrow'"):
        Stream(cache.folder, backend="petastorm")
    assert len(flat(serve(Stream(cache.folder), "train", batchSize=16))) == sum(map(sum, TRAIN))


def test_with_a_pyarrow_that_petastorm_cannot_use(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petastorm", type(sys)("petastorm"))
    monkeypatch.delattr(pq, "ParquetDatasetPiece", raising=False)
    assert Stream(cache.folder).backend == "arrow"
    with pytest.raises(InputError, match="legacy datasets"):
        Stream(cache.folder, backend="petastorm")


@pytest.mark.parametrize("name", ["run#1", "what?", "two words", "100%"])
def test_odd_folders(tmp_path: Path, name: str, in_memory: bool) -> None:
    cache = Cache(tmp_path / name)
    with Stream(cache.folder, inMemory=in_memory) as stream:
        assert len(flat(serve(stream, "train", batchSize=16))) == stream.rows("train")
    if name in ("run#1", "what?"):
        with pytest.raises(InputError, match="URL"):
            Stream(cache.folder, backend="petastorm")


def test_wrong_arguments_are_named(stream: Stream) -> None:
    with pytest.raises(InputError, match=r"no split 'trian'.*'train'"):
        serve(stream, "trian", batchSize=16)
    with pytest.raises(InputError, match=r"no stream 'parrow'.*'arrow'"):
        Stream(stream.manifest.folder, backend="parrow")
    with pytest.raises(InputError, match="batchSize"):
        serve(stream, "train", batchSize=0)
    for rank, world in ((3, 3), (2, 2), (-1, 2), (0, 0)):
        with pytest.raises(InputError, match=f"rank {rank} of {world}"):
            serve(stream, "train", batchSize=16, rank=rank, world=world)


# ---- closing


def open_files(folder: Path) -> list[str]:
    links = Path("/proc/self/fd")
    paths = [link.readlink() for link in links.iterdir() if link.exists()] if links.exists() else []
    return [str(path) for path in paths if path.is_relative_to(folder)]


@pytest.mark.parametrize("leave", ["break", "raise", "close"])
def test_stopping_early_closes_everything(cache: Cache, stream: Stream, leave: str) -> None:
    threads = threading.active_count()
    batches = serve(stream, "train", batchSize=16, epoch=0)
    with pytest.raises(KeyError) if leave == "raise" else nullcontext(), stream:
        for _ in batches:
            if leave == "raise":
                raise KeyError
            break
        if leave == "close":
            batches.close()
    assert next(batches, None) is None
    assert threading.active_count() == threads
    assert not open_files(cache.folder)


def test_a_stream_can_be_used_again_after_an_early_stop(stream: Stream) -> None:
    expected = blocks(serve(stream, "train", batchSize=16, epoch=0))
    next(serve(stream, "train", batchSize=16, epoch=0))
    assert blocks(serve(stream, "train", batchSize=16, epoch=0)) == expected


@needs_petastorm
def test_petastorm_starts_no_crowd_of_threads(cache: Cache) -> None:
    threads = threading.active_count()
    with Stream(cache.folder, backend="petastorm", inMemory=False) as stream:
        for _ in serve(stream, "train", batchSize=16, epoch=0):
            assert threading.active_count() <= threads + 8  # at most one a shard, and those end at once


# ---- damage


def set_column(name: str, values: Callable[[pa.Table], Any]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values(table)))


DAMAGES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "too few rows": lambda table: table.slice(1),
    "too many rows": lambda table: pa.concat_tables([table, table]),
    "longer lists": set_column("c0", lambda table: [[1.0] * (WIDTH + 1)] * len(table)),
    "one list of another length": set_column("c0", lambda table: [[1.0] * WIDTH] * (len(table) - 1) + [[1.0]]),
    "lengths that cancel out": set_column(
        "c0", lambda table: [[1.0] * (WIDTH - 1), [1.0] * (WIDTH + 1)] + [[1.0] * WIDTH] * (len(table) - 2)
    ),
    "a null list": set_column("c0", lambda table: [None] + [[1.0] * WIDTH] * (len(table) - 1)),
    "a scalar for a list": set_column("c0", lambda table: [1.0] * len(table)),
    "a null integer": set_column("block", lambda table: [None, *range(1, len(table))]),
    "another type": set_column("label", lambda table: list(range(len(table)))),
    "text": set_column("label", lambda table: ["x"] * len(table)),
    "a column less": lambda table: table.drop(["label"]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_content_is_named(cache: Cache, backend: str, in_memory: bool, damage: str) -> None:
    path = cache.rewrite(DAMAGES[damage])
    with (
        Stream(cache.folder, backend=backend, inMemory=in_memory) as stream,
        pytest.raises(DamagedCacheError, match=path),
    ):
        list(serve(stream, "train", batchSize=16, epoch=0))


def corrupt(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    for i in range(at, at + 8):
        data[i] ^= 0xFF
    file.write_bytes(data)


@pytest.mark.parametrize("damage", ["missing", "truncated", "replaced", "footer", "folder", "unreadable"])
def test_damaged_files_are_named(cache: Cache, stream: Stream, damage: str) -> None:
    path = cache.splits["train"][0][1]["path"]
    file = cache.folder / path
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(file.read_bytes()[:-10])
    elif damage == "replaced":  # by one that can be read
        pq.write_table(pq.read_table(file, partitioning=None), file, compression="none", use_dictionary=False)
    elif damage == "footer":
        corrupt(file, -8)
    elif damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        cache.splits["train"][0][1].update(bytes=4, sha256=hashlib.sha256(b"junk").hexdigest())
        file.write_bytes(b"junk")  # as the manifest has it
        cache.save()
        stream.manifest = Manifest.load(cache.folder)
    for _ in range(2):
        with pytest.raises(DamagedCacheError, match=path):
            list(serve(stream, "train", batchSize=16, epoch=0))


def test_check_sees_every_byte(cache: Cache) -> None:
    with Stream(cache.folder) as stream:
        stream.manifest.check()
        path = cache.splits["validation"][1][0]["path"]
        for at in (10, -20):
            corrupt(cache.folder / path, at)
            with pytest.raises(DamagedCacheError, match=f"{path}.*sha256"):
                stream.manifest.check()
            corrupt(cache.folder / path, at)
        stream.manifest.check()
        (cache.folder / path).unlink()
        with pytest.raises(DamagedCacheError, match=f"{path}.*no such file"):
            stream.manifest.check()


@pytest.mark.parametrize(
    "lists",
    [
        {"c2_i": [[0, 1]], "c2_v": [[1.0]]},
        {"c2_i": [[0, SPARSE_WIDTH]], "c2_v": [[1.0, 2.0]]},
        {"c2_i": [[-1, 0]], "c2_v": [[1.0, 2.0]]},
        {"c2_i": [[0, None]], "c2_v": [[1.0, 2.0]]},
        {"c2_i": [None], "c2_v": [None]},
    ],
)
def test_damaged_sparse_columns(tmp_path: Path, in_memory: bool, lists: dict[str, list[Any]]) -> None:
    cache = Cache(tmp_path / "cache", sparse=True)

    def change(table: pa.Table) -> pa.Table:
        for name, first in lists.items():
            values = pa.array(first + [[]] * (len(table) - 1), table[name].type)
            table = table.set_column(table.column_names.index(name), name, values)
        return table

    path = cache.rewrite(change)
    with Stream(cache.folder, inMemory=in_memory) as stream, pytest.raises(DamagedCacheError, match=path):
        list(serve(stream, "train", batchSize=16, epoch=0))


def test_damaged_manifests(cache: Cache) -> None:
    text = (cache.folder / "manifest.json").read_text()
    for bad in (text[:-1], "[]", "{}", text.replace('"format": 1', '"format": 2'), text.replace('"dense"', '"dens"')):
        (cache.folder / "manifest.json").write_text(bad)
        with pytest.raises(DamagedCacheError, match=r"manifest\.json"):
            Stream(cache.folder)
    (cache.folder / "manifest.json").unlink()
    with pytest.raises(DamagedCacheError, match=r"manifest\.json"):
        Stream(cache.folder)


# ---- safety


@pytest.mark.parametrize("path", ["../x.parquet", "/etc/passwd", "train/../../x", "", "a\\b", "x#y", "./x", "a//b"])
def test_paths_that_do_not_belong_in_a_manifest(cache: Cache, path: str) -> None:
    cache.splits["train"][0][0]["path"] = path
    cache.save()
    with pytest.raises(DamagedCacheError, match=r"not a plain path"):
        Stream(cache.folder)


def test_links_out_of_the_cache(cache: Cache, stream: Stream) -> None:
    file = cache.folder / cache.splits["train"][0][0]["path"]
    file.rename(cache.folder.parent / "elsewhere.parquet")
    file.symlink_to(cache.folder.parent / "elsewhere.parquet")
    with pytest.raises(DamagedCacheError, match="outside"):
        list(serve(stream, "train", batchSize=16))


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w').close()",)


@needs_petastorm
@pytest.mark.filterwarnings("ignore")
def test_code_in_a_caches_metadata_never_runs(cache: Cache, in_memory: bool) -> None:
    from petastorm import make_batch_reader

    marker = cache.folder.parent / "ran"
    schema = pa.schema([], metadata={b"dataset-toolkit.unischema.v1": pickle.dumps(Payload(marker))})
    for folder in (cache.folder, cache.folder / "train"):
        pq.write_metadata(schema, folder / "_common_metadata")
    with pytest.raises(AttributeError):
        make_batch_reader(f"file://{cache.folder}/train")
    assert marker.exists()  # the trap is armed
    marker.unlink()
    with Stream(cache.folder, backend="petastorm", inMemory=in_memory) as stream:
        assert len(flat(serve(stream, "train", batchSize=16))) == stream.rows("train")
    file = cache.folder / cache.splits["train"][5][0]["path"]  # a single path that is a folder would be opened as one
    file.unlink()
    file.mkdir()
    pq.write_metadata(schema, file / "_common_metadata")
    cache.splits["train"][5][0]["bytes"] = file.stat().st_size
    cache.save()
    with (
        Stream(cache.folder, backend="petastorm", inMemory=in_memory) as stream,
        pytest.raises(DamagedCacheError, match="no such file"),
    ):
        list(serve(stream, "train", batchSize=16))
    assert not marker.exists()


# ---- weights and steps


@given(st.lists(st.floats(2.0**-200, 1.0), min_size=1), st.integers(-800, 1000))
def test_weights_are_divided_exactly(shares: list[float], exponent: int) -> None:
    """Whatever the unit, the same weights come out bit for bit; beside them what is next to nothing counts nowhere."""
    weights = torch.from_numpy(np.ldexp([*shares, 2.0**-260, 0.0], exponent))
    assert scaled_weights(weights, exponent).tolist() == [*shares, 0.0, 0.0]


def test_weights_that_doubles_hardly_hold_are_divided() -> None:
    tiny = torch.tensor([5e-324, 1e-320, 1e-310], dtype=torch.float64)
    found = scaled_weights(tiny, int(np.frexp(1e-310)[1]))
    assert bool(((found > 0) & (found <= 1)).all())
    assert torch.equal(found / found[0], torch.tensor([1.0, 2024.0, 1e-310 / 5e-324], dtype=torch.float64))


def test_bounds_of_some_steps_are_those_of_all() -> None:
    every = step_bounds([7, 100, 3], 9)
    assert (step_bounds([7, 100, 3], 9, 4, 6) == every[:, 4:7]).all()
