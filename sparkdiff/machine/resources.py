"""Resources of the machine: the memory that a process may use, and the return of free memory to the system between the phases of
a run; processor seconds of this process and of the processes that it started, including the JVM; and the idle cores.
"""

import ctypes
import math
import os
import sys
import threading
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa


def trim_memory() -> None:
    """Return freed memory that the allocators of Arrow and the C library keep, so that Spark's JVM on the same machine
    can use it.

    Once some blocks were freed, the C library glibc keeps freed blocks of up to 32 MiB, scattered between blocks in use,
    and never returns them on its own.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        release(0)


def memory_bytes(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process and the others in its container may use: the machine's memory, or a lower
    limit.

    Args:
        cgroups: the folder of Linux's control groups, version 1 or 2.
        own: the file that lists the control groups of this process.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_memory_limits(cgroups, own)])


def _memory_limits(cgroups: Path, own: Path) -> list[int]:
    """The memory limits, in bytes, of this process's control groups and of the groups above them.

    In a container, the paths in `own` may be the host's; the container's own group is then the topmost group that is
    visible.
    """
    try:
        groups = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in groups:
        if controllers and "memory" not in controllers.split(","):
            continue
        top, name = (cgroups / "memory", "memory.limit_in_bytes") if controllers else (cgroups, "memory.max")
        group = top / path.lstrip("/")
        for folder in [group, *(p for p in group.parents if p.is_relative_to(top))]:
            try:
                found.append(int((folder / name).read_text()))
            except (OSError, ValueError):  # no such file, or "max"
                continue
    return found


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


def cpu_seconds() -> float:
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
