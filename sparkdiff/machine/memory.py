"""The memory that a process may use, and returning what is free of it to the system between the phases of a run."""

import ctypes
import os
import sys
from pathlib import Path

import pyarrow as pa


def trim() -> None:
    """Return the freed memory that the allocators of Arrow and the C library keep, so that Spark's JVM on the same machine can
    use it.

    glibc keeps blocks of up to 32 MiB once some were freed, scattered between those in use, and never returns them itself.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        release(0)


def total(cgroups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Bytes that this process and those beside it may use: what the machine has, or less where a container is limited.

    Args:
        cgroups: where Linux shows its control groups, of version 1 or 2.
        own: which of them this process is in.
    """
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> list[int]:
    """The limits of this process's groups and of those around them. In a container the paths of `own` may be the host's, and
    its own group is then the topmost one that it sees."""
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
