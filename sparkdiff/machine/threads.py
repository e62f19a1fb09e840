"""A thread that runs beside the one that started it, and results that several threads compute only once."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], object], name: str) -> Iterator[None]:
    """Run some work in a thread of this name within this context; at the end, set its event and wait for it."""
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class MadeOnce:
    """Results that several threads share; each is computed by the first thread that asks for it.

    Attributes:
        found: the results by key.
    """

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self._lock, self._making = threading.Lock(), dict[Any, threading.RLock]()

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The result for this key, which must contain every object that decides it; computed on the first call."""
        with self._lock:
            making = self._making.setdefault(key, threading.RLock())
        with making:  # no two threads compute the same result
            if key not in self.found:
                self.found[key] = make()
            found: T = self.found[key]
            return found
