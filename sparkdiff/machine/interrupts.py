"""Handling of Ctrl-C while a process must not end."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def ignore_first_interrupt(says: str) -> Iterator[None]:
    """Ignore the first Ctrl-C within this context, except for printing a text on stderr; the second one has the effect
    that Ctrl-C had before.

    The context has an effect in the main thread only, because Python delivers signals to no other thread.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return

    def answer(_number: int, _frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        print(says, file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, answer)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
