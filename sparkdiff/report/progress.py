"""A live line per phase on stderr: rewritten in place on a terminal; elsewhere a line every ten seconds and one at the end.

spark-submit hands a job's output through a pipe, so there is no terminal to see from inside a job.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

EVERY = 10.0
"""Seconds between two lines about the same phase where there is no terminal."""


class Phases:
    """Times the phases of a run and shows them.

    Attributes:
        timings: seconds per phase.
    """

    def __init__(self, shown: bool = True):
        self.timings: dict[str, float] = {}
        self.shown, self.live = shown, shown and sys.stderr.isatty()

    @contextmanager
    def phase(self, name: str) -> Iterator[Callable[[str], None]]:
        """Time a phase; the function it yields changes what the phase's line says."""
        start, last = time.perf_counter(), ""
        shown = start

        def say(text: str) -> None:
            nonlocal last, shown
            last = text
            if self.live:
                sys.stderr.write(f"\r\x1b[2K{name:<10} {text}")
            elif self.shown and time.perf_counter() - shown > EVERY:
                shown = time.perf_counter()
                sys.stderr.write(f"{name:<10}    ...     {text}\n")
            sys.stderr.flush()

        say("...")
        last = ""
        try:
            yield say
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start
            if self.shown:
                sys.stderr.write("\r\x1b[2K" if self.live else "")
                sys.stderr.write(f"{name:<10} {time.perf_counter() - start:6.1f} s  {last}\n")
                sys.stderr.flush()
