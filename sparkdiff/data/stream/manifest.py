"""The manifest of a cache: its files, their content, and a check that they are unchanged."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.errors import InputError, SparkdiffError, did_you_mean
from sparkdiff.tensors.rows import SparseRows

FORMAT = 1
Batch = dict[str, Tensor | SparseRows]
_NUMPY = {torch.float64: np.float64, torch.float32: np.float32, torch.int64: np.int64, torch.bool: np.bool_}
_DTYPES = {"float64": torch.float64, "float32": torch.float32, "int64": torch.int64, "bool": torch.bool}
_PATH = re.compile(
    r"[\w=-][\w.=-]*(/[\w=-][\w.=-]*)*", re.ASCII
)  # no part starts with a dot: nothing leaves the folder


class DamagedCacheError(SparkdiffError):
    """A damaged cache: a file is missing or differs from the manifest."""

    def __init__(self, folder: Path, name: str, problem: object):
        super().__init__(
            f"{folder / name}: {problem}. The cache is damaged; delete {folder} and run again to rebuild it."
        )


@dataclass(frozen=True)
class BatchColumn:
    """One column of a batch: `name` in the files and in the batch, `column` in Spark."""

    name: str
    column: str
    kind: str  # "scalar" (n,), "dense" (n, width), "sparse" (n rows of width)
    width: int
    dtype: torch.dtype
    values: tuple[Any, ...] = ()  # of a column of codes (a guardCol's): the values of the codes 0, 1, ...; null is None

    @staticmethod
    def of(entry: Mapping[str, Any]) -> "BatchColumn":
        """The column that this entry of a manifest describes."""
        dtype = _DTYPES[entry.get("dtype", "float64")]
        values = tuple(entry.get("values", ()))
        return BatchColumn(entry["name"], entry["column"], entry["kind"], entry["width"], dtype, values)

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the Parquet columns that hold this column."""
        return (f"{self.name}_i", f"{self.name}_v") if self.kind == "sparse" else (self.name,)

    @property
    def row_bytes(self) -> int:
        """Bytes per row in memory while rows are gathered. For sparse rows it is a guess: 64 entries, times 3 for the
        memory that copying them takes.
        """
        return self.dtype.itemsize * self.width if self.kind != "sparse" else 64 * 3 * (8 + self.dtype.itemsize)

    def empty(self, rows: int) -> Tensor | SparseRows:
        """Uninitialized memory for `rows` rows of this column; sparse rows have no entries."""
        if self.kind == "sparse":
            none, offsets = torch.empty(0, dtype=torch.int64), torch.zeros(rows + 1, dtype=torch.int64)
            return SparseRows(none, torch.empty(0, dtype=self.dtype), offsets, self.width)
        shape = (rows, self.width) if self.kind == "dense" else (rows,)
        return torch.from_numpy(np.empty(shape, _NUMPY[self.dtype]))  # numpy requests huge pages: fewer pages to clear

    def problem(self, x: Tensor | SparseRows, rows: int) -> str:
        """The reason why `x` cannot be this column of a file with that many rows; empty if it can."""
        data, wanted = x.values if isinstance(x, SparseRows) else x, self.empty(0)
        if len(x) != rows:
            return f"{len(x)} rows in column {self.name!r}, the manifest says {rows}"
        if data.dtype != self.dtype:
            return f"{data.dtype} in column {self.name!r}, the manifest says {self.dtype}"
        if isinstance(wanted, Tensor) and data.shape[1:] != wanted.shape[1:]:
            return f"lists of {tuple(data.shape[1:])} entries in column {self.name!r}, the manifest says {self.width}"
        return ""


@dataclass(frozen=True)
class CachedFile:
    """One Parquet file."""

    path: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of a cache folder: the pieces of every virtual shard of every split."""

    folder: Path
    fingerprint: str
    virtualShards: int
    columns: tuple[BatchColumn, ...]
    splits: dict[str, tuple[tuple[CachedFile, ...], ...]]
    weights: Mapping[str, int] = field(default_factory=dict)  # by split: column `weight` is to be divided by 2 ** this

    @staticmethod
    def load(folder: Path) -> "Manifest":
        folder = Path(folder).resolve()
        try:
            data = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"format {data['format']!r}, this version reads {FORMAT}")
            columns = tuple(map(BatchColumn.of, data["columns"]))
            splits = {
                name: tuple(
                    tuple(CachedFile(p["path"], p["rows"], p["bytes"], p["sha256"]) for p in shard) for shard in shards
                )
                for name, shards in data["splits"].items()
            }
            weights = {str(split): int(exponent) for split, exponent in data.get("weights", {}).items()}
            return Manifest(folder, data["fingerprint"], data["virtualShards"], columns, splits, weights)
        except (FileNotFoundError, IsADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedCacheError(folder, "manifest.json", f"{type(error).__name__}: {error}") from error

    def __post_init__(self) -> None:
        names = [field for column in self.columns for field in column.fields]
        if len(set(names)) != len(names) or not all(name.isidentifier() for name in names):
            raise ValueError(f"column names must be distinct identifiers, got {names}")
        if wrong := [c.name for c in self.columns if c.kind not in ("scalar", "dense", "sparse")]:
            raise ValueError(f"columns {wrong} have an unknown kind")
        for split, shards in self.splits.items():
            if len(shards) != self.virtualShards:
                raise ValueError(f"split {split!r} has {len(shards)} virtual shards, not {self.virtualShards}")
            if unsafe := [piece.path for shard in shards for piece in shard if not _PATH.fullmatch(piece.path)]:
                raise ValueError(f"{unsafe[0]!r} is not a plain path inside the cache")

    @property
    def pieces(self) -> dict[str, CachedFile]:
        """Every file of the splits by its path; a file may be in several splits."""
        return {piece.path: piece for shards in self.splits.values() for shard in shards for piece in shard}

    @property
    def slices(self) -> dict[str, BatchColumn]:
        """The cached columns of slice codes, (n,) int64 in a batch, by the column of `guardCols` that they encode."""
        return {column.column: column for column in self.columns if column.values}

    @property
    def all_train(self) -> bool:
        """True if no row is held out: then the split `validation` holds the training rows."""
        return "validation" in self.splits and self.splits["validation"] == self.splits.get("train")

    def shards(self, split: str) -> list[list[CachedFile]]:
        """The files with rows of each virtual shard of a split.

        Raises:
            InputError: there is no such split.
        """
        if split not in self.splits:
            raise InputError(f"The cache has no split {split!r}. {did_you_mean(split, self.splits)}")
        return [[piece for piece in shard if piece.rows] for shard in self.splits[split]]

    def empty_batch(self) -> Batch:
        """A batch of no rows."""
        return {column.name: column.empty(0) for column in self.columns}

    def file(self, piece: CachedFile) -> Path:
        """Path of a piece's file. Raises DamagedCacheError if it lies outside the folder, has another size than in the
        manifest, or is no file (Petastorm would unpickle a file in a folder).
        """
        path = self.folder / piece.path
        if not path.resolve().is_relative_to(self.folder):
            raise DamagedCacheError(self.folder, piece.path, "the file lies outside the cache folder")
        if not path.is_file():
            raise DamagedCacheError(self.folder, piece.path, "there is no such file")
        if (size := path.stat().st_size) != piece.bytes:
            raise DamagedCacheError(self.folder, piece.path, f"{size} bytes, the manifest says {piece.bytes}")
        return path

    def check(self) -> None:
        """Compare every file with its size and hash in the manifest.

        Raises:
            DamagedCacheError: a file is missing or changed.
        """
        pieces = self.pieces.values()
        paths = [self.file(piece) for piece in pieces]  # sizes first: they cost nothing
        for piece, path in zip(pieces, paths, strict=True):
            if sha256_of(path) != piece.sha256:
                raise DamagedCacheError(self.folder, piece.path, "its content differs from what was written (sha256)")


def sha256_of(path: Path) -> str:
    """The hash of a file."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
