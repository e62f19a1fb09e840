"""Pruning: trials start with little of a resource (such as rows, epochs or trees), and the better ones are repeated
with more.
This module uses neither Spark nor Optuna.

A rung is an amount of the resource at which trials are compared. All trials of a rung are evaluated together, so they
share fits as the settings of a grid do. This is the synchronous form of successive halving (Jamieson and Talwalkar
2016) and of Hyperband (Li et al. 2018).
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NAMES = ("median", "halving", "hyperband", "bohb")
ETA = 3
"""One in ETA trials continues to the next rung (with `median`, the better half), with ETA times the resource."""
LEAST = 1 / 27
"""Smallest share of the resource with which a trial starts by default."""
CLOSE = 2e-3
"""Difference below which two resources are the same: a study stores shares with three digits."""
ENOUGH = 10
"""Number of trials after which the sampler TPE learns from results."""


@dataclass(frozen=True)
class Bracket:
    """Trials that start together.

    Attributes:
        size: number of trials.
        rungs: the resources at which they are compared, the full one last.
    """

    size: int
    rungs: tuple[float, ...]


def rungs(whole: float, least: float, *, integer: bool) -> tuple[float, ...]:
    """Resources from the full one down by factors of ETA, as long as they are not below `least`; ascending."""
    out = [whole]
    while out[-1] / ETA >= least * (1 - 1e-9):
        out.append(out[-1] / ETA)
    return tuple(sorted({float(max(round(r), 1)) if integer else r for r in out}))


def brackets(pruner: str, total: int, resources: Sequence[float], batch: int) -> list[Bracket]:
    """The brackets of a search of `total` trials, in order.

    Args:
        batch: number of trials in a bracket if the pruner doesn't determine it.
    """
    top = tuple(resources)
    if pruner == "median":
        first = min(ENOUGH, total)
        sizes = [first, *[batch] * ((total - first) // batch), *([rest] if (rest := (total - first) % batch) else [])]
        return [Bracket(size, top) for size in sizes]
    if pruner == "halving":
        return [Bracket(total, top)]
    # A round of Hyperband: first a bracket of many trials that start with little of the resource, then brackets of
    # fewer trials that start with more. The first bracket may judge too early, so an incomplete round has fewer trials
    # in each bracket, instead of the first bracket alone.
    starts = [top[i:] for i in range(len(top))]
    sizes = [math.ceil(len(top) / len(part) * ETA ** (len(part) - 1)) for part in starts]
    rounds, left = divmod(total, sum(sizes))
    found = [*sizes * rounds, *_in_proportion(left, sizes)]
    return [Bracket(size, part) for size, part in zip(found, starts * (rounds + 1), strict=True) if size]


def _in_proportion(total: int, sizes: Sequence[int]) -> list[int]:
    """Whole numbers with sum `total`, as proportional to the sizes as possible (largest remainders)."""
    exact = [size * total / sum(sizes) for size in sizes]
    out = [*map(int, exact)]
    for i in sorted(range(len(sizes)), key=lambda i: (out[i] - exact[i], i))[: total - sum(out)]:
        out[i] += 1
    return out


Evaluate = Callable[[Sequence[int], float], Sequence[float | None]]
"""Function of trials and a resource that returns each trial's metric, smaller is better; None for a failed trial."""


@dataclass(frozen=True)
class BracketTrial:
    """The outcome of a trial of a bracket: its (resource, metric) per rung, and whether it has one at the last rung."""

    steps: tuple[tuple[float, float], ...]
    last: bool


def run(
    bracket: Bracket, pruner: str, evaluate: Evaluate, earlier: Sequence[Sequence[tuple[float, float]]] = ()
) -> list[BracketTrial]:
    """Run the trials 0 to size - 1 of a bracket.

    Args:
        earlier: steps of earlier trials, which the median includes.
    """
    steps: list[list[tuple[float, float]]] = [[] for _ in range(bracket.size)]
    alive = [*range(bracket.size)]
    for number, resource in enumerate(bracket.rungs):
        found = dict(zip(alive, evaluate(alive, resource), strict=True))
        measured = {i: m for i, m in found.items() if m is not None and not math.isnan(m)}
        for i, metric in measured.items():
            steps[i].append((resource, metric))
        if number == len(bracket.rungs) - 1:
            return [BracketTrial(tuple(step), i in measured) for i, step in enumerate(steps)]
        order = sorted(measured, key=lambda i: (measured[i], i))
        if pruner == "median":
            others = [m for past in earlier for r, m in past if abs(r - resource) < CLOSE]
            alive = sorted(i for i in order if measured[i] <= statistics.median([*others, *measured.values()]))
        else:
            alive = sorted(order[: max(len(alive) // ETA, 1)])
        if not alive:
            break
    return [BracketTrial(tuple(step), False) for step in steps]


def warning(pruner: str, sampler: str, found: Sequence[Bracket]) -> str:
    """A warning that a sampler learns little with a pruner's small brackets; empty if it doesn't apply."""
    smallest = min(bracket.size for bracket in found)
    if pruner in ("hyperband", "bohb") and sampler == "tpe" and smallest < ENOUGH:
        return (
            f"a bracket of {pruner} has {smallest} trial{'s' * (smallest > 1)}, fewer than the {ENOUGH} after which TPE adapts: "
            "it learns from the brackets before it, and the first ones are random"
        )
    return ""
