"""A folder of a store kept equal to its working copy, so that what a run writes there outlives its machine."""

import threading
from collections.abc import Callable
from pathlib import Path

from sparkdiff.jvm import stores
from sparkdiff.store.files import previous

PERIOD = 1.0
"""Seconds between two looks for changed files."""


_ROOTS: set[Path] = set()


def is_mirrored(path: Path) -> bool:
    """Whether a folder around this one is mirrored by this process, so that what is written here is sent anyway."""
    return any(path.is_relative_to(root) for root in _ROOTS)


class Mirror:
    """Sends changed files of a working copy to the store, in a thread, within a context.

    A file arrives whole or not at all. Of those that changed together, JSON comes last: it names the others.

    Attributes:
        failed: why a file could not be sent; empty if all were.
    """

    def __init__(self, folder: Path, lost: Callable[[], bool]):
        self.folder, self.lost, self.failed = folder, lost, ""
        self._sent: dict[Path, tuple[int, int, int]] = {}
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name=f"mirror of {folder.name}", daemon=True)

    def __enter__(self) -> "Mirror":
        self._sent = self._found()  # they have just come from there
        _ROOTS.add(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._try()
        _ROOTS.discard(self.folder)

    def stop(self) -> None:
        """Send nothing more by itself."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """Send what has changed, and go on to do so.

        Raises:
            StoreError: the store refuses it.
        """
        self.sync()
        self._thread.start()

    def _watch(self) -> None:
        while not self._ended.wait(PERIOD):
            self._try()

    def _try(self) -> None:
        try:
            self.sync()
        except OSError as e:
            url = stores.url_of(self.folder)
            self.failed = self.failed or (
                f"a checkpoint cannot be written to {url}: {e.strerror}. Training continued without it; a crash would "
                "have lost more"
            )

    def sync(self) -> None:
        """Send what has changed, and remove what is gone.

        Raises:
            StoreError: the store refuses it.
        """
        with self._lock:
            found = self._found()
            changed = [path for path, state in found.items() if self._sent.get(path) != state]
            gone = [path for path in self._sent if path not in found]
            if (changed or gone) and self.folder.exists() and not self.lost():
                for path in sorted(changed, key=lambda path: (path.suffix == ".json", path)):
                    if self._send(path, found[path]):
                        self._sent[path] = found[path]
                # A checkpoint is not there for a moment while it is replaced.
                gone = [path for path in gone if not path.exists() and not previous(path).exists()]
                for path in gone:
                    del self._sent[path]
                for path in {self._highest_gone(path) for path in gone}:
                    stores.forget(path)

    def _send(self, path: Path, state: tuple[int, int, int]) -> bool:
        """Send a file; False if it was replaced meanwhile, so that the next look finds the new one."""
        try:
            stores.send(path)
        except OSError:
            if self._found_at(path) == state:
                raise
            return False
        return True

    def _highest_gone(self, path: Path) -> Path:
        """The highest folder above a file that is gone with it."""
        while path.parent != self.folder and not path.parent.exists():
            path = path.parent
        return path

    def _found(self) -> dict[Path, tuple[int, int, int]]:
        """The files that last, by what changes with their content."""
        seen = ((path, self._found_at(path)) for path in self.folder.rglob("*"))
        return {path: state for path, state in seen if state is not None}

    def _found_at(self, path: Path) -> tuple[int, int, int] | None:
        # Of use to a later process is no temporary file, and none that starts a process. An older checkpoint is, as some stores
        # replace a file by deleting it first.
        parts = path.relative_to(self.folder).parts
        passing = any(part.startswith(".") for part in parts) or parts[0].startswith("attempt-")
        try:
            if path.is_file() and not passing:
                state = path.stat()
                return state.st_mtime_ns, state.st_size, state.st_ino
        except OSError:  # gone meanwhile
            pass
        return None
