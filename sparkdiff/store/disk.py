"""The error of a full disk: one sentence with the file, its place, the bytes that are needed and free, and a
solution.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from sparkdiff.errors import FullDiskError, SparkdiffError
from sparkdiff.jvm import SparkError, cause

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors for no space on the disk, in the user's quota, or in the limit of a file's size."""


def full(error: BaseException | None) -> str:
    """The system's message if an error or its cause says that there is no space for a file; else empty."""
    words = {code: os.strerror(code) for code in FULL}
    while error is not None:
        if isinstance(error, OSError) and error.errno in words:
            return words[error.errno]
        if isinstance(error, SparkError):
            text = f"{error} {cause(error)}"
            if found := [w for w in words.values() if w in text]:
                return found[0]
        error = error.__cause__
    return ""


def free(path: Path) -> int:
    """Free bytes of the disk of an existing or future path."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@contextlib.contextmanager
def room(what: str, path: Path, way_out: str, needed: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Within this context, an error for a full disk becomes one sentence.

    Args:
        needed: the required number of bytes, as text; called only then.

    Raises:
        FullDiskError: the disk is full.
    """
    try:
        yield
    except (OSError, SparkdiffError, *SparkError) as e:
        why = "" if isinstance(e, FullDiskError) else full(e)
        if not why:
            raise
        size = f"it needs {amount}, and " if (amount := needed()) else ""
        raise FullDiskError(
            f"{what} cannot be written to {path}: {why[0].lower() + why[1:]} ({size}{free(path):,} bytes are free); {way_out}"
        ) from e
