"""The units that decide, rows, groups or blocks of time: their effective number, and what a change costs on them.

A metric that is a mean over few rows, whatever the number of all rows, shows little: precision counts the rows that are predicted
as a class, recall those of the class, an area under a curve compares the rows of two classes. So the units in its denominator
count. Of uneven weights, n units show as much as (sum w)^2 / sum w^2 of equal ones (Kish 1965, the effective sample size).
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
"""Training units that must make up the mean square of the costs, for it to be taken as it is."""
RULE_OF_THREE = 3.0
WORST = 0.025
"""The share of the units that may be worse than one that is added: a few that are far from all others are no likely ones."""


@dataclass(frozen=True)
class Units:
    """The units that a metric counts.

    Attributes:
        number: effective, by their weights.
        of: the class that they are of, in words; empty for all.
    """

    number: float
    kind: Kind = "rows"
    of: str = ""

    def __str__(self) -> str:
        whole = float(self.number).is_integer()
        return f"{self.number:,.0f}" * whole + f"{self.number:,.1f} effective" * (not whole) + f" {self.kind}{self.of}"


@dataclass(frozen=True)
class Costs:
    """What a change costs on units.

    Attributes:
        each: (n,) weight * (loss - loss of the original) of a unit where that is positive, else 0.
        weight: (n,) > 0.
        power: the exponent of the weight by which weighted changes grow: 1 where losses don't depend on the weight, less where
            heavy units have smaller losses, as with inverse variances.
    """

    each: Tensor
    weight: Tensor
    kind: Kind = "rows"
    power: float = 1.0

    @staticmethod
    def of(losses: Tensor, weight: Tensor, unit: Tensor | None, kind: Kind) -> "Costs":
        """The costs of rows.

        Args:
            losses: (n,) weight * (loss - loss of the original).
            unit: (n,) each row's group or block; None: each row is a unit.
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
        """The mean square over the units; 0 of none."""
        return float(self.each.square().sum()) / max(len(self.each), 1)

    def missing_from(self, held: "Costs") -> float:
        """The sum of squares that units like `held` would show by these, the training units, and don't show.

        The weights of `held` are known, and a rare loss may come to any of them: so the sum is also estimated from their
        weights and from what the costs of the heavier half of the training units are without theirs, and the larger counts.
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
    """The number of units (n,) that make up the sum of squares, (sum c^2)^2 / sum c^4."""
    squares, fourths = float(costs.square().sum()), float(costs.pow(4).sum())
    return squares**2 / fourths if fourths > 0 else float(len(costs))


def _likely_square(costs: Tensor) -> float:
    """The mean square of costs (n,), larger where few make it up, which may come more often than they did."""
    factor = 1 + (RULE_OF_THREE - 1) * min(FEW / max(_effective(costs), 1.0), 1.0) ** 2
    return factor * float(costs.square().mean())


def high(costs: Tensor) -> float:
    """The cost (n,) that WORST of them exceed; 0 of none."""
    return float(costs.kthvalue(max(1, math.ceil((1 - WORST) * len(costs)))).values) if len(costs) else 0.0


def by_unit(x: Tensor, unit: Tensor | None) -> Tensor:
    """Sums of rows (n,) over their units, (units,)."""
    if unit is None:
        return x
    codes = unit.unique(return_inverse=True)[1]
    return x.new_zeros(int(codes.max()) + 1 if len(codes) else 0).index_add(0, codes, x)


def effective_number(weight: Tensor, unit: Tensor | None) -> float:
    """(sum w)^2 / sum w^2 over the units of these rows (n,) of weight >= 0; 0 of none."""
    sums = by_unit(weight, unit)
    squares = float(sums.square().sum())
    return round(float(sums.sum()) ** 2 / squares, 9) if squares > 0 else 0.0


def units_of(
    metric: Metric, columns: Sequence[Tensor], label: Sequence[Tensor], weight: Tensor, unit: Tensor | None, kind: Kind
) -> Units:  # fmt: skip
    """The fewest units that the metric of one of these pipelines counts.

    Args:
        columns, label: (n,) of each pipeline, what the metric reads and the label.
        weight, unit: (n,) of the rows.
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
    """The units behind a sum of the classes' rates by their shares s: of equal variances, that of sum(s * rate) is
    sum(s^2 / n), as if it were one rate of 1 / sum(s^2 / n) units.
    """
    shares = [float(weight[label == k].sum() / weight.sum()) for k in counted.classes]
    inverse = sum(s * s / max(n, 1.0) for s, n in zip(shares, each, strict=True))
    return round(1 / inverse, 9) if inverse else 0.0
