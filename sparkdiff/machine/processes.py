"""Which process of which machine this is, so that another one can tell later whether it still runs."""

import json
import os
from pathlib import Path


def machine() -> str | None:
    """An identity shared by processes that see each other's pids; None if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def started(pid: int) -> int | None:
    """The start time of a process in kernel ticks; None if it does not exist or is dead. (Pids are reused.)"""
    try:
        # The command, in brackets, may hold blanks and brackets itself.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else int(state[19])


def write_owner(path: Path, pid: int) -> None:
    """Write down to which process of this machine a folder belongs."""
    path.write_text(json.dumps({"machine": machine(), "pid": pid, "started": started(pid)}))


def is_orphan(path: Path) -> bool:
    """Whether the process that `write_owner` named is known to have ended: it was one of this machine."""
    try:
        told = json.loads(path.read_text())
        known = None not in (told["machine"], told["started"]) and told["machine"] == machine()
        return known and started(told["pid"]) != told["started"]
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or another user's
        return False
