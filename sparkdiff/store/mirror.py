"""Mirroring of a local working copy to a folder on a remote file system (a store of `jvm.stores`), so that the files
that a run writes outlive its machine.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from sparkdiff.jvm import stores
from sparkdiff.store.files import previous

PERIOD = 1.0
"""Seconds between two checks for changed files."""


_ROOTS: set[Path] = set()


def is_mirrored(path: Path) -> bool:
    """True if this process already mirrors a folder that contains this path, so that files written there are sent
    anyway.
    """
    return any(path.is_relative_to(root) for root in _ROOTS)


class Mirror:
    """A context in which a thread sends changed files of a working copy to the store.

    A file arrives completely or not at all. Of files that changed together, JSON files are sent last, because they name
    the others.

    Args:
        folder: the working copy.
        lost: function that returns True once another process has taken over the folder; then nothing more is sent.

    Attributes:
        failed: the reason why a file could not be sent, as text; empty if all were sent.
    """

    def __init__(self, folder: Path, lost: Callable[[], bool]):
        self.folder, self.lost, self.failed = folder, lost, ""
        self._sent: dict[Path, tuple[int, int, int]] = {}
        self._ended, self._lock = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._watch, name=f"mirror of {folder.name}", daemon=True)

    def __enter__(self) -> "Mirror":
        self._sent = self._file_states()  # they were just fetched from the store
        _ROOTS.add(self.folder)
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        self._try()
        _ROOTS.discard(self.folder)

    def stop(self) -> None:
        """Stop the thread that sends files."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def begin(self) -> None:
        """Send the changed files, and start the thread that continues to do so.

        Raises:
            StoreError: the store refuses a file.
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
        """Send changed files, and remove deleted ones from the store.

        Raises:
            StoreError: the store refuses a file.
        """
        with self._lock:
            found = self._file_states()
            changed = [path for path, state in found.items() if self._sent.get(path) != state]
            gone = [path for path in self._sent if path not in found]
            if (changed or gone) and self.folder.exists() and not self.lost():
                for path in sorted(changed, key=lambda path: (path.suffix == ".json", path)):
                    if self._send(path, found[path]):
                        self._sent[path] = found[path]
                # A checkpoint that is being replaced is missing for a moment, but its previous version exists.
                gone = [path for path in gone if not path.exists() and not previous(path).exists()]
                for path in gone:
                    del self._sent[path]
                for path in {self._highest_gone(path) for path in gone}:
                    stores.forget(path)

    def _send(self, path: Path, state: tuple[int, int, int]) -> bool:
        """Send a file; return False if it failed because the file was replaced meanwhile: the next check sends the new
        file.
        """
        try:
            stores.send(path)
        except OSError:
            if self._file_state(path) == state:
                raise
            return False
        return True

    def _highest_gone(self, path: Path) -> Path:
        """The topmost folder above a deleted file that is deleted, too; the file itself if its folder exists."""
        while path.parent != self.folder and not path.parent.exists():
            path = path.parent
        return path

    def _file_states(self) -> dict[Path, tuple[int, int, int]]:
        """The files to mirror, each with attributes that change when its content does: modification time, size, inode."""
        seen = ((path, self._file_state(path)) for path in self.folder.rglob("*"))
        return {path: state for path, state in seen if state is not None}

    def _file_state(self, path: Path) -> tuple[int, int, int] | None:
        # Temporary files, and files for starting the processes of an attempt, are useless to a later process. Previous
        # checkpoints are mirrored, because some stores delete a file before they replace it.
        parts = path.relative_to(self.folder).parts
        passing = any(part.startswith(".") for part in parts) or parts[0].startswith("attempt-")
        try:
            if path.is_file() and not passing:
                state = path.stat()
                return state.st_mtime_ns, state.st_size, state.st_ino
        except OSError:  # gone meanwhile
            pass
        return None
