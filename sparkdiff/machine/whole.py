"""Atomic writing of files and folders: written beside their place, under a hidden name, and renamed."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MARKER = ".sparkdiff"
"""Name of the file that says which part of the package has made a folder (`store.marker`)."""


def hidden(path: Path) -> Path:
    """A new hidden name beside a path."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


def remove(path: Path) -> None:
    """Remove a file or a folder as far as possible; its marker last, and only if nothing else is left."""
    with contextlib.suppress(OSError):  # it is not there
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        for entry in path.iterdir():
            if entry.name != MARKER:
                remove(entry)
        if all(entry.name == MARKER for entry in path.iterdir()):
            shutil.rmtree(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Provide a hidden path at which to write a file or folder before renaming it; in the end, remove what is left
    there.
    """
    part = hidden(path)
    try:
        yield part
    finally:
        remove(part)


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that in the end is complete or does not exist, even after a power failure."""
    with temporary(path) as part:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: the folder does not exist or can't be written.
    """
    with written(path) as file:
        file.write(content)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError, ValueError: there is none.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {found!r:.40} in place of an object of JSON")
    return found


@contextlib.contextmanager
def empty_removed_above(path: Path) -> Iterator[None]:
    """Remove folders above a path that were made within this context and are empty at its end."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or is not empty
                folder.rmdir()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Provide the path of a folder to write, which gets its final name at the end, if nothing fails.

    Raises:
        OSError: the name is taken by then.
    """
    with temporary(path) as part:
        yield part
        os.rename(part, path)
