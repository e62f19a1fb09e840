"""The units that the guard counts as independent (rows, groups or blocks of time): their effective number, and the
costs of a change on them.

A metric that is a mean over few rows shows little, however many rows there are in all: precision counts the rows that
are predicted as a class, recall the rows of the class, and an area under a curve compares the rows of two classes. So
the number of units that matters is that in the metric's denominator. n units with uneven weights are equivalent to (sum
w)^2 / sum w^2 units with equal weights (Kish 1965, the effective sample size).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sparkdiff.objectives.metric import Denominators, Metric

Kind = Literal["rows", "groups", "blocks"]
FEW = 5
"""Number of training units up to which the mean square of the costs that they make up counts three times; the more units
make it up, the smaller the factor.
"""
RULE_OF_THREE = 3.0
WORST = 0.025
"""Fraction of the units that may be worse than an added one: an additional unit is unlikely to be an outlier."""


@dataclass(frozen=True)
class Units:
    """The units that a metric counts.

    Attributes:
        number: effective number, given their weights.
        of: words for the class that they belong to, such as " of class 1"; empty if all units count.
    """

    number: float
    kind: Kind = "rows"
    of: str = ""

    def __str__(self) -> str:
        whole = float(self.number).is_integer()
        return f"{self.number:,.0f}" * whole + f"{self.number:,.1f} effective" * (not whole) + f" {self.kind}{self.of}"


@dataclass(frozen=True)
class Costs:
    """The costs of replacing the original on units (rows or groups): by how much each of them gets worse.

    Attributes:
        each: (n,) weight * (loss - loss of the original) of a unit if that is positive, else 0.
        weight: (n,) > 0.
        power: weighted changes of the loss grow like weight ** power: 1 if losses don't depend on the weight, less if
            heavy units have smaller losses, as with inverse variances as weights.
    """

    each: Tensor
    weight: Tensor
    kind: Kind = "rows"
    power: float = 1.0

    @staticmethod
    def of(losses: Tensor, weight: Tensor, unit: Tensor | None, kind: Kind) -> "Costs":
        """The costs on the units of some rows.

        Args:
            losses: (n,) weight * (loss - loss of the original).
            unit: (n,) group or block of each row; None: each row is a unit.
        """
        changes, weight = by_unit(losses, unit).nan_to_num(nan=0.0), by_unit(weight, unit)
        known = changes.isfinite() & (changes != 0)
        x = weight[known].log()
        x = x - x.mean()
        spread = float(x @ x)
        slope = float(x @ changes[known].abs().log()) / spread if spread > 0 else 1.0
        return Costs(changes.clamp_min(0), weight, kind, min(max(slope, 0.0), 1.0))

    def __add__(self, other: "Costs") -> "Costs":
        return Costs(torch.cat([self.each, other.each]), torch.cat([self.weight, other.weight]), self.kind, self.power)

    @property
    def mean_square(self) -> float:
        """Mean over the units of the squared costs; 0 without units."""
        return float(self.each.square().sum()) / max(len(self.each), 1)

    def missing_from(self, held: "Costs") -> float:
        """Sum of squared costs that is missing on the held-out units `held`: the sum expected from these training
        units, minus the observed one; at least 0.

        The weights of `held` are known, and a rare loss may hit any of these units. So the expected sum is also
        estimated from these weights and the costs per weight of the heavier half of the training units; the larger
        estimate counts.
        """
        if not len(self.each):
            return 0.0
        alike = len(held.each) * _likely_square(self.each)
        heavy = self.weight >= self.weight.median()  # light units may lose more, as rates over short times do
        alone = self.each[heavy] / self.weight[heavy] ** self.power
        by_weight = float(held.weight.pow(2 * self.power).sum()) * _likely_square(alone)
        return max(max(alike, by_weight) - float(held.each.square().sum()), 0.0)

    def __str__(self) -> str:
        few = _effective(self.each) < FEW
        how = f"fewer than {FEW} of {len(self.each):,}" if few else f"some of {len(self.each):,}"
        then = ", too few to know how often such come" if few else ""
        largest = float(self.each.max())
        return f"{how} training {self.kind} lose far more than those that are held out (up to {largest:.3g}){then}"


def _effective(costs: Tensor) -> float:
    """Effective number of units that make up the sum of squares of their costs (n,): (sum c^2)^2 / sum c^4."""
    squares, fourths = float(costs.square().sum()), float(costs.pow(4).sum())
    return squares**2 / fourths if fourths > 0 else float(len(costs))


def _likely_square(costs: Tensor) -> float:
    """Mean square of costs (n,), increased by a factor that is larger the fewer costs make it up, because such costs may
    be more common than in this sample.
    """
    factor = 1 + (RULE_OF_THREE - 1) * min(FEW / max(_effective(costs), 1.0), 1.0) ** 2
    return factor * float(costs.square().mean())


def high(costs: Tensor) -> float:
    """The cost that a fraction WORST of these costs (n,) exceeds; 0 without costs."""
    return float(costs.kthvalue(max(1, math.ceil((1 - WORST) * len(costs)))).values) if len(costs) else 0.0


def by_unit(x: Tensor, unit: Tensor | None) -> Tensor:
    """Sums of a number per row (n,) over the rows of each unit, (units,); unchanged if each row is a unit (None)."""
    if unit is None:
        return x
    codes = unit.unique(return_inverse=True)[1]
    return x.new_zeros(int(codes.max()) + 1 if len(codes) else 0).index_add(0, codes, x)


def effective_number(weight: Tensor, unit: Tensor | None) -> float:
    """(sum w)^2 / sum w^2 over the units of these rows (n,) of weight >= 0; 0 without rows."""
    sums = by_unit(weight, unit)
    squares = float(sums.square().sum())
    return round(float(sums.sum()) ** 2 / squares, 9) if squares > 0 else 0.0


def units_of(
    metric: Metric, columns: Sequence[Tensor], label: Sequence[Tensor], weight: Tensor, unit: Tensor | None, kind: Kind
) -> Units:
    """Smallest of the numbers of units that the metric counts, over its denominators and over these pipelines.

    Args:
        columns, label: (n,) for each pipeline, the metric's input and the label.
        weight, unit: (n,) for the rows.
    """

    def number(rows: Tensor) -> float:
        return effective_number(weight[rows], None if unit is None else unit[rows])

    found = [Units(effective_number(weight, unit), kind)]
    for column, y in zip(columns, label, strict=True):
        if metric.ranks:
            found += [Units(number(y > 0.5), kind, " of class 1"), Units(number(y <= 0.5), kind, " of class 0")]
        if (counted := metric.denominators) is not None:
            each = [number(counted.rows(column, y, k)) for k in counted.classes]
            if counted.shares:
                found.append(Units(_in_all(counted, each, y, weight), kind, f" that {metric.name} counts by class"))
            else:
                found += [Units(n, kind, f" {counted.words} {k}") for k, n in zip(counted.classes, each, strict=True)]
    return min(found, key=lambda u: u.number)


def _in_all(counted: Denominators, each: Sequence[float], label: Tensor, weight: Tensor) -> float:
    """Effective number of units behind a sum of the classes' rates weighted by the classes' shares s of the labels. If
    the rates have equal variance per unit, the variance of sum(s * rate) is sum(s^2 / n) of it, like that of a single
    rate of 1 / sum(s^2 / n) units.
    """
    shares = [float(weight[label == k].sum() / weight.sum()) for k in counted.classes]
    inverse = sum(s * s / max(n, 1.0) for s, n in zip(shares, each, strict=True))
    return round(1 / inverse, 9) if inverse else 0.0
