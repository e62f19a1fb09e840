"""Boosted trees as parts: what they gain, from any head's loss, the same whenever they are interrupted."""

import dataclasses
import importlib.util
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff import InputError
from sparkdiff.growth import boosters, cost_table
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.part import Item, ItemTraining
from sparkdiff.growth.parts import KINDS, trees
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.importers.trees import TreeArrays
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.objectives import losses
from sparkdiff.stages.base import LabelStats
from tests.support.growth_tables import HEADS, table_of

LIBRARIES = [booster.module for booster in boosters.BOOSTERS]
LEAST = {"lightgbm": 0.6, "xgboost": 0.5, "sklearn": 0.4}
"""The share of what a model that knows would gain."""


def planted(columns: dict[str, Tensor]) -> Tensor:
    """The sign of y's effect alternates with the category a."""
    return 1.5 * columns["y"] * (2 * (columns["a"] % 2) - 1)


def knowing(split: Split) -> Tensor:
    effect = planted({"y": split.values[:, 1], "a": split.values[:, 2]})
    return split.margin + (effect if split.margin.ndim == 1 else torch.stack([0 * effect, effect, -effect], 1))


def item_of(table: Table, criterion: Criterion, library: str, leaves: int = 31, epochs: int = 10) -> Item:
    [item] = [i for i in trees.propose(table, criterion, 5) if i.settings["leaves"] == leaves]
    return dataclasses.replace(item, epochs=epochs, settings={**item.settings, "library": library})


def trained(table: Table, criterion: Criterion, item: Item) -> ItemTraining:
    before = criterion.score(table.validation.margin, table.validation)
    course = ItemTraining(item, trees.trainer(item, table), before.mean)
    while not course.is_done:
        course.step(table, criterion, before.blocks)
    return course


def with_gaps(table: Table) -> Table:
    """A fifth of x and of a missing."""
    draws = torch.Generator().manual_seed(3)

    def gappy(split: Split) -> Split:
        gone = torch.rand(split.values.shape, generator=draws) < 0.2
        gone[:, [1, 3, 4]] = False
        return dataclasses.replace(split, values=split.values.masked_fill(gone, torch.nan))

    return dataclasses.replace(table, train=gappy(table.train), validation=gappy(table.validation))


@pytest.mark.parametrize(
    ("library", "kind"),
    [
        # Each library, and each head: what a head asks of a library is one gradient.
        pytest.param(library, kind, marks=() if i % len(LIBRARIES) == j else pytest.mark.nightly)
        for i, kind in enumerate(HEADS)
        for j, library in enumerate(LIBRARIES)
    ],
)
def test_a_planted_interaction_is_gained(library: str, kind: str) -> None:
    table, criterion = table_of(kind, 4000, planted=planted)
    course = trained(table, criterion, item_of(table, criterion, library, leaves=4, epochs=20))
    before = criterion.score(table.validation.margin, table.validation).mean
    best = criterion.score(knowing(table.validation), table.validation).mean
    assert (before - course.value) / (before - best) > LEAST[library]
    part = course.result().part
    assert part is not None
    gains = {row["column"]: row["gain"] for row in part.learned_table()}
    assert gains["y"] + gains["a"] > 0.5
    assert sum(row["gain"] for row in part.learned_table()) == pytest.approx(1)
    count = 10 * course.chosen * table.width
    assert part.name == f"{count} trees"
    assert cost_table.of_steps(part.serving_work(2.0).steps) > 0.1 * count**0.5
    assert 0 < part.parameters <= count * 7
    assert course.train < float(criterion.loss(table.train.margin, table.train))


@pytest.mark.parametrize("kind", ["poisson", "softmax"])
@pytest.mark.parametrize("library", LIBRARIES)
def test_a_training_goes_on_as_if_it_had_not_been_interrupted(library: str, kind: str) -> None:
    table, criterion = table_of(kind, 1500, planted=planted)
    table = with_gaps(table)
    item = item_of(table, criterion, library, epochs=3)
    whole = trained(table, criterion, item).result()
    before = criterion.score(table.validation.margin, table.validation)
    course: Any = ItemTraining(item, trees.trainer(item, table), before.mean)
    while not course.is_done:
        course = pickle.loads(pickle.dumps(course))
        course.step(table, criterion, before.blocks)
    found = course.result()
    assert torch.equal(found.gains, whole.gains)
    assert found.epoch > 0
    assert (found.epoch, found.value, found.train) == (whole.epoch, whole.value, whole.train)
    other = dataclasses.replace(item, seed=item.seed + 1)
    assert not torch.equal(trained(table, criterion, other).result().gains, whole.gains)


def test_a_part_is_the_same_without_what_was_kept_of_its_sums() -> None:
    table, criterion = table_of("poisson", 600, planted=planted)
    trainer = trees.trainer(item_of(table, criterion, "lightgbm"), table)
    parts = []
    for _ in range(3):
        trainer.epoch(table, criterion)
        parts.append(trainer.part())
        parts[-1].output(table.validation)
    for part in (parts[2], parts[0], parts[1]):
        assert torch.equal(part.output(table.validation), pickle.loads(pickle.dumps(part)).output(table.validation))
    assert not torch.equal(parts[0].output(table.validation), parts[1].output(table.validation))


def test_a_loss_without_curvature() -> None:
    table, criterion = table_of("linear", 2000, planted=planted)
    stats = LabelStats(0.0, 3.0, -9.0, 9.0, torch.empty(0, dtype=torch.int64))
    objective = losses.resolve("absolute", {}, criterion.head, ("prediction",), stats)
    criterion = dataclasses.replace(criterion, objective=objective)
    before = float(criterion.loss(table.train.margin, table.train))
    course = trained(table, criterion, item_of(table, criterion, "lightgbm"))
    assert course.train < 0.5 * before


def test_rows_without_weight_say_nothing() -> None:
    table, criterion = table_of("poisson", 900, planted=planted)
    half = torch.arange(len(table.train)) % 2
    wrong = torch.where(half == 0, 100.0, table.train.label)
    outputs = []
    for label in (wrong, wrong + 7 * (half == 0)):
        train = dataclasses.replace(table.train, label=label, weight=half.double())
        one = dataclasses.replace(table, train=train)
        trainer = trees.trainer(item_of(one, criterion, "lightgbm"), one)
        trainer.epoch(one, criterion)
        outputs.append(trainer.part().output(table.validation))
    assert torch.equal(*outputs)
    assert float(outputs[0].std()) > 0


def test_margins_that_have_diverged_make_no_trees() -> None:
    table, criterion = table_of("poisson", 300)
    far = table.at(table.train.margin + 1e4, table.validation.margin)
    for library in LIBRARIES:
        trainer = trees.trainer(item_of(far, criterion, library), far)
        trainer.epoch(far, criterion)
        assert torch.equal(trainer.part().output(far.validation), torch.zeros_like(far.validation.margin))
        assert trainer.part().learned_table()[0]["gain"] == 0


def test_trees_need_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    table, criterion = table_of("poisson", 60)
    assert KINDS["trees"] is trees
    assert boosters.preferred_library() == "lightgbm"
    assert {i.settings["library"] for i in trees.propose(table, criterion, 0)} == {"lightgbm"}
    assert trees.without_trees(GrowthSettings()) == (GrowthSettings(), [])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    rest, [warning] = trees.without_trees(GrowthSettings())
    assert rest == GrowthSettings(parts=tuple(k for k in KINDS if k != "trees"))
    assert "growth tried no trees" in warning
    assert trees.without_trees(rest) == (rest, [])
    with pytest.raises(InputError, match="leave 'trees' out of parts"):
        trees.without_trees(GrowthSettings(parts=("trees", "units")))
    with pytest.raises(InputError, match=r"none of them is installed: pip install 'sparkdiff\[trees\]'"):
        trees.propose(table, criterion, 0)


def test_slow_trees_are_for_few_classes_and_fast_ones_for_all() -> None:
    table, criterion = table_of("poisson", 60)
    sizes = {}
    for classes in (0, 3, 10, 90):
        wide = dataclasses.replace(table, classes=classes)
        sizes[classes] = [i.settings["leaves"] for i in trees.propose(wide, criterion, 0)]
    assert sizes == {0: [4, 31, 8, 63], 3: [4, 31, 8, 63], 10: [4, 31, 8], 90: [4, 31]}


def test_nodes_are_joined_as_trees_are() -> None:
    random = np.random.default_rng(0)

    def tree(sets: dict[int, Any]) -> TreeArrays:
        f = np.array([0, 1, -1, -1, -1])
        gaps = np.array([True, False, False, False, False])
        return TreeArrays(
            np.array([0, 5]),
            np.array([1, 2, -1, -1, -1]),
            np.array([4, 3, -1, -1, -1]),
            f,
            random.normal(size=5),
            gaps,
            random.normal(size=5),
            np.zeros(5),
            np.ones(5),
            np.ones(5),
            sets=sets,
        )

    some = [tree({}), tree({1: (np.array([0.0, 2.0]), True)}), TreeArrays.constant(1.0)]
    joined, expected = Nodes.join([t.nodes() for t in some]), TreeArrays.join(some).nodes()
    for field in dataclasses.fields(Nodes):
        np.testing.assert_array_equal(getattr(joined, field.name), getattr(expected, field.name))
