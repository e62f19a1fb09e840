"""The output folder of a job: the run it contains, and whether it may be replaced."""

import json
from pathlib import Path
from typing import Any

from sparkdiff.jvm import stores
from sparkdiff.store import marker

SUMMARY = "summary.json"


def summary_of(output: Path) -> dict[str, Any] | None:
    """The summary.json of a run, which is written last; None if the folder holds none, or an unfinished run."""
    try:
        found = json.loads(stores.read(output / SUMMARY) or b"")
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fingerprints"), dict) else None


def is_unfinished(output: Path) -> bool:
    """True if a run was interrupted while it was written to this folder of a store, where a folder is not renamed at
    once.
    """
    return (
        stores.url_of(output) is not None and bool(marker.read_marker(output)) and not stores.exists(output / SUMMARY)
    )


def check_replaceable(output: Path) -> None:
    """Check that the output does not exist, or is a folder that contains only files of a job.

    Raises:
        InputError: it contains something else, which is never deleted.
    """
    marker.check_owner(output, marker.OUTPUT, f"output {stores.named(output)}", "folder")
