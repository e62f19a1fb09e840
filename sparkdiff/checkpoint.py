"""Files that survive a crash: written aside and renamed, checked by hash, read without unpickling code; and a run's folder."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from sparkdiff.errors import InputError

HEAD = b"sparkdiff checkpoint 1 "
NAME = re.compile(r"[A-Za-z0-9_][\w.-]{0,99}", re.ASCII)


class DamagedCheckpoint(UserWarning):
    """A checkpoint was not as it was written, and an older one (or none) took its place."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """A file to write to that is there whole in the end, or not at all, also after a power cut."""
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
    """What torch.save writes to: a second copy of a state in memory would be as large as the training."""

    def __init__(self, file: BinaryIO):
        self.file, self.digest = file, hashlib.sha256()

    def write(self, part: bytes) -> int:
        self.digest.update(part)
        return self.file.write(part)

    def flush(self) -> None:
        self.file.flush()


def save(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint of tensors, numbers, strings, lists and dicts; the one before it is kept as `<name>.previous`."""
    with written(path) as file:
        file.write(_head(hashlib.sha256()))  # room for it
        hashed = _Hashed(file)
        torch.save(state, hashed)  # type: ignore[arg-type]  # it asks for no more than it uses
        file.seek(0)
        file.write(_head(hashed.digest))
        if path.exists():
            os.replace(path, _previous(path))  # a crash between this and the end leaves the older one


def _head(digest: Any) -> bytes:
    return HEAD + digest.hexdigest().encode() + b"\n"


def load(path: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint of this name, None where there is none."""
    for candidate in (path, _previous(path)):
        try:
            return _read(candidate)
        except FileNotFoundError:
            continue
        except ValueError as e:
            warnings.warn(f"the checkpoint {candidate} is left aside: {e}", DamagedCheckpoint, stacklevel=2)
    return None


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".previous")


def _read(path: Path) -> dict[str, Any]:
    head, _, content = path.read_bytes().partition(b"\n")
    if head + b"\n" != _head(hashlib.sha256(content)):
        raise ValueError("its content is not what was written (sha256 differs)")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


@dataclass(frozen=True)
class RunFolder:
    """The folder of one training: what it is for, its newest checkpoint, and a folder per attempt of several processes."""

    path: Path
    runId: str
    own: bool = False

    @staticmethod
    def open(
        where: Path, runId: str, request: dict[str, Any], *, replace: bool, own: bool = False
    ) -> RunFolder:  # fmt: skip
        """The folder of a run, made where there is none.

        Args:
            own: `where` isn't the user's, and goes with the last run in it.
            request: what decides the training, by name; a folder that was begun for something else isn't resumed.
            replace: start anew then, instead of raising.

        Raises:
            InputError: the id can't be a folder's name, the folder can't be written, or it belongs to another training;
                names what differs.
        """
        if not NAME.fullmatch(runId):
            raise InputError(f"runId={runId!r} must be made of letters, digits, '.', '-' and '_'")
        path = where / runId
        request = json.loads(json.dumps(request, sort_keys=True))
        try:
            begun = json.loads((path / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            begun = None
        if begun is not None and begun != request:
            changed = [k for k in sorted({*begun, *request}) if begun.get(k) != request.get(k)]
            if not replace:
                raise InputError(
                    f"runId={runId!r} was begun with other {', '.join(changed)} "
                    f"({'; '.join(f'{k}: {begun.get(k)!r}, now {request.get(k)!r}' for k in changed)}); take another runId, "
                    f"or delete {path} to begin anew"
                )
            begun = None
        try:
            if begun is None:
                shutil.rmtree(path, ignore_errors=True)
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                write_bytes(path / "run.json", json.dumps(request, sort_keys=True).encode())
        except OSError as e:
            raise InputError(
                f"checkpointDir: {path} cannot be written ({e.strerror}); give a folder that can be"
            ) from e
        return RunFolder(path, runId, own)

    @property
    def state(self) -> Path:
        return self.path / "state.pt"

    def attempt(self) -> Path:
        """A new folder for an attempt."""
        number = 1 + max((int(p.name[8:]) for p in self.path.glob("attempt-*")), default=0)
        folder = self.path / f"attempt-{number}"
        folder.mkdir(mode=0o700)
        return folder

    @contextlib.contextmanager
    def kept(self, *, always: bool) -> Iterator[None]:
        """Inside, training runs. The folder goes where it fails with nothing to go on from, and at the end unless `always`."""
        try:
            yield
        except BaseException:
            if not self.state.exists():
                self.remove()
            raise
        if not always:
            self.remove()

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        if self.own:
            with contextlib.suppress(OSError):  # it isn't empty
                self.path.parent.rmdir()
