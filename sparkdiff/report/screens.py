"""Where people read the progress of a run: a terminal, a notebook, or a log."""

import html
import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

EVERY = 10.0
"""Seconds between two lines of a log about the same phase."""
REFRESH = 0.5
"""Seconds between two changes of a line that is updated."""


class Screen(Protocol):
    """Shows phases. `runs` may be called by any thread, as often as anybody likes."""

    def runs(self, name: str, detail: str) -> None:
        """A phase has begun, or has come further."""

    def ended(self, name: str, seconds: float, detail: str) -> None:
        """A phase has ended, perhaps by an exception."""


def screen_here() -> Screen:
    """The screen of this process."""
    return Notebook() if _kernel() is not None else Terminal() if sys.stderr.isatty() else Log()


def someone_watches() -> bool:
    """Whether there is a terminal or a notebook; a log is written only where it is asked for."""
    return _kernel() is not None or sys.stderr.isatty()


def _kernel() -> Any:
    """The kernel of the notebook that runs this process; None outside of notebooks. Imports nothing."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return getattr(shell, "kernel", None)


def line(name: str, seconds: float, detail: str) -> str:
    """A phase in a line."""
    return f"{name:<10} {seconds:6.1f} s  {detail}".rstrip()


class Log:
    """Lines on stderr: one at the end of each phase, and one every ten seconds of a phase that tells its progress."""

    def __init__(self) -> None:
        self.last = 0.0

    def runs(self, name: str, detail: str) -> None:
        now = time.perf_counter()
        if detail and now - self.last > EVERY:
            self.last = now
            print(f"{name:<10}    ...     {detail}", file=sys.stderr, flush=True)
        elif not detail:
            self.last = now

    def ended(self, name: str, seconds: float, detail: str) -> None:
        print(line(name, seconds, detail), file=sys.stderr, flush=True)


class Terminal:
    """A line on stderr that is updated in place while a phase runs, and stays when it has ended."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console(stderr=True, highlight=False)
        self.live: Live | None = None
        self.name, self.detail, self.begun = "", "", 0.0

    def runs(self, name: str, detail: str) -> None:
        if name != self.name:
            self.name, self.begun = name, time.perf_counter()
        self.detail = detail
        if self.live is None:
            from rich.live import Live

            # What a callback prints stands above the line, unless it goes elsewhere.
            self.live = Live(
                get_renderable=self._line, console=self.console, refresh_per_second=1 / REFRESH, transient=True,
                redirect_stdout=sys.stdout.isatty(), redirect_stderr=False,
            )  # fmt: skip
            self.live.start(refresh=True)

    def ended(self, name: str, seconds: float, detail: str) -> None:
        if self.live is not None:
            self.live.stop()
        self.live, self.name = None, ""
        self.console.print(line(name, seconds, detail), markup=False, soft_wrap=True)

    def _line(self) -> "Text":
        from rich.text import Text

        text = line(self.name, time.perf_counter() - self.begun, self.detail or "...")
        return Text(text, no_wrap=True, overflow="ellipsis", style="dim")


class Notebook:
    """A line of HTML in the output of the cell, which is updated: the phases that have ended, and the one that runs."""

    def __init__(self) -> None:
        self.handle: Any = None
        self.done: list[str] = []
        self.last, self.name = 0.0, ""

    def runs(self, name: str, detail: str) -> None:
        now = time.perf_counter()
        if name == self.name and now - self.last < REFRESH:
            return
        self.last, self.name = now, name
        self._show(f"<b>{html.escape(name)}</b> {html.escape(detail) or '...'}")

    def ended(self, name: str, seconds: float, detail: str) -> None:
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
