"""The output folder of a job: what a run has written there, and whether it may be replaced."""

import json
import os
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError

RUN = ("history.csv", "model", "offers", "plan.json", "report.html", "summary.json", "trials.csv")
"""The entries of a run's folder; `trials.csv` is that of a search, `history.csv` and `plan.json` those of a fine-tuning, `offers`
that of an improvement."""


def summary_of(output: Path) -> dict[str, Any] | None:
    """The summary.json of a run; None if the folder holds none."""
    try:
        found = json.loads((output / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("fingerprints"), dict) else None


def check_replaceable(output: Path) -> None:
    """Check that the output is absent, or a folder with nothing but a run.

    Raises:
        InputError: it holds something else, which is never deleted.
    """
    if output.is_file():
        raise InputError(f"output {output} is a file: choose a folder")
    names = sorted(os.listdir(output)) if output.exists() else []
    written = RUN if summary_of(output) else ()
    if foreign := next((name for name in names if name not in written), None):
        raise InputError(
            f"output {output} contains {foreign}, which is not of a run, and overwrite does not delete it: move it "
            "away, or choose another folder"
        )
