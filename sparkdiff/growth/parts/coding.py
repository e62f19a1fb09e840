"""Codings: one-hot encodings of single columns, as index tensors and as plain MLlib stages.

A number is bucketized at quantiles of the training rows; if it has few distinct values, each value has its own bucket. A category
already is an index. The last entry of a one-hot block stands for rows without a value, and for values of a category that are not
among its levels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from pyspark.ml.feature import Bucketizer, OneHotEncoder, VectorAssembler
from pyspark.ml.regression import IsotonicRegression, LinearRegression
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth import cost_table
from sparkdiff.growth.part import PipelinePlace
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.jvm import mllib
from sparkdiff.tensors.rows import Rows, product, width

FEW, ROWS = 32, 100
"""Largest number of distinct values that get a bucket each although they are more than `bins`, and the average number of rows per
value that this requires."""
MOST_LEVELS = 1_000_000
"""Largest number of levels of a column of indices whose number of levels is unknown; with more, the column is ignored."""
MOST_EDGES = 10_000
"""Largest number of levels of a category in which rows may lack a value; with more, the category is ignored."""


@dataclass(frozen=True)
class Coding:
    """Encoding of a column as a one-hot block of `size` + 1 entries.

    Attributes:
        place: position of the column in `Split.values`.
        edges: ascending bucket edges of a number, or of a category with gaps. Bucket j holds the values from edges[j - 1] up to,
            but not including, edges[j]. Empty for other columns.
        size: number of buckets or levels.
        labels: readable names of the entries, (size + 1,).
        gaps: True if rows may lack a value.
    """

    column: Column
    place: int
    edges: tuple[float, ...]
    size: int
    labels: tuple[str, ...]
    gaps: bool

    @property
    def width(self) -> int:
        return self.size + 1

    @property
    def is_number(self) -> bool:
        return not (self.column.levels or self.column.indexes)

    @property
    def indirect(self) -> bool:
        """True if stages read the column through a vector, see `one_hot`."""
        return self.gaps or self.column.boolean

    def index(self, split: Split) -> Tensor:
        """Index of the entry that is 1, (n,) int64."""
        return self.entry(split.values[:, self.place])

    def entry(self, x: Tensor) -> Tensor:
        """Index of the entry that is 1 for each value of the column (m,)."""
        if self.edges:
            found = torch.searchsorted(x.new_tensor(self.edges), x.contiguous(), right=True)
            return torch.where(x.isnan(), self.size, found)
        return torch.where((x >= 0) & (x < self.size), x, float(self.size)).long()


def coding(table: Table, place: int, bins: int) -> Coding | None:
    """Coding of a column; None if it has fewer than two finite values that differ, or can't be coded.

    A number gets at most `bins` buckets, or one for each of its values if these are few (`FEW`). A category with gaps (rows may
    lack a value) is bucketized, too, because the stage that turns null into NaN marks the column as a number, which OneHotEncoder
    rejects. Two kinds of columns can't be coded: indices with an unknown number of levels that aren't all whole numbers from 0 to
    `MOST_LEVELS` - 1, and categories with gaps and more than `MOST_EDGES` levels.
    """
    column = table.columns[place]
    values = table.train.values[:, place].numpy()
    known = values[np.isfinite(values)]
    held = (table.train.values[:, place], table.validation.values[:, place])
    gaps = column.gaps or any(bool(values.isnan().any()) for values in held)
    if not len(known) or known.min() == known.max():
        return None
    distinct = np.unique(known)
    if column.levels or column.indexes:
        whole = distinct[0] >= 0 and distinct[-1] < MOST_LEVELS and bool((distinct == np.floor(distinct)).all())
        if not column.levels and not whole:
            return None
        levels = column.levels or int(distinct[-1]) + 1
        labels = _levels(column, levels)
        if not gaps:
            return Coding(column, place, (), levels, labels, gaps)
        if levels > MOST_EDGES:
            return None
        edges = tuple(i - 0.5 for i in range(1, levels + 1))
        return Coding(column, place, edges, levels + 1, (*labels, "missing"), gaps)
    if len(distinct) <= max(bins, min(FEW, len(known) // ROWS)):
        cuts, labels = _between(distinct), tuple(f"{value:g}" for value in distinct)
    else:
        cuts = knots(known, bins) or _between(distinct)[:1]  # if nearly all rows have the smallest value
        ends = ["-inf", *(f"{edge:.4g}" for edge in cuts), "inf"]
        labels = tuple(f"[{low}, {high})" for low, high in pairwise(ends))
    return Coding(column, place, tuple(cuts), len(cuts) + 1, (*labels, "missing"), gaps)


def coding_of(table: Table, place: int, bins: int) -> Coding:
    """Coding of a column that can be coded, see `coding`."""
    found = coding(table, place, bins)
    assert found is not None
    return found


def codings(table: Table, bins: int) -> list[Coding]:
    """Codings of all columns that can be coded, see `coding`."""
    found = (coding(table, place, bins) for place in range(len(table.columns)))
    return [c for c in found if c is not None]


def knots(known: np.ndarray[Any, Any], bins: int) -> list[float]:
    """Quantiles that divide the values into at most `bins` groups; the smallest value is not among them.

    A quantile of zero becomes -0.0, which Spark's Bucketizer orders below 0.0, so that both zeros fall into the upper bucket.
    """
    quantiles = np.unique(np.quantile(known, np.arange(1, bins) / bins))
    return [float(q) or -0.0 for q in quantiles if q > known.min()]


def _between(distinct: np.ndarray[Any, Any]) -> list[float]:
    """Midpoints of neighbouring values; the upper value if no number lies between the two."""
    middle = distinct[:-1] + np.diff(distinct) / 2
    edges = np.where(middle > distinct[:-1], middle, distinct[1:])
    return [float(edge) or -0.0 for edge in edges]


def _levels(column: Column, levels: int) -> tuple[str, ...]:
    named = column.labels[:levels]
    return (*named, *(str(i) for i in range(len(named), levels)), "other")


def one_hot(coded: Sequence[Coding], place: PipelinePlace) -> tuple[list[Any], Mapping[Coding, str]]:
    """Plain MLlib stages that make the one-hot block of each coding, and the column of each block.

    In columns with gaps, null is first turned into NaN: VectorAssembler puts the column into a vector, which a linear model with
    coefficient 1 reads. Without this, Bucketizer and OneHotEncoder would pass null on, and no later stage accepts null. Booleans
    are treated in the same way, because Bucketizer and OneHotEncoder don't accept them.

    Args:
        coded: distinct codings.
    """
    stages, read = list[Any](), list[str]()
    for i, c in enumerate(coded):
        column, new = as_number(c, place, f"known{i}") if c.indirect else (c.column.column, [])
        stages += new
        read.append(column)
    cut = [i for i, c in enumerate(coded) if c.edges]
    if cut:
        binned = [place.name(f"bin{i}") for i in cut]
        splits = [[-math.inf, *coded[i].edges, math.inf] for i in cut]
        bins = Bucketizer(splitsArray=splits, inputCols=[read[i] for i in cut], outputCols=binned, handleInvalid="keep")
        stages.append(jvm.set_uid(bins, place.name("bins")))
        for i, column in zip(cut, binned, strict=True):
            read[i] = column
    blocks = {c: place.name(f"block{i}") for i, c in enumerate(coded)}
    encoder = OneHotEncoder(inputCols=read, outputCols=[*blocks.values()], handleInvalid="keep", dropLast=False)
    sizes = [c.size for c in coded]
    return [
        *stages,
        jvm.model_with_weights(jvm.set_uid(encoder, place.name("blocks")), {"categorySizes": sizes}),
    ], blocks


def steps(coded: Sequence[Coding]) -> list[tuple[str, float]]:
    """The stages that `one_hot` adds, as (class, number of entries) of the cost table."""
    cut = sum(bool(c.edges) for c in coded)
    numbers = [("VectorAssembler", 1.0), ("LinearRegressionModel", 1.0)] * sum(c.indirect for c in coded)
    return [*numbers, *([("Bucketizer", float(cut))] if cut else []), ("OneHotEncoderModel", float(len(coded)))]


def as_number(c: Coding, place: PipelinePlace, name: str) -> tuple[str, list[Any]]:
    """Name of a new column with NaN in place of null, and 0 and 1 in place of false and true; and the stages that make it."""
    vector, known = place.name(f"{name}_vector"), place.name(name)
    return known, [assembler([c.column.column], vector), _linear_model(vector, known, np.ones(1))]


def assembler(columns: Sequence[str], name: str) -> Any:
    """A VectorAssembler that keeps NaN; `name` is its uid and its output column."""
    return jvm.set_uid(VectorAssembler(inputCols=list(columns), outputCol=name, handleInvalid="keep"), name)


def _linear_model(features: str, name: str, coefficients: np.ndarray[Any, Any]) -> Any:
    """A LinearRegressionModel without an intercept; `name` is its uid and its output column."""
    estimator = jvm.set_uid(LinearRegression(featuresCol=features, predictionCol=name), name)
    return jvm.model_with_weights(estimator, {"coefficients": coefficients, "intercept": 0.0, "scale": 1.0})


def are_finite(features: Rows) -> Tensor:
    """True for each row of the features (n, d) whose numbers are all finite, (n,). Computed as a product, as 0 * inf is NaN."""
    return product(features, torch.zeros(width(features), dtype=torch.float64)).isfinite()


def gate(place: PipelinePlace) -> tuple[str, list[Any]]:
    """Name of a new column that switches off products with it in rows with infinite or NaN features, and the stages that make it.

    The column holds vectors of one entry: 1, or no stored entry in these rows. A product then adds nothing to the margin.
    Otherwise infinity in the margin plus infinity from the part could become NaN.

    The stages: a linear model turns such features into NaN, IsotonicRegression turns NaN into its largest value, Bucketizer puts
    this value into the last bucket, and OneHotEncoder writes no entry for the last bucket.
    """
    zero, past, bucket, column = (place.name(f"finite{what}") for what in ("_sum", "_not", "_bucket", ""))
    curve = jvm.set_uid(IsotonicRegression(featuresCol=zero, predictionCol=past), past)
    bins = Bucketizer(splits=[-math.inf, 0.5, math.inf], inputCol=past, outputCol=bucket)
    encoder = jvm.set_uid(OneHotEncoder(inputCols=[bucket], outputCols=[column]), column)
    return column, [
        _linear_model(place.features, zero, np.zeros(place.width)),
        mllib.fitted_isotonic(curve, np.array([0.0, 1.0]), np.array([0.0, 1.0]), True),
        jvm.set_uid(bins, bucket),
        jvm.model_with_weights(encoder, {"categorySizes": [2]}),
    ]


def gate_steps(features: float) -> list[tuple[str, float]]:
    """The stages that `gate` adds, as (class, number of entries) of the cost table."""
    return [
        ("LinearRegressionModel", features),
        ("IsotonicRegressionModel", cost_table.steps_among(2)),
        ("Bucketizer", 1.0),
        ("OneHotEncoderModel", 1.0),
    ]
