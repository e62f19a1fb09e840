"""Files that survive a crash: written to a temporary name and renamed, checked by hash, read without unpickling code.

An error for a full disk names, in one sentence, the file, its folder, the bytes needed and free, and a solution.
"""

import contextlib
import errno
import hashlib
import io
import os
import shutil
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, TypeVar, get_args, get_origin, get_type_hints

import torch

from sparkdiff.errors import (
    DamagedFile as DamagedFile,
    DamagedFileError,
    FullDiskError,
    InputError,
    SparkdiffError,
    StoreError,
    WriteError,
    as_read_error,
    warn,
)
from sparkdiff.jvm import SparkError, cause, stores
from sparkdiff.machine import paths
from sparkdiff.machine.atomic_files import (
    open_atomic as open_atomic,
    read_object as read_object,
    write_bytes as write_bytes,
)

T = TypeVar("T")
HEAD = b"sparkdiff checkpoint 1 "
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error codes for no space on the disk, in the user's quota, or within the limit of a file's size."""


class DamagedCheckpoint(DamagedFile):
    """The warning that a checkpoint is damaged, so that an older checkpoint, or none, is used."""


class _HashingFile:
    """A target of torch.save that hashes while writing, which avoids a second copy of the state in memory."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()
        self.failed: OSError | None = None  # torch.save would replace it by an internal error

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
    """Write a checkpoint of tensors, numbers, strings, lists and dicts; the previous one is kept as `<name>.previous`.

    Raises:
        OSError: the checkpoint cannot be written; the last complete one stays.
    """
    with open_atomic(path) as file:
        file.write(_head(hashlib.sha256()))  # reserves the space of the head
        hashed = _torch_save(state, file)
        file.seek(0)
        file.write(_head(hashed.digest))
        _keep_previous(path, file)


def replace(path: Path, content: bytes) -> None:
    """Write the bytes of a checkpoint that another process saved; the previous checkpoint is kept, as in `save`."""
    with open_atomic(path) as file:
        file.write(content)
        _keep_previous(path, file)


def _keep_previous(path: Path, file: BinaryIO) -> None:
    """Rename the previous checkpoint before a new one replaces it, so that a crash in between leaves the previous one."""
    file.flush()
    os.fsync(file.fileno())  # an error of a full disk may come only now, when the previous one must still exist
    if path.exists():
        os.replace(path, previous(path))


def save_mappable(path: Path, content: Any) -> None:
    """Write tensors, or objects that contain tensors, in the form that `torch.load(path, mmap=True)` can map into
    memory.

    Raises:
        OSError: the file cannot be written.
    """
    with open_atomic(path) as file:
        _torch_save(content, file)


def _torch_save(content: Any, file: BinaryIO) -> _HashingFile:
    """Run torch.save, but raise the system's error instead of torch's."""
    hashed = _HashingFile(file)
    try:
        torch.save(content, hashed)  # type: ignore[arg-type]  # it asks for no more than it uses
    except RuntimeError as e:
        if hashed.failed is None:
            raise
        raise hashed.failed from e
    return hashed


def size(state: Any) -> int:
    """Bytes of all tensors in a state; a checkpoint of the state takes slightly more."""
    if isinstance(state, torch.Tensor):
        return state.nbytes
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, (list, tuple)) else ()
    return sum(map(size, parts))


def _head(digest: Any) -> bytes:
    return HEAD + digest.hexdigest().encode() + b"\n"


def load(path: Path) -> dict[str, Any] | None:
    """The newest complete checkpoint at this path, current or previous; None if there is none. A damaged one causes a
    warning.
    """
    for candidate in (path, previous(path)):
        try:
            return _read(candidate)
        except FileNotFoundError:
            continue
        except (ValueError, IsADirectoryError) as e:
            warn(f"the checkpoint {candidate} is ignored: {e}", DamagedCheckpoint)
    return None


def read_undamaged(path: Path, read: Callable[[], T], goes: str = "") -> T | None:
    """Read a file or folder that this package wrote and can make again; return None if it does not exist or is damaged.

    A damaged file or folder is removed, with a warning that names it; one that cannot be read at this time is not.

    Args:
        read: function that returns the content, and raises any exception if the file or folder is damaged.
        goes: what the caller then removes as well, for the warning.

    Raises:
        SparkdiffError: it cannot be read at this time.
    """
    try:
        with as_read_error(stores.path_or_url(path)):
            return read()
    except DamagedFileError as e:
        if stores.exists(path):
            warn(
                f"{stores.path_or_url(path)} is damaged and made again{goes}: {type(e.__cause__).__name__}: {e.__cause__}",
                DamagedFile,
            )
            stores.remove(path)
        return None


def check_types(made: T) -> T:
    """Check the types of the attributes of a dataclass made from stored values, and return it.

    Raises:
        TypeError: an attribute, or an entry of one, has the wrong type.
    """
    for name, kind in get_type_hints(type(made)).items():
        if get_origin(kind) is not ClassVar and not _is_of(value := getattr(made, name), kind):
            raise TypeError(f"its {name} is {value!r:.40}")
    return made


def _is_of(value: Any, kind: Any) -> bool:
    """True if a value has this type, and the entries of a collection have the types that it names."""
    base, parts = get_origin(kind), get_args(kind)
    if base is types.UnionType:
        return any(_is_of(value, part) for part in parts)
    if kind is Any or not isinstance(value, (int, float) if kind is float else base or kind):
        return kind is Any
    entries: Any = zip(*value.items(), strict=True) if isinstance(value, Mapping) else [value]
    return all(part is Any or all(_is_of(v, part) for v in of) for of, part in zip(entries, parts, strict=False))


def previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> dict[str, Any]:
    head, _, content = path.read_bytes().partition(b"\n")
    if head + b"\n" != _head(hashlib.sha256(content)):
        raise ValueError("its content differs from what was written (sha256 differs)")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def not_writable(path: Path, error: OSError) -> InputError:
    return InputError(
        f"checkpointDir: {stores.path_or_url(path)} cannot be written ({error.strerror}); choose a folder that can be written"
    )


def local_path(option: str, given: str) -> Path:
    """The file or folder of this machine that an option names.

    Raises:
        InputError: the path is not on this machine, or Spark could not find it.
    """
    if (why := paths.not_local(option, given)) is not None:
        raise InputError(why)
    return Path(os.path.abspath(str(paths.local(given))))


def new_path(option: str, given: str) -> Path:
    """The folder of this machine that an option names, and that is to be created.

    Raises:
        InputError: the folder exists, or is not on this machine.
    """
    path = local_path(option, given)
    if os.path.lexists(path):
        raise InputError(f"{option}={given!r} exists already: choose a folder that does not")
    return path


def move_into_place(temporary: Path, folder: Path) -> bool:
    """Rename a folder to its final name; return False if another process has created that folder meanwhile, which then
    stays.
    """
    try:
        os.rename(temporary, folder)
    except OSError:
        if not folder.exists():
            raise
        return False
    return True


def full(error: BaseException | None) -> str:
    """The system's message if an error, or an error that caused it, says that there is no space for a file; else empty."""
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


def write_refusal(error: BaseException) -> str:
    """The reason if a remote store refuses to write, or a file system is read-only; else empty.

    Other refusals don't count, because a single file may be refused for reasons of its own.
    """
    if isinstance(error, StoreError):
        return str(error.strerror)
    read_only = os.strerror(errno.EROFS)
    said = f"{error} {cause(error)}" if isinstance(error, SparkError) else ""
    return read_only if getattr(error, "errno", None) == errno.EROFS or read_only in said else ""


def free(path: Path) -> int:
    """Free bytes on the disk of an existing or future path."""
    return shutil.disk_usage(next(p for p in (path, *path.absolute().parents) if p.exists())).free


def folder_size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


@contextlib.contextmanager
def room(what: str, path: Path, way_out: str, needed: Callable[[], str] = lambda: "") -> Iterator[None]:
    """Turn an error for a full disk, or of a file system that refuses to write, into one sentence within this context.

    Args:
        what: the thing that is written, for messages.
        way_out: the solution for a full disk, for messages.
        needed: function that returns the required number of bytes, as text; called only if the disk is full.

    Raises:
        FullDiskError: the disk is full.
        WriteError: the file system refuses to write, although writing was possible before the run began.
    """
    try:
        yield
    except (OSError, SparkdiffError, *SparkError) as e:
        why = "" if isinstance(e, WriteError) else full(e)
        if not why:
            if refused := write_refusal(e):
                again = "make it writable and repeat the command, or choose another folder"
                raise WriteError(f"{what} cannot be written to {stores.path_or_url(path)}: {refused}; {again}") from e
            raise
        size = f"it needs {amount}, and " if (amount := needed()) else ""
        said = why[0].lower() + why[1:]
        raise FullDiskError(
            f"{what} cannot be written to {stores.path_or_url(path)}: {said} ({size}{free(path):,} bytes are free); {way_out}"
        ) from e
