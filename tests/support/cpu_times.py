"""CPU time of each test file, of all processes that it starts: what `--durations` shows depends on what else a machine does."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

SHOWN = 30


def spent() -> float:
    """Seconds of CPU time of this process, of those below it, and of those that have ended and were waited for."""
    if not Path("/proc/self/stat").exists():
        return sum(os.times()[:4])
    ticks, below = {}, {}
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(folder.name)
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            ticks[pid] = sum(map(int, fields[11:15]))
            below.setdefault(int(fields[1]), []).append(pid)
    total, todo = 0, [os.getpid()]
    while todo:
        pid = todo.pop()
        total += ticks.get(pid, 0)
        todo += below.get(pid, [])
    return total / os.sysconf("SC_CLK_TCK")


class CpuTimes:
    """Notes them where a file ends; the processes of pytest-xdist send theirs to the one that prints."""

    def __init__(self) -> None:
        self.files: Counter[str] = Counter()
        self.last = spent()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[Any]:
        outcome = yield
        if nextitem is None or nextitem.path != item.path:
            now = spent()
            self.files[item.nodeid.partition("::")[0]] += now - self.last
            self.last = now
        return outcome

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        with contextlib.suppress(AttributeError):
            session.config.workeroutput["cpu"] = dict(self.files)  # type: ignore[attr-defined]

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        self.files.update(getattr(node, "workeroutput", {}).get("cpu", {}))

    def pytest_terminal_summary(self, terminalreporter: Any, config: pytest.Config) -> None:
        if config.option.durations:
            terminalreporter.section(f"CPU time of files: {self.files.total():.0f} s")
            for name, seconds in self.files.most_common(SHOWN):
                terminalreporter.line(f"{seconds:7.1f}s {name}")
