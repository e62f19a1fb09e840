"""Files of JSON lines through which processes communicate: one process adds lines, another one reads the new lines.

Files are used because they survive the death of a process, and are all that the machines of a cluster are sure to
share.
"""

import contextlib
import json
import time
from pathlib import Path
from typing import Any

PAUSE = 0.01
"""Seconds between two checks for new lines."""


def add(path: Path, **line: Any) -> None:
    """Add a line. A line break is written before it, too, in case the previous line was cut short."""
    with path.open("a", encoding="utf-8") as file:
        file.write(f"\n{json.dumps(line)}\n")


class LineReader:
    """A reader of the lines that are added to a file."""

    def __init__(self, path: Path):
        self.path, self.read = path, 0

    def new(self) -> list[dict[str, Any]]:
        """The complete lines that were added since the last call."""
        # The file is opened again each time: only then does a network file system show what another machine has
        # written.
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
        """Wait for new lines, and return them."""
        while not (lines := self.new()):
            time.sleep(PAUSE)
        return lines
