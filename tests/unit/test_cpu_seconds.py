"""Processor seconds of a tree of processes: what a process has used is not lost when it ends, whoever waits for it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkdiff.machine import resources

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not tell"),
]

BURN = "import time; t = time.process_time()\nwhile time.process_time() - t < 0.5: pass\n"
CHILD = f"import time, sys; exec({BURN!r}); print('burnt', flush=True); time.sleep(600)"
PARENT = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {CHILD!r}]).wait()"


@pytest.fixture
def parent() -> Iterator[subprocess.Popen[str]]:
    """A process whose child has used half a second."""
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as started:
        assert started.stdout is not None and started.stdout.readline() == "burnt\n"
        try:
            yield started
        finally:
            started.kill()


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("orphaned", [False, True])
def test_what_a_killed_process_has_used_is_kept(parent: subprocess.Popen[str], orphaned: bool) -> None:
    before = resources.cpu_seconds()
    (child,) = children(parent.pid)
    for pid in (parent.pid, child) if orphaned else (child,):
        os.kill(pid, signal.SIGKILL)
    parent.wait(10)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    after = resources.cpu_seconds()
    assert before <= after < before + 0.5, "neither lost nor counted twice"
    assert resources.cpu_seconds() >= after


def test_a_forked_process_begins_anew() -> None:
    code = f"""
import os, subprocess, sys
from sparkdiff.machine import resources
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE)
child.stdout.readline()
assert resources.cpu_seconds() >= 0.5
if (pid := os.fork()) == 0:
    os._exit(resources.cpu_seconds() >= 0.4)
child.kill()
raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
