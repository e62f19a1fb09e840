"""Files and folders that are there whole or not at all: written beside their place, under a hidden name, and renamed."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def hidden(path: Path) -> Path:
    """A new hidden name beside a path."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that is complete in the end or does not exist, also after a power failure."""
    temporary = hidden(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole.

    Raises:
        OSError: the folder isn't there or can't be written.
    """
    with written(path) as file:
        file.write(content)


@contextlib.contextmanager
def empty_removed_above(path: Path) -> Iterator[None]:
    """Within this context, folders above a path may be made; those of them that hold nothing in the end are removed."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or something is in it
                folder.rmdir()


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """The path of a folder to write to and to rename, of which nothing is left under this name in the end."""
    temporary = hidden(path)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """The path of a folder to write to that gets this name in the end, if nothing fails.

    Raises:
        OSError: the name is taken by then.
    """
    with temporary_folder(path) as temporary:
        yield temporary
        os.rename(temporary, path)
