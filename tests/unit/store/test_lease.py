"""Leases between real processes: one owner at a time, whatever becomes of it."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.cli import steps
from sparkdiff.cli.config import Config
from sparkdiff.machine import processes
from sparkdiff.report import Phases
from sparkdiff.store import folder_marker, lease
from sparkdiff.store.lease import LeaseHeldError, hold_lease

BEAT, LASTS = 0.05, 0.6
OWNER = """
import sys
from pathlib import Path
from sparkdiff.store.lease import LeaseHeldError, hold_lease
try:
    with hold_lease(Path(sys.argv[1]), "runId='x'", wait=float(sys.argv[2]), beat={beat}, lasts={lasts}) as mine:
        print("held", flush=True)
        sys.stdin.readline()
        mine.check()
    print("ended", flush=True)
except LeaseHeldError as e:
    print(f"refused {{e}}", flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "runs" / ".x.lease"


@pytest.fixture
def start(path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a process that holds the lease until it is sent a line."""
    begun: list[subprocess.Popen[str]] = []

    def one(wait: float = 0.0, *, lasts: float = LASTS) -> subprocess.Popen[str]:
        code = OWNER.format(beat=BEAT, lasts=lasts)
        pipe = subprocess.PIPE
        begun.append(
            subprocess.Popen([sys.executable, "-c", code, str(path), str(wait)], stdin=pipe, stdout=pipe, text=True)
        )
        return begun[-1]

    yield one
    for process in begun:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


def test_the_second_is_told_who_holds_it_and_a_third_waits(
    start: Callable[..., subprocess.Popen[str]], path: Path
) -> None:
    first = start()
    assert line(first) == "held"
    with pytest.raises(LeaseHeldError) as e, hold_lease(path, "runId='x'", beat=BEAT, lasts=LASTS):
        pass
    for part in ("runId='x'", f"process {first.pid} on {os.uname().nodename}, since 2", "waitForRun"):
        assert part in str(e.value)
    waiting = start(60)
    let_go(first)
    assert line(first) == "ended"
    assert line(waiting) == "held"
    let_go(waiting)
    assert line(waiting) == "ended"
    assert not list(path.parent.iterdir())


@pytest.mark.parametrize("told", [True, False])
def test_the_lease_of_a_killed_owner_runs_out(
    start: Callable[..., subprocess.Popen[str]], path: Path, told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = start(lasts=60 if told else LASTS)
    assert line(first) == "held"
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    if not told:  # as seen from another machine
        monkeypatch.setattr(processes, "machine", lambda: "another one")
    with hold_lease(path, "runId='x'", wait=0 if told else 60, beat=BEAT, lasts=LASTS) as mine:
        assert not mine.is_lost()


def test_a_pid_that_is_anothers_by_now_holds_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(path, "runId='x'", beat=BEAT, lasts=60):
        began = processes.start_time(os.getpid())
        monkeypatch.setattr(processes, "start_time", lambda pid: (began or 0) + 1)
        with hold_lease(path, "runId='x'", beat=BEAT, lasts=60) as mine:
            assert not mine.is_lost()


@pytest.mark.skipif(processes.machine() is None, reason="needs /proc")
def test_who_was_suspended_writes_nothing(start: Callable[..., subprocess.Popen[str]], path: Path) -> None:
    first = start()
    assert line(first) == "held"
    os.kill(first.pid, signal.SIGSTOP)
    with hold_lease(path, "runId='x'", wait=60, beat=BEAT, lasts=LASTS) as mine:
        os.kill(first.pid, signal.SIGCONT)
        let_go(first)
        assert f"process {os.getpid()} on" in (said := line(first))
        assert said.startswith("refused runId='x' no longer belongs to this process")
        mine.check()
    assert not list(path.parent.iterdir())


def test_one_owner_at_a_time_in_a_crowd(path: Path) -> None:
    """Threads that take the lease, and that take away one another's leases as if they had run out."""
    inside, most, done = 0, 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        for _ in range(5):
            with hold_lease(path, "runId='x'", wait=60, beat=0.01, lasts=60):
                with lock:
                    inside += 1
                    most = max(most, inside)
                with lock:
                    inside, done = inside - 1, done + 1
            lease._remove(path, "of one that is long gone")

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 30)
    assert not path.exists()


def test_a_lease_that_is_moved_away_by_mistake_comes_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with hold_lease(path, "runId='x'", beat=BEAT, lasts=60) as mine:
        looks = iter([lease._LeaseFile({"owner": "dead"}, 0, 0)])  # the last look before the move came too early
        look = lease._look
        monkeypatch.setattr(lease, "_look", lambda p: next(looks, None) or look(p))
        lease._remove(path, "dead")
        assert not mine.is_lost()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"), hold_lease(tmp_path / "file" / "x", "runId='x'"):
        pass


def test_a_lease_is_not_renewed_for_another(path: Path) -> None:
    """An owner that wakes up late renews the file that it has open, not the one that has taken its place."""
    with hold_lease(path, "runId='x'", beat=60, lasts=60) as old:
        os.rename(path, path.with_name("aside"))
        with hold_lease(path, "runId='x'", beat=60, lasts=60) as new:
            os.utime(path, (0, 0))
            assert old.is_lost()
            assert path.stat().st_mtime == 0
            assert not new.is_lost()
            assert path.stat().st_mtime > 0


def test_a_job_that_lost_its_output_leaves_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(path: str) -> None:
        (Path(path.removeprefix("file://")) / "metadata").mkdir(parents=True)

    writer = SimpleNamespace(save=save)
    told = {
        "decision": "kept original",
        "reason": "no gain",
        "metric": "rmse",
        "metricDirection": "smaller",
        "metrics": {},
    }
    summary = SimpleNamespace(
        records=[{"epoch": 0}], asdict=lambda: dict(told), cache={"fingerprint": "c"}, options={}, saved={}, warnings=[]
    )
    monkeypatch.setattr(steps, "check_saved", lambda *given: {})  # there is no pipeline to load
    monkeypatch.setattr(steps, "graph_of", lambda model: SimpleNamespace(vertices=()))
    outcome: Any = SimpleNamespace(
        model=SimpleNamespace(write=lambda: writer),
        plan=SimpleNamespace(toJSON=lambda: '{"stages": [], "edges": [], "head": null}'),
        summary=summary,
    )
    rows: Any = lambda: None  # noqa: E731
    output, path = tmp_path / "run", tmp_path / ".run.lease"
    output.mkdir()
    (output / "summary.json").write_text("the other's")
    folder_marker.mark(output, folder_marker.OUTPUT, ["summary.json"])
    config = Config(tmp_path, "m:f", {}, {}, {}, output, overwrite=True)
    with hold_lease(path, "output run", beat=60) as mine:
        path.unlink()
        with hold_lease(path, "output run", beat=60), pytest.raises(LeaseHeldError, match="Nothing was written"):
            steps.write_run(outcome, config, Phases(shown=False), {}, {}, mine, rows)
        assert (output / "summary.json").read_text() == "the other's"
        assert [p.name for p in tmp_path.iterdir()] == ["run"]
        with hold_lease(path, "output run", beat=60) as again:
            steps.write_run(outcome, config, Phases(shown=False), {}, {}, again, rows)
    assert json.loads((output / "summary.json").read_text())["fingerprints"]["cache"] == "c"


def test_processes_of_an_attempt_write_for_its_owner_only(tmp_path: Path) -> None:
    run_folder = tmp_path / "job"
    attempt = run_folder / "attempt-1"
    attempt.mkdir(parents=True)
    lease.check_passed_on(attempt)  # of a run without a lease
    with hold_lease(lease.lease_of(run_folder), "it") as first:
        first.pass_on(attempt)
        lease.check_passed_on(attempt)
        content = json.loads(first.path.read_text())
        first.path.write_text(json.dumps(content | {"owner": "another", "pid": 7}))
        with pytest.raises(LeaseHeldError, match="now belongs to another process, process 7 on"):
            lease.check_passed_on(attempt)


@pytest.mark.parametrize("content", ["", "[]", "null", "1"])
def test_a_file_that_is_no_lease_runs_out_as_one(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with (
        pytest.raises(LeaseHeldError, match="a process that is just starting"),
        hold_lease(path, "x", beat=BEAT, lasts=LASTS),
    ):
        pass
    with hold_lease(path, "x", wait=60, beat=BEAT, lasts=LASTS) as mine:
        assert not mine.is_lost()
