"""Files of a round of growth: the results of finished items (training runs of parts), and the checkpoints of unfinished ones.

They are in the folder `round-N` of a run. Each file is written as a whole or not at all. Training that is resumed from a
checkpoint ends as if it had never been interrupted, so it doesn't matter which process wrote the checkpoint, or when.
"""

import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sparkdiff.errors import SparkdiffError, WriteError, warn
from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, ItemResult, ItemTraining
from sparkdiff.growth.row_tensors import Table
from sparkdiff.machine import atomic_files
from sparkdiff.store import files
from sparkdiff.training.distributed.worker import ROOM

EVERY = 2.0
"""Seconds between two checkpoints of an item."""


class ItemError(SparkdiffError):
    """Error in the training of an item. The message names the item and contains the traceback; the command exits with code 1."""


@dataclasses.dataclass(frozen=True)
class RoundFiles:
    """The files of a round. Only the user who runs the process may write to the folder, so its pickles can be trusted."""

    path: Path

    @staticmethod
    def open(run: Path, number: int, items: Sequence[Item], table: Table, original: Tensor) -> "RoundFiles":
        """Open the files of round `number` of a run. If they were written for other items or another margin, remove the files of
        this round and of later rounds, so that these rounds begin again.

        Args:
            run: folder of the run.
            original: (B,) the original's sum of weight * loss in each block of the guard.
        """
        about = json.dumps([[dataclasses.asdict(i) for i in items], digest(table, original)], sort_keys=True)
        path = run / f"round-{number}"
        if files.read_undamaged(path / "round.json", (path / "round.json").read_text) == about:
            return RoundFiles(path)
        for old in run.glob("round-*"):
            if not (name := old.name.partition("-")[2]).isdecimal() or int(name) >= number:
                atomic_files.remove(old)
        with files.room("the results of a round", path, ROOM):
            path.mkdir(mode=0o700, parents=True)
            files.write_bytes(path / "round.json", about.encode())
        return RoundFiles(path)

    def finished_items(self) -> set[int]:
        """Positions of the finished items with undamaged result files."""
        names = (re.fullmatch(r"found-(\d+)\.pickle", p.name) for p in self.path.iterdir())
        return {int(name[1]) for name in names if name and self._unpickle(name[0]) is not None}

    def read_result(self, position: int) -> ItemResult:
        return pickle.loads((self.path / f"found-{position}.pickle").read_bytes())

    def course(self, position: int) -> ItemTraining | None:
        """State of an item's training from its checkpoint; None if there is no undamaged checkpoint."""
        return self._unpickle(f"course-{position}.pickle")

    def _unpickle(self, name: str) -> Any:
        return files.read_undamaged(self.path / name, lambda: pickle.loads((self.path / name).read_bytes()))

    def save(self, position: int, course: ItemTraining) -> None:
        """Write a checkpoint. If it can't be written, training continues without it."""
        try:
            self._write(f"course-{position}.pickle", course, "a checkpoint")
        except (WriteError, OSError) as e:
            warn(f"{e}. Training continues without it; a crash would lose more", RuntimeWarning)

    def keep(self, position: int, found: ItemResult) -> None:
        """Write a result, and remove the checkpoint that it replaces."""
        self._write(f"found-{position}.pickle", found, "the result of an item")
        (self.path / f"course-{position}.pickle").unlink(missing_ok=True)

    def _write(self, name: str, content: Any, what: str) -> None:
        with files.room(what, self.path, ROOM):
            files.write_bytes(self.path / name, pickle.dumps(content))


def digest(table: Table, original: Tensor) -> str:
    """Hash of the margins that the items of a round start from, and of the original's block sums."""
    found = hashlib.sha256()
    for tensor in (table.train.margin, table.validation.margin, original):
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(
    kept: RoundFiles,
    position: int,
    item: Item,
    table: Table,
    criterion: Criterion,
    original: Tensor,
    every: float = EVERY,
    tick: Callable[[], None] = lambda: None,
) -> ItemResult:
    """Train an item until it is finished, from its checkpoint if there is one, and store its result.

    Args:
        kept: files of the round.
        position: index of the item in the round.
        original: (B,) the original's sum of weight * loss in each block of the guard.
        every: seconds between two checkpoints.
        tick: called before each epoch.

    Raises:
        ItemError: training failed; the message names the item.
    """
    tick()
    began, saved = time.process_time(), time.monotonic()
    with _item_errors(item):
        course = kept.course(position)
        if course is None:
            before = criterion.score(table.validation.margin, table.validation).mean
            course = ItemTraining(item, parts.trainer(item, table), before)
    while not course.is_done:
        tick()
        with _item_errors(item):
            course.step(table, criterion, original)
        now = time.process_time()
        course.seconds, began = course.seconds + now - began, now
        if not course.is_done and time.monotonic() - saved > every:
            kept.save(position, course)
            saved = time.monotonic()
    found = course.result()
    kept.keep(position, found)
    return found


@contextlib.contextmanager
def _item_errors(item: Item) -> Iterator[None]:
    """Context that turns errors into an `ItemError` that names the item; errors of sparkdiff pass unchanged."""
    try:
        yield
    except SparkdiffError:
        raise
    except Exception as e:
        raise ItemError(f"the item {item.name!r} ({item.kind}) failed:\n{traceback.format_exc().rstrip()}") from e
