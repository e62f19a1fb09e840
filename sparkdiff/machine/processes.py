"""Which process of which machine this is, so that another one can tell later whether it still runs."""

import json
import os
from pathlib import Path
from typing import Any


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


def identity(pid: int) -> dict[str, Any]:
    """A process of this machine in values of JSON, see `has_ended`."""
    return {"machine": machine(), "pid": pid, "started": started(pid)}


def has_ended(process: dict[str, Any]) -> bool:
    """True if the process of this `identity`, one of this machine, is known to have ended."""
    if None in (process["machine"], process.get("started")) or process["machine"] != machine():
        return False
    now = started(process["pid"])
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's, of which /proc may say nothing
        return now is not None and now != process["started"]
    return now != process["started"]


def write_owner(path: Path, pid: int) -> None:
    """Write down to which process of this machine a folder belongs."""
    path.write_text(json.dumps(identity(pid)))


def is_orphan(path: Path) -> bool:
    """Whether the process that `write_owner` named is known to have ended: it was one of this machine."""
    try:
        return has_ended(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or another user's
        return False
