"""Cached rows as tensors: the features of the last linear stage, and the scalar columns that parts (added stages) may read."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows

LINE = 64
"""Size of a cache line in bytes. The addresses of torch's own tensors are multiples of it."""


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, contiguous and aligned to a cache line; the same object if it already is.

    Alignment makes results reproducible, because the last bits of a product depend on the memory address: `matrix @
    vector` differs if the matrix begins 8 bytes later.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % LINE == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Column:
    """A scalar column that parts may read.

    Attributes:
        name: the column's name in the data and in reports, such as "hr".
        column: the column that Spark's stages read, such as "hr_index"; equal to `name` if the data have the column as numbers.
        levels: the number of values of a category, which are 0 to levels - 1; 0 for a number. If the metadata of `column` name a
            number of values, it is this number, because Spark's OneHotEncoder checks it; for a StringIndexer that keeps unknown
            values, it is the number of labels plus one.
        labels: the names of a category's values; empty if they are unknown.
        indexes: True if `column` holds indices of the values of another column, so that the order of the numbers means nothing.
        entity: True if the column names users, items, shops or the like, each with an effect of its own.
        gaps: True if future rows may lack a value, even if none of the present rows does, because no stage refuses null in it.
        boolean: True for a boolean column of Spark, which stages for numbers don't accept.
    """

    name: str
    column: str
    levels: int = 0
    labels: tuple[str, ...] = ()
    indexes: bool = False
    entity: bool = False
    boolean: bool = False
    gaps: bool = False


@dataclass(frozen=True)
class Split:
    """The rows of one split.

    Attributes:
        features: (n, d), the features of the last linear stage.
        values: (n, c), the scalar columns of the table; NaN if a row has no value.
        label, weight: (n,).
        block: (n,) int64, index of the block of each row (a group of rows that the guard, the test on held-out rows, treats as
            one independent unit).
        margin: (n,), or (n, k) for k classes: the linear predictor of the pipeline grown so far; at first, of the original.
    """

    features: Rows
    values: Tensor
    label: Tensor
    weight: Tensor
    block: Tensor
    margin: Tensor

    def __len__(self) -> int:
        return len(self.label)

    def at(self, margin: Tensor) -> "Split":
        """The same rows with another margin."""
        return replace(self, margin=margin)

    def aligned(self) -> "Split":
        """The same rows with all tensors aligned to cache lines, see `aligned`."""
        x = self.features
        features = (
            SparseRows(aligned(x.indices), aligned(x.values), aligned(x.offsets), x.width)
            if isinstance(x, SparseRows)
            else aligned(x)
        )
        tensors = (self.values, self.label, self.weight, self.block, self.margin)
        return Split(features, *(aligned(tensor) for tensor in tensors))

    def mean(self, of: Tensor) -> Tensor:
        """Weighted mean of `of` over the rows, (n, ...) -> (...)."""
        return torch.tensordot(self.weight, of, dims=1) / self.weight.sum()


@dataclass(frozen=True)
class Table:
    """The training and validation rows from which parts learn.

    Attributes:
        features: name of the vector column that the last linear stage reads.
        columns: the c scalar columns that parts may read.
        classes: number of entries of a row's margin; 0 if the margin is one number.
        most: number of all training rows; `train` may be a sample of them.
        unknown: for each column, the number of all training rows that have its last level; for an entity, the last level stands
            for rows without the entity.
    """

    features: str
    columns: tuple[Column, ...]
    train: Split
    validation: Split
    classes: int = 0
    most: int = 0
    unknown: tuple[int, ...] = ()

    @property
    def sample_text(self) -> str:
        """Text with the size of the sample of training rows that parts learn from; empty if they learn from all rows."""
        return f"{len(self.train):,} of {self.most:,} training rows" if len(self.train) < self.most else ""

    @property
    def width(self) -> int:
        """The number of entries of a margin."""
        return max(self.classes, 1)

    def aligned(self) -> "Table":
        """The same rows with all tensors aligned to cache lines, see `aligned`."""
        return replace(self, train=self.train.aligned(), validation=self.validation.aligned())

    def at(self, train: Tensor, validation: Tensor) -> "Table":
        """The same rows with other margins."""
        return replace(self, train=self.train.at(train), validation=self.validation.at(validation))
