"""Runner of tasks, one after another or several at a time in threads (lanes); results are the same in both cases."""

import contextlib
import contextvars
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from pyspark import inheritable_thread_target

from sparkdiff import jvm
from sparkdiff.report import Events, Phases, tell
from sparkdiff.tuning.fits import TAKES_SESSION

Task = Callable[[], str]
"""A task; returns a short report."""
Tasks = Iterator[tuple[str, Task]]
"""Names and tasks. Each task is taken from the iterator only when a lane is free for it."""
STEP: contextvars.ContextVar[Mapping[str, Any]] = contextvars.ContextVar("STEP")
"""Fields that are added to rows of a training's history when listeners get them: the arm, and the round of its step, or in a
proof the role of the finalist."""
LOOK = 0.1
"""Seconds between two checks for Ctrl-C."""


class StoppableListener(Events):
    """Listener that passes events from any thread to other listeners, one at a time.

    Once `pulled` is set, the next event of each thread raises KeyboardInterrupt, which ends the thread's work.
    """

    def __init__(self, listeners: Sequence[Events], lock: Any = None):
        self.listeners, self.lock, self.pulled = listeners, lock or threading.RLock(), False

    def _tell(self, name: str, *what: Any) -> None:
        with self.lock:
            if self.pulled:
                raise KeyboardInterrupt
            tell(self.listeners, name, *what)

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self._tell("on_phase", name, seconds, detail)

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._tell("on_epoch", {**STEP.get({}), **row})

    def on_decision(self, record: Any) -> None:
        self._tell("on_decision", record)


def run(tasks: Tasks, lanes: int, phases: Phases, brake: StoppableListener) -> None:
    """Run the tasks, each in a phase with the task's name.

    In each lane, torch uses as many threads as in the calling thread, because the order of summation, and so the last bits of
    sums, depends on the number of threads.

    Args:
        lanes: largest number of tasks that run at the same time.
        brake: pulled if a task fails, or by Ctrl-C, to end the other tasks; released again at the end.

    Raises:
        BaseException: the error of a task, after the other tasks have ended.
    """
    if lanes == 1:
        for name, task in tasks:
            with phases.phase(name) as say:
                say(task())
        return
    lock, errors = threading.Lock(), list[BaseException]()
    shown = Phases(False, [StoppableListener(phases.listeners, brake.lock)])

    def lane() -> None:
        try:
            while not brake.pulled:
                with lock:
                    name, task = next(tasks, ("", None))
                if task is None:
                    return
                with shown.phase(name) as say:
                    say(task())
        except BaseException as e:
            errors.append(e)
            brake.pulled = True

    ends = [_start(lane, "sparkdiff-arm") for _ in range(lanes)]
    try:
        _wait(ends)
    except KeyboardInterrupt:
        brake.pulled = True
        _wait(ends)  # a second Ctrl-C ends the waiting, too
        raise
    finally:
        brake.pulled = not all(end.is_set() for end in ends)
        for name, seconds in shown.timings.items():
            phases.timings[name] = phases.timings.get(name, 0.0) + seconds
    if errors:
        raise errors[0]


@contextlib.contextmanager
def ahead(makes: Sequence[Callable[[], object]], *, wait: bool = False) -> Iterator[None]:
    """Context in which a background thread calls functions, in order, before their results are needed. Its end stops the thread.

    Args:
        makes: functions that cache their results (see `SharedResults.once`). An error only ends the thread: the function will
            fail again when its result is needed.
        wait: True to wait for the results at the end of the context, unless the context ends by an error.
    """
    if not makes:
        yield
        return
    spark, over, tag = jvm.session(), threading.Event(), f"sparkdiff-{uuid.uuid4().hex}"

    def make_all() -> None:
        with contextlib.suppress(BaseException), jvm.cancellable(spark, tag):
            for make in makes:
                if not over.is_set():
                    make()

    end = _start(make_all, "sparkdiff-ahead")
    try:
        yield
        if wait:
            _wait([end])
    finally:
        over.set()
        jvm.cancel_until(end, spark, tag)


def _start(work: Callable[[], None], name: str) -> threading.Event:
    """Start a thread with the Spark session, the context variables and the number of torch threads of the calling thread.

    Returns:
        An event that is set when the work has ended. `Thread.is_alive` does not tell: it is False for a running thread once a
        Ctrl-C has interrupted `join` (bpo-45274).
    """
    spark, own, end = jvm.session(), torch.get_num_threads(), threading.Event()

    def begin() -> None:
        torch.set_num_threads(own)
        try:
            work()
        finally:
            end.set()

    inherits: Any = inheritable_thread_target(spark) if TAKES_SESSION else inheritable_thread_target
    threading.Thread(target=inherits(partial(contextvars.copy_context().run, begin)), name=name, daemon=True).start()
    return end


def _wait(ends: Sequence[threading.Event]) -> None:
    for end in ends:
        while not end.wait(LOOK):
            pass
