"""Who hears of every fit of this process without being named in it."""

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sparkdiff.machine import secrets
from sparkdiff.machine.autologging import paused
from sparkdiff.report.progress import Events


class Observer(Protocol):
    """Hears of fits; what it raises is a warning."""

    def begun(self, estimator: Any) -> Events:
        """A fit begins; returns a listener for its events."""

    def ended(self, listener: Events, model: Any) -> None:
        """The fit has ended; `model` is its result, or the exception that ended it."""


Found = TypeVar("Found")
observer: Observer | None = None
_lock, _running = threading.Lock(), 0


def observe(new: Observer | None) -> None:
    """Set the observer of later fits; None: nobody."""
    global observer
    observer = new


def observed(estimator: Any, fit: Callable[[Sequence[Events]], Found], *, alone: bool = True) -> Found:
    """Run a fit with the listener of the observer. Of fits inside one another only the outermost is observed.

    Args:
        fit: takes listeners beside those of the estimator.
        alone: whether this fit is no part of another one that is not ours.
    """
    global _running
    with _lock:
        _running += 1
        who = observer if alone and _running == 1 else None
    try:
        listener = None if who is None else _quietly(who.begun, estimator)
        with paused():
            try:
                found = fit([] if listener is None else [listener])
            except BaseException as e:
                if who is not None and listener is not None:
                    _quietly(who.ended, listener, e)
                raise
            if who is not None and listener is not None:
                _quietly(who.ended, listener, found)
            return found
    finally:
        with _lock:
            _running -= 1


def _quietly(event: Callable[..., Any], *what: Any) -> Any:
    try:
        return event(*what)
    except Exception as e:
        why = secrets.redacted(repr(e))
        warnings.warn(f"the fit could not be logged, and goes on: {why}", RuntimeWarning, stacklevel=4)
        return None
