"""Rounds of items for tests of how items are run: of the kind `climbing`, on generated rows."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from sparkdiff.growth import checkpoints, item_runner, parts
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import CriterionSpecification
from sparkdiff.growth.part import Item, ItemResult
from sparkdiff.growth.row_tensors import Table
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from tests.support import climbing
from tests.support.growth_tables import specification_of, table_of

ITEMS = climbing.items(7)
"""Six."""


def planted(**options: Any) -> tuple[Table, CriterionSpecification]:
    """Rows on which the items gain."""
    table, _ = table_of("poisson", 900, planted=lambda c: 0.4 * c["y"])
    return table, specification_of("poisson", table, table.train.label, **options)


def rounds_of(
    run: Path,
    rounds: list[list[Item]],
    said: list[str] | None = None,
    trained: list[int] | None = None,
    clock: Clock | None = None,
    memory: item_runner.ItemResultCache | None = None,
    **options: Any,
) -> list[list[ItemResult]]:
    """What rounds find, each from the same margin, in the run `run` of a folder.

    Args:
        said, trained: lists to add to: what is told, and how many items each round has trained.
    """
    table, specification = planted(**options)
    criterion = specification.criterion()
    original = criterion.score(table.validation.margin, table.validation).blocks
    folder = CheckpointFolder.open(run, "run", {}, replace=False)
    say, ended = [] if said is None else said, dict[int, list[int]]()

    def on_item(number: int, done: int, most: int) -> None:
        ended.setdefault(number, []).append(done)

    with item_runner.runner(folder, specification, say.append, clock, memory, on_item) as of_round:
        found = [of_round(number, items, table, original) for number, items in enumerate(rounds, 1)]
    if trained is not None:
        trained += [done[-1] - done[0] for done in ended.values()]
    return found


def changed(position: int, **settings: Any) -> list[Item]:
    """The items, one of them with other settings."""
    items = list(ITEMS)
    items[position] = dataclasses.replace(items[position], settings={**items[position].settings, **settings})
    return items


@pytest.fixture
def climbing_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kind of parts that is cheap, whose checkpoints are written after each epoch."""
    monkeypatch.setitem(parts.KINDS, "climbing", climbing)
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[object, ...]]:
    """What one process finds."""
    with pytest.MonkeyPatch.context() as m:
        m.setitem(parts.KINDS, "climbing", climbing)
        return climbing.bits(rounds_of(tmp_path_factory.mktemp("alone"), [ITEMS])[0])
