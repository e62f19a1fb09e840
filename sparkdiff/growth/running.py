"""Runs the items of a round, in this process or in several, and keeps what they find in the folder of the run.

Each item is trained at its own pace: nothing is exchanged between items, each starts from the round's margin and uses one thread.
So what a round finds depends neither on the number of processes nor on who ends first, bit for bit.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from sparkdiff.growth import checkpoints
from sparkdiff.growth.checkpoints import RoundFiles, one_thread, train
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import Criterion, Specification
from sparkdiff.growth.items import Found, Item
from sparkdiff.growth.processes import Chief
from sparkdiff.growth.rounds import Run
from sparkdiff.growth.table import Table
from sparkdiff.store.run_folder import RunFolder


class Memory:
    """What items found, for another growth of the same pipeline on the same rows: it does not train them again."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], Found] = {}

    def recall(self, kept: RoundFiles, items: Sequence[Item], table: Table, original: Tensor) -> None:
        """Put what is known into the files of a round."""
        start, ended = checkpoints.digest(table, original), kept.ended()
        for p, item in enumerate(items):
            found = self._found.get((start, repr(item)))
            if found is not None and p not in ended:
                kept.keep(p, found)

    def learn(self, found: Sequence[Found], table: Table, original: Tensor) -> None:
        start = checkpoints.digest(table, original)
        self._found |= {(start, repr(f.item)): f for f in found if not f.is_late}


@dataclass(frozen=True)
class Times:
    """How long a round took.

    Attributes:
        seconds: from its first item to its last result.
        busy: per process, the seconds in which it trained an item.
        items: per item that was trained now, by its name, the seconds of CPU.
    """

    round: int
    seconds: float
    busy: tuple[float, ...]
    items: tuple[tuple[str, float], ...]

    @property
    def idle(self) -> float:
        """The share of the processes' time in which they trained nothing."""
        return 1 - sum(self.busy) / (len(self.busy) * self.seconds) if self.seconds else 0.0


@contextlib.contextmanager
def runner(
    folder: RunFolder, specification: Specification, say: Callable[[str], None] = lambda text: None,
    on_times: Callable[[Times], None] = lambda times: None, clock: Clock | None = None, memory: Memory | None = None,
    on_item: Callable[[int, int, int], None] = lambda number, done, most: None,
) -> Iterator[Run]:  # fmt: skip
    """Runs rounds, in `numProcesses` of the specification's options. Processes are started at once, and end with the context.

    A round whose items or margins are another one's than those in the folder begins again; else results that are there are kept.

    Args:
        folder: of the run; all processes must see it.
        say: called with a line about what went wrong and is made good.
        on_times: told how long each round took.
        clock: when it is over no further item begins; without it, all are trained.
        memory: of earlier growths.
        on_item: told a round's number, how many of its items have ended, and how many there are.

    Raises:
        ItemError: an item failed, or was lost too often; names it.
    """
    watch = Clock() if clock is None else clock
    with contextlib.ExitStack() as stack:
        several = specification.options.processes > 1
        chief = stack.enter_context(Chief(folder, specification, say)) if several else None
        stack.enter_context(one_thread())
        criterion = specification.criterion()

        def run(number: int, items: Sequence[Item], table: Table, original: Tensor) -> list[Found]:
            folder.check()
            table = table.aligned()
            kept = RoundFiles.open(folder.path, number, items, table, original)
            if memory is not None:
                memory.recall(kept, items, table, original)
            late = watch.resume(kept.path)
            missing, begun = {*range(len(items))} - kept.ended() - late, time.monotonic()
            seconds: Mapping[int, float]
            known = len(items) - len(missing)

            def ended(now: int) -> None:
                on_item(number, known + now, len(items))

            ended(0)
            if chief is None:
                seconds = _alone(folder, kept, items, missing, table, criterion, original, watch, ended)
                busy = [time.monotonic() - begun]
            else:
                seconds = chief.run(number, items, missing, table, original, kept, watch, ended) if missing else {}
                busy = [member.busy for member in chief.members]
            if missing:
                late = frozenset(late | (missing - seconds.keys()))
                watch.note(kept.path, late)
            took = [(items[p].name, seconds[p]) for p in sorted(seconds)]
            on_times(Times(number, time.monotonic() - begun, tuple(busy), tuple(took)))
            before = criterion.score(table.validation.margin, table.validation).mean if late else 0.0
            results = [
                Found.late(item, before, original) if p in late else kept.found(p) for p, item in enumerate(items)
            ]
            if memory is not None:
                memory.learn(results, table, original)
            return results

        yield run


def _alone(
    folder: RunFolder, kept: RoundFiles, items: Sequence[Item], missing: set[int], table: Table, criterion: Criterion,
    original: Tensor, clock: Clock, ended: Callable[[int], None],
) -> dict[int, float]:  # fmt: skip
    """Train items in this process, one after another while there is time; returns per position the seconds of CPU."""

    def tick() -> None:
        folder.check()
        clock.tick(kept.path)

    seconds = dict[int, float]()
    for p in sorted(missing):
        if clock.over:
            break
        seconds[p] = train(kept, p, items[p], table, criterion, original, checkpoints.EVERY, tick).seconds
        ended(len(seconds))
    return seconds
