"""Atomic writing of a job's output folder: under a temporary name, then renamed; in a remote store, with summary.json
last.
"""

import os
from collections.abc import Callable
from pathlib import Path

from sparkdiff.cli.output import SUMMARY, check_replaceable
from sparkdiff.jvm import stores
from sparkdiff.machine import atomic_files
from sparkdiff.report.run_report import REPORT
from sparkdiff.store import files, folder_marker
from sparkdiff.store.lease import Lease

ROOM = (
    "free some space and repeat the command, which continues where it stopped, or set output to a folder on a disk "
    "with more space"
)


def write_run_folder(
    output: Path, lease: Lease, fill: Callable[[Path], None], needed: Callable[[], str] = lambda: ""
) -> None:
    """Write the run folder under a temporary name and rename it. An old run is deleted once the new one is complete.

    Args:
        lease: the lease on the output folder; once it is lost, nothing is replaced.
        fill: function that writes all files into the folder that it gets.
        needed: function that returns the space that the run takes, as text for the error if the disk is full.
    """
    with files.room("the run", output, ROOM, needed):
        if stores.url_of(output) is not None:
            _write_to_store(output, lease, fill)
            return
        output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_files.temporary(output) as temporary:
            temporary.mkdir()
            folder_marker.mark(temporary, folder_marker.OUTPUT)
            fill(temporary)
            folder_marker.mark(temporary, folder_marker.OUTPUT, sorted({*os.listdir(temporary), REPORT}))
            lease.check()
            check_replaceable(output)  # again: a file may have been added meanwhile
            old = atomic_files.hidden(output)
            try:
                if output.exists():
                    os.rename(output, old)
                os.rename(temporary, output)
            finally:
                if not output.exists() and old.exists():
                    os.rename(old, output)
                atomic_files.remove(old)  # not reached if the rename back fails, so that the old run stays


def _write_to_store(output: Path, lease: Lease, fill: Callable[[Path], None]) -> None:
    """Write the run folder to a remote store, in which a folder that is being renamed may be visible incompletely.

    `summary.json`, which marks a run as complete, is removed first and written last. In between, the folder's marker
    lists all old and new files as this package's, so that an interrupted write can be replaced.
    """
    temporary = atomic_files.hidden(output)
    aside = temporary.with_name(f"{temporary.name}.old")
    try:
        temporary.mkdir(parents=True)
        fill(temporary)
        lease.check()
        check_replaceable(output)  # again: a file may have been added meanwhile
        before = stores.names(output)
        folder_marker.mark(
            output, folder_marker.OUTPUT, {*before, *stores.names(temporary), *os.listdir(temporary), REPORT}
        )
        moved, made = list[str](), list[str]()
        try:
            for name in sorted({*before} - {folder_marker.MARKER}, key=lambda name: name != SUMMARY):
                stores.rename(output / name, aside / name)
                moved.append(name)
            for name in stores.names(temporary):
                stores.rename(temporary / name, output / name)
                made.append(name)
            small = sorted((p.name for p in temporary.iterdir() if p.is_file()), key=lambda name: name == SUMMARY)
            for name in small:
                stores.write(output / name, (temporary / name).read_bytes())
                made.append(name)
        except BaseException:
            for name in made:
                stores.forget(output / name)
            for name in reversed(moved):  # the summary last
                stores.rename(aside / name, output / name)
            if not before:
                stores.forget(output / folder_marker.MARKER)
            raise
        stores.remove(aside)
    finally:
        stores.remove(temporary)
