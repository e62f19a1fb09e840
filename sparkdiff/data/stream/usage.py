"""The usage of a cache: its makers, its cost, the number and time of its uses, and locks that show whether a training
reads it now.
"""

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
"""Error numbers of a file system without locks."""


@dataclass(frozen=True)
class Usage:
    """
    Attributes:
        madeBy: classes of the stages that Spark ran for it.
        seconds: time that writing it took.
        uses: number of fits that used it, including the one that wrote it; slightly too low if several began at once.
        last: time of the last use, ISO 8601 in UTC.
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
    """Record that a cache was made."""
    _write(folder, Usage([*madeBy], round(seconds, 3), 1, _now().isoformat()))


def used(folder: Path) -> None:
    """Record one more use of a cache; a folder that cannot be written stays as it is."""
    with contextlib.suppress(OSError):
        known = of(folder)
        _write(folder, Usage(known.madeBy, known.seconds, known.uses + 1, _now().isoformat()))


def of(folder: Path) -> Usage:
    """The recorded usage of a cache. Without a record, the cache counts as made when its manifest was written, at no
    known cost.
    """
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
    """A sign that a cache is being read, for processes that would remove it, until it is closed or this process ends;
    without effect on file systems without locks.
    """

    def __init__(self, folder: Path):
        self._file: int | None = None
        with contextlib.suppress(OSError):
            self._file = os.open(folder / MANIFEST, os.O_RDONLY)
            fcntl.flock(self._file, fcntl.LOCK_SH)  # a process that removes it holds the other lock only for a moment

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __del__(self) -> None:  # for a stream that was never closed
        self.close()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Yield whether no process on this machine (or on another one, where the file system can tell) reads a cache; no
    process can begin to read it within this context.

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
