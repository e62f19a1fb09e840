"""A cache of chance as Spark would have written it, made with pyarrow, and the back ends that can read it here."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkdiff.data.stream import petastorm

HAS_PETASTORM = not petastorm.refusal(Path("/"), ())
needs_petastorm = pytest.mark.skipif(not HAS_PETASTORM, reason="Petastorm is not usable here")
BACKENDS = [pytest.param("petastorm", marks=needs_petastorm), "arrow"]
WIDTH, SPARSE_WIDTH = 3, 50
TRAIN = [[40, 30, 25, 17, 9], [61], [], [7], [50, 50], [33, 0, 12], [1], [20]]  # rows of a shard's pieces
SPLITS = {"train": TRAIN, "validation": [[], [2], [], [], [1], [], [], []], "test": [[] for _ in range(8)]}
Entries = Callable[[np.random.Generator, int, int], Any]
"""Draws the entries of a file's sparse rows, of which there are so many; the files are numbered."""


def numbers(random: np.random.Generator, size: int, file: int) -> Any:
    return random.normal(size=size)


class Cache:
    """A cache folder and what is in it. `block` numbers the rows of all splits in the order of the files."""

    def __init__(
        self, folder: Path, *, sparse: bool = False, splits: dict[str, Any] = SPLITS, entries: Entries | None = None
    ):
        self.folder, self.entries = folder, entries or numbers
        self.columns: list[dict[str, Any]] = [
            {"name": "c0", "column": "features", "kind": "dense", "width": WIDTH},
            {"name": "c1", "column": "hr index", "kind": "scalar", "width": 1},
            {"name": "label", "column": "label", "kind": "scalar", "width": 1},
            {"name": "block", "column": "block", "kind": "scalar", "width": 1, "dtype": "int64"},
        ]
        if sparse:
            self.columns.append({"name": "c2", "column": "text", "kind": "sparse", "width": SPARSE_WIDTH})
        self.random = np.random.default_rng(7)
        self.tables: list[pa.Table] = []
        self.splits = {
            name: [
                [self.write(f"{name}/shard-{v:03}-{i:03}.parquet", self.table(rows)) for i, rows in enumerate(shard)]
                for v, shard in enumerate(shards)
            ]
            for name, shards in splits.items()
        }
        self.save()

    def table(self, rows: int) -> pa.Table:
        first = sum(map(len, self.tables))
        dense = self.random.normal(size=rows * WIDTH)
        scalar = [None if i % 11 == 3 else i / 7 for i in range(first, first + rows)]
        lengths = self.random.integers(0, 6, rows)
        offsets = pa.array(np.concatenate([[0], lengths.cumsum()]), pa.int32())
        indices = [np.sort(self.random.choice(SPARSE_WIDTH, n, replace=False)) for n in lengths]
        table = pa.table(
            {
                "c0": pa.ListArray.from_arrays(np.arange(0, rows * WIDTH + 1, WIDTH, dtype=np.int32), dense),
                "c1": pa.array(scalar, pa.float64()),
                "label": self.random.normal(size=rows),
                "block": np.arange(first, first + rows),
                "c2_i": pa.ListArray.from_arrays(offsets, pa.array(np.concatenate([[], *indices]), pa.int32())),
                "c2_v": pa.ListArray.from_arrays(offsets, self.entries(self.random, lengths.sum(), len(self.tables))),
            }
        )
        fields = [field for c in self.columns for field in ([c["name"]] if c["kind"] != "sparse" else ["c2_i", "c2_v"])]
        self.tables.append(table.select(fields))
        return self.tables[-1]

    def write(self, path: str, table: pa.Table, **options: Any) -> dict[str, Any]:
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, file, **options)
        data = file.read_bytes()
        return {"path": path, "rows": len(table), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    def rewrite(self, change: Callable[[pa.Table], pa.Table], **options: Any) -> str:
        """Replaces one file of the training split; the manifest goes with it except for the number of rows."""
        piece = self.splits["train"][0][1]
        table = change(pq.read_table(self.folder / piece["path"], partitioning=None))
        piece.update(self.write(piece["path"], table, **options) | {"rows": piece["rows"]})
        self.save()
        return str(piece["path"])

    def save(self) -> None:
        self.folder.mkdir(exist_ok=True)
        manifest = {"format": 1, "fingerprint": "f", "virtualShards": 8, "columns": self.columns, "splits": self.splits}
        (self.folder / "manifest.json").write_text(json.dumps(manifest))

    def blocks(self, split: str) -> list[list[int]]:
        """The row numbers of every virtual shard of a split, in the order of the files."""
        numbers = iter(range(10**6))
        return {
            name: [[next(numbers) for piece in shard for _ in range(piece["rows"])] for shard in shards]
            for name, shards in self.splits.items()
        }[split]
