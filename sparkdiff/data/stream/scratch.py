"""An unnamed file that is written once and read often, and memory to read it into."""

import contextlib
import mmap
import os
import tempfile
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

PAGE = 4096
"""Alignment of offsets in the file and of memory for reads that bypass the page cache."""


class Buffers:
    """Memory that is reused once no array uses it any more. Reading into memory that is new to the process takes three
    times as long, and memory that is freed in pieces of many sizes is not returned to the system.
    """

    def __init__(self) -> None:
        self._free: list[mmap.mmap] = []
        self._lock = threading.Lock()

    def of(self, size: int) -> np.ndarray[Any, Any]:
        """An array of `size` bytes, (size,) uint8, that starts at a memory page."""
        with self._lock:
            fitting = [memory for memory in self._free if len(memory) >= size]
            if fitting:
                memory = min(fitting, key=len)
                self._free.remove(memory)
            else:  # the free ones are too small for what comes
                self._free.clear()
                memory = mmap.mmap(-1, size)
                # It is shared memory: a forked process would write into it.
                with contextlib.suppress(OSError, AttributeError):
                    memory.madvise(mmap.MADV_DONTFORK)
        out = np.frombuffer(memory, np.uint8, size)  # the base of all views of it
        weakref.finalize(out, self._free.append, memory).atexit = False
        return out

    def clear(self) -> None:
        """Free the memory that is not in use."""
        with self._lock:
            self._free.clear()


class ScratchFile:
    """An unnamed file: it is gone as soon as it is closed, or the process is killed.

    Args:
        direct: whether reads bypass the page cache, which then keeps other files. Has no effect where that isn't
            possible.

    Attributes:
        end: the offset at which the next bytes are written.
    """

    def __init__(self, folder: Path, *, direct: bool):
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed by `close`
        self._direct: int | None = None
        self._refused = False
        self.end = 0
        if direct and hasattr(os, "O_DIRECT"):
            with contextlib.suppress(OSError):
                self._direct = os.open(f"/proc/self/fd/{self._file.fileno()}", os.O_RDONLY | os.O_DIRECT)

    @property
    def direct(self) -> bool:
        return self._direct is not None and not self._refused

    def fileno(self) -> int:
        return self._file.fileno()

    def align(self, size: int) -> int:
        """Move the end to a multiple of `size`, where the next bytes begin.

        Returns:
            The new end.
        """
        self.end = -(-self.end // size) * size
        return self.end

    def write(self, array: np.ndarray[Any, Any]) -> None:
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self.fileno(), data, self.end)
            self.end, data = self.end + written, data[written:]

    def read(self, buffers: Buffers, start: int, end: int) -> np.ndarray[Any, Any]:
        """Read the bytes from the start, a multiple of PAGE, to the end into memory of the buffers.

        Raises:
            OSError: the file ends early, or cannot be read.
        """
        room = buffers.of(-(-(end - start) // PAGE) * PAGE)
        if self._direct is not None and not self._refused:
            try:
                self._read(self._direct, room, start, end)
            except OSError:  # a file system that doesn't support it, or the disk is gone
                self._refused = True
            else:
                return room
        self._read(self.fileno(), room, start, end)
        return room

    def expect(self, start: int, end: int) -> None:
        """Ask the system to read these bytes into its page cache in the background."""
        if not self.direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), start, end - start, os.POSIX_FADV_WILLNEED)

    def clear(self) -> None:
        """Free the disk space."""
        with contextlib.suppress(OSError):
            os.ftruncate(self.fileno(), 0)

    def close(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            os.close(direct)
        self._file.close()

    def _read(self, file: int, room: np.ndarray[Any, Any], start: int, end: int) -> None:
        left = room.data
        while start < end:
            read = os.preadv(file, [left], start)
            if not read:
                raise OSError("the file ends early")
            left, start = left[read:], start + read
