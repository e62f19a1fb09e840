"""A live line per phase on stderr: updated in place on a terminal; otherwise one line every ten seconds and one at
the end.

spark-submit passes the output of a job through a pipe, so a job never has a terminal.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sparkdiff.machine import memory

EVERY = 10.0
"""Seconds between two lines about the same phase without a terminal."""


class Line:
    """The line of a phase; call it with the text."""

    def __init__(self, name: str, shown: bool):
        self.name, self.shown, self.live = name, shown, shown and sys.stderr.isatty()
        self.start = self.last = time.perf_counter()
        self.text = ""
        if self.live:
            self._write("\r\x1b[2K" + f"{name:<10} ...")

    def __call__(self, text: str) -> None:
        """Set the text for the end of the phase."""
        self.text = text

    def now(self, text: str) -> None:
        """Show the progress of the phase; also the text at its end."""
        self.text = text
        if self.live:
            self._write("\r\x1b[2K" + f"{self.name:<10} {text}")
        elif self.shown and time.perf_counter() - self.last > EVERY:
            self.last = time.perf_counter()
            self._write(f"{self.name:<10}    ...     {text}\n")

    def end(self) -> float:
        """Show the finished line; returns the seconds of the phase."""
        seconds = time.perf_counter() - self.start
        if self.shown:
            self._write(
                ("\r\x1b[2K" if self.live else "") + f"{self.name:<10} {seconds:6.1f} s  {self.text}".rstrip() + "\n"
            )
        return seconds

    def _write(self, text: str) -> None:
        sys.stderr.write(text)
        sys.stderr.flush()


class Phases:
    """Measures the time of the phases of a run, shows them, and returns freed memory to the system after each.

    Attributes:
        timings: seconds per phase.
    """

    def __init__(self, shown: bool = True):
        self.shown = shown
        self.timings: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[Line]:
        """Measure the time of a phase; yields its line."""
        line = Line(name, self.shown)
        try:
            yield line
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + line.end()
            memory.trim()
