"""A worker process, which trains items (each the training run of one part) as the chief (`processes`) hands them out.

It needs no Spark session, and runs on any machine that sees the checkpoint folder. Worker K reads orders from `to-K.jsonl`
and writes answers to `from-K.jsonl`, both in the folder from which it was started. Checkpoints and results go into the
folder of the round.
"""

import contextlib
import importlib
import os
import pickle
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparkdiff.errors import SparkdiffError
from sparkdiff.growth import parts
from sparkdiff.growth.checkpoints import RoundFiles, train
from sparkdiff.growth.criterion import CriterionSpecification
from sparkdiff.growth.part import Item
from sparkdiff.growth.row_tensors import Table
from sparkdiff.machine import line_files
from sparkdiff.store.lease import check_passed_on
from sparkdiff.training.distributed.worker import Watchdog, die_with_parents


@dataclass(frozen=True)
class WorkerSetup:
    """Data that a worker receives at its start.

    Attributes:
        kinds: kind of parts -> name of its module.
        run: folder of the run.
        every: seconds between two checkpoints of an item.
    """

    specification: CriterionSpecification
    kinds: Mapping[str, str]
    run: Path
    every: float


@dataclass(frozen=True)
class RoundTask:
    """Data of a round, which the chief writes to a file for the workers.

    Attributes:
        margins: margins of the training rows and of the validation rows.
        original: (B,) the original's sum of weight * loss in each block of the guard.
    """

    number: int
    items: tuple[Item, ...]
    margins: tuple[torch.Tensor, torch.Tensor]
    original: torch.Tensor


def rows_file(here: Path) -> Path:
    """Path of the file with the table of rows; the margins of a round are in `round_file`."""
    return here / "rows.pt"


def round_file(here: Path, number: int) -> Path:
    return here / f"round-{number}.pt"


def main(folder: str) -> None:
    """Run a worker. Called by `start.py` in the folder; the command line has the worker's number and a token."""
    here, number, token = Path(folder), int(sys.argv[1]), sys.argv[2]
    die_with_parents([os.getppid()])
    torch.set_num_threads(1)
    # Written by the chief into a folder that only its user may write to.
    assignment: WorkerSetup = pickle.loads((here / "assignment.pickle").read_bytes())
    parts.KINDS.update({kind: importlib.import_module(module) for kind, module in assignment.kinds.items()})
    with (here / f"worker-{number}.stack").open("w") as stack:
        watchdog = Watchdog(assignment.specification.options.timeout, stack)
        Worker(here, number, token, assignment, watchdog).work()


class Worker:
    """A worker that accepts orders until it gets the order to end."""

    def __init__(self, here: Path, number: int, token: str, assignment: WorkerSetup, watchdog: Watchdog):
        self.here, self.number, self.token, self.assignment, self.watchdog = here, number, token, assignment, watchdog
        self.criterion = assignment.specification.criterion()
        self.rows: Table | None = None  # read with the first order
        self.round: RoundTask | None = None
        self.checked = 0.0

    def work(self) -> None:
        self._tell(ready=True, pid=os.getpid())
        orders = line_files.LineReader(self.here / f"to-{self.number}.jsonl")
        while True:
            for order in orders.wait():
                if "end" in order:
                    return
                if order["token"] == self.token:  # otherwise the order is for a process that died
                    self._obey(order["round"], order["position"])

    def _obey(self, number: int, position: int) -> None:
        try:
            self._train(number, position)
        except Exception as e:
            ours = isinstance(e, SparkdiffError)
            message = str(e) if ours else traceback.format_exc().rstrip()
            self._tell(failed=type(e).__name__ if ours else "", message=message, round=number, position=position)
        else:
            self._tell(ended=True, round=number, position=position)

    def _train(self, number: int, position: int) -> None:
        table, now = self._table(number)
        kept = RoundFiles(self.assignment.run / f"round-{number}")
        item, every = now.items[position], self.assignment.every
        try:
            train(kept, position, item, table, self.criterion, now.original, every, self._tick)
        finally:
            self.watchdog.rest()

    def _table(self, number: int) -> tuple[Table, RoundTask]:
        """Rows at the margin of a round, and the data of the round. Files are mapped, so that of dense rows only those in
        use take memory.
        """
        if self.rows is None:
            self.rows = _load(rows_file(self.here))
        if self.round is None or self.round.number != number:
            self.round = _load(round_file(self.here, number))
        assert self.rows is not None
        return self.rows.at(*self.round.margins), self.round

    def _tick(self) -> None:
        self.watchdog()
        if time.monotonic() - self.checked > 1 and (self.here / "owner").exists():
            check_passed_on(self.here)
            self.checked = time.monotonic()

    def _tell(self, **line: Any) -> None:
        with contextlib.suppress(FileNotFoundError):  # the run is over
            line_files.add(self.here / f"from-{self.number}.jsonl", token=self.token, **line)


def _load(path: Path) -> Any:
    # Written by the chief, like the assignment.
    return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
