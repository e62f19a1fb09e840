"""A disk without room: no file of a process, and of those that it starts, may grow beyond so many bytes."""

import contextlib
import resource
from collections.abc import Iterator


@contextlib.contextmanager
def no_room(beyond: int, process: int = 0) -> Iterator[None]:
    """Writing more fails with EFBIG, as on a full disk with ENOSPC; Python and Java both ignore the signal."""
    before = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (beyond, before[1]))
    try:
        yield
    finally:
        resource.prlimit(process, resource.RLIMIT_FSIZE, before)
