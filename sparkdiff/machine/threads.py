"""A thread that works beside the one that started it, and what several threads make only once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], object], name: str) -> Iterator[None]:
    """Within this context, a thread of this name does some work; at the end it is told by its event, and waited for."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class MadeOnce:
    """What several threads need, each thing made by the first of them that asks.

    Attributes:
        found: what was made, by key.
    """

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self._lock, self._making = threading.Lock(), dict[Any, threading.RLock]()

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What was made for this key, which holds every object that decides it."""
        with self._lock:
            making = self._making.setdefault(key, threading.RLock())
        with making:  # two threads don't make the same
            if key not in self.found:
                self.found[key] = make()
            found: T = self.found[key]
            return found
