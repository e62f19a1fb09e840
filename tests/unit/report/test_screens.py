"""What people see while a run works: lines in a log, a line that is updated in a terminal and in a notebook."""

import io
import re
import sys
import types
from typing import Any

import pytest
from rich.console import Console

from sparkdiff.report import Events, Phases, Progress, is_progress_shown, progress
from sparkdiff.report.progress import Log, Notebook, Terminal, screen_here

LONG = "epoch 3 of at most 120: poisson 38.7 -> 12.4 (-68.0%) on validation rows, 3 candidates left, " * 3


class Handle:
    def __init__(self, pages: list[str]):
        self.pages = pages

    def update(self, page: Any) -> None:
        self.pages[-1] = page


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if the process were the kernel of a notebook; what its cell shows."""
    pages: list[str] = []

    def display(page: str, display_id: bool) -> Handle:
        assert display_id
        pages.append(page)
        return Handle(pages)

    module, displaying = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    vars(module)["get_ipython"] = lambda: types.SimpleNamespace(kernel=object())
    vars(displaying).update(HTML=str, display=display)
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "IPython.display", displaying)
    return pages


def test_it_is_shown_to_watchers_unless_an_option_decides(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    assert (is_progress_shown(0), is_progress_shown(1), is_progress_shown(None)) == (False, True, False)
    assert isinstance(screen_here(), Log)
    monkeypatch.setattr(sys, "stderr", Tty())
    assert is_progress_shown(None) and isinstance(screen_here(), Terminal)
    assert not is_progress_shown(0)
    request.getfixturevalue("notebook")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert is_progress_shown(None) and isinstance(screen_here(), Notebook)


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_notebook_has_one_line_which_is_updated_and_escaped(
    notebook: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "REFRESH", 0.0)
    phases = Phases(True)
    with phases.phase("cache"):
        assert "<b>cache</b>" in notebook[0]
    with phases.phase("train") as say:
        say.now("best <script> & more")
        assert re.search(r"cache \d\.\d s · <b>train</b> best &lt;script&gt; &amp; more<", notebook[0])
    assert len(notebook) == 1
    assert "<b>" not in notebook[0] and "train" in notebook[0]


def test_a_notebook_is_not_told_more_often_than_it_can_show(notebook: list[str]) -> None:
    screen = Notebook()
    screen.runs("train", "epoch 1")
    screen.runs("train", "epoch 2")
    assert "epoch 1" in notebook[0]
    screen.runs("judge", "")  # another phase is shown at once
    assert "judge" in notebook[0]


def test_a_terminal_line_updates_never_wraps_and_stays() -> None:
    screen, out = Terminal(), Tty()
    screen.console = Console(file=out, force_terminal=True, width=60, highlight=False)
    screen.runs("train", "epoch 1")
    screen.runs("train", LONG)
    assert screen.live is not None
    screen.live.refresh()
    running = out.getvalue()
    assert "epoch 1" in running or "epoch 3" in running
    shown_lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\n", running).replace("\r", "\n").splitlines()
    assert max(map(len, shown_lines)) <= 60
    screen.show_end("train", 12.34, "done [bold] &")
    assert screen.live is None
    assert out.getvalue().rstrip().endswith("train        12.3 s  done [bold] &")


def test_a_log_has_a_line_per_phase_and_one_in_ten_seconds(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now)
    screen = Log()
    screen.runs("train", "")
    for now in (1.0, 9.0, 11.0, 12.0, 20.0, 22.0):
        screen.runs("train", f"at {now:g}")
    screen.show_end("train", 22.5, "done")
    assert capfd.readouterr().err.splitlines() == [
        "train         ...     at 11",
        "train         ...     at 22",
        "train        22.5 s  done",
    ]


class Heard(Events):
    def __init__(self) -> None:
        self.told: list[str] = []

    def on_phase(self, name: str, seconds: float | None, detail: str) -> None:
        self.told.append(f"{name} {detail}".strip())


class Screen:
    def __init__(self) -> None:
        self.told: list[str] = []

    def runs(self, name: str, detail: str) -> None:
        self.told.append(f"{name} {detail}".strip())

    def show_end(self, name: str, seconds: float, detail: str) -> None:
        self.told.append(f"{name} ended")


def test_only_people_see_what_is_watched_and_inner_phases() -> None:
    screen, heard = Screen(), Heard()
    phases = Phases(False, [Progress(screen), heard])
    with phases.phase("refit") as say:
        say.shows("1 MB")
        with phases.within().phase("train") as inner:
            inner.now("epoch 1")
    assert screen.told == ["refit", "refit 1 MB", "refit train", "refit train: epoch 1", "refit ended"]
    assert heard.told == ["refit", "train", "train epoch 1", "train epoch 1", "refit"]


def test_a_probe_is_asked_only_while_people_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkdiff.report.progress.PROBE", 0.01)
    screen, asked = Screen(), []

    def probe() -> str:
        asked.append(1)
        return "2 MB"

    with Phases(False, [Heard()]).phase("cache") as say, say.show_periodically(probe):
        pass
    assert not asked
    with Phases(False, [Progress(screen)]).phase("cache") as say, say.show_periodically(probe):
        while not asked:
            pass
    assert "cache 2 MB" in screen.told and screen.told[-1] == "cache ended"
