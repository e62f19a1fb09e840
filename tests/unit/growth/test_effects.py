"""Effects of entities: intercepts and slopes."""

import dataclasses
import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import effects, ridge
from sparkdiff.tensors.rows import SparseRows
from tests.support.growth_tables import HEADS, Planted, share_gained, table_of


def own_level(c: dict[str, Tensor]) -> Tensor:
    return 0.6 * torch.cos(3 * c["user"])


def own_slope(c: dict[str, Tensor]) -> Tensor:
    return 0.6 * torch.cos(3 * c["user"]) * c["y"]


@pytest.mark.parametrize("kind", HEADS)
def test_a_planted_effect_of_an_entity_is_proposed_first(kind: str) -> None:
    table, criterion = table_of(kind, planted=own_level)
    items = effects.propose(table, criterion, 0)
    assert [i.name for i in items] == ["effect of user", "effect of user on features"]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize(("planted", "slopes"), [(own_level, False), (own_level, True), (own_slope, True)])
def test_the_planted_effect_is_what_validation_rows_gain(kind: str, planted: Planted, slopes: bool) -> None:
    table, criterion = table_of(kind, 9000, planted=planted)
    trainer = effects.trainer(Item("effects", "", 8, 1.0, 0, {"entity": 4, "slopes": slopes}), table)
    assert share_gained(trainer, 8, table, criterion, planted) > (0.6 if slopes else 0.8)


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("slopes", [False, True])
def test_at_the_optimum_loss_and_ridge_have_no_slope(monkeypatch: pytest.MonkeyPatch, kind: str, slopes: bool) -> None:
    monkeypatch.setattr(ridge, "LEAST_GAIN", 1e-12)
    table, criterion = table_of(kind, planted=own_slope)
    trainer = effects.trainer(Item("effects", "", 8, 1.0, 0, {"entity": 4, "slopes": slopes}), table)
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


def test_slopes_are_skipped_where_features_are_sparse() -> None:
    table, criterion = table_of("poisson", 300)
    n, nothing = len(table.train), torch.zeros(0, dtype=torch.int64)
    sparse = SparseRows(nothing, nothing.double(), torch.zeros(n + 1, dtype=torch.int64), 5)
    thin = dataclasses.replace(table, train=dataclasses.replace(table.train, features=sparse))
    assert [i.name for i in effects.propose(thin, criterion, 0)] == ["effect of user"]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("slopes", [False, True])
def test_a_training_goes_on_from_a_checkpoint_bit_for_bit(kind: str, slopes: bool) -> None:
    table, criterion = table_of(kind, 600, planted=own_level)
    item = Item("effects", "", 8, 1.0, 0, {"entity": 4, "slopes": slopes})
    whole, stopped = effects.trainer(item, table), effects.trainer(item, table)
    for _ in range(4):
        whole.epoch(table, criterion)
    for _ in range(2):
        stopped.epoch(table, criterion)
    again = pickle.loads(pickle.dumps(stopped))
    for _ in range(2):
        again.epoch(table, criterion)
    assert torch.equal(whole.part().output(table.validation), again.part().output(table.validation))
