"""The memory that a process may use, and the return of free memory to the system between the phases of a run."""

import ctypes
import os
import sys
from pathlib import Path

import pyarrow as pa


def trim() -> None:
    """Return freed memory that the allocators of Arrow and the C library keep, so that Spark's JVM on the same machine
    can use it.

    Once some blocks were freed, the C library glibc keeps freed blocks of up to 32 MiB, scattered between blocks in use,
    and never returns them on its own.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        release(0)


def total(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes of memory that this process and the others in its container may use: the machine's memory, or a lower
    limit.

    Args:
        cgroups: the folder of Linux's control groups, version 1 or 2.
        own: the file that lists the control groups of this process.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> list[int]:
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
