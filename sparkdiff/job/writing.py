"""A job's output folder written whole: under a temporary name, and renamed."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from sparkdiff.store import files
from sparkdiff.store.lease import Lease

ROOM = (
    "free some space and repeat the command, which continues where it stopped, or set output to a folder on a disk "
    "with more space"
)


def written(output: Path, lease: Lease, fill: Callable[[Path], None], needed: Callable[[], str] = lambda: "") -> None:
    """Write the run folder under a temporary name and rename it. An old run is deleted once the new one is complete.

    Args:
        fill: writes the entries into the folder.
        needed: how much space it takes, for the error where the disk is full.
    """
    temporary, old = (output.with_name(f".{output.name}-{uuid.uuid4().hex[:8]}{end}") for end in ("", ".old"))
    with files.room("the run", output, ROOM, needed):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            fill(temporary)
            lease.check()
            if output.exists():
                os.rename(output, old)
            os.rename(temporary, output)
        finally:
            if not output.exists() and old.exists():
                os.rename(old, output)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
