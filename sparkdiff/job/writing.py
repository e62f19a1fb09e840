"""A job's output folder written whole: under a temporary name, and renamed; in a store, with its summary last."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from sparkdiff.job.output import SUMMARY, UNFINISHED
from sparkdiff.jvm import stores
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
        if stores.url_of(output) is not None:
            _written_in_store(output, temporary, lease, fill)
            return
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


def _written_in_store(output: Path, temporary: Path, lease: Lease, fill: Callable[[Path], None]) -> None:
    """The same where a folder that is renamed may be seen half done: `summary.json`, which tells that a run is whole, is removed
    first and written last, and a file says meanwhile that the rest may be replaced.
    """
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        lease.check()
        old = stores.names(output)
        stores.write(output / UNFINISHED, b"")
        for name in sorted(old, key=lambda name: name != SUMMARY):
            stores.remove(output / name)
        for name in stores.names(temporary):
            stores.rename(temporary / name, output / name)
        small = [p.name for p in temporary.iterdir() if p.is_file()]
        for name in sorted(small, key=lambda name: name == SUMMARY):
            stores.write(output / name, (temporary / name).read_bytes())
        stores.remove(output / UNFINISHED)
    finally:
        stores.remove(temporary)
