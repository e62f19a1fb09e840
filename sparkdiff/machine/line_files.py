"""Files of lines of JSON, by which processes talk: one side adds lines, the other one reads those that are new.

Files are all that survives the death of a process, and all that machines of a cluster are sure to share.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

PAUSE = 0.01
"""Seconds between two looks."""


def add(path: Path, **line: Any) -> None:
    """Add a line; after one that was cut short it is a line of its own."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(line)}\n")


class LineReader:
    """Reads the lines that are added to a file."""

    def __init__(self, path: Path):
        self.path, self.read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The lines that were added since the last call, without those that were cut short."""
        # Opened again each time: only then a network's file system looks for what another machine has written.
        with self.path.open("rb") as file:
            file.seek(self.read)
            text = file.read()
        end = text.rfind(b"\n") + 1
        self.read += end
        lines = []
        for line in text[:end].splitlines():
            with contextlib.suppress(ValueError):
                lines.append(json.loads(line))
        return lines

    def wait(self) -> list[dict[str, Any]]:
        """The next lines, as soon as there are any."""
        while not (lines := self.new()):
            time.sleep(PAUSE)
        return lines
