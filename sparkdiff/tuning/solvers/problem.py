"""What a solver of linear models is given, and what it gives back: rows, settings with Spark's names, models as Spark's. Its rows
have columns of about mean 0 and deviation 1, in memory or read again for each pass.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from sparkdiff.tuning.solvers.moments import Moments


@dataclass(frozen=True)
class Chunk:
    """Some rows. Chunks are read in order, perhaps several times."""

    x: Tensor
    """The features: (n, d) float64."""
    label: Tensor
    """(n,) float64"""
    weight: Tensor
    """(n,) float64"""
    offset: Tensor | None
    """(n,) float64, of GeneralizedLinearRegression only; None: zero."""
    fold: Tensor
    """(n,) int64: the fold that the row is held out of; -1 for a row that every fold trains on."""


Chunks = Callable[[], Iterator[Chunk]]


@dataclass(frozen=True)
class Setting:
    """What a fit depends on, with Spark's names and defaults."""

    regParam: float = 0.0
    elasticNetParam: float = 0.0
    fitIntercept: bool = True
    standardization: bool = True
    solver: str = "auto"
    """LinearRegression's: auto, normal or l-bfgs. They differ in the standard deviations that they divide by."""
    loss: str = "squaredError"
    """LinearRegression's."""
    family: str = "auto"
    """LogisticRegression's (auto, binomial, multinomial), or GeneralizedLinearRegression's."""
    link: str | None = None
    """GeneralizedLinearRegression's; None: the family's canonical one."""
    bounded: bool = False
    """Whether a LogisticRegression has bounds on its coefficients or intercepts."""


@dataclass(frozen=True)
class RowFacts:
    """What is known of the rows before any fit."""

    columns: int
    classes: int = 0
    """LogisticRegression's number of classes, as Spark counts them; 0 elsewhere."""


@dataclass(frozen=True)
class Solution:
    """The model of one setting, fitted on all rows but one fold's, on the scale of the features, as Spark's model holds it."""

    coefficients: Tensor
    """(d,), or (classes, d) of a multinomial model."""
    intercept: Tensor
    """(), or (classes,) of a multinomial model; zero without an intercept."""
    objective: float
    """What Spark minimises, penalties included, at this model. For GeneralizedLinearRegression, whose iterations minimise no
    fixed function (but for gaussian with identity), the largest residual of their fixed point."""
    converged: bool
    """False: not to be used, Spark has to fit this one."""


Problem = TypeVar("Problem")

CACHE = 2**18
"""Numbers that fit into a processor's cache beside others."""


MATRICES = 2**29
"""Bytes for the matrices of problems that are solved together."""
SAMPLE = 2**28
"""Bytes for rows that are kept beside the others."""


def batches(problems: list[Problem], parameters: int) -> list[list[Problem]]:
    """As many at once as have room for a few matrices each."""
    size = max(int(MATRICES / (8 * 4 * parameters**2)), 1)
    return [problems[i : i + size] for i in range(0, len(problems), size)]


@dataclass(frozen=True)
class Block:
    z: Tensor
    """Columns moved and scaled, with a last column of ones for an intercept: (n, width)"""
    label: Tensor
    offset: Tensor
    own: Tensor
    """A row's weight for each fold, zero where the fold holds it out: (n, folds)"""

    def parts(self, size: int) -> Iterator["Block"]:
        """In parts of so many rows."""
        if len(self.z) <= size:
            yield self
            return
        for part in zip(
            self.z.split(size), self.label.split(size), self.offset.split(size), self.own.split(size), strict=True
        ):
            yield Block(*part)


@dataclass(frozen=True)
class RowTable:
    """All rows, and how their columns were moved and scaled."""

    blocks: Callable[[], Iterator[Block]]
    centre: Tensor
    scale: Tensor
    intercept: bool
    variance: Tensor
    """The population's variance of each scaled column over the rows that a fold trains on: (folds, d)"""
    rows: int

    @property
    def width(self) -> int:
        return len(self.scale) + self.intercept


def table(chunks: Chunks, folds: int, found: Moments, *, intercept: bool, memory: int) -> RowTable:
    """Kept in memory if that takes no more than so many bytes."""
    centre = found.centre if intercept else torch.zeros_like(found.centre)
    scale = found.scale if intercept else torch.hypot(found.scale, found.centre)
    d = len(scale)

    def read() -> Iterator[Block]:
        for chunk in chunks():
            if len(chunk.label):
                yield block(chunk)

    def block(chunk: Chunk) -> Block:
        z = torch.empty(len(chunk.label), d + intercept, dtype=torch.float64)
        torch.sub(chunk.x, centre, out=z[:, :d])
        z[:, :d] /= scale
        z[:, d:] = 1
        own = chunk.weight[:, None] * (chunk.fold[:, None] != torch.arange(folds))
        return Block(z, chunk.label, torch.zeros_like(chunk.label) if chunk.offset is None else chunk.offset, own)

    blocks = read
    if found.rows * (d + intercept + folds + 2) * 8 <= memory:
        whole = together(read(), found.rows)

        def blocks() -> Iterator[Block]:
            yield whole

    sums = [torch.zeros(folds, d, dtype=torch.float64) for _ in range(2)]
    near = (found.centre - centre) / scale  # squares of numbers far from 0 would hide the variance
    for each in blocks():
        for part in each.parts(max(CACHE // d, 64)):
            columns = part.z[:, :d] if intercept else part.z - near
            sums[0] += part.own.T @ columns
            sums[1] += part.own.T @ columns.square()
    first, second = (s / found.weight[:, None] for s in sums)
    return RowTable(blocks, centre, scale, intercept, (second - first.square()).clamp_min(0), found.rows)


def together(blocks: Iterator[Block], rows: int) -> Block:
    """One block of all, without a second copy of the rows."""
    whole: Block | None = None
    at = 0
    for block in blocks:
        parts = (block.z, block.label, block.offset, block.own)
        if whole is None:
            whole = Block(*(p.new_empty(rows, *p.shape[1:]) for p in parts))
        for target, part in zip((whole.z, whole.label, whole.offset, whole.own), parts, strict=True):
            target[at : at + len(part)] = part
        at += len(block.z)
    assert whole is not None and at == rows
    return whole


def sample(source: RowTable, rows: int) -> Block:
    """About so many rows, if there is room, the same ones at each call; all if there are few more."""
    share = min(rows, SAMPLE // (8 * source.width)) / source.rows
    draw = torch.Generator().manual_seed(0)
    taken = []
    for block in source.blocks():
        chosen = (
            torch.rand(len(block.z), generator=draw) < share
            if share < 0.7
            else torch.ones(len(block.z), dtype=torch.bool)
        )
        taken.append(Block(block.z[chosen], block.label[chosen], block.offset[chosen], block.own[chosen]))
    return together(iter(taken), sum(len(b.z) for b in taken))


class ProductSums:
    """Sums over rows of factor · z zᵀ for many factors at once: (factors, width, width).

    All products of two columns are made once for all the factors, and summed by one product of matrices.
    """

    def __init__(self, width: int, factors: int) -> None:
        self.width = width
        self.above = torch.zeros(width * (width + 1) // 2, factors, dtype=torch.float64)

    def add(self, z: Tensor, factors: Tensor) -> None:
        """(n, width) and (n, factors)"""
        rows = max(4 * CACHE // len(self.above), 128)
        for part, factor in zip(z.split(rows), factors.split(rows), strict=True):
            columns = part.T.contiguous()
            first = 0
            while first < self.width:
                last, size = first + 1, self.width - first
                while last < self.width and (size + self.width - last) * len(part) <= 8 * CACHE:
                    size += self.width - last
                    last += 1
                pairs = columns.new_empty(size, len(part))
                at = 0
                for i in range(first, last):
                    torch.mul(columns[i:], columns[i], out=pairs[at : at + self.width - i])
                    at += self.width - i
                start = first * self.width - first * (first - 1) // 2
                self.above[start : start + size].addmm_(pairs, factor)
                first = last

    def matrices(self) -> Tensor:
        i, j = torch.triu_indices(self.width, self.width)
        whole = self.above.new_empty(self.above.shape[1], self.width, self.width)
        whole[:, i, j] = self.above.T
        whole[:, j, i] = self.above.T
        return whole
