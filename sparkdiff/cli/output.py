"""Checks of a job's output folder: which run it contains, and whether it may be replaced."""

import json
from pathlib import Path
from typing import Any

from sparkdiff.errors import DamagedFileError, as_read_error
from sparkdiff.jvm import stores
from sparkdiff.store import folder_marker

SUMMARY = "summary.json"
OFFERS = "offers"
"""Folder within a run's folder for the other pipelines that an improvement offers."""


def summary_of(output: Path) -> dict[str, Any] | None:
    """The content of summary.json in an output folder; None without a finished run, because this file is written last.

    Raises:
        SparkdiffError: the file cannot be read at this time.
    """
    try:
        with as_read_error(stores.path_or_url(output / SUMMARY)):
            found = json.loads(stores.read(output / SUMMARY) or b"")
    except DamagedFileError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fingerprints"), dict) else None


def is_unfinished(output: Path) -> bool:
    """True if a job was interrupted while it wrote its run to this folder of a remote store.

    On this machine this cannot happen, because a finished folder is renamed at once.
    """
    return (
        stores.url_of(output) is not None
        and bool(folder_marker.read_marker(output))
        and not stores.exists(output / SUMMARY)
    )


def check_replaceable(output: Path) -> None:
    """Check that the output folder does not exist, or contains only files that a job wrote.

    Raises:
        InputError: the folder contains something else, which is never deleted.
    """
    folder_marker.check_owner(output, folder_marker.OUTPUT, f"output {stores.path_or_url(output)}", "folder")
