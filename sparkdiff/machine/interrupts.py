"""What Ctrl-C does while a process must not end."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def undisturbed(says: str) -> Iterator[None]:
    """Within this context the first Ctrl-C is only answered, on stderr; the second one does what it did before.

    Only in the main thread: Python tells no other one of signals.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def answer(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        print(says, file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
