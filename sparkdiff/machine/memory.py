"""Returns free memory to the system between the phases of a run, so that Spark's JVM on the same machine can use it."""

import ctypes
import sys

import pyarrow as pa


def trim() -> None:
    """Return the freed memory that the allocators of Arrow and the C library keep.

    glibc keeps blocks of up to 32 MiB once some were freed, scattered between those in use, and never returns them itself.
    """
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux" and (release := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        release(0)
