"""Cached rows as tensors: the features of the last linear stage, and the single columns that parts read."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows

LINE = 64
"""Bytes of a cache line, at whose multiples torch's own tensors begin."""


def aligned(tensor: Tensor) -> Tensor:
    """The same tensor, contiguous and aligned to a cache line; itself if it already is.

    The last bits of a product depend on the memory address: `matrix @ vector` differs if the matrix begins 8 bytes later.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % LINE == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Column:
    """A scalar column that parts may read.

    Attributes:
        name: its name in the data and in reports, such as "hr".
        column: the column that Spark's stages read, such as "hr_index"; the same as the name if the data have it as numbers.
        levels: the number of a category's values, which are 0 to levels - 1; 0 for a number. If the metadata of `column` have a
            number, that one (for a StringIndexer that keeps unknown values, one more than its labels): Spark's OneHotEncoder
            compares it.
        labels: the names of a category's values; empty if they aren't known.
        indexes: True if `column` holds indices of the values of another column of numbers or strings: their order means nothing.
        entity: True if it names a user, an item, a shop: something with its own effect.
        gaps: True if future rows may lack a value, even if none of these rows does: no stage of the pipeline refuses null in it.
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
        values: (n, c) the columns of the table; NaN if a row has no value.
        label, weight: (n,).
        block: (n,) int64, the guard's block of each row.
        margin: (n,), or (n, k) for k classes: the margin of the pipeline grown so far; at first, the original's.
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
        """The weighted mean over the rows, (n, ...) -> (...)."""
        return torch.tensordot(self.weight, of, dims=1) / self.weight.sum()


@dataclass(frozen=True)
class Table:
    """
    Attributes:
        features: the name of the column of vectors that the last linear stage reads.
        columns: the c scalar columns.
        classes: 0 if a row's margin is one number, else the number of its entries.
        most: the number of all training rows; `train` may be a sample of them.
        unknown: for each column, how many of all these rows have its last level: for an entity, that of rows without it.
    """

    features: str
    columns: tuple[Column, ...]
    train: Split
    validation: Split
    classes: int = 0
    most: int = 0
    unknown: tuple[int, ...] = ()

    @property
    def sampled(self) -> str:
        """Text with the number of training rows that the parts learn from; empty if it is all of them."""
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
