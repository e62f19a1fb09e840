"""Who made a cache, what it cost, how often and when it was last used, and whether a training reads it now."""

import contextlib
import datetime
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sparkdiff.store.files import check_types, read_object, write_bytes

NAME = "usage.json"
MANIFEST = "manifest.json"
SEEN = ".seen-stages"
"""A folder beside the caches: an empty file for each list of stages whose rows a run has needed (`reuseStages`)."""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system without locks says."""


@dataclass(frozen=True)
class Usage:
    """
    Attributes:
        madeBy: classes of the stages that Spark ran for it.
        seconds: that writing it took.
        uses: by how many fits, the one that wrote it among them; a few fewer where several began at once.
        last: the last of them, ISO 8601 in UTC.
    """

    madeBy: Sequence[str]
    seconds: float
    uses: int
    last: str

    @property
    def age(self) -> float:
        """Seconds since it was last used."""
        return (_now() - datetime.datetime.fromisoformat(self.last)).total_seconds()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def begin(folder: Path, madeBy: Sequence[str], seconds: float) -> None:
    """Write down that a cache was made."""
    _write(folder, Usage([*madeBy], round(seconds, 3), 1, _now().isoformat()))


def used(folder: Path) -> None:
    """Write down that a cache is used once more; a folder that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        known = of(folder)
        _write(folder, Usage(known.madeBy, known.seconds, known.uses + 1, _now().isoformat()))


def of(folder: Path) -> Usage:
    """What is known of a cache. Without a file of it, the cache was made, at no known cost, when its manifest was written."""
    try:
        found = check_types(Usage(**read_object(folder / NAME)))
        _now() - datetime.datetime.fromisoformat(found.last)
        return found
    except (OSError, ValueError, TypeError):
        made = datetime.datetime.fromtimestamp((folder / MANIFEST).stat().st_mtime, datetime.timezone.utc)
        return Usage([], 0.0, 1, made.isoformat())


def _write(folder: Path, usage: Usage) -> None:
    write_bytes(folder / NAME, json.dumps(asdict(usage)).encode())


class Lock:
    """Says that a cache is read, to those who would remove it, until it is closed or this process ends; nothing where the file
    system has no locks.
    """

    def __init__(self, folder: Path):
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder / MANIFEST, os.O_RDONLY)
            fcntl.flock(self._file, fcntl.LOCK_SH)  # who removes it holds the other lock for a moment only

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:  # of a stream that nobody has closed
        self.close()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Whether no process on this machine, or another one where the file system tells it, reads a cache; while this context lasts
    none begins to.

    Raises:
        FileNotFoundError: another process has removed it.
        PermissionError: it belongs to another user.
    """
    file = os.open(folder / MANIFEST, os.O_RDWR)  # an exclusive lock on NFS needs a file to write to
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except OSError as e:
            free = e.errno in NO_LOCKS
        yield free
    finally:
        os.close(file)
