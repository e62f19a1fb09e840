"""Identities of processes and machines, with which another process can find out later whether a process still runs."""

import json
import os
from pathlib import Path
from typing import Any


def machine() -> str | None:
    """An identity of this boot of the machine and its pid namespace: equal for processes that see each other's pids;
    None if unknown.
    """
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def start_time(pid: int) -> int | None:
    """The start time of a process in kernel ticks, which with the pid identifies it, as pids are reused; None if it
    does not exist, is dead, or cannot be seen.
    """
    try:
        # The command, in brackets, may contain blanks and brackets.
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state[0] in "ZX" else int(state[19])


def identity(pid: int) -> dict[str, Any]:
    """The identity of a process of this machine as JSON-ready values; see `has_ended`."""
    return {"machine": machine(), "pid": pid, "started": start_time(pid)}


def has_ended(process: dict[str, Any]) -> bool:
    """True if the process with this `identity` is known to have ended, which can be found out only on the same machine."""
    if None in (process["machine"], process.get("started")) or process["machine"] != machine():
        return False
    now = start_time(process["pid"])
    try:
        os.kill(process["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # another user's process, which /proc may not show
        return now is not None and now != process["started"]
    return now != process["started"]


def write_owner(path: Path, pid: int) -> None:
    """Record which process of this machine owns a folder."""
    path.write_text(json.dumps(identity(pid)))


def is_orphan(path: Path) -> bool:
    """True if the process recorded by `write_owner` is known to have ended, which can be found out only on the same
    machine.
    """
    try:
        return has_ended(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):  # it is being written, or another user's
        return False
