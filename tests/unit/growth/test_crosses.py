"""Crosses: the score test over pairs of columns, and their fit."""

import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import blocks, crosses, ridge
from tests.support.growth_tables import HEADS, Planted, share_gained, table_of


def by_a_and_b(c: dict[str, Tensor]) -> Tensor:
    return 0.8 * ((c["a"] < 3) == (c["b"] < 2)) - 0.4


def by_signs(c: dict[str, Tensor]) -> Tensor:
    return 0.5 * torch.sign(c["x"] * c["y"])


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("planted", "name"), [(by_a_and_b, "a x b"), (by_signs, "x x y")])
def test_a_planted_interaction_is_proposed_first(kind: str, planted: Planted, name: str) -> None:
    for seed in range(3):
        table, criterion = table_of(kind, seed=seed, planted=planted)
        items = crosses.propose(table, criterion, 0)
        assert items[0].name == name


@pytest.mark.parametrize("kind", HEADS)
def test_the_planted_interaction_is_what_validation_rows_gain(kind: str) -> None:
    table, criterion = table_of(kind, 9000, planted=by_a_and_b)
    trainer = crosses.trainer(crosses.propose(table, criterion, 0)[0], table)
    assert share_gained(trainer, blocks.EPOCHS, table, criterion, by_a_and_b) > 0.8


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("pairs", [[[2, 3]], [[2, 3], [0, 1], [0, 2]]])
def test_at_the_optimum_loss_and_ridge_have_no_slope(
    monkeypatch: pytest.MonkeyPatch, kind: str, pairs: list[list[int]]
) -> None:
    monkeypatch.setattr(ridge, "LEAST_GAIN", 1e-12)
    table, criterion = table_of(kind, planted=by_a_and_b)
    trainer = crosses.trainer(Item("crosses", "", 8, 1.0, 0, {"pairs": pairs, "bins": 8}), table)
    for _ in range(4):
        penalty = trainer.penalty(table, criterion)
        trainer.epoch(table, criterion)
    assert trainer.effects is not None

    def slope(at: Tensor) -> Tensor:
        e = at.clone().requires_grad_()
        loss = criterion.loss(table.train.margin + trainer.design(table.train).margin(e), table.train)
        [found] = torch.autograd.grad(loss + (penalty.own @ e.square()).sum() / 2, e)
        return found

    assert float(slope(trainer.effects).norm()) < 1e-5 * float(slope(0 * trainer.effects).norm())


def test_cells_without_rows_stay_zero() -> None:
    table, criterion = table_of("poisson", planted=by_a_and_b)
    [item, *_] = crosses.propose(table, criterion, 0)
    trainer = crosses.trainer(item, table)
    trainer.epoch(table, criterion)
    [effects] = trainer.part().effects
    grid = effects.view(7, 5)
    assert not bool(grid[6].any() or grid[:, 4].any())
    assert bool((grid[:6, :4] != 0).all())
    assert trainer.part().parameters == 24
    shown = trainer.part().learned_table()
    assert shown[0] == {"a": "a", "b": "p", "effect": grid[0, 0].item()}
    assert len(shown) == 24


@pytest.mark.parametrize("kind", HEADS)
def test_a_training_goes_on_from_a_checkpoint_bit_for_bit(kind: str) -> None:
    table, criterion = table_of(kind, 600, planted=by_a_and_b)
    item = crosses.propose(table, criterion, 0)[-1]
    whole = crosses.trainer(item, table)
    for _ in range(4):
        whole.epoch(table, criterion)
    stopped = crosses.trainer(item, table)
    for _ in range(2):
        stopped.epoch(table, criterion)
    again = pickle.loads(pickle.dumps(stopped))
    for _ in range(2):
        again.epoch(table, criterion)
    one, other = whole.part().output(table.validation), again.part().output(table.validation)
    assert torch.equal(one, other)
