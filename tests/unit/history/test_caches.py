"""Which caches are given up for room, and that nothing else is touched."""

import datetime
import json
import os
import threading
import time
from pathlib import Path

import pytest

from sparkdiff.cli.app import main
from sparkdiff.cli.doctor import run_checks
from sparkdiff.data.stream import usage
from sparkdiff.errors import DONE, WRONG_INPUT
from sparkdiff.history import caches
from sparkdiff.store import folder_marker

HOUR, DAY = 3600.0, 86400.0


def made(path: Path, owner: str) -> Path:
    path.mkdir()
    folder_marker.mark(path, owner)
    return path


def cache(folder: Path, name: str, *, size: int, seconds: float = 1.0, uses: int = 1, age: float = 2 * HOUR) -> Path:
    path = made(folder / (name * 16)[:16], folder_marker.CACHE)
    (path / "part.parquet").write_bytes(b"x" * size)
    (path / "manifest.json").write_text(json.dumps({"splits": {"train": [[{"rows": 7}, {"rows": 1}], []]}}))
    last = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=age)
    told = {
        "madeBy": ["StringIndexerModel"],
        "seconds": seconds,
        "uses": uses,
        "last": last.isoformat(),
        "run": f"{name}-1",
    }
    (path / "usage.json").write_text(json.dumps(told))
    return path


def fitted(folder: Path) -> None:
    path = made(folder / "fitted-0123456789abcdef", folder_marker.FITTED)
    os.utime(path / folder_marker.MARKER, (time.time() - 5 * DAY, time.time() - 5 * DAY))
    os.utime(path, (time.time() - 5 * DAY, time.time() - 5 * DAY))


def names(found: list[caches.StoredItem]) -> list[str]:
    return [e.path.name[0] for e in found]


def test_what_saves_least_per_byte_goes_first(tmp_path: Path) -> None:
    cache(tmp_path, "a", size=30_000, seconds=1)  # a second for 30,000 bytes
    cache(tmp_path, "b", size=30_000, seconds=1, uses=9)
    cache(tmp_path, "c", size=10_000, seconds=9)
    cache(tmp_path, "d", size=30_000, seconds=1, age=3 * HOUR)  # as a, but longer ago
    found = caches.entries(tmp_path)
    assert [(e.rows, e.kind, e.madeBy) for e in found] == [(8, "cache", ["StringIndexerModel"])] * 4
    assert names(caches.to_remove(found, most=80_000, days=None)) == ["d"]
    assert names(caches.to_remove(found, most=50_000, days=None)) == ["d", "a"]
    assert names(caches.to_remove(found, most=0, days=None)) == ["d", "a", "b", "c"]
    fitted(tmp_path)  # small, and of no known cost: only its age counts
    assert "f" not in names(caches.to_remove(caches.entries(tmp_path), most=0, days=None))
    assert names(caches.to_remove(caches.entries(tmp_path), most=None, days=3)) == ["f"]
    assert names(caches.to_remove(found, most=None, days=2.5 / 24)) == ["d"]
    assert not caches.to_remove(found, most=200_000, days=1)


def test_what_is_read_or_was_just_used_stays(tmp_path: Path) -> None:
    cache(tmp_path, "a", size=10, age=10.0)
    read = cache(tmp_path, "b", size=10)
    cache(tmp_path, "c", size=10)
    reading = usage.Lock(read)
    found = caches.entries(tmp_path)
    assert {e.path.name[0]: e.read for e in found} == {"a": False, "b": True, "c": False}
    assert names(caches.to_remove(found, most=0, days=0)) == ["c"]
    with usage.alone(read) as unread:
        assert not unread
    assert names(caches.remove(found)) == ["a", "c"] and [p.name for p in tmp_path.iterdir()] == [read.name]
    reading.close()
    assert names(caches.remove(caches.entries(tmp_path))) == ["b"] and not list(tmp_path.iterdir())


def test_a_cache_of_an_earlier_version_has_no_usage(tmp_path: Path) -> None:
    path = cache(tmp_path, "e", size=10)
    (path / "usage.json").unlink()
    os.utime(path / "manifest.json", (time.time() - 5 * DAY, time.time() - 5 * DAY))
    (old,) = caches.entries(tmp_path)
    assert (old.seconds, old.uses, round(old.age / DAY)) == (0.0, 1, 5)
    usage.record_use(path)
    (now,) = caches.entries(tmp_path)
    assert now.uses == 2 and now.age < HOUR
    (path / "usage.json").write_text("{")
    assert caches.entries(tmp_path)[0].uses == 1


def test_only_what_sparkdiff_wrote_is_touched(tmp_path: Path) -> None:
    cache(tmp_path, "a", size=10)
    now, killed, removed = ".0123456789abcdef-deadbeef", ".0123456789abcdee-deadbeef", ".removed-deadbeef"
    for name in ("checkpoints/run", "mine", "fedcba9876543210", "stages-fedcba9876543210", ".removed-fedcba98"):
        (tmp_path / name).mkdir(parents=True)  # by their names some could be caches
        (tmp_path / name / "manifest.json").write_text('{"splits": {}}')
        os.utime(tmp_path / name, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    mine = sorted(p.name for p in tmp_path.iterdir())
    made(tmp_path / "fitted-0123456789abcdef", folder_marker.FITTED)
    for name in (now, killed, removed):
        made(tmp_path / name, folder_marker.CACHE)
    for name in (killed, removed):
        for path in (tmp_path / name / folder_marker.MARKER, tmp_path / name):
            os.utime(path, (time.time() - 2 * DAY, time.time() - 2 * DAY))
    (tmp_path / "0123456789abcdef").write_text("a file of a user")
    assert main(["cache", "clear", str(tmp_path)]) == DONE
    rest = {now, "0123456789abcdef", "fitted-0123456789abcdef", *mine} - {"a" * 16}
    assert {p.name for p in tmp_path.iterdir()} == rest
    assert main(["cache", "clear", str(tmp_path), "--recent"]) == DONE
    assert {p.name for p in tmp_path.iterdir()} == rest - {"fitted-0123456789abcdef"}


def test_removers_never_wait_and_readers_wait_for_a_moment(tmp_path: Path) -> None:
    path = cache(tmp_path, "a", size=10)
    done = threading.Event()

    def read() -> None:
        lock = usage.Lock(path)
        done.wait(60)
        lock.close()

    with usage.alone(path) as unread:
        assert unread
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
    latest = time.monotonic() + 30
    while not caches.entries(tmp_path)[0].read:  # it got its lock as soon as nobody was alone with it
        assert time.monotonic() < latest, "a reader that nobody keeps out has no lock after 30 seconds"
        time.sleep(0.01)
    done.set()
    reader.join(30)
    assert not reader.is_alive()
    assert not caches.entries(tmp_path)[0].read


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cache(tmp_path, "a", size=2_000_000, seconds=3.0)
    cache(tmp_path, "b", size=1_000_000, seconds=3.0, age=3 * DAY)
    assert main(["cache", "list", str(tmp_path)]) == DONE
    out = capsys.readouterr().out
    assert "2.0 h ago" in out and "3 days ago" in out and "StringIndexerModel" in out and "2 entries, 3.0 MB" in out
    assert main(["cache", "list", str(tmp_path), "--json"]) == DONE
    assert json.loads(capsys.readouterr().out)[0]["bytes"] > 2_000_000
    assert main(["cache", "prune", str(tmp_path), "--max-days", "2", "--dry-run"]) == DONE
    assert "bbbb" in capsys.readouterr().out and len(list(tmp_path.iterdir())) == 2
    assert main(["cache", "prune", str(tmp_path), "--max-mb", "1.5"]) == DONE
    assert "aaaa" in capsys.readouterr().out and [p.name for p in tmp_path.iterdir()] == ["b" * 16]
    for wrong in (["prune", str(tmp_path)], ["list", str(tmp_path / "absent")]):
        assert main(["cache", *wrong]) == WRONG_INPUT
    assert "prune needs a limit" in capsys.readouterr().err


def test_caches_of_jobs_are_found_below_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["cache", "list"]) == DONE and "0 entries" in capsys.readouterr().out
    for folder in ("runs/.cache", "more/runs/.cache", "too/deep/to/find/.cache"):
        (tmp_path / folder).mkdir(parents=True)
    cache(tmp_path / "runs" / ".cache", "a", size=10, age=3 * DAY)
    cache(tmp_path / "more" / "runs" / ".cache", "b", size=10)
    cache(tmp_path / "too" / "deep" / "to" / "find" / ".cache", "c", size=10)
    fitted(tmp_path / "runs" / ".cache")
    assert main(["cache", "list"]) == DONE
    out = capsys.readouterr().out
    assert "runs/.cache/aaaa" in out and "a-1" in out and "more/runs/.cache/bbbb" in out and "3 entries" in out
    found = {f.name: f for f in run_checks(start=False)}["caches"]
    assert "3 entries" in found.found and "the oldest unused for 5.0 days" in found.found
    assert f"{tmp_path}/runs/.cache" in found.found and "they hold rows" in found.remedy
    assert "caches" in {f.name for f in run_checks(str(tmp_path / "too" / "deep"), start=False)}


def test_old_caches_go_and_those_that_are_read_stay(tmp_path: Path) -> None:
    read = cache(tmp_path, "a", size=10, age=40 * DAY)
    cache(tmp_path, "b", size=10, age=40 * DAY)
    cache(tmp_path, "c", size=10, age=20 * DAY)
    fitted(tmp_path)
    reading = usage.Lock(read)
    assert caches.remove_old(tmp_path, 30.0) == "removed 1 entry, 0.0 MB, not used for 30 days"
    assert {*names(caches.entries(tmp_path))} == {"f", "a", "c"}
    reading.close()
    assert caches.remove_old(tmp_path, 4.0) == "removed 3 entries, 0.0 MB, not used for 4 days"
    assert caches.remove_old(tmp_path, 4.0) == "removed 0 entries, 0.0 MB, not used for 4 days"
