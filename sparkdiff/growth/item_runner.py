"""Runner that trains the items of a round, in this process or in several, and stores their results in the folder of the run.

An item is the training run of one part. Items are independent: they exchange nothing, and each starts from the round's margin and
uses one thread. So the results of a round are bit for bit the same for any number of processes and any order of completion.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from sparkdiff.growth import checkpoints
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import Criterion, CriterionSpecification
from sparkdiff.growth.part import Item, ItemResult
from sparkdiff.growth.rounds import Run
from sparkdiff.growth.row_tensors import Table
from sparkdiff.growth.worker_pool import WorkerPool
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.tensors.device import torch_threads


class ItemResultCache:
    """Results of finished items, kept so that another growth run of the same pipeline on the same rows can reuse them."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], ItemResult] = {}

    def recall(self, kept: checkpoints.RoundFiles, items: Sequence[Item], table: Table, original: Tensor) -> None:
        """Write the known results of these items into the files of a round."""
        start, ended = checkpoints.digest(table, original), kept.finished_items()
        for p, item in enumerate(items):
            found = self._found.get((start, repr(item)))
            if found is not None and p not in ended:
                kept.keep(p, found)

    def learn(self, found: Sequence[ItemResult], table: Table, original: Tensor) -> None:
        start = checkpoints.digest(table, original)
        self._found |= {(start, repr(f.item)): f for f in found if not f.is_late}


@contextlib.contextmanager
def runner(
    folder: CheckpointFolder,
    specification: CriterionSpecification,
    say: Callable[[str], None] = lambda _text: None,
    clock: Clock | None = None,
    memory: ItemResultCache | None = None,
    on_item: Callable[[int, int, int], None] = lambda _number, _done, _most: None,
) -> Iterator[Run]:
    """Context that yields a function which trains the items of a round.

    With `numProcesses` > 1, it trains them in worker processes, which start at once and end with the context. Results in the
    folder are reused if they belong to the same items and margins; otherwise the round begins again.

    Args:
        folder: folder of the run; all processes must see it.
        say: called with a line about each failure that was recovered from.
        clock: once its time is over, no further item begins; if None, all items are trained.
        memory: results of earlier growth runs; new results are added to it.
        on_item: called with the number of a round, the number of its finished items, and the number of its items.

    Raises:
        ItemError: an item failed or its processes died too often (the message names the item); or worker processes could not be
            started or watched, or their Spark tasks were lost too often.
    """
    watch = Clock() if clock is None else clock
    with contextlib.ExitStack() as stack:
        several = specification.options.processes > 1
        chief = stack.enter_context(WorkerPool(folder, specification, say)) if several else None
        # With several threads, the order of summation depends on their number, and so do the last bits of sums.
        stack.enter_context(torch_threads(1))
        criterion = specification.criterion()

        def run(number: int, items: Sequence[Item], table: Table, original: Tensor) -> list[ItemResult]:
            folder.check()
            table = table.aligned()
            kept = checkpoints.RoundFiles.open(folder.path, number, items, table, original)
            if memory is not None:
                memory.recall(kept, items, table, original)
            late = watch.resume(kept.path)
            missing, trained = {*range(len(items))} - kept.finished_items() - late, set[int]()
            known = len(items) - len(missing)

            def report_progress(now: int) -> None:
                on_item(number, known + now, len(items))

            report_progress(0)
            if chief is None:
                trained = _alone(folder, kept, items, missing, table, criterion, original, watch, report_progress)
            elif missing:
                trained = chief.run(number, items, missing, table, original, kept, watch, report_progress)
            if missing:
                late = frozenset(late | (missing - trained))
                watch.note(kept.path, late)
            before = criterion.score(table.validation.margin, table.validation).mean if late else 0.0
            results = [
                ItemResult.late(item, before, original) if p in late else kept.read_result(p)
                for p, item in enumerate(items)
            ]
            if memory is not None:
                memory.learn(results, table, original)
            return results

        yield run


def _alone(
    folder: CheckpointFolder,
    kept: checkpoints.RoundFiles,
    items: Sequence[Item],
    missing: set[int],
    table: Table,
    criterion: Criterion,
    original: Tensor,
    clock: Clock,
    report_progress: Callable[[int], None],
) -> set[int]:
    """Train items in this process, one after another until the time is over; return the positions of the trained items."""

    def tick() -> None:
        folder.check()
        clock.tick(kept.path)

    trained = set[int]()
    for p in sorted(missing):
        if clock.over:
            break
        checkpoints.train(kept, p, items[p], table, criterion, original, checkpoints.EVERY, tick)
        trained.add(p)
        report_progress(len(trained))
    return trained
