"""The events of a run, and the listener that shows its phases to the user: in a terminal, a notebook, or a log."""

import html
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from sparkdiff.errors import check_type, warn
from sparkdiff.machine import resources, secrets, threads

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text


Found = TypeVar("Found")
NOTHING = 1e-12
"""Divisor of a relative change if the metric is zero."""


def share_of(change: float, metric: float) -> float:
    """The change as a share of the metric's absolute value, in whatever unit the label is: squares of small labels are very
    small.
    """
    return change / (abs(metric) or NOTHING)


def signed(share: float, digits: int = 1) -> str:
    """A share as text in percent with its sign; what rounds to zero is positive, because "-0.0%" means nothing."""
    return f"{share if round(share, digits + 2) else 0.0:+.{digits}%}"


def enumeration(names: Sequence[str]) -> str:
    """Names as text: "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things as text: "1 warning", "2 warnings"."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


EVERY = 10.0
"""Seconds between two log lines about the same phase."""
REFRESH = 0.5
"""Seconds between two updates of a line."""


class Screen(Protocol):
    """A display of phases. `runs` may be called from any thread, as often as needed."""

    def runs(self, name: str, detail: str) -> None:
        """Show that a phase has begun or progressed."""

    def show_end(self, name: str, seconds: float, detail: str) -> None:
        """Show that a phase has ended, perhaps by an exception."""


def screen_here() -> Screen:
    """The kind of display that suits this process: without the package rich, which the extra `cli` installs, a log."""
    return Notebook() if _kernel() is not None else Terminal() if sys.stderr.isatty() and find_spec("rich") else Log()


def someone_watches() -> bool:
    """True if there is a terminal or a notebook; a log is written only if requested."""
    return _kernel() is not None or sys.stderr.isatty()


def _kernel() -> Any:
    """The kernel of the notebook that runs this process; None outside of notebooks. Imports nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None)


def line(name: str, seconds: float, detail: str) -> str:
    """A phase as one line of text."""
    return f"{name:<10} {seconds:6.1f} s  {detail}".rstrip()


class Log:
    """Lines on stderr: one at the end of each phase and, for a phase that reports progress, one at most every ten
    seconds.
    """

    def __init__(self) -> None:
        self.last = 0.0

    def runs(self, name: str, detail: str) -> None:
        """Print the progress of a phase, at most every ten seconds; an empty `detail` prints nothing."""
        now = time.perf_counter()
        if detail and now - self.last > EVERY:
            self.last = now
            print(f"{name:<10}    ...     {detail}", file=sys.stderr, flush=True)
        elif not detail:
            self.last = now

    def show_end(self, name: str, seconds: float, detail: str) -> None:
        """Print a line about the phase that has ended."""
        print(line(name, seconds, detail), file=sys.stderr, flush=True)


class Terminal:
    """A line on stderr that is updated in place while a phase runs, and remains when it has ended."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.name, self.detail, self.begun = "", "", 0.0

    def runs(self, name: str, detail: str) -> None:
        """Show the running phase, its seconds and its progress on the line."""
        if name != self.name:
            self.name, self.begun = name, time.perf_counter()
        self.detail = detail
        if self.live is None:
            from rich.live import Live

            # Output of a callback appears above the line, unless it goes elsewhere.
            self.live = Live(
                get_renderable=self._line,
                console=self.console,
                refresh_per_second=1 / REFRESH,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),
                redirect_stderr=False,
            )
            self.live.start(refresh=True)

    def show_end(self, name: str, seconds: float, detail: str) -> None:
        """Replace the line by one about the phase that has ended, which remains."""
        if self.live is not None:
            self.live.stop()
        self.live, self.name = None, ""
        self.console.print(line(name, seconds, detail), markup=False, soft_wrap=True)

    def _line(self) -> "Text":
        from rich.text import Text

        text = line(self.name, time.perf_counter() - self.begun, self.detail or "...")
        return Text(text, no_wrap=True, overflow="ellipsis", style="dim")


class Notebook:
    """A line of HTML in the output of the cell, updated in place: the phases that have ended, and the running one."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.done: list[str] = []
        self.last, self.name = 0.0, ""

    def runs(self, name: str, detail: str) -> None:
        """Show the running phase and its progress; the progress of one phase at most twice a second."""
        now = time.perf_counter()
        if name == self.name and now - self.last < REFRESH:
            return
        self.last, self.name = now, name
        self._show(f"<b>{html.escape(name)}</b> {html.escape(detail) or '...'}")

    def show_end(self, name: str, seconds: float, detail: str) -> None:
        """Add the phase and its seconds to those that have ended, and show `detail` behind them."""
        self.done.append(f"{html.escape(name)} {seconds:.1f} s")
        self.name = ""
        self._show(html.escape(detail))

    def _show(self, now: str) -> None:
        from IPython.display import HTML, display  # type: ignore[import-not-found, unused-ignore]

        page = HTML(f'<div class="sparkdiff-progress">{" · ".join([*self.done, *filter(None, [now])])}</div>')
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)


PROBE = 1.0
"""Seconds between two calls of the function that finds out the progress of a phase, see `Phase.show_periodically`."""


def is_progress_shown(verbosity: int | None) -> bool:
    """True if progress is to be shown. If the option is unset (None), it is shown in a terminal and a notebook only."""
    return someone_watches() if verbosity is None else verbosity > 0


def advance(
    what: str, number: int, most: int, *figures: str, seconds: float | None = None, about: str = "about"
) -> str:
    """The progress of a phase as a line, in the same form for all phases:
    `epoch 18 of at most 120: poisson 38.7 -> 12.4 (-67.9%), about 40 s`.

    Args:
        what: name of the counted thing, such as "epoch".
        number: the number of the one under way, or of those done.
        most: the upper limit of `number`.
        figures: texts about the results and other facts; empty texts are left out.
        seconds: expected remaining seconds; None if unknown.
        about: word before the seconds.
    """
    left = [] if seconds is None else [f"{about} {duration(seconds)}"]
    return f"{what} {number} of at most {most}: {', '.join([*filter(None, figures), *left])}".rstrip(": ")


def change(metric: str, before: float, now: float) -> str:
    """A metric before and now, and its relative change, as text."""
    return f"{metric} {before:.5g} -> {now:.5g} ({signed(share_of(now - before, before))})"


def duration(seconds: float) -> str:
    """A number of seconds as text in readable units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class RemainingTime:
    """An estimate of the remaining time, from the pace since the first call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self.clock, self.first = clock, (0, 0.0)
        self.begun = False

    def seconds_left(self, done: int, most: int) -> float | None:
        """Expected seconds until `most` items are done; None if unknown.

        It is unknown at the first call, until an item was finished after the first call, and when all are done.
        """
        now = self.clock()
        if not self.begun:
            self.first, self.begun = (done, now), True
        before, since = self.first
        return (now - since) / (done - before) * (most - done) if before < done < most else None


class Events:
    """Base class of listeners to the events of a run. A subclass overrides the methods for the events that it needs.

    All methods are called in the driver's process, one at a time, in the thread of the fit or in a thread that the fit
    started. An exception in a method becomes a warning, which names the class, the method and the exception; the run
    continues, and the listener receives the next event. KeyboardInterrupt and SystemExit, which are no `Exception`, end
    the run like Ctrl-C.

    Examples:
        >>> import sparkdiff
        >>> class Curve(sparkdiff.Events):
        ...     def on_epoch(self, row):  # a row of summary.history
        ...         print(f"epoch {row['epoch']}: {row['validationMetric']:.3f}")
        >>> tuner = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=2, recipe="fast", callbacks=[Curve()])
        >>> tuned = tuner.fit(df)
        epoch 0: 0...
        epoch 1: 0...
        epoch 2: 0...
    """

    __module__ = "sparkdiff"

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """Receive the beginning of a phase (`detail` is empty), its progress, or its end, also after a failure.

        `seconds` is None until the end.
        """

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Receive a row of the summary's history.

        Every row is passed once, in order, including epoch 0 (the original); a resumed run first passes the rows from
        before the interruption. With several processes, rows are passed about a second late.

        Fine-tuning and growth pass {"epoch", "candidate", "recipe", "learningRate", ..., "validationMetric"}, with
        numFolds also "fold". An improvement passes the rows of all its training runs as they arise, each with "arm"
        (the way to improve the pipeline, such as "refit") and "round". A search passes a row per trial, {"trial",
        "state", the metrics, "seconds", the settings, "why"}.
        """

    def on_decision(self, record: Any) -> None:
        """Receive the summary when the run has decided and its result is complete.

        Args:
            record: the summary, a `RunRecord`; for a search, a `SearchSummary`.
        """

    def on_exception(self, error: BaseException) -> None:
        """Receive the exception that ends the fit or the job (including Ctrl-C); no event follows."""


def check_callbacks(given: Any) -> None:
    """Raise InputError unless `given` is a collection of listeners."""
    wanted = "a list of instances of subclasses of sparkdiff.Events"
    check_type("callbacks", given, Collection, wanted)
    for listener in given:
        check_type("callbacks", listener, Events, wanted)


def tell(listeners: Sequence[Events], method: str, *what: Any) -> None:
    """Call a method of each listener with `what`; dicts are copied for each listener. An exception becomes a warning."""
    for listener in listeners:
        copies = ({**w} if isinstance(w, dict) else w for w in what)
        name = f"{type(listener).__name__}.{method}"
        call_or_warn(f"the callback {name} failed, and the run goes on", getattr(listener, method), *copies)


def call_or_warn(failed: str, do: Callable[..., Found], *what: Any) -> Found | None:
    """Call a function and return its result; an exception becomes a warning that begins with `failed`, and the result None."""
    try:
        return do(*what)
    except Exception as e:
        warn(f"{failed}: {e!r}", RuntimeWarning, stacklevel=3)
        return None


class Progress(Events):
    """A listener that shows the phases of one run to the user; it chooses its screen when the first phase begins."""

    def __init__(self, screen: Screen | None = None) -> None:
        self.screen = screen

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """Show the beginning, the progress or the end of a phase on the screen."""
        self.screen = self.screen or screen_here()
        if seconds is None:
            self.screen.runs(name, detail)
        else:
            self.screen.show_end(name, seconds, detail)


class Phase:
    """A running phase; calling it sets the text that is reported when the phase ends.

    Args:
        within: prefix of all its texts, such as "fold 2: ".
    """

    def __init__(self, name: str, listeners: Sequence[Events], within: str = ""):
        self.name, self.listeners, self.text, self.start = name, listeners, "", time.perf_counter()
        self.within = within
        self._tell(None)

    def __call__(self, text: str) -> None:
        """Set the text that is reported at the end of the phase."""
        self.text = text

    def now(self, text: str) -> None:
        """Report the progress of the phase. If no later text is set, this one is also reported at its end."""
        self.text = text
        self._tell(None)

    def shows(self, text: str) -> None:
        """Show progress to a waiting user only; listeners other than `Progress` don't receive it."""
        for listener in self.listeners:
            if isinstance(listener, Progress):
                listener.on_phase(self.name, None, secrets.redacted(f"{self.within}{text}"))

    @contextmanager
    def show_periodically(self, probe: Callable[[], str]) -> Iterator[None]:
        """Show the text of `probe` once a second within this context; do nothing if no listener shows progress."""
        if not any(isinstance(listener, Progress) for listener in self.listeners):
            yield
            return

        def watch(ended: threading.Event) -> None:
            while not ended.wait(PROBE):
                self.shows(probe())

        with threads.beside(watch, "sparkdiff-progress"):
            yield

    def end(self) -> float:
        """Report the end of the phase, and return its seconds."""
        seconds = time.perf_counter() - self.start
        self._tell(seconds)
        return seconds

    def _tell(self, seconds: float | None) -> None:
        text = secrets.redacted(f"{self.within}{self.text}") if self.text else ""
        tell(self.listeners, "on_phase", self.name, seconds, text)


class Phases:
    """The phases of a run: measures their time, notifies listeners, and returns freed memory to the system after each
    phase.

    Args:
        shown: show the phases to the user, on stderr or in the notebook.

    Attributes:
        timings: seconds per phase.
        listeners: the listeners of the run, which also receive its other events.
        fold: with folds, the number of the fold that tests the current training run, from 2; 0 for a run on all rows, or
            if a single fold decides and its pipeline ships. None for other runs.
        running: the innermost phase that has begun and not ended.
    """

    def __init__(self, shown: bool = True, listeners: Sequence[Events] = ()):
        self.listeners = [Progress()] * shown + [*listeners]
        self.timings: dict[str, float] = {}
        self.fold: int | None = None
        self.running: Phase | None = None

    def within(self) -> "Phases":
        """Phases of a part of this run. The user sees them as progress of the running phase; other listeners get them,
        too.
        """
        return Phases(False, [NestedPhaseListener(self), *(x for x in self.listeners if not isinstance(x, Progress))])

    @contextmanager
    def phase(self, name: str) -> Iterator[Phase]:
        """Measure a phase within this context; calling the yielded object sets the text that is reported at its end."""
        within = "" if self.fold is None else f"fold {self.fold}: " if self.fold else "all rows: "
        around, phase = self.running, Phase(name, self.listeners, within)
        self.running = phase
        try:
            yield phase
        finally:
            self.running = around
            self.timings[name] = self.timings.get(name, 0.0) + phase.end()
            resources.trim_memory()

    def on_epoch(self, row: Mapping[str, Any]) -> None:
        """Pass a row of the history to all listeners, with `fold` as "fold" unless it is None."""
        tell(self.listeners, "on_epoch", {**row} if self.fold is None else {"fold": self.fold, **row})

    def on_decision(self, record: Any) -> None:
        """Pass the summary to all listeners."""
        tell(self.listeners, "on_decision", record)


class NestedPhaseListener(Events):
    """A listener that shows the phases of a part of a run as the progress of the enclosing phase."""

    def __init__(self, phases: Phases):
        self.phases = phases

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        """Show the beginning or the progress of an inner phase as progress of the enclosing one; leave out its end."""
        if self.phases.running is not None and seconds is None:
            self.phases.running.shows(f"{name}: {detail}" if detail else name)
