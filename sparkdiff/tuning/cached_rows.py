"""The rows that reach a linear last stage: written once, read from files or memory, and checked in a first pass."""

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pyarrow.parquet as pq
import torch
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, functions as F
from pyspark.sql.types import NumericType, StructType
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.stages.inputs import values_of
from sparkdiff.tensors.rows import SparseRows, dense, extremes, rows_at, width
from sparkdiff.tuning.evaluator_metrics import Judge
from sparkdiff.tuning.solvers import Chunk, RowsInMemory, Setting, gather
from sparkdiff.tuning.solvers.families import FAMILIES

MEMORY = 2**30
"""Largest number of bytes that rows may take in memory, in any form."""
HELD = 2**29
"""Largest number of bytes of rows that stay in memory once read; larger sets are read again in each pass."""
KEPT = 3
"""Largest number of sets of written rows whose files are kept for later settings of a search."""
PIECE = 2**25
"""Bytes of features in one piece of a pass."""
NARROW = 512
"""Number of columns up to which sparse rows are always made dense."""
NEAR = 1e-4
"""Least share of a column's range that every fold's training rows must span for solutions to be right to ten digits."""

Parts = Sequence[tuple[DataFrame, Column]]
"""Sets of rows, each with a column that names the fold for which a row is held out; -1 for a row of no fold."""


@dataclass(frozen=True)
class InputColumns:
    """The columns of the rows that a fit and its evaluator read; "" for a column that isn't used."""

    features: str
    label: str
    weight: str
    offset: str


@dataclass(frozen=True)
class RowsPiece(RowsInMemory):
    """Some of the rows: the columns that the fit reads, the fold that holds a row out (-1 for none), and the label and
    weight that the evaluator reads (`own_label`, `own_weight`).
    """

    offset: Tensor | None
    own_label: Tensor
    own_weight: Tensor

    def chunks(self, rows: int) -> Iterator[Chunk]:
        """Chunks of at most `rows` dense rows; kept small because sparse rows take far more memory when made dense."""
        for first in range(0, len(self.label), rows):
            part = slice(first, first + rows)
            x = self.x[part] if isinstance(self.x, Tensor) else rows_at(self.x, torch.arange(len(self.label))[part])
            offset = None if self.offset is None else self.offset[part]
            yield Chunk(dense(x), self.label[part], self.weight[part], offset, self.fold[part])


@dataclass
class CachedRows:
    """The rows that reach a last stage, in files."""

    folder: Path
    offset: bool
    held: list[RowsPiece] | None = None

    def __post_init__(self) -> None:
        files = [pq.read_metadata(path) for path in sorted(self.folder.glob("part-*.parquet"))]
        self.count = sum(file.num_rows for file in files)
        groups = [file.row_group(i) for file in files for i in range(file.num_row_groups)]
        columns = [group.column(i) for group in groups for i in range(group.num_columns)]
        self.stored = sum(c.num_values for c in columns if c.path_in_schema.startswith("v0.values."))
        """Number of feature values that the files hold."""

    @functools.cached_property
    def width(self) -> int:
        """Number of features, taken from the first row whose vector isn't null; 0 if there is none."""
        return next(filter(None, (width(found["v0"]) for found in read_plain(self.folder, 64))), 0)

    @property
    def sparse(self) -> bool:
        """True if rows are wide and most of their numbers are zeros that aren't stored."""
        return self.width > NARROW and 4 * self.stored < self.count * self.width

    @property
    def size(self) -> int:
        """Bytes of all rows in memory."""
        return 16 * self.stored if self.sparse else 8 * self.count * (self.width + 6)

    @property
    def fits(self) -> bool:
        """True if memory suffices for the solver of wide rows, which holds them by rows and by columns, each with a
        temporary copy.
        """
        return (64 * self.stored if self.sparse else 16 * self.count * self.width) <= MEMORY

    def whole(self) -> RowsInMemory:
        return gather(self.pieces())

    def pieces(self) -> Iterator[RowsPiece]:
        if self.held is None and self.size <= HELD:
            self.held = [*self._read()]
        yield from self._read() if self.held is None else self.held

    def chunks(self) -> Iterator[Chunk]:
        for piece in self.pieces():
            yield from piece.chunks(max(1, PIECE // (8 * max(self.width, 1))))

    def _read(self) -> Iterator[RowsPiece]:
        """Read the pieces from the files.

        Raises:
            InputError: vectors have different widths.
        """
        each = 8 * (self.stored // max(self.count, 1) + 1 if self.sparse else max(self.width, 1))
        for found in read_plain(self.folder, max(1, PIECE // each)):
            x, label, weight, fold, own_label, own_weight, offset = (found[f"v{i}"] for i in range(7))
            if width(x) != self.width:
                if width(x):
                    raise InputError(f"a vector column holds vectors of {self.width} and of {width(x)} entries")
                x = torch.full((len(x), self.width), torch.nan, dtype=torch.float64)  # all of them null
            if not self.sparse:
                x = dense(x)
            shift = dense(offset) if self.offset else None
            yield RowsPiece(
                x,
                dense(label),
                dense(weight),
                dense(fold).nan_to_num(-1).long(),
                shift,
                dense(own_label),
                dense(own_weight),
            )


def write_rows(parts: Parts, reads: InputColumns, judge: Judge | None, folder: Path) -> CachedRows:
    """Write to `folder`, with one Spark job, the columns that the fit and the evaluator read, and each row's fold."""
    one = F.lit(1.0)

    def plain(rows: DataFrame, fold: Column) -> DataFrame:
        return rows.select(
            col_by_name(reads.features).alias("x"),
            col_by_name(reads.label).cast("double").alias("label"),
            (col_by_name(reads.weight).cast("double") if reads.weight else one).alias("weight"),
            fold.cast("double").alias("fold"),
            (col_by_name(judge.label).cast("double") if judge else one).alias("own_label"),
            (col_by_name(judge.weight).cast("double") if judge and judge.weight else one).alias("own_weight"),
            (col_by_name(reads.offset).cast("double") if reads.offset else F.lit(0.0)).alias("offset"),
        )

    rows = functools.reduce(DataFrame.union, [plain(*part) for part in parts])
    write_plain(rows, rows.columns, folder)
    return CachedRows(folder, bool(reads.offset))


@dataclass
class RowsStore:
    """Written rows whose files are kept for the next settings of a search over the same rows.

    Attributes:
        caches: the written rows. A key consists of the steps that produced the rows and the columns that were written.
    """

    folder: Path
    caches: dict[Any, CachedRows]

    def once(self, key: Any, write: Callable[[Path], CachedRows]) -> CachedRows:
        """Return the rows of this key. If they don't exist, call `write`; with `KEPT` sets already, first delete the oldest."""
        if key not in self.caches:
            while len(self.caches) >= KEPT:
                shutil.rmtree(self.caches.pop(next(iter(self.caches))).folder)
            self.caches[key] = write(Path(mkdtemp(prefix="kept-", dir=self.folder)) / "rows")
        return self.caches[key]


def cannot_read(schema: StructType, reads: InputColumns, outputs: Sequence[str] = ()) -> str:
    """The reason why rows of this schema must be left to Spark, such as an output column that exists; empty if none."""
    fields = {field.name: field.dataType for field in schema.fields}
    if taken := [name for name in outputs if name in fields]:
        return f"{taken[0]} is there already, so Spark decides what to do with it"
    if not isinstance(fields.get(reads.features), VectorUDT):
        return f"{reads.features} is no column of vectors, so Spark decides what to do with it"
    for name in (reads.label, reads.weight, reads.offset):
        if name and not isinstance(fields.get(name), NumericType):
            return f"{name} is no column of numbers, so Spark decides what to do with it"
    return ""


# Metadata -------------------------------------------------------------------------------------------------------------


def classes_told(schema: StructType, label: str) -> int | None:
    """The number of classes according to the label column's metadata; None if the metadata don't name it."""
    told = (schema[label].metadata or {}).get("ml_attr", {})
    if told.get("type") == "binary":
        return 2
    return values_of(told) or None


# A first pass ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RowFindings:
    """Findings of a first pass: a problem that leaves the rows to Spark ("" for none), and the number of classes."""

    problem: str
    classes: int = 0


def look(
    cache: CachedRows, kind: str, settings: Sequence[Setting], folds: int, known_classes: int | None
) -> RowFindings:
    """Check the rows, in one or more passes, for anything that Spark refuses or treats specially."""
    try:
        return _look(cache, kind, settings, folds, known_classes)
    except InputError as e:  # vectors of different widths
        return RowFindings(f"{e}, so Spark decides what to do")


def _look(
    cache: CachedRows, kind: str, settings: Sequence[Setting], folds: int, known_classes: int | None
) -> RowFindings:
    if not cache.count:
        return RowFindings("there are no rows")
    tops, lowest, whole, held = -1.0, math.inf, True, torch.zeros(folds + 1, dtype=torch.long)
    for p in cache.pieces():
        x = p.x.values if isinstance(p.x, SparseRows) else p.x
        parts = [x, p.label, p.weight, *([p.offset] if p.offset is not None else [])]
        if not all(bool(part.isfinite().all()) for part in parts) or bool((p.weight < 0).any()):
            return RowFindings(
                "rows hold nulls, numbers that aren't finite or negative weights, so Spark decides what to do"
            )
        tops, lowest = max(tops, float(p.label.max())), min(lowest, float(p.label.min()))
        whole = whole and bool((p.label == p.label.floor()).all())
        held += torch.bincount(p.fold + 1, minlength=folds + 1)
    if bool((held[1:] == 0).any()) or bool((held.sum() - held[1:] == 0).any()):
        return RowFindings("a fold has no rows")
    if far := _far(cache, folds, labels=kind != "LogisticRegression"):
        return RowFindings(far)
    if kind == "GeneralizedLinearRegression":
        allowed = all(FAMILIES[setting.family].labels(lowest, tops) for setting in settings)
        return RowFindings("" if allowed else "labels lie outside the family's range")
    if kind != "LogisticRegression":
        return RowFindings("")
    if not whole or lowest < 0 or tops > 1000:
        return RowFindings("labels are no classes")
    if known_classes is not None and tops >= known_classes:
        return RowFindings(
            f"the label's metadata name {known_classes} classes, but there is a label {tops:g}: Spark decides"
        )
    classes = known_classes or int(tops) + 1
    counts = torch.zeros(folds + 1, classes)
    for p in cache.pieces():
        counts.index_put_((p.fold + 1, p.label.long()), (p.weight > 0).to(counts.dtype), accumulate=True)
    if classes < 2 or bool((counts.sum(0) - counts[1:] == 0).any()):
        return RowFindings("a class is missing where a fold trains")
    return RowFindings("", classes)


def _far(cache: CachedRows, folds: int, *, labels: bool) -> str:
    """The reason why sums that all folds share are too inexact for one of them: a number in the fold's held-out rows is
    far from all other numbers; else "".

    All folds share one centre and one scale per column; the large contribution of such a number to the shared sums
    hides the digits of the other numbers.
    """
    low = torch.full((folds + 1, cache.width + 1), math.inf, dtype=torch.float64)
    high = -low
    for p in cache.pieces():
        for group in (p.fold + 1).unique().tolist():
            rows = p.fold + 1 == group
            y = p.label[rows] if labels else p.label.new_zeros(1)
            least, most = extremes(rows_at(p.x, rows.nonzero()[:, 0]))
            low[group] = torch.minimum(low[group], torch.cat([least, y.amin()[None]]))
            high[group] = torch.maximum(high[group], torch.cat([most, y.amax()[None]]))
    whole = high.amax(0) - low.amin(0)
    for fold in range(folds):
        others = [group for group in range(folds + 1) if group != fold + 1]
        own = high[others].amax(0) - low[others].amin(0)
        if len(far := ((own > 0) & (own < NEAR * whole)).nonzero()):
            j = int(far[0])
            what = "the label" if j == cache.width else f"entry {j} of the features"
            return f"{what} reaches {1 / NEAR:g} times as far in the rows that fold {fold} holds out as in all others"
    return ""
