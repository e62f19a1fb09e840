"""Leases, which let one process at a time use a folder.

A lease is a file that its owner, a process, renews while it works, and that another process may take over after it
expires. The clocks of two machines are never compared: a waiting process watches whether the file's modification time
changes, and uses the clock of the file system. On the same machine, a dead owner is recognised immediately.

A lease for a folder on a remote file system (a store of `jvm.stores`) is a file there. If the store lets two processes
create the same file, as some object stores do, the process that wrote last has the lease, and the other process notices
it before it writes.
"""

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from sparkdiff.errors import SparkdiffError, StoreError
from sparkdiff.jvm import stores
from sparkdiff.machine import processes, threads

BEAT, LASTS = 5.0, 60.0
"""Seconds between two renewals, and seconds without a renewal after which the lease expires."""
GONE = 1.0
"""Seconds for which a lease file may be missing without being lost, as a process that moved it by mistake puts it back.
"""


# Types of the values in a lease file, which are checked because another process wrote them.
TYPES: dict[str, Any] = {"owner": str, "pid": int, "started": int, "beat": (int, float), "lasts": (int, float)}
_ENDED: set[str] = set()
"""Owners in this process whose leases have ended; their files may still exist in a store that was unreachable then."""


class LeaseHeldError(SparkdiffError):
    """The error that another process holds the lease, or has taken over this process's lease. Commands exit with code
    1.
    """


@dataclass
class Lease:
    """A lease that this process holds, or has held.

    Attributes:
        what: the name of the thing that is leased, for messages.
        owner: a unique id of this lease's holder; several holders in one process have different ids.
        lasts: seconds without a renewal after which the lease expires.
    """

    path: Path
    what: str
    owner: str
    file: int | None  # open file: renewing it can't affect another owner's lease that has replaced it; None in a store
    lasts: float

    def is_lost(self) -> bool:
        """Renew the lease; return True if another process has taken it, or its file is gone, although this owner did
        not end it.
        """
        if self.owner in _ENDED:
            return False
        self._renew()
        end = time.monotonic() + GONE
        try:
            while ((seen := _look(self.path)) is None or not seen.content) and time.monotonic() < end:
                time.sleep(GONE / 20)
        except StoreError:  # an unreachable store is no sign of another owner
            return False
        return seen is None or seen.owner != self.owner

    def pass_on(self, attempt: Path) -> None:
        """Write the lease's owner into the folder of a training attempt, so that the attempt's processes can check it."""
        (attempt / "owner").write_text(self.owner)

    def check(self) -> None:
        """Raise LeaseHeldError if this process has lost the lease, so that it writes nothing more; see `is_lost`."""
        if self.is_lost():
            seen, where = _look(self.path), stores.path_or_url(self.path)
            if seen is None:
                raise LeaseHeldError(
                    f"{self.what}: its lease {where} is gone, because another process took over and has ended, or its folder is "
                    "no longer there (a lost mount?). Nothing more was written; the same command goes on from the last checkpoint"
                )
            raise LeaseHeldError(
                f"{self.what} no longer belongs to this process: it did not renew its lease {where} for "
                f"{self.lasts:g} s (was it suspended?), and {seen.who()} took over. Nothing was written; that process continues"
            )

    def _renew(self) -> None:
        with contextlib.suppress(OSError):  # an error of a network file system: the next renewal may succeed
            if self.file is not None:
                os.utime(self.file)
            elif (seen := _look(self.path)) is not None and seen.owner == self.owner:
                stores.overwrite(self.path, json.dumps(seen.content).encode())

    def _beat(self, seconds: float, ended: threading.Event) -> None:
        while not ended.wait(seconds):
            self._renew()


def lease_of(folder: Path) -> Path:
    """Path of the lease file of a checkpoint folder. It is next to the folder, because the folder may be removed and created
    again.
    """
    return folder.with_name(f".{folder.name}.lease")


def check_passed_on(attempt: Path) -> None:
    """Raise LeaseHeldError if the checkpoint folder no longer belongs to the process that started this attempt."""
    path, owner = lease_of(attempt.parent), attempt / "owner"
    if not owner.exists():  # the run's id was drawn at random, so that it needs no lease
        return
    if (seen := _look(path)) is not None and seen.owner not in (None, owner.read_text()):
        raise LeaseHeldError(f"{attempt.parent} now belongs to another process, {seen.who()}: nothing more is written")


@dataclass(frozen=True)
class _LeaseFile:
    """A lease file as a process reads it; `content` is empty if the file is incomplete."""

    content: dict[str, Any]
    node: int
    time: int  # by the file system's clock

    @property
    def owner(self) -> str | None:
        return self.content.get("owner")

    def who(self) -> str:
        c = self.content
        if not c:
            return "a process that is just starting"
        return f"process {c['pid']} on {c['host']}, since {c['begun']}"

    def dead(self) -> bool:
        """True if the lease's owner is known to be dead, which can be found out only if it ran on this machine."""
        return self.owner in _ENDED or ("machine" in self.content and processes.has_ended(self.content))


@contextlib.contextmanager
def hold_lease(
    path: Path, what: str, *, wait: float = 0.0, beat: float = BEAT, lasts: float = LASTS
) -> Iterator[Lease]:
    """Hold a lease within this context.

    Args:
        path: the lease file; its folder is created if missing.
        what: the name of the thing that is leased, for messages.
        wait: seconds to wait for another owner to end.

    Raises:
        LeaseHeldError: another process still holds the lease after `wait` seconds; the message names the process.
        OSError: the lease file cannot be written.
    """
    lease = _take_lease(path, what, wait, beat, lasts)
    try:
        with threads.beside(partial(lease._beat, beat), f"lease {path.name}"):
            yield lease
    finally:
        _ENDED.add(lease.owner)
        with contextlib.suppress(StoreError):  # if it is not removed, it expires
            _remove(path, lease.owner)
        if lease.file is not None:
            os.close(lease.file)


def _take_lease(path: Path, what: str, wait: float, beat: float, lasts: float) -> Lease:
    owner, end = uuid.uuid4().hex, time.monotonic() + wait
    lease = Lease(path, what, owner, None, lasts)
    watched, since = None, 0.0  # the lease that is watched, and since when it hasn't changed
    while True:
        content = {
            "owner": owner,
            "what": what,
            "host": socket.gethostname(),
            **processes.identity(os.getpid()),
            "begun": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "beat": beat,
            "lasts": lasts,
        }
        if _create_file(lease, json.dumps(content).encode()):
            return lease
        seen, now = _look(path), time.monotonic()
        if seen is None:
            continue
        if seen != watched:
            watched, since = seen, now
        its_beat, its_lasts = seen.content.get("beat", beat), seen.content.get("lasts", lasts)
        old = (
            _age(path, seen) > its_lasts
        )  # the clock may have been changed, so it must also stay unchanged for a while
        if seen.dead() or now - since > its_lasts or (old and now - since > 2 * its_beat):
            _remove(path, seen.owner)
            continue
        if now >= end and not old:
            raise LeaseHeldError(
                f"{what} is in use by {seen.who()}: wait for its end, choose another name, or set waitForRun "
                f"to the number of seconds to wait. The lease of a killed process ({stores.path_or_url(path)}) expires after "
                f"{its_lasts:g} s"
            )
        time.sleep(min(its_beat / 2, max(end - now, its_beat / 10)))


def _create_file(lease: Lease, content: bytes) -> bool:
    """Create the file of a lease, which on this machine stays open; return False if the file already exists."""
    path = lease.path
    if stores.url_of(path) is not None:
        stores.make(path.parent, private=False)  # it may be a folder of the user
        return stores.create(path, content)
    for _ in range(100):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lease.file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
        except FileExistsError:
            return False
        except FileNotFoundError:  # another process has removed the folder, which was empty
            continue
        try:
            os.write(lease.file, content)
        except OSError:  # a full disk
            os.close(lease.file)
            path.unlink(missing_ok=True)
            raise
        return True
    raise FileNotFoundError(f"{path.parent} is removed repeatedly")


def _look(path: Path) -> _LeaseFile | None:
    """The lease file at this path as it is now; None if there is none."""
    if stores.url_of(path) is not None:
        milliseconds, content, node = stores.modification_time(path), stores.read(path), 0
        if milliseconds is None or content is None:
            return None
        changed = milliseconds * 1_000_000
    else:
        try:
            with path.open("rb") as file:
                stat, content = os.fstat(file.fileno()), file.read()
        except FileNotFoundError:
            return None
        node, changed = stat.st_ino, stat.st_mtime_ns
    try:
        told = {k: v for k, v in dict(json.loads(content)).items() if isinstance(v, TYPES.get(k, object))}
    except (ValueError, TypeError):  # not written yet, or by another program
        told = {}
    return _LeaseFile(told if told.keys() >= {"owner", "pid", "host", "begun"} else {}, node, changed)


def _age(path: Path, seen: _LeaseFile) -> float:
    """Seconds since a lease was renewed, by the clock of the file system."""
    probe = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    if stores.url_of(path) is not None:
        stores.write(probe, b"")
        now = stores.modification_time(probe)
        stores.remove(probe)
        return 0.0 if now is None else now / 1e3 - seen.time / 1e9
    try:
        probe.touch()
        return (probe.stat().st_mtime_ns - seen.time) / 1e9
    finally:
        probe.unlink(missing_ok=True)


def _remove(path: Path, owner: str | None) -> None:
    """Remove the lease file if it belongs to this owner; a lease file of another owner stays."""
    aside = path.with_name(f"{path.name}-{uuid.uuid4().hex[:8]}")
    seen = _look(path)
    if seen is None or seen.owner != owner:
        return
    if stores.url_of(path) is not None:
        stores.remove(path)
        return
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return
    moved = _look(aside)
    if moved is not None and moved.owner != owner:  # another owner had taken it meanwhile, and gets it back
        with contextlib.suppress(OSError):
            os.link(aside, path)
    aside.unlink(missing_ok=True)
