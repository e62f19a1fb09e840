"""The output folder of a job: what a run has written there, and whether it may be replaced."""

import json
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.jvm import stores

SUMMARY = "summary.json"
RUN = ("history.csv", "lineage.json", "model", "offers", "plan.json", "report.html", "summary.json", "trials.csv")
"""The entries of a run's folder; `trials.csv` is that of a search, `history.csv` and `plan.json` those of a fine-tuning, `offers`
that of an improvement, `lineage.json` that of a job with a store of runs."""


UNFINISHED = "_unfinished"
"""A file that is in the output while it is written in a store, where a folder is not renamed at once."""


def summary_of(output: Path) -> dict[str, Any] | None:
    """The summary.json of a run, which is written last; None if the folder holds none, or an unfinished run."""
    try:
        text = (
            (output / SUMMARY).read_text(encoding="utf-8") if stores.url_of(output) is None else _text_in_store(output)
        )
        found = json.loads(text)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fingerprints"), dict) else None


def _text_in_store(output: Path) -> str:
    content = None if is_unfinished(output) else stores.read(output / SUMMARY)
    return "" if content is None else content.decode()


def is_unfinished(output: Path) -> bool:
    """Whether a run was interrupted while it was written to this folder of a store."""
    return stores.url_of(output) is not None and stores.exists(output / UNFINISHED)


def check_replaceable(output: Path) -> None:
    """Check that the output is absent, or a folder with nothing but a run.

    Raises:
        InputError: it holds something else, which is never deleted.
    """
    if output.is_file():
        raise InputError(f"output {output} is a file: choose a folder")
    written = (*RUN, UNFINISHED) if is_unfinished(output) or summary_of(output) else ()
    if foreign := next((name for name in stores.names(output) if name not in written), None):
        raise InputError(
            f"output {stores.named(output)} contains {foreign}, which is not of a run, and overwrite does not delete it: move it "
            "away, or choose another folder"
        )
