"""Processor seconds of this process and of those that it started, the JVM's among them."""

import os
from collections import defaultdict
from pathlib import Path

PROC = Path("/proc")


def seconds() -> float:
    """Processor seconds so far of the tree of processes that this one belongs to: a JVM in which it runs, this process, and all
    below it, those that have ended too. Where the system does not tell (macOS), those of this process and of its ended ones.
    """
    if not (PROC / "self" / "stat").exists():
        return sum(os.times()[:4])
    used, below, parent = dict[int, float](), defaultdict[int, list[int]](list), 0
    for folder in PROC.iterdir():
        if not folder.name.isdigit():
            continue
        try:
            name, _, rest = (folder / "stat").read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        fields, pid = rest.split(), int(folder.name)
        used[pid] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # utime, stime, and those of ended children
        below[int(fields[1])].append(pid)
        if pid == os.getppid() and name.endswith("(java"):  # spark-submit
            parent = pid
    total, waiting = 0.0, [parent or os.getpid()]
    while waiting:
        pid = waiting.pop()
        total += used.get(pid, 0.0)
        waiting += below[pid]
    return total
