"""Progress of a search, read from its folder by any process while it runs: the best so far, and the time to go."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.machine import paths
from sparkdiff.report import DisplayableFields, Section, advance
from sparkdiff.search.study import Trial, best_of, read_study


@dataclass(frozen=True, repr=False)
class SearchProgress(DisplayableFields):
    """The progress of a search; `str` and `print` show it as text.

    Attributes:
        total, finished, failed, pruned, running: numbers of trials; `finished` includes failed and pruned ones.
        best: the best value of the first metric so far, with number and settings of its trial; None before the first.
        secondsLeft: estimated time to go, at the pace so far; None before the first trial is done.
    """

    __module__ = "sparkdiff"

    total: int
    finished: int
    failed: int
    pruned: int
    running: int
    best: float | None
    number: int | None
    settings: dict[str, Any] | None
    secondsLeft: float | None

    def _sections(self) -> Iterator[Section]:
        yield self._headline()

    def _headline(self) -> str:
        best = "" if self.best is None else f"best {self.best:.6g} of trial {self.number} with {self.settings}"
        lost = ", ".join(f"{n} {how}" for n, how in ((self.failed, "failed"), (self.pruned, "pruned")) if n)
        return advance("trial", self.finished, self.total, best, lost, seconds=self.secondsLeft or None)


def progress(known: Sequence[Trial], total: int, larger: bool) -> SearchProgress:
    """The progress of a search of `total` trials, given those that have begun."""
    states = [t.state for t in known]
    finished, best = sum(s != "running" for s in states), best_of(known, larger)
    spent = sum(t.seconds for t in known)
    return SearchProgress(
        total,
        finished,
        states.count("failed"),
        states.count("pruned"),
        states.count("running"),
        best.values[0] if best else None,
        best.number if best else None,
        best.configuration if best else None,
        spent / finished * max(total - finished, 0) if finished else None,
    )


def watch(runDir: str | Path) -> SearchProgress:
    """Progress of the search in a folder, which may still be running in any process.

    Raises:
        InputError: no search has begun there.
    """
    path = paths.local(str(runDir))
    if path is None or not path.is_dir():
        raise InputError(f"runDir={str(runDir)!r} is no folder of this machine")
    return progress(*read_study(path))
