"""The folder of a training run: its checkpoint, and its request, i.e. all values that determine the result.

A run with a `runId` is resumed from its folder only if the request is the same.
"""

import contextlib
import hashlib
import json
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

from typing_extensions import Self

from sparkdiff.errors import InputError, warn
from sparkdiff.jvm import stores
from sparkdiff.machine import atomic_files
from sparkdiff.store import folder_marker
from sparkdiff.store.files import check_types, not_writable, previous, read_object, read_undamaged, write_bytes
from sparkdiff.store.identity import UnidentifiableError
from sparkdiff.store.lease import Lease, hold_lease, lease_of
from sparkdiff.store.mirror import Mirror, is_mirrored

LONGEST = 100
"""Largest number of characters of a run's id."""
NAME = re.compile(rf"[A-Za-z0-9_][\w.-]{{0,{LONGEST - 1}}}", re.ASCII)
TRAININGS = "trainings"
"""Folder within a checkpoint folder for the training runs of which the run consists."""


UNTOLD = "can't be told"
"""Prefix of the value of a part of a request that cannot be identified, such as a lock; such a run is never resumed."""


class NotResumable(UserWarning):
    """The warning that a run was not resumed, because a part of the request cannot be identified."""


@dataclass(frozen=True)
class FolderNote:
    """Base of the contents of JSON files in a checkpoint folder, from which a resumed run reads what the run had decided
    before.
    """

    FILE: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The note in a checkpoint folder; None if it does not exist, or is damaged."""
        return read_undamaged(folder / cls.FILE, lambda: check_types(cls(**read_object(folder / cls.FILE))))

    def write(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # without it, a resumed run chooses again
            write_bytes(folder / self.FILE, json.dumps(asdict(self)).encode())


def untold(why: str) -> str:
    """A value for a part of a request that cannot be identified: a text with the reason that equals no other value."""
    return f"{UNTOLD}: {why} {uuid.uuid4().hex[:12]}"


def text_or_reason(tell: Callable[[], str]) -> str:
    """The result of `tell()`; if that raises UntoldError, a text with the reason that equals no other value (see
    `untold`).
    """
    try:
        return tell()
    except UnidentifiableError as e:
        return untold(f"({e})")


def _untold(value: Any) -> bool:
    return isinstance(value, str) and value.startswith(UNTOLD)


def _differences(begun: Any, now: Any, name: str = "") -> dict[str, tuple[Any, Any]]:
    """The parts that differ between the old and the new request, as {name: (old, new)}; parts of mappings as
    `mapping.name`.
    """
    if json.dumps(begun, sort_keys=True) == json.dumps(now, sort_keys=True):  # == treats 1, 1.0 and True as equal
        return {}
    if not isinstance(begun, dict) or not isinstance(now, dict):
        return {name: (begun, now)}
    names = sorted({*begun, *now})
    parts = [_differences(begun.get(k), now.get(k), f"{name}.{k}" if name else k) for k in names]
    return {k: v for part in parts for k, v in part.items()}


def folder_name(runId: str) -> str:
    """The id of a run, after checking that it can be the name of a folder.

    Raises:
        InputError: the id cannot be a folder name.
    """
    if not NAME.fullmatch(runId):
        raise InputError(f"runId={runId!r} may contain only letters, digits, '.', '-' and '_'")
    return runId


def name_beside(runId: str, rest: str) -> str:
    """The name of a further folder of a run: its id and `rest`; a long id is shortened, and a hash of it is added."""
    name = folder_name(runId)
    if len(name) + len(rest) <= LONGEST:
        return name + rest
    rest = f"-{hashlib.sha256(name.encode()).hexdigest()[:12]}{rest}"
    return name[: LONGEST - len(rest)] + rest


@dataclass(frozen=True)
class CheckpointFolder:
    """The folder of one training run: its request, its newest checkpoint, and one folder per attempt of several
    processes.

    Attributes:
        own: see `open`.
        lease: the lease on this folder; None if no other process can use it.
        mirror: the mirror of this working copy; None if the folder is not on a remote file system, or if a folder around it
            is mirrored.
    """

    path: Path
    runId: str
    own: bool = False
    lease: Lease | None = None
    mirror: Mirror | None = None

    @staticmethod
    def open(
        where: Path,
        runId: str,
        request: dict[str, Any],
        *,
        replace: bool,
        own: bool = False,
        lease: Lease | None = None,
        mirror: Mirror | None = None,
    ) -> "CheckpointFolder":
        """Open the folder of a run; create it if missing.

        Args:
            own: True if `where` is a folder of this package, which is removed together with its last run; False if it
                is the user's.
            request: all values that determine the result of training, by name. A run is not resumed if its request was
                different, or if a part of the request is `UNTOLD`.
            replace: start again if the request was different, instead of raising.
            lease: the lease of this folder; once it is lost, nothing more is written or removed.

        Raises:
            InputError: the id cannot be a folder name, the folder cannot be written, it is a folder of the user, or it
                belongs to a run with another request; then the message names the differences.
        """
        path = where / folder_name(runId)
        request = json.loads(json.dumps(request, sort_keys=True))
        folder_marker.check_owner(
            path, folder_marker.RUN, f"runId={runId!r}: the folder {stores.path_or_url(path)}", "runId or checkpointDir"
        )
        begun = read_undamaged(
            path / "run.json", lambda: read_object(path / "run.json"), ", and the run's checkpoints are removed"
        )
        if begun is not None and (changed := _differences(begun, request)):
            if not replace and not all(_untold(was) and _untold(now) for was, now in changed.values()):
                raise InputError(
                    f"runId={runId!r} was started with other {', '.join(changed)} "
                    f"({'; '.join(f'{k}: {was!r}, now {now!r}' for k, (was, now) in changed.items())}); choose "
                    f"another runId, or delete {stores.path_or_url(path)} to start again"
                )
            begun = None
        if not replace and (why := [f"its {k} {v.rpartition(' ')[0]}" for k, v in request.items() if _untold(v)]):
            warn(f"runId={runId!r} starts again each time: {'; '.join(why)}", NotResumable)
        try:
            if begun is None:
                atomic_files.remove(path)
                path.mkdir(parents=True, exist_ok=True, mode=0o700)
                folder_marker.mark(path, folder_marker.RUN)
                write_bytes(path / "run.json", json.dumps(request, sort_keys=True).encode())
            if mirror is not None:
                mirror.begin()
        except OSError as e:
            raise not_writable(path, e) from e
        return CheckpointFolder(path, runId, own, lease, mirror)

    def check(self) -> None:
        """Raise HeldError if another process has taken over this folder."""
        if self.lease is not None:
            self.lease.check()

    @property
    def send_failure(self) -> str:
        """The reason why files of this working copy could not be sent to the store; empty if all were sent."""
        return "" if self.mirror is None else self.mirror.failed

    @property
    def state(self) -> Path:
        return self.path / "state.pt"

    def attempt(self) -> Path:
        """Create a new folder for an attempt to train in several processes."""
        numbers = (p.name.partition("-")[2] for p in self.path.glob("attempt-*"))
        number = 1 + max((int(name) for name in numbers if name.isdecimal()), default=0)
        folder = self.path / f"attempt-{number}"
        folder.mkdir(mode=0o700)
        return folder

    @contextlib.contextmanager
    def keep_for_resume(self, *, always: bool) -> Iterator[None]:
        """Remove the folder when this context, in which training runs, ends; with `always`, keep it after a success.

        After a failure, the folder is kept only if it has a checkpoint or a finished step, and the user knows the id
        with which to continue: with `always`, or because the error names it.
        """
        try:
            yield
        except BaseException as e:
            steps = any(any(self.path.glob(kind)) for kind in ("round-*", "step-*", f"{TRAININGS}/*/*"))
            known = always or f"runId={self.runId!r}" in str(e)
            if not (known and (self.state.exists() or previous(self.state).exists() or steps)):
                self.remove()
            raise
        if not always:
            self.remove()

    def remove(self) -> None:
        if self.lease is not None and self.lease.is_lost():
            return
        if self.mirror is not None:
            self.mirror.stop()  # otherwise it could send files that are removed here
        stores.remove(self.path)
        if self.own:
            stores.remove_empty(self.path.parent)


@contextlib.contextmanager
def open_checkpoint_folder(
    where: Path, runId: str | None, request: dict[str, Any], *, replace: bool, own: bool, wait: float
) -> Iterator[CheckpointFolder]:
    """Open the folder of a training run, see `CheckpointFolder.open`; no other process can use the folder while the context
    lasts.

    Args:
        runId: id of the run; None: draw a new one.
        wait: seconds to wait for another process that uses the folder.
    """
    name = folder_name(runId or uuid.uuid4().hex[:12])
    try:
        with contextlib.ExitStack() as stack:
            lease = mirror = None
            try:
                if runId is not None:  # no other process has a name that was just drawn
                    lease = stack.enter_context(hold_lease(lease_of(where / name), f"runId={name!r}", wait=wait))
                if stores.url_of(where) is not None and not is_mirrored(where):
                    mirror = stack.enter_context(_open_mirror(where / name, lease))
            except OSError as e:
                raise not_writable(where / name, e) from e
            yield CheckpointFolder.open(where, name, request, replace=replace, own=own, lease=lease, mirror=mirror)
    finally:
        if own:
            stores.remove_empty(where)  # unless there are other runs in it


def _open_mirror(path: Path, lease: Lease | None) -> Mirror:
    """The mirror of a checkpoint folder in a remote store; the store's files are first fetched into the local working copy."""
    stores.make(path.parent)
    if stores.exists(path):
        stores.fetch(path)
    else:
        atomic_files.remove(path)
        stores.make(path)
    return Mirror(path, lambda: lease is not None and lease.is_lost())
