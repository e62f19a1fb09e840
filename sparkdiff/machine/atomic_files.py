"""Atomic writing of files and folders: they are written under a hidden name in the same folder, and then renamed."""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

MARKER = ".sparkdiff"
"""Name of the file that names the part of this package that made a folder (see `store.folder_marker`)."""


def hidden(path: Path) -> Path:
    """A new hidden path in the same folder as a path."""
    return path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")


def remove(path: Path) -> None:
    """Remove a file or a folder as far as possible. A folder's marker is removed last, and only if nothing else is
    left.
    """
    with contextlib.suppress(OSError):  # it does not exist
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        for entry in path.iterdir():
            if entry.name != MARKER:
                remove(entry)
        if all(entry.name == MARKER for entry in path.iterdir()):
            shutil.rmtree(path)


@contextlib.contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """Provide a hidden path at which to write a file or folder before renaming it; when the context ends, remove the
    hidden path if it still exists.
    """
    part = hidden(path)
    try:
        yield part
    finally:
        remove(part)


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that replaces `path` when the context ends: completely or not at all, even at a power
    failure.
    """
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
    with open_atomic(path) as file:
        file.write(content)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        OSError, ValueError: the file cannot be read, or holds no JSON object.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {found!r:.40} in place of an object of JSON")
    return found


@contextlib.contextmanager
def remove_empty_folders_above(path: Path) -> Iterator[None]:
    """Remove, when this context ends, the folders above a path that were created within the context and are empty."""
    missing = [folder for folder in path.parents if not folder.exists()]
    try:
        yield
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # it was not made, or is not empty
                folder.rmdir()


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Provide a hidden path at which to write a folder, and rename it to `path` when the context ends without an error.

    Raises:
        OSError: the path is taken by then.
    """
    with temporary(path) as part:
        yield part
        os.rename(part, path)
