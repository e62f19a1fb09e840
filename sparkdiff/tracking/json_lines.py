"""A file with a line of JSON per event, for orchestrators and `tail -f`."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparkdiff.machine import secrets
from sparkdiff.machine.secrets import hidden
from sparkdiff.report import Events
from sparkdiff.tracking.values import plain


class JSONLines(Events):
    """Appends a line to a file for each event, and flushes it.

    A line is an object with `event` ("phase", "epoch", "decision" or "exception") and `time` (seconds since 1970), and: of a
    phase `name`, `seconds` (null until it ends) and `detail`; of an epoch, or of a trial of a search, the row of the history;
    of the decision all values of the summary but its history; of an exception `error`, its text. Secrets are left out. Values
    that are not finite are null.

    Args:
        path: the file; its folder must exist. A file that exists is continued.
    """

    __module__ = "sparkdiff"

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self._write("phase", {"name": name, "seconds": seconds, "detail": secrets.redacted(detail)})

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        self._write("epoch", hidden(row))

    def on_decision(self, record: Any) -> None:
        self._write("decision", plain(record))

    def on_exception(self, error: BaseException) -> None:
        self._write("exception", {"error": secrets.redacted(f"{type(error).__name__}: {error}")})

    def _write(self, event: str, values: Mapping[str, Any]) -> None:
        line = json.dumps({"event": event, "time": round(time.time(), 3), **values}, default=str)
        with self.path.open(
            "a", encoding="utf-8"
        ) as file:  # opened anew: a callback has no end at which it could close
            file.write(line + "\n")
