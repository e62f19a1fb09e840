"""Files that survive a crash: written to a temporary name and renamed, checked by hash, read without unpickling
code.
"""

import contextlib
import hashlib
import io
import os
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sparkdiff.errors import InputError

HEAD = b"sparkdiff checkpoint 1 "


class DamagedCheckpoint(UserWarning):
    """A checkpoint was damaged, and an older one (or none) is used."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that is complete in the end or does not exist, also after a power failure."""
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with written(path) as file:
        file.write(content)


class _Hashed:
    """The target of torch.save; it avoids a second copy of the state in memory."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.failed: OSError | None = None  # which torch.save turns into an internal error of its own

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        try:
            return self.file.write(part)
        except OSError as e:
            self.failed = e
            raise

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts; the one before it is kept as `<name>.previous`.

    Raises:
        OSError: it cannot be written; the last complete checkpoint stays.
    """
    with written(path) as file:
        file.write(_head(hashlib.sha256()))  # room for it
        hashed = _Hashed(file)
        try:
            torch.save(state, hashed)  # type: ignore[arg-type]  # it asks for no more than it uses
        except RuntimeError as e:
            if hashed.failed is None:
                raise
            raise hashed.failed from e
        file.seek(0)
        file.write(_head(hashed.digest))
        file.flush()
        os.fsync(file.fileno())  # a full disk may show only now, when the one before must still be there
        if path.exists():
            os.replace(path, previous(path))  # a crash between this and the end leaves the older one


def size(state: Any) -> int:
    """Bytes of all tensors of a state, which a checkpoint of it takes a little more than."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(size, parts))


def _head(digest: Any) -> bytes:
    return HEAD + digest.hexdigest().encode() + b"\n"


def load(path: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint of this name, or None."""
    for candidate in (path, previous(path)):
        try:
            return _read(candidate)
        except FileNotFoundError:
            continue
        except ValueError as e:
            warnings.warn(f"the checkpoint {candidate} is ignored: {e}", DamagedCheckpoint, stacklevel=2)
    return None


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> dict[str, Any]:
    head, _, content = path.read_bytes().partition(b"\n")
    if head + b"\n" != _head(hashlib.sha256(content)):
        raise ValueError("its content differs from what was written (sha256 differs)")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def not_writable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"checkpointDir: {path} cannot be written ({error.strerror}); choose a folder that can be written"
    )


def moved(temporary: Path, folder: Path) -> bool:
    """Rename a folder to its final name; False if another process has created it meanwhile, which stays."""
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True
