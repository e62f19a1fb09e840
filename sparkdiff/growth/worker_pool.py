"""The chief of several worker processes, which train items (each the training run of one part).

The chief starts the processes, hands out the items of a round, longest first, and notices when a process dies. The processes live
as long as the run. Each process is started, and restarted when it dies, by a thread on the driver's machine or by a Spark task on
a cluster. If a process dies, its item is handed out again and continues from its checkpoint.
"""

import shutil
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import Any

from torch import Tensor

from sparkdiff import jvm
from sparkdiff.errors import FullDiskError, InputError, WriteError
from sparkdiff.growth import checkpoints, parts
from sparkdiff.growth.clock import Clock
from sparkdiff.growth.criterion import CriterionSpecification
from sparkdiff.growth.part import Item
from sparkdiff.growth.row_tensors import Table
from sparkdiff.growth.worker import RoundTask, WorkerSetup, round_file, rows_file
from sparkdiff.machine import line_files
from sparkdiff.store import files
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.store.lease import LeaseHeldError
from sparkdiff.training.distributed.attempt import GRACE, START
from sparkdiff.training.distributed.launch import on_this_machine
from sparkdiff.training.distributed.preflight import check_cluster
from sparkdiff.training.distributed.shipping import equip
from sparkdiff.training.distributed.worker import ROOM

ATTEMPTS = 3
"""Number of failures after which the chief gives up: deaths of the process that trains one item, starts of one process that fail
in a row, or losses of the Spark tasks."""
LEASE = 1.0
"""Seconds between two checks that the checkpoint folder still belongs to this run."""
OWN = {
    error.__name__: error for error in (InputError, FullDiskError, WriteError, LeaseHeldError, checkpoints.ItemError)
}
"""Errors that, when a worker reports them, are raised in this process with the same type, by name."""


@dataclass
class WorkerHandle:
    """The chief's record of one worker.

    Attributes:
        orders: file to which the chief writes orders.
        lines: reader of the worker's answers.
        token: random token of the worker's current process; empty while no process accepts orders.
        item: position of the item that the worker trains; None while the worker waits.
        unstarted: number of processes in a row that ended before they accepted orders.
    """

    number: int
    orders: Path
    lines: line_files.LineReader
    token: str = ""
    item: int | None = None
    unstarted: int = 0


@dataclass
class RoundQueue:
    """State of a round while its items are handed out.

    Attributes:
        queue: positions of the waiting items, longest first.
        left: positions of all unfinished items, including those in training.
        deaths: position of an item -> the reasons why processes died while they trained it.
        trained: positions of the trained items.
    """

    number: int
    items: Sequence[Item]
    queue: deque[int]
    left: set[int]
    deaths: dict[int, list[str]] = field(default_factory=dict)
    trained: set[int] = field(default_factory=set)

    @staticmethod
    def of(number: int, items: Sequence[Item], missing: Iterable[int]) -> "RoundQueue":
        order = sorted(missing, key=lambda position: -items[position].work)
        return RoundQueue(number, items, deque(order), set(order))


class WorkerPool:
    """Context in which worker processes run; `run` lets them train the items of one round.

    Args:
        folder: folder of the run; all processes must see it.
        say: called with a line about each failure that was recovered from.
    """

    def __init__(self, folder: CheckpointFolder, specification: CriterionSpecification, say: Callable[[str], None]):
        self.folder, self.specification, self.say = folder, specification, say
        self.options = specification.options
        self.local = on_this_machine(self.options.localMode)
        self.tag = f"sparkdiff-{uuid.uuid4().hex}"
        self.threads: list[threading.Thread] = []
        self.children: dict[int, Popen[bytes]] = {}
        self.members: list[WorkerHandle] = []
        self.lost: list[str] = []
        self.error: BaseException | None = None
        self.checked, self.heard = 0.0, 0.0

    def __enter__(self) -> "WorkerPool":
        for old in self.folder.path.glob("attempt-*"):
            if (old / "to-0.jsonl").exists():  # left by a killed driver
                shutil.rmtree(old, ignore_errors=True)
        with files.room("the files that start the processes", self.folder.path, ROOM):
            self.here = self.folder.attempt()
            kinds = {kind: module.__name__ for kind, module in parts.KINDS.items()}
            assignment = WorkerSetup(self.specification, kinds, self.folder.path.absolute(), checkpoints.EVERY)
            equip(self.here, assignment, self.options.loss, "sparkdiff.growth.worker")
            if self.folder.lease is not None:
                self.folder.lease.pass_on(self.here)
            for number in range(self.options.processes):
                orders, answers = (self.here / f"{way}-{number}.jsonl" for way in ("to", "from"))
                orders.touch()
                answers.touch()
                self.members.append(WorkerHandle(number, orders, line_files.LineReader(answers)))
        if not self.local:
            check_cluster(jvm.session(), self.options.processes, self.here, ("torch", "numpy", "pandas"))
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        for member in self.members:
            try:
                line_files.add(member.orders, end=True)
            except OSError:  # a full disk; missing orders end a worker, too
                member.orders.unlink(missing_ok=True)
        end = time.monotonic() + (GRACE if kind is None else 0.0)
        for thread in self.threads:
            thread.join(max(0.0, end - time.monotonic()))
        if not self.local and any(thread.is_alive() for thread in self.threads):
            jvm.cancel(jvm.session(), self.tag)
        for child in self.children.values():
            child.kill()  # no effect if it has ended
        for thread in self.threads:
            thread.join(GRACE)
        shutil.rmtree(self.here, ignore_errors=True)

    def _start(self) -> None:
        self.heard = time.monotonic()
        if self.local:
            numbers = range(len(self.members))
            supervise = _supervisor(str(self.here))
            starts: list[Callable[[], None]] = [lambda n=n: supervise(n, self.children) for n in numbers]  # type: ignore[misc]
        else:
            spark, task = jvm.session(), _task(str(self.here))
            starts = [lambda: self._as_tasks(spark, task)]
        self.threads = [threading.Thread(target=self._caught, args=(start,), daemon=True) for start in starts]
        for thread in self.threads:
            thread.start()

    def _caught(self, start: Callable[[], None]) -> None:
        """Run `start`, and store an error that ends this thread, so that the main thread can report it."""
        try:
            start()
        except BaseException as e:
            self.error = e

    def _as_tasks(self, spark: Any, task: Any) -> None:
        with jvm.cancellable(spark, self.tag):
            count = len(self.members)
            spark.range(0, count, 1, count).mapInArrow(task, "id long").collect()

    # A round ---------------------------------------------------------------------------------------------------------

    def run(
        self,
        number: int,
        items: Sequence[Item],
        missing: set[int],
        table: Table,
        original: Tensor,
        kept: checkpoints.RoundFiles,
        clock: Clock,
        ended: Callable[[int], None],
    ) -> set[int]:
        """Let the workers train items and store the results. Once the time of the clock is over, no further item is handed out.

        Args:
            number: number of the round.
            missing: positions of the items to train.
            original: (B,) the original's sum of weight * loss in each block of the guard.
            kept: files of the round.
            ended: called with the number of trained items whenever it grows.

        Returns:
            Positions of the trained items.

        Raises:
            ItemError, InputError, WriteError, LeaseHeldError: see `runner`.
        """
        with files.room("the rows of the items", self.here, ROOM):
            if not rows_file(self.here).exists():
                files.save_mappable(rows_file(self.here), table)
            margins = (table.train.margin, table.validation.margin)
            files.save_mappable(round_file(self.here, number), RoundTask(number, tuple(items), margins, original))
        handing, told = RoundQueue.of(number, items, missing), 0
        while handing.left:
            for member in self.members:
                for line in member.lines.new():
                    self._hear(handing, member, line)
                self._order(handing, member)
            if len(handing.trained) > told:
                ended(told := len(handing.trained))
            self._check(handing)
            clock.tick(kept.path)
            if clock.over:  # nothing more is handed out
                handing.left -= {*handing.queue}
                handing.queue.clear()
            time.sleep(line_files.PAUSE)
        round_file(self.here, number).unlink(missing_ok=True)
        return handing.trained

    def _order(self, handing: RoundQueue, member: WorkerHandle) -> None:
        """Hand the next item to a worker if the worker waits."""
        if member.token and member.item is None and handing.queue:
            member.item = handing.queue.popleft()
            with files.room("an order", self.here, ROOM):
                line_files.add(member.orders, token=member.token, round=handing.number, position=member.item)

    def _hear(self, handing: RoundQueue, member: WorkerHandle, line: Mapping[str, Any]) -> None:
        """Process a line of a worker's answers."""
        self.heard = time.monotonic()
        if "ready" in line:
            self._requeue_item(handing, member, "its task was lost")  # no effect if this was reported before
            member.token, member.unstarted = line["token"], 0
        elif "died" in line and line["token"] == member.token:
            self._requeue_item(handing, member, self._cause(member, line["died"]))
        elif "died" in line:
            member.unstarted += 1
            if member.unstarted == ATTEMPTS:
                raise checkpoints.ItemError(
                    f"process {member.number} of {len(self.members)} could not be started {ATTEMPTS} times: "
                    f"{self._cause(member, line['died'])}"
                )
        elif "failed" in line:
            raise OWN.get(line["failed"], checkpoints.ItemError)(line["message"])
        else:
            if line["token"] == member.token:  # the worker waits now, even if the item is of a past round
                member.item = None
            if line["round"] != handing.number:
                return
            handing.trained.add(line["position"])
            handing.left.discard(line["position"])

    def _requeue_item(self, handing: RoundQueue, member: WorkerHandle, why: str) -> None:
        """Put the item of a worker whose process died back into the queue.

        Raises:
            ItemError: `ATTEMPTS` processes died while they trained this item.
        """
        position, member.item, member.token = member.item, None, ""
        if position is None or position not in handing.left:
            return
        deaths = handing.deaths.setdefault(position, [])
        deaths.append(why)
        item = handing.items[position]
        told = f"the process of the item {item.name!r} ({item.kind}) of round {handing.number} died"
        if len(deaths) == ATTEMPTS:
            raise checkpoints.ItemError(f"{told} {ATTEMPTS} times: {'; '.join(deaths)}. {self._way_on()}")
        self.say(f"{told} ({why}); it goes on from its checkpoint")
        handing.queue.appendleft(position)

    def _cause(self, member: WorkerHandle, code: int) -> str:
        """Reason why a worker's process ended, from its exit code and the files that it left."""
        if code < 0:
            name = signal.Signals(-code).name
            return f"killed by {name}" + (", out of memory?" if name == "SIGKILL" else "")
        stack = _text(self.here / f"worker-{member.number}.stack").splitlines()
        if stack:
            where = next((line.strip() for line in stack if line.strip().startswith("File")), "")
            return f"no progress for {self.options.timeout:g} s at {where}"
        return f"exit code {code}: {_text(self.here / f'worker-{member.number}.txt')[-2000:].strip()}"

    def _way_on(self) -> str:
        runId = self.options.runId  # the checkpoint folder has another name, made from this id
        if runId is None:
            return "Nothing is kept, because it has no runId"
        return f"What has ended is kept: runId={runId!r} goes on from there"

    def _check(self, handing: RoundQueue) -> None:
        """Check for failures that no worker can report: loss of the folder or of the Spark tasks, failure of a thread that
        watches a process, or no process that has started.
        """
        now = time.monotonic()
        if now - self.checked > LEASE:
            self.folder.check()
            self.checked = now
        if self.local and self.error is not None:
            with files.room("the answers of the processes that train", self.here, ROOM):
                if isinstance(self.error, OSError) and files.full(self.error):
                    raise self.error
            why = f"{type(self.error).__name__}: {self.error}"
            raise checkpoints.ItemError(
                f"a process that trains can be watched no longer ({why}). {self._way_on()}"
            ) from self.error
        if not any(member.token for member in self.members) and now - self.heard > START:
            raise checkpoints.ItemError(f"none of {len(self.members)} processes started within {START:g} s")
        if not any(thread.is_alive() for thread in self.threads):
            self.lost.append(jvm.cause(self.error) if self.error is not None else "the tasks ended")
            if len(self.lost) == ATTEMPTS:
                why = "; ".join(self.lost)
                raise checkpoints.ItemError(
                    f"the Spark tasks that train were lost {ATTEMPTS} times: {why}. {self._way_on()}"
                )
            self.say(
                f"the Spark tasks that train were lost ({self.lost[-1]}); their items go on from their checkpoints"
            )
            for member in self.members:
                if member.item is not None and member.item in handing.left:
                    handing.queue.appendleft(member.item)
                member.item, member.token = None, ""
            self._start()


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


# The functions below return nested functions, which are pickled by value: executors needn't have our package.


def _supervisor(here: str) -> Callable[..., None]:
    """Function that starts a worker, and starts it again whenever it ends, until the run ends; for a thread or a Spark task."""

    def supervise(number: int, children: dict[int, Any]) -> None:
        import json
        import os
        import subprocess
        import sys
        import time
        import uuid

        one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")

        def over() -> bool:
            try:
                with open(f"{here}/to-{number}.jsonl") as orders:
                    return any('"end"' in line for line in orders)
            except FileNotFoundError:
                return True

        while not over():
            token = uuid.uuid4().hex
            command = [sys.executable, f"{here}/start.py", str(number), token]
            with open(f"{here}/worker-{number}.txt", "w") as said:
                children[number] = child = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT, env={**os.environ, **one}
                )
            code = child.wait()
            if not over():
                with open(f"{here}/from-{number}.jsonl", "a") as answers:
                    answers.write("\n" + json.dumps({"token": token, "died": code}) + "\n")
                time.sleep(0.1)

    return supervise


def _task(here: str) -> Callable[[Iterable[Any]], Iterable[Any]]:
    supervise = _supervisor(here)

    def task(batches: Iterable[Any]) -> Iterable[Any]:
        for batch in batches:
            for number in batch.column(0).to_pylist():
                supervise(number, {})
            yield batch

    return task
