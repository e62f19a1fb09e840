"""The events of a run, and their first listener: a live line per phase on stderr.

The line is updated in place on a terminal; otherwise there is one line every ten seconds and one at the end. spark-submit
passes the output of a job through a pipe, so a job never has a terminal.
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sparkdiff.machine import memory
from sparkdiff.report.record import RunRecord

EVERY = 10.0
"""Seconds between two lines about the same phase without a terminal."""


class Events:
    """The events of a run. A listener overrides the methods that it needs; an exception that it raises ends the run.

    All methods are called in the driver's process, in the thread of the fit.
    """

    __module__ = "sparkdiff"

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """A phase begins (`detail` is empty), tells its progress, and ends, after a failure too; `seconds` is None until then."""

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """A row of the summary's history. Every row is told once, in order, also epoch 0 (the original) and the rows from
        before an interruption. With several processes the rows come about a second late."""

    def on_decision(self, record: RunRecord) -> None:
        """The run has decided, and its result is complete."""


class Progress(Events):
    """Shows the phases on stderr."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        now, live = time.perf_counter(), sys.stderr.isatty()
        if seconds is not None:
            line = f"{name:<10} {seconds:6.1f} s  {detail}".rstrip() + "\n"
        elif live:
            line = f"{name:<10} {detail or '...'}"
        elif detail and now - self.last > EVERY:
            self.last, line = now, f"{name:<10}    ...     {detail}\n"
        else:
            self.last = self.last if detail else now
            return
        sys.stderr.write("\r\x1b[2K" * live + line)
        sys.stderr.flush()


class Phase:
    """A running phase; call it with the text for its end."""

    def __init__(self, name: str, listeners: Sequence[Events], within: str = ""):
        self.name, self.listeners, self.text, self.start = name, listeners, "", time.perf_counter()
        self.within = within
        self._tell(None)

    def __call__(self, text: str) -> None:
        self.text = text

    def now(self, text: str) -> None:
        """Tell the progress of the phase; also the text at its end."""
        self.text = text
        self._tell(None)

    def end(self) -> float:
        """Tell the end of the phase; returns its seconds."""
        seconds = time.perf_counter() - self.start
        self._tell(seconds)
        return seconds

    def _tell(self, seconds: float | None) -> None:
        for listener in self.listeners:
            listener.on_phase(self.name, seconds, f"{self.within}{self.text}" if self.text else "")


class Phases:
    """Measures the time of the phases of a run, tells listeners, and returns freed memory to the system after each phase.

    Args:
        shown: show the phases on stderr.

    Attributes:
        timings: seconds per phase.
        listeners: the listeners of the run, of its other events too.
        fold: of several trainings, which one it is, from 1 on, and 0 for the one on all rows; None for a run of one training.
    """

    def __init__(self, shown: bool = True, listeners: Sequence[Events] = ()):
        self.listeners = [Progress()] * shown + [*listeners]
        self.timings: dict[str, float] = {}
        self.fold: int | None = None

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Measure a phase; call the yielded object with its text."""
        within = "" if self.fold is None else f"fold {self.fold}: " if self.fold else "all rows: "
        phase = Phase(name, self.listeners, within)
        try:
            yield phase
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + phase.end()
            memory.trim()

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.on_epoch(self.told(row))

    def told(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row of the history of one training, as that of the run."""
        return {**row} if self.fold is None else {"fold": self.fold, **row}

    def on_decision(self, record: RunRecord) -> None:
        for listener in self.listeners:
            listener.on_decision(record)
