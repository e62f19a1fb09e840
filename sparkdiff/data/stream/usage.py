"""The usage of a cache: the stages that made it, the seconds that it took, the number of its uses and the time of the
last one, and locks that show whether a training run is reading it now.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparkdiff.store.files import check_types, read_object, write_bytes

NAME = "usage.json"
MANIFEST = "manifest.json"
SEEN = ".seen-stages"
"""A folder beside the caches, with an empty file for each list of first stages after which a run has needed the rows
(`reuseStages`).
"""
NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""Error numbers of a file system without locks."""


@dataclass(frozen=True)
class Usage:
    """
    Attributes:
        madeBy: class names of the stages that Spark ran for the cache.
        seconds: time that writing the cache took.
        uses: number of fits that used the cache, including the fit that wrote it; slightly too low if several fits
            began at the same time.
        last: time of the last use, ISO 8601 in UTC.
        run: the runId of the run that made the cache; "" if it had none.
    """

    madeBy: Sequence[str]
    seconds: float
    uses: int
    last: str
    run: str = ""

    @property
    def age(self) -> float:
        """Seconds since it was last used."""
        return (_now() - datetime.datetime.fromisoformat(self.last)).total_seconds()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.timezone.utc)


def begin(folder: Path, madeBy: Sequence[str], seconds: float, run: str | None) -> None:
    """Record that a cache, or a fitted pipeline, was made by a run with this runId."""
    _write(folder, Usage([*madeBy], round(seconds, 3), 1, _now().isoformat(), run or ""))


def record_use(folder: Path) -> None:
    """Record one more use of a cache; does nothing if its folder cannot be written."""
    with contextlib.suppress(OSError):
        known = of(folder)
        _write(folder, replace(known, uses=known.uses + 1, last=_now().isoformat()))


def of(folder: Path) -> Usage:
    """The recorded usage of a cache. Without a record: one use, when the manifest or else the folder was made, 0 seconds."""
    try:
        found = check_types(Usage(**read_object(folder / NAME)))
        _now() - datetime.datetime.fromisoformat(found.last)
        return found
    except (OSError, ValueError, TypeError):
        made = (folder / MANIFEST if (folder / MANIFEST).exists() else folder).stat().st_mtime
        return Usage([], 0.0, 1, datetime.datetime.fromtimestamp(made, datetime.timezone.utc).isoformat())


def _write(folder: Path, usage: Usage) -> None:
    write_bytes(folder / NAME, json.dumps(asdict(usage)).encode())


class Lock:
    """A shared file lock on a cache, by which processes that would remove the cache see that it is being read. It is
    held until it is closed or this process ends; on file systems without locks it has no effect.
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
    """Yield True if no process reads a cache; then none can begin to within this context. Processes on other machines
    are only noticed if the file system shares its locks with them; without locks in the file system, no process is.

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
