"""Inputs and outputs of the solvers of linear models: rows, settings with Spark's names, and models like Spark's; sums
over the rows that each fold trains on (weights, means, deviations, constant columns); and a table of the rows, in
memory or read again for each pass, whose columns have mean 0 and standard deviation 1, approximately.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Chunk:
    """Some of the rows. All chunks together are read in order, perhaps several times."""

    x: Tensor
    """The features: (n, d) float64."""
    label: Tensor
    """(n,) float64"""
    weight: Tensor
    """(n,) float64"""
    offset: Tensor | None
    """(n,) float64, for GeneralizedLinearRegression only; None: zero."""
    fold: Tensor
    """(n,) int64: the fold that the row is held out of; -1 for a row that every fold trains on."""


Chunks = Callable[[], Iterator[Chunk]]


@dataclass(frozen=True)
class Setting:
    """The Params that a fit depends on, with Spark's names and defaults."""

    regParam: float = 0.0
    elasticNetParam: float = 0.0
    fitIntercept: bool = True
    standardization: bool = True
    solver: str = "auto"
    """Solver of LinearRegression: auto, normal or l-bfgs; they divide by different standard deviations."""
    loss: str = "squaredError"
    """Loss of LinearRegression."""
    family: str = "auto"
    """Family of LogisticRegression (auto, binomial, multinomial) or of GeneralizedLinearRegression."""
    link: str | None = None
    """Link of GeneralizedLinearRegression; None: the family's canonical one."""
    bounded: bool = False
    """True if a LogisticRegression has bounds on its coefficients or intercepts."""

    def sets(self, classes: int) -> int:
        """Number of sets of coefficients: the number of classes for a multinomial model, else 1."""
        return classes if self.family == "multinomial" or (self.family == "auto" and classes > 2) else 1


@dataclass(frozen=True)
class RowFacts:
    """Facts about the rows that are known before any fit."""

    columns: int
    classes: int = 0
    """Number of classes of LogisticRegression, as Spark counts them; 0 for other estimators."""


@dataclass(frozen=True)
class Solution:
    """The model of a setting, fitted on all rows but one fold's, on the features' scale as in Spark's model."""

    coefficients: Tensor
    """(d,), or (classes, d) for a multinomial model."""
    intercept: Tensor
    """(), or (classes,) for a multinomial model; zero without an intercept."""
    converged: bool
    """False: unusable; Spark has to fit this setting."""


@dataclass(frozen=True)
class Moments:
    """The results of a first pass over the rows; index f stands for all rows that fold f doesn't hold out."""

    weight: Tensor
    """Sum of the weights: (folds,)"""
    squares: Tensor
    """Sum of the squared weights: (folds,)"""
    low: Tensor
    high: Tensor
    """Smallest and largest value of each column where the weight isn't 0: (folds, d)"""
    labels: Tensor
    """Smallest and largest label where the weight isn't 0: (folds, 2)"""
    classes: Tensor
    """Sum of the weights of each label 0, 1, ...: (folds, classes); empty without classes."""
    centre: Tensor
    scale: Tensor
    """Mean and deviation (1 for a constant column) of each column over all rows: (d,). For numerical accuracy only."""
    label_centre: Tensor
    label_scale: Tensor
    rows: int

    @property
    def usable(self) -> bool:
        """True if all rows are finite, no weight is negative, and the weights of each fold's training rows have a sum above 0."""
        sums = (self.weight, self.low, self.high, self.labels, self.centre, self.scale, self.label_scale)
        return all(bool(torch.isfinite(s).all()) for s in sums) and bool((self.weight > 0).all())

    @property
    def constant(self) -> Tensor:
        """Columns with a single value: (folds, d)."""
        return self.low == self.high

    @property
    def bessel_correction(self) -> Tensor:
        """Factor by which Spark's Summarizer multiplies the population's variance: (folds,)."""
        return self.weight / (self.weight - self.squares / self.weight).clamp_min(torch.finfo(torch.float64).tiny)


def moments(chunks: Chunks, folds: int, classes: int = 0) -> Moments:
    groups = folds + 1  # the last one: rows that every fold trains on
    sums: list[Tensor] = []
    low = high = origin = torch.empty(0)
    total = 0
    for chunk in chunks():
        if len(chunk.label) == 0:
            continue
        x, y, w = chunk.x, chunk.label, chunk.weight
        # 1 where this fold holds a row out; the last column is for rows that no fold holds out: (n, folds + 1).
        member = functional.one_hot(torch.where(chunk.fold < 0, folds, chunk.fold), groups).to(torch.float64)
        if not sums:
            origin = torch.cat([x.mean(0), y.mean().reshape(1)])
            low = torch.full((groups, x.shape[1] + 1), torch.inf, dtype=torch.float64)
            high = -low
        both = torch.cat([x, y[:, None]], 1)
        moved = both - origin
        own = member * w[:, None]
        known = classes > 0 and bool(((y >= 0) & (y < classes) & (y == y.floor())).all())
        counts = (
            own.T @ functional.one_hot(y.long(), classes).to(x.dtype)
            if known
            else own.new_full((groups, classes), torch.nan)
        )
        new = [own.sum(0), own.T @ w, own.T @ moved, own.T @ moved.square(), counts]
        if bool((w < 0).any()):
            new[0] = new[0] * torch.nan
        sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        total += len(y)
        for group in range(groups):
            rows = (member[:, group] > 0) & (w != 0)
            if bool(rows.any()):
                low[group] = torch.minimum(low[group], both[rows].amin(0))
                high[group] = torch.maximum(high[group], both[rows].amax(0))
    weight, squares, first, second, counts = sums
    mean = first.sum(0) / weight.sum()
    deviation = (second.sum(0) / weight.sum() - mean.square()).clamp_min(0).sqrt()
    reach = high.amax(0) - low.amin(0)
    deviation = torch.maximum(deviation, 1e-6 * reach)  # if the first rows are far off, squares lose digits
    deviation = torch.where(reach == 0, 1.0, deviation)
    centre = torch.where(reach == 0, low.amin(0), mean + origin)
    others = [[g for g in range(groups) if g != f] for f in range(folds)]
    least = torch.stack([low[o].amin(0) for o in others])
    most = torch.stack([high[o].amax(0) for o in others])
    return Moments(
        weight=sums_without_fold(weight),
        squares=sums_without_fold(squares),
        low=least[:, :-1],
        high=most[:, :-1],
        labels=torch.stack([least[:, -1], most[:, -1]], 1),
        classes=sums_without_fold(counts),
        centre=centre[:-1],
        scale=deviation[:-1],
        label_centre=centre[-1],
        label_scale=deviation[-1],
        rows=total,
    )


def failed_solution(found: Moments, sets: int = 1) -> Solution:
    """A placeholder for a model that could not be solved; `sets` is the number of rows of its coefficients."""
    nothing = torch.full((sets, len(found.centre)), torch.nan, dtype=torch.float64)
    return Solution(nothing[0] if sets == 1 else nothing, nothing[0, 0] if sets == 1 else nothing[:, 0], False)


def sums_without_fold(sums: Tensor) -> Tensor:
    """(folds + 1, ...) sums of the groups -> (folds, ...) sums over all groups except the fold's own."""
    return torch.stack([sums[[g for g in range(len(sums)) if g != f]].sum(0) for f in range(len(sums) - 1)])


def gram(chunks: Chunks, folds: range, found: Moments) -> Iterator[tuple[int, Tensor]]:
    """Each of these folds, with the weighted sums of products over the rows that it trains on: (d + 2, d + 2). The
    factors are the columns and the label, moved and scaled, and a column of ones.
    """
    size = len(found.centre) + 2
    sums = torch.zeros(len(folds) + 1, size, size, dtype=torch.float64)  # the last one: rows that all of them train on
    for chunk in chunks():
        z = augmented(chunk, found)
        for place, group in enumerate([*folds, None]):
            rows = (chunk.fold < folds.start) | (chunk.fold >= folds.stop) if group is None else chunk.fold == group
            own = z[rows]
            sums[place].addmm_((own * chunk.weight[rows, None]).T, own)
    for place, fold in enumerate(folds):
        total = torch.zeros(size, size, dtype=torch.float64)
        for other in range(len(sums)):
            if other != place:
                total += sums[other]
        yield fold, total


def augmented(chunk: Chunk, found: Moments) -> Tensor:
    x = (chunk.x - found.centre) / found.scale
    y = (chunk.label - found.label_centre) / found.label_scale
    return torch.cat([x, y[:, None], torch.ones_like(y)[:, None]], 1)


CACHE = 2**18
"""Number of doubles that fit into a processor's cache beside other data."""


MATRICES = 2**29
"""Bytes for the matrices of problems that are solved together."""
SAMPLE = 2**28
"""Largest number of bytes of sampled rows, which are kept in addition to all rows."""


Item = TypeVar("Item")
Answer = TypeVar("Answer")
Problem = tuple[Setting, int]
"""A setting, and the fold whose rows its fit lacks."""


def solve_by_kind(
    items: Sequence[Item], kind: Callable[[Item], Any], solve: Callable[[list[Item]], list[Answer]]
) -> list[Answer]:
    """Solve the items of each kind together. Return an answer for each item, in the items' order."""
    kinds: dict[Any, list[int]] = {}
    for i, item in enumerate(items):
        kinds.setdefault(kind(item), []).append(i)
    answers: dict[int, Answer] = {}
    for chosen in kinds.values():
        answers.update(zip(chosen, solve([items[i] for i in chosen]), strict=True))
    return [answers[i] for i in range(len(items))]


def solve_in_batches(
    settings: list[Setting], folds: Sequence[int], size: int, solve: Callable[[list[Problem]], list[Solution]]
) -> list[list[Solution]]:
    """Solve each setting for each of these folds, of which there is at least one, in batches of at most `size` problems.
    Return [setting][fold].
    """
    problems = [(setting, fold) for setting in settings for fold in folds]
    solved = [solution for i in range(0, len(problems), size) for solution in solve(problems[i : i + size])]
    return [solved[i : i + len(folds)] for i in range(0, len(solved), len(folds))]


def batch_size(parameters: int) -> int:
    """Number of problems, at least one, of which a few matrices each, (parameters, parameters), fit into `MATRICES` bytes."""
    return max(int(MATRICES / (8 * 4 * parameters**2)), 1)


@dataclass(frozen=True)
class Block:
    z: Tensor
    """Columns moved and scaled, with a last column of ones if there is an intercept: (n, width)"""
    label: Tensor
    offset: Tensor
    own: Tensor
    """The weight of a row for each fold, zero if the fold holds it out: (n, folds)"""

    def parts(self, size: int) -> Iterator["Block"]:
        """Parts of at most `size` rows."""
        if len(self.z) <= size:
            yield self
            return
        for part in zip(
            self.z.split(size), self.label.split(size), self.offset.split(size), self.own.split(size), strict=True
        ):
            yield Block(*part)


@dataclass(frozen=True)
class RowTable:
    """All rows with moved and scaled columns: `centre` was subtracted from them, then they were divided by `scale`."""

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
    """The rows with centred and scaled columns; in memory if `memory` bytes suffice, else read again in each pass."""
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
    near = (found.centre - centre) / scale  # squares of numbers far from 0 would lose the variance's digits
    for each in blocks():
        for part in each.parts(max(CACHE // d, 64)):
            columns = part.z[:, :d] if intercept else part.z - near
            sums[0] += part.own.T @ columns
            sums[1] += part.own.T @ columns.square()
    first, second = (s / found.weight[:, None] for s in sums)
    return RowTable(blocks, centre, scale, intercept, (second - first.square()).clamp_min(0), found.rows)


def together(blocks: Iterator[Block], rows: int) -> Block:
    """One block of all rows; blocks are copied into it one by one, so that no second copy of all rows is in memory."""
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
    """A random sample of about `rows` rows, the same at each call; fewer if they don't fit into `SAMPLE` bytes, and all
    rows if the sample would be 70 % of them or more.
    """
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

    All products of two columns are computed once for all factors, and summed by one matrix product.
    """

    def __init__(self, width: int, factors: int) -> None:
        self.width = width
        self.above = torch.zeros(width * (width + 1) // 2, factors, dtype=torch.float64)

    def add(self, z: Tensor, factors: Tensor) -> None:
        """Add rows z (n, width) with their factors (n, factors)."""
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
