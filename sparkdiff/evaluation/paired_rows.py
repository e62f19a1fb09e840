"""Held-out rows with the losses of two pipelines, and the test of the second pipeline's gain on them, which all
functions that may replace a pipeline use.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.evaluation import guard
from sparkdiff.evaluation.guard import Ledger
from sparkdiff.evaluation.row_margins import MarginModel
from sparkdiff.evaluation.split_batches import Data, scalar
from sparkdiff.evaluation.units import Costs, Kind, Units, by_unit, effective_number, units_of
from sparkdiff.objectives.metric import Metric, influence

TRAINING_ROWS = 1_000_000
"""Largest number of training rows that are searched for rare losses: the first rows of the cache, which are in the
order of a hash and so a random sample.
"""


@dataclasses.dataclass(frozen=True)
class PairedRows:
    """Rows of weight > 0 with the losses of two pipelines.

    Attributes:
        original, other: (n,) weight * loss of the first and of the second pipeline; weight * influence for a metric
            that is no mean over rows. Smaller is better.
        weight, block: (n,) weight of a row, and the guard's block that it belongs to.
        unit: (n,) group or block of time of a row; None if each row is a unit.
        units: the number and kind of the units that the metric counts.
        wrong: (3, k) weight, `original` and `other` of k added units: a wrongly predicted one for each denominator of
            the metric. Without them, a class that is predicted for few rows, all of them correctly, would have no
            variance.
        beside: (2, n) `original` and `other` of the n rows if these units are added.
        time: (n,) time of a row; None without a timeCol.
        columns, label: the input of the metric and the label, (n,) for each of the two pipelines.
    """

    original: Tensor
    other: Tensor
    weight: Tensor
    block: Tensor
    unit: Tensor | None
    units: Units
    wrong: Tensor
    beside: Tensor
    time: Tensor | None = None
    columns: tuple[Tensor, ...] = ()
    label: tuple[Tensor, ...] = ()

    def __add__(self, other: "PairedRows") -> "PairedRows":
        """The rows of both sets, which must not share a unit."""
        names = [
            name for name in ("original", "other", "weight", "block", "unit", "time") if getattr(self, name) is not None
        ]
        joined: dict[str, Any] = {name: torch.cat([getattr(self, name), getattr(other, name)]) for name in names}
        number = self.units.number + other.units.number
        if not self.units.of and not other.units.of:  # with uneven weights less than the sum
            number = effective_number(joined["weight"], joined.get("unit"))
        units = dataclasses.replace(self.units, number=number)
        joined |= {name: torch.cat([getattr(self, name), getattr(other, name)], 1) for name in ("wrong", "beside")}
        return dataclasses.replace(self, **joined, units=units)

    def scaled(self, factor: float) -> "PairedRows":
        """Rows with weights multiplied by this factor."""
        names = ("original", "other", "weight", "wrong", "beside")
        return dataclasses.replace(self, **{name: factor * getattr(self, name) for name in names})

    def costs(self) -> Costs:
        """Loss of the second pipeline minus loss of the first, per group or else per row (never per block of time, which only
        held-out rows have).
        """
        losses, unit = self.other - self.original, self.unit if self.units.kind == "groups" else None
        return Costs.of(losses, self.weight, unit, "rows" if unit is None else "groups")

    def block_sums(self, x: Tensor) -> Tensor:
        """Sums of a number per row (n,) over the guard's blocks, (B,)."""
        return x.new_zeros(MAX_BLOCKS).index_add(0, self.block, x)

    def ledger(self, other: Ledger | None) -> tuple[Ledger, Tensor]:
        """Block sums of gains for the test (of all trials in `other`, or only of the second pipeline), and block sums
        of the original's loss.

        If the metric divides by numbers of rows, the chosen column includes the wrongly predicted units (`wrong`), each
        of which is a block of its own.
        """
        weight, first, second = self.wrong
        pairs = ((self.weight, weight), (self.beside[0], first), (self.beside[1], second))
        weights, original, new = (torch.cat([self.block_sums(x), more]) for x, more in pairs)
        own = original - new
        if other is None:
            return Ledger(own[None], weights, (), 0 if float(own.sum()) > 0 else -1), original
        gains = torch.nn.functional.pad(other.gains, (0, len(weight)))
        if len(weight) and other.chosen >= 0:
            gains[other.chosen] = own
        return Ledger(gains, weights, other.trials, other.chosen), original


def pair(
    metric: Metric,
    columns: Sequence[Tensor],
    label: Sequence[Tensor],
    weight: Tensor,
    block: Tensor,
    unit: Tensor | None,
    kind: Kind,
    time: Tensor | None = None,
    held: PairedRows | None = None,
) -> PairedRows:
    """Paired rows of two pipelines.

    Args:
        columns: input of the metric for each pipeline: the margin if the metric is a mean over rows, else the result of
            `metric.column`.
        label: (n,) for each pipeline, in the same order.
        held: the held-out rows, if the new ones are training rows. The influence of a row on an rmse, for example, is
            smaller if the rmse is larger. To make the influences comparable, those of the training rows are computed
            for the metric on the held-out rows.
    """
    counted = metric.denominators
    if metric.rows is not None:
        found = torch.stack(
            [metric.sign * weight * metric.rows(m, y, weight) for m, y in zip(columns, label, strict=True)]
        )
        units = Units(effective_number(weight, unit), kind)
        return PairedRows(found[0], found[1], weight, block, unit, units, _NONE, found, time)

    def losses(column: Tensor, y: Tensor, w: Tensor) -> Tensor:
        return metric.sign * w * influence(metric, column, y, w)

    if held is not None and counted is None and not metric.ranks:
        parts = zip(held.columns, columns, held.label, label, strict=True)
        weights, n = torch.cat([held.weight, torch.zeros_like(weight)]), len(held.weight)
        joined = [(torch.cat([a, b]), torch.cat([y, z])) for a, b, y, z in parts]
        found = torch.stack([metric.sign * weight * influence(metric, c, y, weights)[n:] for c, y in joined])
    else:
        found = torch.stack([losses(column, y, weight) for column, y in zip(columns, label, strict=True)])
    units, n = units_of(metric, columns, label, weight, unit, kind), len(weight)
    if counted is None or not n:
        seen = tuple(columns), tuple(label)
        return PairedRows(found[0], found[1], weight, block, unit, units, _NONE, found, time, *seen)
    number = 1 + max(*(int(x.max()) for x in (*columns, *label)), *counted.classes, 1)
    prediction, wanted = counted.wrong_rows(number)
    extra = torch.full_like(prediction, float(weight.sum()) / len(by_unit(weight, unit)))
    more = torch.stack(
        [
            losses(torch.cat([column, prediction]), torch.cat([y, wanted]), torch.cat([weight, extra]))
            for column, y in zip(columns, label, strict=True)
        ]
    )
    wrong = torch.cat([extra[None], more[:, n:]])
    return PairedRows(found[0], found[1], weight, block, unit, units, wrong, more[:, :n], time)


_NONE = torch.empty((3, 0), dtype=torch.float64)


@torch.no_grad()
def read(
    original: MarginModel,
    other: MarginModel,
    data: Data,
    split: str,
    metric: Metric,
    kind: Kind,
    held: PairedRows | None = None,
) -> PairedRows:
    """Read the rows of a non-empty split, with the losses of both pipelines, in one process; takes 40 bytes per row.

    Args:
        held: the held-out rows, if the split is that of training rows, of which only the first ones are read; see
            `pair`.
    """
    parts: list[tuple[Tensor, ...]] = []
    seen, pipelines = 0, [(network, metric.of(network.head)) for network in (original, other)]
    for batch, label, weight, block in data.batches(split):
        if held is not None and seen >= TRAINING_ROWS:
            break
        seen += len(label)
        values, used = data.values(batch), weight > 0
        own = [bound.by_row(network.margin(dict(values)), label, weight) for network, bound in pipelines]
        rest = (label, weight, block, scalar(batch, "block"), scalar(batch, "time"))
        parts.append(tuple(x[used].to("cpu") for x in (*own, *rest)))
    first, second, label, weight, block, unit, time = (torch.cat(x) for x in zip(*parts, strict=True))
    measured = metric if metric.rows is None else dataclasses.replace(metric, rows=lambda loss, _y, _w: loss)
    return pair(
        measured,
        (first, second),
        (label, label),
        weight,
        block,
        None if kind == "rows" else unit,
        kind,
        time if kind == "blocks" else None,
        held,
    )


@torch.no_grad()
def held_out_units(data: Data, metric: Metric, kind: Kind) -> Units:
    """Smallest number of validation units that the metric counts, as far as it is known from labels without
    predictions; takes 24 bytes per row.
    """
    parts = [(y[w > 0], w[w > 0], scalar(b, "block")[w > 0]) for b, y, w, _ in data.batches("validation")]
    label, weight, block = (torch.cat(x) for x in zip(*parts, strict=True))
    unit = None if kind == "rows" else block
    known = dataclasses.replace(metric, denominators=None)
    found = [units_of(known, (label,), (label,), weight, unit, kind)]
    if (counted := metric.denominators) is not None and not counted.shares:
        for k in counted.classes:
            own = label == k
            number = effective_number(weight[own], None if unit is None else unit[own])
            if counted.by_label or not number:  # without a row of the class, its metric is undefined
                found.append(Units(number, kind, f" of class {k}"))
    return min(found, key=lambda u: u.number)


def decide_by_rows(
    rows: PairedRows,
    *,
    level: float,
    ledger: Ledger | None = None,
    training: Costs | None = None,
    dependence: float = 1.0,
    finalists: int = 1,
    seed: int = 0,
) -> guard.Verdict:
    """Test the gain of the second pipeline on these rows; see `guard.decide`.

    Args:
        ledger: block sums of all trials, among which the second pipeline is the chosen column; None if nothing else was
            tried.
        training: costs of the second pipeline on training rows; None if unknown.
        dependence, finalists: see `guard.decide`.
    """
    if level >= 1:  # the metric alone decides
        rows = dataclasses.replace(rows, wrong=_NONE, beside=torch.stack([rows.original, rows.other]))
    tried, original = rows.ledger(ledger)
    correlation = None
    if rows.time is not None:
        correlation = guard.correlation_time((rows.original - rows.other)[rows.time.argsort(stable=True)])
    distinct = len(by_unit(rows.weight, rows.unit))
    verdict = guard.decide(
        tried.gains,
        tried.weights,
        chosen=tried.chosen,
        level=level,
        original=original,
        units=rows.units,
        blockRows=len(rows.weight) / max(distinct, 1),
        correlationTime=correlation,
        dependence=dependence,
        costs=None if training is None else (rows.costs(), training),
        finalists=finalists,
        seed=seed,
    )
    gain = float((rows.original - rows.other).sum() / rows.weight.sum())
    if not rows.wrong.shape[1] or verdict.untested or (tried.chosen < 0 and ledger is not None) or not gain > 0:
        return verdict
    kind = rows.units.kind.removesuffix("s")
    lost = f"nothing is left of it with one more {kind} that is predicted wrongly for each class that the metric counts"
    # The reported gain is that of the rows without the added units.
    return dataclasses.replace(
        verdict, best=max(tried.chosen, 0), gain=gain, against=verdict.against or lost * (verdict.best < 0)
    )
