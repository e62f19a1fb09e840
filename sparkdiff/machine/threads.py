"""A context with a second thread, and results that are computed only once although several threads need them."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


@contextlib.contextmanager
def beside(work: Callable[[threading.Event], object], name: str) -> Iterator[None]:
    """Run `work` in a second thread within this context.

    Args:
        work: function that gets an event, which is set when the context ends; the context then waits for the function
            to return.
    """
    ended = threading.Event()
    thread = threading.Thread(target=work, args=(ended,), name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class SharedResults:
    """Results that several threads share; each result is computed once, by the first thread that needs it.

    Attributes:
        found: the results by key.
    """

    def __init__(self) -> None:
        self.found: dict[Any, Any] = {}
        self._lock, self._making = threading.Lock(), dict[Any, threading.RLock]()

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """The result for this key, computed by `make` on the first call; the key must contain all that determines the
        result.
        """
        with self._lock:
            making = self._making.setdefault(key, threading.RLock())
        with making:  # no two threads compute the same result
            if key not in self.found:
                self.found[key] = make()
            return self.found[key]
