"""Files of a round: the result of each item that has ended, and the checkpoints of the others.

The folder `round-N` of a run. All files are written whole or not at all, and training resumed from one ends as if it had never
been interrupted, so that it doesn't matter which process wrote it, and when.
"""

import contextlib
import dataclasses
import hashlib
import json
import pickle
import re
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sparkdiff.errors import SparkdiffError, WriteError
from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Course, Found, Item
from sparkdiff.growth.table import Table
from sparkdiff.machine import whole
from sparkdiff.store import files
from sparkdiff.training.distributed.worker import ROOM

EVERY = 2.0
"""Seconds between two checkpoints of an item."""


class ItemError(SparkdiffError):
    """The training of an item failed; the message names it, and contains the traceback. The command exits with code 1."""


@dataclasses.dataclass(frozen=True)
class RoundFiles:
    """The files of a round. Only the user of the run may write to its folder, so pickles can be trusted."""

    path: Path

    @staticmethod
    def open(run: Path, number: int, items: Sequence[Item], table: Table, original: Tensor) -> "RoundFiles":
        """Files of round `number` of a run. If they belong to other items or another margin, this round and later ones
        begin again.
        """
        about = json.dumps([[dataclasses.asdict(i) for i in items], digest(table, original)], sort_keys=True)
        path = run / f"round-{number}"
        with contextlib.suppress(OSError, ValueError):
            if (path / "round.json").read_text(encoding="utf-8") == about:
                return RoundFiles(path)
        for old in run.glob("round-*"):
            if not (name := old.name.partition("-")[2]).isdecimal() or int(name) >= number:
                whole.remove(old)
        with files.room("the results of a round", path, ROOM):
            path.mkdir(mode=0o700, parents=True)
            files.write_bytes(path / "round.json", about.encode())
        return RoundFiles(path)

    def ended(self) -> set[int]:
        """Positions of the items that have ended and whose results are undamaged."""
        names = (re.fullmatch(r"found-(\d+)\.pickle", p.name) for p in self.path.iterdir())
        return {int(name[1]) for name in names if name and self._kept(name[0]) is not None}

    def found(self, position: int) -> Found:
        found: Found = pickle.loads((self.path / f"found-{position}.pickle").read_bytes())
        return found

    def course(self, position: int) -> Course | None:
        """State of an item's training from its checkpoint; None if there is no checkpoint."""
        course: Course | None = self._kept(f"course-{position}.pickle")
        return course

    def _kept(self, name: str) -> Any:
        return files.read_undamaged(self.path / name, lambda: pickle.loads((self.path / name).read_bytes()))

    def save(self, position: int, course: Course) -> None:
        """Write a checkpoint. If it can't be written, training continues without it."""
        try:
            self._write(f"course-{position}.pickle", course, "a checkpoint")
        except (WriteError, OSError) as e:
            warnings.warn(f"{e}. Training continues without it; a crash would lose more", RuntimeWarning, stacklevel=2)

    def keep(self, position: int, found: Found) -> None:
        """Write a result, in place of the checkpoint."""
        self._write(f"found-{position}.pickle", found, "the result of an item")
        (self.path / f"course-{position}.pickle").unlink(missing_ok=True)

    def _write(self, name: str, content: Any, what: str) -> None:
        with files.room(what, self.path, ROOM):
            files.write_bytes(self.path / name, pickle.dumps(content))


def digest(table: Table, original: Tensor) -> str:
    """Hash of the margins that items start from, and of the original's sums."""
    found = hashlib.sha256()
    for tensor in (table.train.margin, table.validation.margin, original):
        found.update(tensor.detach().contiguous().numpy().tobytes())
    return found.hexdigest()


def train(
    kept: RoundFiles, position: int, item: Item, table: Table, criterion: Criterion, original: Tensor,
    every: float = EVERY, tick: Callable[[], None] = lambda: None,
) -> Found:  # fmt: skip
    """Train an item to its end, from its beginning or from its checkpoint, and store its result.

    Args:
        original: (B,) the original's sums of weight * loss.
        every: seconds between two checkpoints.
        tick: called before each epoch.

    Raises:
        ItemError: training failed; names the item.
    """
    tick()
    began, saved = time.process_time(), time.monotonic()
    with _named(item):
        course = kept.course(position)
        if course is None:
            before = criterion.score(table.validation.margin, table.validation).mean
            course = Course(item, parts.trainer(item, table), before)
    while not course.done:
        tick()
        with _named(item):
            course.step(table, criterion, original)
        now = time.process_time()
        course.seconds, began = course.seconds + now - began, now
        if not course.done and time.monotonic() - saved > every:
            kept.save(position, course)
            saved = time.monotonic()
    found = course.found()
    kept.keep(position, found)
    return found


@contextlib.contextmanager
def _named(item: Item) -> Iterator[None]:
    """Context in which an error names the item."""
    try:
        yield
    except SparkdiffError:
        raise
    except Exception as e:
        raise ItemError(f"the item {item.name!r} ({item.kind}) failed:\n{traceback.format_exc().rstrip()}") from e
