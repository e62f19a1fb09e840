"""The cached rows as tensors: the features of the last linear stage, and the single columns that parts are made of."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows

LINE = 64
"""Bytes of a line of memory, where torch's own tensors begin."""


def aligned(tensor: Tensor) -> Tensor:
    """The same tensor, contiguous and beginning with a line of memory; itself if it is so.

    The last bits of a product depend on where the numbers lie: `matrix @ vector` differs if the matrix begins 8 bytes later.
    """
    if tensor.is_contiguous() and tensor.data_ptr() % LINE == 0:
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)


@dataclass(frozen=True)
class Column:
    """A scalar column that parts may read.

    Attributes:
        name: as the data call it, and as reports show it, such as "hr".
        column: the column that Spark's stages read, such as "hr_index"; the same as the name where the data have it as numbers.
        levels: of a category, how many values it has, 0 to levels - 1; 0 for a number. As many as the metadata of `column` say,
            if they do (of a StringIndexer that keeps unknown values, one more than its labels): Spark's OneHotEncoder compares.
        labels: the names of a category's values; empty where nothing tells them.
        indexes: whether `column` numbers the values of another column of numbers or strings, so that the order means nothing.
        entity: whether it names a user, an item, a shop: something with an effect of its own.
        gaps: whether rows to come may lack a value, even if none of these rows does: no stage of the pipeline refuses null in it.
        boolean: whether Spark has it as true and false, which stages for numbers don't take.
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
        features: (n, d), what the last linear stage reads.
        values: (n, c) the columns of the table; NaN where a row has none.
        label, weight: (n,).
        block: (n,) int64, the guard's block of each row.
        margin: (n,), or (n, k) of k classes: the margin of what has been grown so far; at first, the original's.
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
        """The same rows with all tensors in whole lines of memory, see `aligned`."""
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
        columns: c of them.
        classes: 0 where a row's margin is a number, else how many numbers it is.
        most: the number of training rows that there are; `train` may be a sample of them.
        unknown: of each column, how many of all these have the last of its levels: an entity's is the one of rows without it.
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
        """Of how many training rows the parts learn; empty where it is all of them."""
        return f"{len(self.train):,} of {self.most:,} training rows" if len(self.train) < self.most else ""

    @property
    def width(self) -> int:
        """The number of entries of a margin."""
        return max(self.classes, 1)

    def aligned(self) -> "Table":
        """The same rows with all tensors in whole lines of memory, see `aligned`."""
        return replace(self, train=self.train.aligned(), validation=self.validation.aligned())

    def at(self, train: Tensor, validation: Tensor) -> "Table":
        """The same rows with other margins."""
        return replace(self, train=self.train.at(train), validation=self.validation.at(validation))
