"""Shapes: curves and steps of single columns."""

import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import ridge, shapes
from tests.support.growth_tables import HEADS, Planted, share_gained, table_of


def bend(c: dict[str, Tensor]) -> Tensor:
    return 0.7 * (c["y"].abs() - 0.8)


def levels(c: dict[str, Tensor]) -> Tensor:
    return 0.4 * (c["a"] % 3 - 1)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("planted", "of"), [(bend, " of y"), (levels, " of a")])
def test_a_planted_shape_is_proposed_first(kind: str, planted: Planted, of: str) -> None:
    for seed in range(3):
        table, criterion = table_of(kind, seed=seed, planted=planted)
        items = shapes.propose(table, criterion, 0)
        form = "curve" if planted is bend and kind != "softmax" else "steps"
        assert items[0].name.removesuffix(", fine") == form + of
        assert len({i.name for i in items}) == len(items)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("form", ["curve", "steps", "curves"])
def test_the_planted_bend_is_what_validation_rows_gain(kind: str, form: str) -> None:
    table, criterion = table_of(kind, 9000, planted=bend)
    item = next(
        i
        for i in shapes.propose(table, criterion, 0)
        if i.settings["form"] == form or (kind, form) == ("softmax", "curve")
    )
    trainer = shapes.trainer(item, table)
    assert share_gained(trainer, item.epochs, table, criterion, bend) > (0.7 if form == "curves" else 0.8)
    if form != "curves":
        shown = trainer.part().learned_table()
        assert {"y", "effect"} <= shown[0].keys()


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("form", ["curves", "steps"])
def test_at_the_optimum_loss_and_ridge_have_no_slope(monkeypatch: pytest.MonkeyPatch, kind: str, form: str) -> None:
    monkeypatch.setattr(ridge, "LEAST_GAIN", 1e-12)
    table, criterion = table_of(kind, planted=bend)
    trainer = shapes.trainer(Item("shapes", "", 8, 1.0, 0, {"columns": [0, 1, 2], "form": form, "size": 32}), table)
    for _ in range(3):
        penalty = trainer.penalty(table, criterion)
        trainer.epoch(table, criterion)
    assert trainer.effects is not None

    def slope(at: Tensor) -> Tensor:
        e = at.clone().requires_grad_()
        loss = criterion.loss(table.train.margin + trainer.design(table.train).margin(e), table.train)
        assert penalty.links is not None
        strength = (penalty.own @ e.square()).sum() + (penalty.links @ e.diff(dim=0).square()).sum()
        [found] = torch.autograd.grad(loss + strength / 2, e)
        return found

    assert float(slope(trainer.effects).norm()) < 1e-5 * float(slope(0 * trainer.effects).norm())


def test_a_curve_is_the_sum_of_a_rising_and_a_falling_one() -> None:
    values = torch.tensor([0.3, 0.5, -0.2, -0.2, 1.0], dtype=torch.float64)
    parts = shapes.Shapes._monotone(values)
    assert [rises for rises, _ in parts] == [True, False]
    assert bool((torch.tensor(parts[0][1]).diff() >= 0).all() and (torch.tensor(parts[1][1]).diff() <= 0).all())
    torch.testing.assert_close(torch.tensor(sum(p for _, p in parts)), values)
    assert [rises for rises, _ in shapes.Shapes._monotone(values.sort().values)] == [True]
    assert [rises for rises, _ in shapes.Shapes._monotone(values.sort(descending=True).values)] == [False]


@pytest.mark.parametrize("kind", HEADS)
def test_a_training_goes_on_from_a_checkpoint_bit_for_bit(kind: str) -> None:
    table, criterion = table_of(kind, 600, planted=bend)
    item = shapes.propose(table, criterion, 0)[-1]
    whole, stopped = shapes.trainer(item, table), shapes.trainer(item, table)
    for _ in range(4):
        whole.epoch(table, criterion)
    for _ in range(2):
        stopped.epoch(table, criterion)
    again = pickle.loads(pickle.dumps(stopped))
    for _ in range(2):
        again.epoch(table, criterion)
    assert torch.equal(whole.part().output(table.validation), again.part().output(table.validation))
