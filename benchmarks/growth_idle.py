"""How much of their time do the processes of growth wait?

Rounds of real trainings (hidden units on generated rows) of which the longest takes three times as long as the shortest, four for
each of two processes. Handed out longest first, each trained at its own pace; beside it a synchronous run, which deals as many
items as there are processes, in the order of the list, and the next ones when all of them have ended. After each round the chief
does what it does in growth: it fits the weights of the mixture and moves the margin. Waiting for the chief counts as idle, the
start of the processes doesn't: it is printed beside (in a fit, rows are read meanwhile).

    python benchmarks/growth_idle.py --out growth_idle.json

Prints a table, writes JSON, and fails where more than 5% is idle.
"""

import math
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import exit_code, markdown, parse, parser, write
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.growth import item_runner, rounds
from sparkdiff.growth.criterion import CriterionSpecification
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.part import Item, ItemResult
from sparkdiff.growth.rounds import Limits, Member, Run
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.growth.serving_cost import ServingCostModel
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.linear import LinearRegression
from sparkdiff.store.checkpoint_folder import CheckpointFolder

BOUND = 0.05
WIDTH, PER_PROCESS, SPREAD = 40, 4, 3.0
F64 = torch.float64
SETTINGS = GrowthSettings(parts=("units",), rounds=9, complexity=0.01, maxLoss=0.0)
LIMITS = Limits(SETTINGS, ServingCostModel(1.0, math.inf, "LinearRegressionModel", 1, WIDTH), 0)


def table_of(rows: int) -> tuple[Table, LabelStats]:
    """Rows whose label bends with most features; the margin is 0."""
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(rows, WIDTH, generator=drawn, dtype=F64)
    label = (x.abs() @ torch.rand(WIDTH, generator=drawn, dtype=F64)) + 0.3 * torch.randn(
        rows, generator=drawn, dtype=F64
    )
    label -= label.mean()
    one, block = torch.ones(rows, dtype=F64), torch.randint(0, MAX_BLOCKS, (rows,), generator=drawn)
    every = (x, x[:, :0], label, one, block, torch.zeros(rows, dtype=F64))

    def split(which: Tensor) -> Split:
        return Split(*(t[which] for t in every))

    held = torch.arange(rows) % 3 == 0
    stats = LabelStats(
        0.0, float(label.std()), float(label.min()), float(label.max()), torch.empty(0, dtype=torch.int64)
    )
    return Table("features", (), split(~held), split(held)), stats


def items_of(number: int, processes: int, epochs: int, unit: float) -> list[Item]:
    """The items of a round, in any order: lengths from `epochs` to SPREAD times as many."""
    count = PER_PROCESS * processes
    lengths = [round(epochs * (1 + (SPREAD - 1) * i / (count - 1))) for i in range(count)]
    random.Random(number).shuffle(lengths)
    settings: dict[str, Any] = {"layers": [16], "decay": 0.1, "unit": unit}
    return [Item("units", f"{n} epochs", n, float(n), 100 * number + i, settings) for i, n in enumerate(lengths)]


class Rounds:
    """A run of rounds: how long it took, and the CPU seconds of each item.

    An item is trained by one thread, so that its CPU seconds are those in which its process isn't idle.
    """

    def __init__(self, run: Run, table: Table, specification: CriterionSpecification):
        self.run, self.start = run, table
        self.processes = specification.options.processes
        self.criterion = specification.criterion()
        self.original = self.criterion.score(table.validation.margin, table.validation).blocks
        self.numbers = iter(range(1, 10**6))
        self.inside = 0.0

    def trained(self, items: Sequence[Item], table: Table) -> list[ItemResult]:
        begun = time.monotonic()
        found = self.run(next(self.numbers), items, table, self.original)
        self.inside += time.monotonic() - begun
        return found

    def measured(self, each: Sequence[Sequence[Item]], at_once: int | None) -> dict[str, float]:
        """Idle time of rounds.

        Args:
            at_once: how many items are dealt before all of them must have ended; None: no limit.
        """
        table, members, seconds = self.start, list[Member](), list[float]()
        begun, self.inside = time.monotonic(), 0.0
        for number, items in enumerate(each, 1):
            size = at_once or len(items)
            found = [f for i in range(0, len(items), size) for f in self.trained(items[i : i + size], table)]
            seconds += [f.seconds for f in found]
            best = min(found, key=lambda f: f.value)
            if best.part is not None:
                members.append(Member(best.part, 1.0, number))
            if members:
                new, table = rounds.fit_weights(members, self.start, self.criterion, LIMITS)
                members = list(new)
        whole = time.monotonic() - begun
        busy = sum(seconds) / self.processes
        return {
            "idle": 1 - busy / whole,
            "idle inside of rounds": 1 - busy / self.inside,
            "seconds": whole,
            "longest over shortest": max(seconds) / min(seconds),
            "CPU seconds": sum(seconds),
        }


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--processes", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--rows", type=int, default=7500)
    p.add_argument("--epochs", type=int, default=30, help="of the shortest item")
    given = parse(p, rounds=1, rows=600, epochs=2)
    table, stats = table_of(given.rows)
    head = LinearRegression(torch.zeros(WIDTH, dtype=F64), torch.zeros((), dtype=F64), 1.0, True, None)
    options = Options.of({"numProcesses": given.processes, "localMode": "true"})
    specification = CriterionSpecification(head, ("prediction",), options, stats)
    unit = specification.criterion().unit
    results = dict[str, dict[str, float]]()
    each = [items_of(number, given.processes, given.epochs, unit) for number in range(1, given.rounds + 1)]
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        with item_runner.runner(
            CheckpointFolder.open(Path(folder), "run", {}, replace=True), specification, print
        ) as run:
            of = Rounds(run, table, specification)
            of.trained(items_of(0, given.processes, 1, unit), table)  # until all processes are there
            start = time.monotonic() - begun
            results["longest first"] = of.measured(each, None)
            results["synchronous"] = of.measured(each, given.processes)
    names = list(results["synchronous"])
    cells = [[arm, *(f"{r[n]:.1%}" if "idle" in n else f"{r[n]:.3g}" for n in names)] for arm, r in results.items()]
    print(markdown(["run", *names], cells))
    print(f"\nThe processes had started after {start:.1f} s.")
    figures = {f"{arm}, {n}": r[n] for arm, r in results.items() for n in names if "idle" in n}
    missed = results["longest first"]["idle"] > BOUND
    if missed and not given.smoke:
        print(f"above the bound of {BOUND:.0%}: longest first")
    write(given, {"startSeconds": start, **results}, figures)
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
