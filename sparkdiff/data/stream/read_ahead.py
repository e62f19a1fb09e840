"""Reading ahead: a thread makes the next item of an iterator while the current one is used."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Generic, TypeVar

T = TypeVar("T")


class _ReadAhead(Generic[T], Iterator[T]):
    """The first `number` items of an iterator. It holds the next item, which a thread makes, and none that it has
    yielded.
    """

    def __init__(self, pool: ThreadPoolExecutor, items: Iterator[T], number: int):
        self.pool, self.items, self.left = pool, items, number
        self.coming: Future[T] | None = None
        self._begin()

    def _begin(self) -> None:
        self.coming = self.pool.submit(next, self.items) if self.left else None

    def __next__(self) -> T:
        if self.coming is None:
            raise StopIteration
        item = self.coming.result()  # raises what the thread has raised
        self.left -= 1
        self._begin()
        return item


def ahead(opened: ExitStack, iterators: Sequence[tuple[Iterator[T], int]]) -> list[Iterator[T]]:
    """The same iterators, each limited to its number of items; one thread reads ahead for all of them. Closing `opened`
    waits only for the item that the thread is reading at that time.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sparkdiff-reads-ahead")
    opened.callback(pool.shutdown, cancel_futures=True)
    return [_ReadAhead(pool, items, number) for items, number in iterators]
