"""Processor seconds of this process and of the processes that it started, including the JVM; and the idle cores."""

import math
import os
import threading
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")


class _Process(NamedTuple):
    """A process of the tree: `own` are its own seconds, `reaped` the seconds of ended children for which it has waited."""

    start: str
    parent: int
    own: float
    reaped: float


_lock = threading.Lock()
_last: dict[int, _Process] = {}
_lost = 0.0


def idle_cores() -> int:
    """Number of cores that were idle in the last minute, at least 1."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(math.ceil((os.cpu_count() or 1) - load), 1)


def seconds() -> float:
    """Processor seconds so far of this process's tree: of a JVM that started this process (spark-submit), this process,
    and all processes below it, including ended ones. Without /proc (macOS), only of this process and its ended
    children.

    If a process has ended and its parent did not wait for it, the seconds that it used after the previous call of this
    function are not counted.
    """
    if not (PROC / "self" / "stat").exists():
        return sum(os.times()[:4])
    global _lost
    with _lock:
        now = _tree()
        if _lost_seconds(_last, now):
            now = _tree()  # a process may have ended during the first reading; its parent's seconds now include it
        _lost += _lost_seconds(_last, now)
        _last.clear()
        _last.update(now)
        return _lost + sum(process.own + process.reaped for process in now.values())


def _forget() -> None:
    """Reset the counts in a forked process, which has its own tree of processes."""
    global _lost
    _lost = 0.0
    _last.clear()


os.register_at_fork(after_in_child=_forget)


def _tree() -> dict[int, _Process]:
    known, below, top = dict[int, _Process](), defaultdict[int, list[int]](list), os.getpid()
    tick = os.sysconf("SC_CLK_TCK")
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:  # the process has just ended
            continue
        fields, pid = rest.split(), int(folder.name)
        used = [int(ticks) / tick for ticks in fields[11:15]]  # utime, stime, and those of children waited for
        known[pid] = _Process(fields[19], int(fields[1]), used[0] + used[1], used[2] + used[3])
        below[known[pid].parent].append(pid)
        if pid == os.getppid() and name.endswith("(java"):  # spark-submit
            top = pid
    found, waiting = dict[int, _Process](), [top]
    while waiting:
        pid = waiting.pop()
        if pid in known:
            found[pid] = known[pid]
            waiting += below[pid]
    return found


def _lost_seconds(before: dict[int, _Process], now: dict[int, _Process]) -> float:
    """Seconds of processes that have left the tree without being counted by their parents, because the parent was
    killed first or did not wait.
    """

    def lives(pid: int) -> bool:
        return pid in now and now[pid].start == before[pid].start

    gone = defaultdict[int, float](float)  # by the nearest living ancestor
    for pid, process in before.items():
        if lives(pid):
            continue
        parent = process.parent
        while parent in before and not lives(parent):
            parent = before[parent].parent
        gone[parent] += process.own + process.reaped
    return sum(
        max(used - (now[pid].reaped - before[pid].reaped if pid in before else 0.0), 0.0) for pid, used in gone.items()
    )
