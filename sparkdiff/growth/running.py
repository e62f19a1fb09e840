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
from sparkdiff.growth.checkpoints import Kept, one_thread, train
from sparkdiff.growth.criterion import Specification
from sparkdiff.growth.items import Found, Item
from sparkdiff.growth.processes import Chief
from sparkdiff.growth.rounds import Run
from sparkdiff.growth.table import Table
from sparkdiff.store.run_folder import RunFolder


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
    on_times: Callable[[Times], None] = lambda times: None,
) -> Iterator[Run]:  # fmt: skip
    """Runs rounds, in `numProcesses` of the specification's options. Processes are started at once, and end with the context.

    A round whose items or margins are another one's than those in the folder begins again; else results that are there are kept.

    Args:
        folder: of the run; all processes must see it.
        say: called with a line about what went wrong and is made good.
        on_times: told how long each round took.

    Raises:
        ItemError: an item failed, or was lost too often; names it.
    """
    with contextlib.ExitStack() as stack:
        several = specification.options.numProcesses > 1
        chief = stack.enter_context(Chief(folder, specification, say)) if several else None
        stack.enter_context(one_thread())
        criterion = specification.criterion()

        def run(number: int, items: Sequence[Item], table: Table, original: Tensor) -> list[Found]:
            folder.check()
            table = table.aligned()
            kept = Kept.open(folder.path, number, items, table, original)
            missing, begun = {*range(len(items))} - kept.ended(), time.monotonic()
            seconds: Mapping[int, float] = {}
            if chief is None:
                seconds = {
                    p: train(kept, p, items[p], table, criterion, original, checkpoints.EVERY, folder.check).seconds
                    for p in sorted(missing)
                }
                busy = [time.monotonic() - begun]
            else:
                if missing:
                    seconds = chief.run(number, items, missing, table, original)
                busy = [member.busy for member in chief.members]
            took = [(items[p].name, seconds[p]) for p in sorted(missing)]
            on_times(Times(number, time.monotonic() - begun, tuple(busy), tuple(took)))
            return [kept.found(p) for p in range(len(items))]

        yield run
