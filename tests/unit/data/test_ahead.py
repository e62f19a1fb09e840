"""Reading ahead: one item, by one thread, whose errors are the consumer's and which ends with it."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from weakref import ref

import pytest

import sparkdiff.data.stream.batches as streams
from sparkdiff.data.stream import files as readers
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.files import ahead
from tests.support.cache_on_disk import Cache

LONG = 60  # seconds; what is waited for comes at once


def test_one_item_is_made_while_another_is_used() -> None:
    made = threading.Semaphore(0)

    def items() -> Iterator[int]:
        for i in range(3):
            made.release()
            yield i

    threads = threading.active_count()
    with ExitStack() as opened:
        (numbers,) = ahead(opened, [(items(), 3)])
        assert made.acquire(timeout=LONG)  # before it is asked for
        assert not made.acquire(blocking=False)
        assert next(numbers) == 0
        assert made.acquire(timeout=LONG)
        assert not made.acquire(blocking=False)
        assert threading.active_count() == threads + 1
        assert list(numbers) == [1, 2]
    assert threading.active_count() == threads


def test_an_error_in_the_thread_is_raised_at_its_item() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    with ExitStack() as opened:
        (numbers,) = ahead(opened, [(items(), 3)])
        assert next(numbers) == 1
        with pytest.raises(OSError, match="the disk is gone"):
            next(numbers)


def test_closing_waits_only_for_the_item_being_made() -> None:
    begun, go, made = threading.Event(), threading.Event(), []

    def items(number: int) -> Iterator[int]:
        begun.set()
        assert go.wait(LONG)
        made.append(number)
        yield number

    opened = ExitStack()
    ahead(opened, [(items(i), 1) for i in range(4)])
    assert begun.wait(LONG)
    closing = threading.Thread(target=opened.close)
    closing.start()
    closing.join(0.05)
    assert closing.is_alive()
    go.set()
    closing.join(LONG)
    assert made == [0] and not closing.is_alive()


def test_of_every_shard_two_pieces_are_held_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path / "cache", splits={"train": [[30] * 5] * 8})
    held: list[Any] = []
    read, lock = readers.BACKENDS["arrow"], threading.Lock()

    def noted(paths: list[Path], columns: Any) -> Iterator[Any]:
        files = read(paths, columns)
        for _ in paths:
            batch = next(files)
            with lock:
                held.append(ref(batch["c0"]))
                assert sum(piece() is not None for piece in held) <= 16
            yield batch
            del batch

    monkeypatch.setitem(readers.BACKENDS, "arrow", noted)
    monkeypatch.setattr(streams, "_CHUNK_BYTES", 3000)
    with Stream(cache.folder, backend="arrow", inMemory=False) as stream:
        for i, _ in enumerate(stream.batches("train", batchSize=16, epoch=0)):
            if i == 10:
                assert 8 <= len(held) < 40  # the files are not read at once
        assert len(held) == 40
    assert not any(piece() is not None for piece in held)
