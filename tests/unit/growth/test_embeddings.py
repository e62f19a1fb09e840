"""Embeddings of categories: which columns they are proposed for, what they find, what they are made of, checkpoints."""

import dataclasses
import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.descent import standardisation
from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import coding, embeddings, score_test
from sparkdiff.growth.parts.embeddings import LowRankTrainer, MainTrainer
from sparkdiff.growth.row_tensors import Split, Table
from tests.support.growth_tables import HEADS, LEVELS, table_of, trained

F64 = torch.float64
TASTE = torch.randn(LEVELS[2], generator=torch.Generator().manual_seed(4), dtype=F64)
"""What is planted for each user."""


def mean_of_user(c: dict[str, Tensor]) -> Tensor:
    return 0.8 * TASTE[c["user"].long()]


def slope_of_user(c: dict[str, Tensor]) -> Tensor:
    return mean_of_user(c) * c["y"]


def items_of(table: Table, criterion: Criterion) -> dict[str, Item]:
    return {item.name: item for item in embeddings.propose(table, criterion, 3)}


def share(value: float, table: Table, criterion: Criterion, planted: Tensor) -> float:
    """Of what the planted effect gains on the validation rows."""
    known = planted if not table.classes else torch.stack([0 * planted, planted, -planted], 1)
    margin = table.validation.margin
    before, best = (float(criterion.loss(margin + added, table.validation)) for added in (0 * known, known))
    return (before - value) / (before - best)


@pytest.mark.parametrize("kind", HEADS)
def test_a_main_effect_is_proposed_first_and_found(kind: str) -> None:
    table, criterion = table_of(kind, 4000, planted=mean_of_user)
    [name, item] = next(iter(items_of(table, criterion).items()))
    assert name == "embedding of user"
    found = trained(item, table, criterion)
    assert share(found.value, table, criterion, 0.8 * TASTE[table.validation.values[:, 4].long()]) > 0.75
    assert found.part is not None
    shown = found.part.learned_table()
    assert [row["user"] for row in shown] == [str(i) for i in range(40)]
    effect = torch.tensor([row["effect on class 1" if table.classes else "effect"] for row in shown])
    assert float(torch.corrcoef(torch.stack([effect, TASTE]))[0, 1]) > 0.9
    assert found.part.parameters == 40 * table.width


@pytest.mark.parametrize("kind", HEADS)
def test_coefficients_of_each_value_are_proposed_and_found(kind: str) -> None:
    table, criterion = table_of(kind, 4000, planted=slope_of_user)
    names = [name for name in items_of(table, criterion) if "x features" in name]
    assert names[:2] == ["embedding of user x features, 1 coordinate", "embedding of user x features"]
    item = items_of(table, criterion)[names[0]]
    found = trained(item, table, criterion)
    validation = table.validation
    planted = 0.8 * TASTE[validation.values[:, 4].long()] * validation.values[:, 1]
    assert share(found.value, table, criterion, planted) > 0.7
    assert found.part is not None
    [first, *_] = found.part.learned_table()
    assert list(first) == ["user", "coordinate 1"]
    m = table.width
    assert found.part.parameters == 40 + m + validation.values.shape[1] + 1 + (m if table.classes else 0)


def test_only_columns_that_matter_are_proposed() -> None:
    """Three at most, and few by chance alone."""
    names = [[*items_of(*table_of("poisson", 1500, seed))] for seed in range(10)]
    assert sum("features" in n for each in names for n in each) <= 2
    assert sum(len(n) for n in names) < 15
    assert all(sum("features" not in n for n in each) <= embeddings.MAIN for each in names)
    table, criterion = table_of("poisson", 1500, planted=lambda c: mean_of_user(c) + 0.5 * (c["a"] == 2))
    assert [*items_of(table, criterion)][:2] == ["embedding of user", "embedding of a"]


def test_low_rank_scores_tell_an_effect_from_noise() -> None:
    """Many cells of nothing don't outweigh few that count, nor do features that say the same."""
    for seed in range(3):
        table, criterion = table_of("binary", 3000, seed, planted=lambda c: 0.9 * (c["b"] - 1.5) * c["y"])
        twice = torch.cat([table.train.features] * 3, 1)  # type: ignore[list-item]
        table = dataclasses.replace(table, train=dataclasses.replace(table.train, features=twice))
        mean, inverse = standardisation(table.train)
        d = score_test.derivatives(table.train, criterion)
        a, b, user = (
            embeddings.low_rank_score(table.train.values[:, i].long(), LEVELS[i - 2], (twice - mean) * inverse, d)
            for i in (2, 3, 4)
        )
        assert b > 30 and a < 5 and user < 5


def test_a_nearly_constant_number_has_two_buckets() -> None:
    table, _ = table_of("poisson", 600)
    values = table.train.values.clone()
    values[40:, 0] = -4.0
    rare = dataclasses.replace(table, train=dataclasses.replace(table.train, values=values))
    coded = coding.coding(rare, 0, 4)
    assert coded is not None and coded.size == 2
    index = coded.index(rare.train)
    assert index[:40].eq(1).all() and index[40:].eq(0).all()


def test_wide_features_get_no_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "WIDEST", 5)
    table, criterion = table_of("poisson", 1500, planted=slope_of_user)
    assert not [name for name in items_of(table, criterion) if "features" in name]


def both(table: Table, criterion: Criterion, unit: float = 1.0) -> list[MainTrainer | LowRankTrainer]:
    """Trainers of both forms for `user`."""
    place = 4
    made = [
        parts.trainer(Item("embeddings", "user", 5, 1.0, 3, {"place": place, "size": size, "unit": unit}), table)
        for size in (0, 1, 4)
    ]
    for trainer in made:
        for _ in range(2):
            trainer.epoch(table, criterion)
    return made  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_the_part_is_what_is_trained(kind: str) -> None:
    table, criterion = table_of(kind, 600, planted=slope_of_user)
    far = dataclasses.replace(table.train, features=table.train.features * 3 + torch.arange(6.0, dtype=F64))
    table = dataclasses.replace(table, train=far)
    for trainer in both(table, criterion, unit=2.5)[1:]:
        assert isinstance(trainer, LowRankTrainer)
        part = trainer.part()
        added = trainer.part_margin(trainer.parameters, far, torch.arange(len(far)))
        torch.testing.assert_close(part.output(far), added, rtol=1e-10, atol=1e-10)
        assert float(added.std()) > 0.01
        assert part.products is not None
        x, products = far.features, part.products
        assert isinstance(x, Tensor)
        i = 17  # one row by hand
        e, p = part.points[int(far.values[i, 4])], x[i] @ products.projection
        by_hand = e @ part.coefficients + torch.outer(e, p).flatten() @ products.coefficients
        torch.testing.assert_close(by_hand, part.output(far)[i].reshape(-1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["poisson", "softmax"])
def test_a_pickled_training_goes_on_bit_for_bit(kind: str) -> None:
    table, criterion = table_of(kind, 500, planted=slope_of_user)
    for whole in both(table, criterion):
        resumed = pickle.loads(pickle.dumps(whole))
        torch.manual_seed(9)
        for trainer in (whole, resumed):
            trainer.epoch(table, criterion)
        one, other = whole.part(), resumed.part()
        assert torch.equal(one.output(table.train), other.output(table.train))
        assert one.learned_table() == other.learned_table()


@pytest.mark.parametrize("kind", HEADS)
def test_rows_of_weight_0_and_values_of_no_row_do_not_count(kind: str) -> None:
    table, criterion = table_of(kind, 600, planted=slope_of_user)
    train = table.train
    rare = train.values[:, 4] < 5
    weight = torch.where(rare, 0.0, 2.0).to(F64)
    features, label = train.features, train.label
    assert isinstance(features, Tensor)
    wild = torch.where(rare[:, None], 1e3, features), torch.where(rare, label[rare][0], label)
    own = Split(wild[0], train.values, wild[1], weight, train.block, train.margin)
    kept = Split(
        features[~rare], train.values[~rare], label[~rare], weight[~rare] / 2, train.block[~rare], train.margin[~rare]
    )
    pairs = [both(dataclasses.replace(table, train=rows), criterion) for rows in (own, kept)]
    for one, other in zip(*pairs, strict=True):
        output = one.part().output(train)
        torch.testing.assert_close(output, other.part().output(train), rtol=1e-6, atol=1e-8)
        assert not output[rare].any(), "of values that no row has"
        assert output[~rare].all()
        unknown = dataclasses.replace(train, values=torch.full_like(train.values, 99.0))
        assert not one.part().output(unknown).any()
        assert not any(row["user"] in ("0", "4", "other") for row in one.part().learned_table())


def test_values_of_few_rows_stay_near_zero() -> None:
    """The ridge is what the spread of the other values says."""
    drawn = []
    for scale in (0.0, 1.0):
        table, criterion = table_of("linear", 3000, planted=lambda c, scale=scale: scale * TASTE[c["user"].long()])  # type: ignore[misc]
        trainer = embeddings.MainTrainer(
            Item("embeddings", "user", 12, 1.0, 3, {"place": 4, "size": 0, "unit": 1.0}), table
        )
        for _ in range(12):
            trainer.epoch(table, criterion)
        assert trainer.variance is not None
        drawn.append((float(trainer.variance), float(trainer.effects[:-1].std())))
    assert drawn[0][0] < 0.01 and drawn[0][1] < 0.06, "nothing but noise: its standard deviation alone is 0.07"
    assert drawn[1][0] == pytest.approx(float(TASTE.square().mean()), rel=0.1)


def test_a_training_that_diverges_is_told() -> None:
    table, criterion = table_of("poisson", 500, planted=slope_of_user)
    settings = {"place": 4, "size": 4, "unit": 1.0, "rate": 1e200}
    found = trained(Item("embeddings", "user", 10, 1.0, 3, settings), table, criterion)
    assert found.part is None
    assert not found.gains[-1].isfinite().any()
