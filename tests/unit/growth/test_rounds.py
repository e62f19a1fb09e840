"""Rounds of growth on generated rows: criterion, choice of a part, weights of the mixture."""

import dataclasses

import pytest
import torch
from tables import HEADS, table_of
from torch import Tensor

from sparkdiff.growth import rounds
from sparkdiff.growth.part import Part, Place, Stages
from sparkdiff.growth.rounds import Limits, Member
from sparkdiff.growth.table import Split
from sparkdiff.objectives import losses
from sparkdiff.stages.trainable import LabelStats


class Known(Part):
    """A column, times a factor."""

    kind, name, parameters = "known", "known", 3

    def __init__(self, factor: float, column: int = 1):
        self.factor, self.column = factor, column

    def output(self, split: Split) -> Tensor:
        effect = self.factor * split.values[:, self.column]
        return effect if split.margin.ndim == 1 else torch.stack([0 * effect, effect, -effect], 1)

    def cost(self) -> float:
        return 1.0

    def stages(self, place: Place) -> Stages:
        return Stages([], [])


LIMITS = Limits(("known",), 1, 0.0, 100.0, 0)


@pytest.mark.parametrize("kind", HEADS)
def test_slopes_are_the_derivatives_of_the_loss_of_each_row(kind: str) -> None:
    table, criterion = table_of(kind, 60)
    train, h = table.train, 1e-5
    slope, curve = criterion.slopes(train.margin, train)
    step = torch.zeros_like(train.margin)
    (step if step.ndim == 1 else step[:, 1]).fill_(h)
    up, here, down = (criterion.rows(train.margin + s, train) for s in (step, 0 * step, -step))
    own = (lambda t: t) if step.ndim == 1 else (lambda t: t[:, 1])
    torch.testing.assert_close(own(slope), (up - down) / (2 * h), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own(curve), (up - 2 * here + down) / h**2, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", HEADS)
def test_weights_of_the_mixture_minimise_the_loss_of_training_rows(kind: str) -> None:
    table, criterion = table_of(kind, 4000, planted=lambda c: 0.6 * c["y"])
    members = [Member(Known(2.0), 1.0, 1), Member(Known(-1.0, 0), 1.0, 2)]
    found, mixed = rounds.mixed(members, table, criterion, LIMITS)
    assert all(m.weight >= 0 for m in found)
    assert found[1].weight < 0.12, "a part that takes off what the margin has already gets no weight"
    assert found[0].weight == pytest.approx(0.3, abs=0.05)
    expected = table.train.margin + sum(m.weight * m.part.output(table.train) for m in found)
    torch.testing.assert_close(mixed.train.margin, expected, rtol=1e-5, atol=1e-5)
    best = float(criterion.loss(mixed.train.margin, table.train))
    for weight in (0.9, 1.1):
        other = expected + (weight - 1) * found[0].weight * Known(2.0).output(table.train)
        assert float(criterion.loss(other, table.train)) > best


def test_a_penalty_makes_weights_smaller() -> None:
    table, criterion = table_of("poisson", 4000, planted=lambda c: 0.6 * c["y"])
    members = [Member(Known(1.0), 1.0, 1)]
    [free], [priced] = (
        rounds.mixed(members, table, criterion, Limits(("known",), 1, c, 1.0, 0))[0] for c in (0.0, 3.0)
    )
    assert 0 < priced.weight < 0.97 * free.weight


def test_a_loss_without_curvature_has_newton_steps_of_one_unit() -> None:
    table, criterion = table_of("linear", 60)
    stats = LabelStats(0.0, 7.0, -9.0, 9.0, torch.empty(0, dtype=torch.int64))
    objective = losses.resolve("absolute", {}, criterion.head, ("prediction",), stats)
    flat = dataclasses.replace(criterion, objective=objective, unit=7.0)
    slope, curve = flat.slopes(table.train.margin, table.train)
    torch.testing.assert_close((slope / curve).abs(), torch.full_like(slope, 7.0))
