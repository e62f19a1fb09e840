"""Hidden units: what they find, what their weights mean, checkpoints, and rows that don't count."""

import dataclasses
import pickle

import pytest
import torch
from torch import Tensor

from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item
from sparkdiff.growth.parts import units
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.tensors.rows import SparseRows
from tests.support.growth_tables import HEADS, table_of, trained


def planted(c: dict[str, Tensor]) -> Tensor:
    return 0.8 * c["x"] * c["y"]


def item_of(table: Table, criterion: Criterion, name: str = "8 units", **changes: object) -> Item:
    [item] = [i for i in units.propose(table, criterion, 7) if i.name == name]
    return dataclasses.replace(item, **changes)  # type: ignore[arg-type]


def sparse(x: Tensor) -> SparseRows:
    """Only what isn't zero is stored; the first row has nothing."""
    stored = x != 0
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), stored.sum(1).cumsum(0)])
    return SparseRows(stored.nonzero()[:, 1], x[stored], offsets, x.shape[1])


@pytest.mark.parametrize("kind", HEADS)
def test_units_find_a_product_of_two_features(kind: str) -> None:
    table, criterion = table_of(kind, 3000, planted=planted)
    found = trained(item_of(table, criterion), table, criterion)
    validation = table.validation
    effect = 0.8 * validation.values[:, 0] * validation.values[:, 1]
    known = effect if not table.classes else torch.stack([0 * effect, effect, -effect], 1)
    before, best = (float(criterion.loss(validation.margin + added, validation)) for added in (0 * known, known))
    assert found.value < before - 0.5 * (before - best)
    assert found.part is not None
    added = found.part.output(validation)
    assert float(criterion.loss(validation.margin + added, validation)) == pytest.approx(found.value, rel=1e-9)
    assert found.part.parameters == 8 * 7 + 9 * table.width


def test_deep_units_find_it_too() -> None:
    table, criterion = table_of("binary", 3000, planted=planted)
    before = criterion.score(table.validation.margin, table.validation).mean
    for name in ("2 layers of 32 units", "2 layers of 32 units, small weights"):
        assert trained(item_of(table, criterion, name), table, criterion).value < 0.97 * before


@pytest.mark.parametrize("kind", ["linear", "softmax"])
@pytest.mark.parametrize("name", [name for *_, name in units.SIZES])
def test_the_part_is_what_is_trained(kind: str, name: str) -> None:
    """Standardisation, tanh and the unit of the margin are folded into the weights."""
    table, criterion = table_of(kind, 600, planted=planted)
    far = dataclasses.replace(table.train, features=table.train.features * 3 + torch.arange(6.0, dtype=torch.float64))
    table = dataclasses.replace(table, train=far)
    item = item_of(table, dataclasses.replace(criterion, unit=2.5), name)
    trainer = units.trainer(item, table)
    for _ in range(3):
        trainer.epoch(table, criterion)
    every = torch.arange(len(far))
    part = trainer.part()
    torch.testing.assert_close(
        part.output(far), trainer.part_margin(trainer.parameters, far, every), rtol=1e-10, atol=1e-10
    )
    assert float(part.output(far).std()) > 0.01
    torch.testing.assert_close(part.output(far), by_hand(part, far), rtol=1e-12, atol=1e-12)
    kept = part.output(far)
    trainer.epoch(table, criterion)
    assert torch.equal(part.output(far), kept), "a part that was handed out stays as it is"


def by_hand(part: units.Units, split: Split) -> Tensor:
    """Layer by layer, from the vector of weights in Spark's order."""
    out, first = split.features, 0
    assert isinstance(out, Tensor)
    for wide, high in zip(part.sizes[:-1], part.sizes[1:], strict=True):
        matrix = part.weights[first : first + wide * high].reshape(wide, high)
        bias = part.weights[first + wide * high : first + (wide + 1) * high]
        out = (out if first == 0 else torch.sigmoid(out)) @ matrix + bias
        first += (wide + 1) * high
    assert first == len(part.weights)
    return out if part.classes else out[:, 0]


def test_of_one_margin_the_second_output_is_zero() -> None:
    table, criterion = table_of("poisson", 300)
    trainer = units.trainer(item_of(table, criterion), table)
    trainer.epoch(table, criterion)
    part = trainer.part()
    assert part.sizes == (6, 8, 2)
    last = part.weights[-18:]
    assert (last[:16].view(8, 2)[:, 1] == 0).all() and last[17] == 0


def test_nothing_is_added_before_the_first_epoch() -> None:
    table, criterion = table_of("softmax", 300)
    part = units.trainer(item_of(table, criterion), table).part()
    assert not part.output(table.train).any()


@pytest.mark.parametrize("kind", ["poisson", "softmax"])
def test_a_pickled_training_goes_on_bit_for_bit(kind: str) -> None:
    table, criterion = table_of(kind, 500, planted=planted)
    item = item_of(table, criterion, "2 layers of 32 units")
    whole = units.trainer(item, table)
    for _ in range(3):
        whole.epoch(table, criterion)
    torch.manual_seed(99)  # the global generator plays no part
    resumed = units.trainer(item, table)
    for _ in range(3):
        resumed = pickle.loads(pickle.dumps(resumed))
        resumed.epoch(table, criterion)
    assert torch.equal(whole.parameters, resumed.parameters)
    part = pickle.loads(pickle.dumps(whole.part()))
    assert torch.equal(part.output(table.train), whole.part().output(table.train))


@pytest.mark.parametrize("kind", HEADS)
def test_rows_without_weight_do_not_count(kind: str) -> None:
    table, criterion = table_of(kind, 500, planted=planted)
    train = table.train
    last = train.label[-1].clone()
    more = Split(
        *(torch.cat([t, t[:50] * (1e6 if t is train.features else 1)]) for t in (train.features, train.values)),
        torch.cat([train.label, last.expand(50)]),
        torch.cat([2 * train.weight, torch.zeros(50, dtype=torch.float64)]),
        torch.cat([train.block, train.block[:50]]),
        torch.cat([train.margin, train.margin[:50]]),
    )
    outputs = []
    for rows in (train, more):
        trainer = units.trainer(item_of(table, criterion), dataclasses.replace(table, train=rows))
        for _ in range(2):
            trainer.epoch(dataclasses.replace(table, train=rows), criterion)
        outputs.append(trainer.part().output(train))
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-6, atol=1e-9)


def test_sparse_rows_train_as_dense_ones_do() -> None:
    table, criterion = table_of("binary", 500, planted=planted)
    both = []
    for form in (lambda x: x, sparse):
        train, validation = (dataclasses.replace(s, features=form(s.features)) for s in (table.train, table.validation))
        own = dataclasses.replace(table, train=train, validation=validation)
        trainer = units.trainer(item_of(own, criterion), own)
        for _ in range(3):
            trainer.epoch(own, criterion)
        both.append(trainer.part().output(validation))
    torch.testing.assert_close(both[0], both[1], rtol=1e-8, atol=1e-8)


def test_a_column_that_is_constant_in_training_has_no_say() -> None:
    table, criterion = table_of("poisson", 300, planted=planted)
    fixed = table.train.features.clone()
    fixed[:, 1] = 0.1
    own = dataclasses.replace(table, train=dataclasses.replace(table.train, features=fixed))
    trainer = units.trainer(item_of(own, criterion), own)
    for _ in range(3):
        trainer.epoch(own, criterion)
    moved = fixed.clone()
    moved[:, 1] = 1e6
    part = trainer.part()
    assert torch.equal(part.output(own.train), part.output(dataclasses.replace(own.train, features=moved)))


def test_a_training_that_diverges_is_told() -> None:
    table, criterion = table_of("poisson", 500, planted=planted)
    item = item_of(table, criterion)
    wild = dataclasses.replace(item, settings={**item.settings, "rate": 1e200})
    found = trained(wild, table, criterion)
    assert found.part is None
    assert len(found.gains) < wild.epochs
    assert not found.gains[-1].isfinite().any()


def test_what_is_proposed() -> None:
    table, criterion = table_of("softmax", 300)
    items = units.propose(table, criterion, 5)
    assert [i.name for i in items] == [name for *_, name in units.SIZES]
    assert len({i.seed for i in items}) == len(items)
    assert items[0].work < items[1].work < items[2].work
    assert items == units.propose(table, criterion, 5)
    wide = SparseRows(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0), torch.zeros(201, dtype=torch.int64), units.WIDEST + 1
    )
    train = dataclasses.replace(table.train, features=wide)
    assert units.propose(dataclasses.replace(table, train=train), criterion, 5) == []
