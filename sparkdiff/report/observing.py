"""A process-wide observer of fits (used by `mlflow.autolog`)."""

import contextvars
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sparkdiff.machine import secrets
from sparkdiff.machine.autologging import paused
from sparkdiff.report.progress import Events, tell


class Observer(Protocol):
    """An observer of fits; its exceptions become warnings. A fit that fails calls its listener's `on_exception`."""

    def begun(self, estimator: Any) -> Events:
        """Return a listener for the events of a fit that begins."""

    def ended(self, listener: Events, model: Any) -> None:
        """Process the end of a fit; `model` is its result."""


Found = TypeVar("Found")
observer: Observer | None = None
_inside = contextvars.ContextVar("_inside", default=False)
"""Whether this thread is working for a fit. Threads that a fit starts inherit the context."""


def observe(new: Observer | None) -> None:
    """Set the observer of later fits; None: no observer."""
    global observer
    observer = new


def observed(
    estimator: Any, fit: Callable[[Sequence[Events]], Found], dataset: Any = None, *, alone: bool = True,
    check: Callable[[Any], None] = lambda found: None,
) -> Found:  # fmt: skip
    """Run a fit with the listener of the observer. Of nested fits, only the outermost is observed.

    If the fit fails, its listeners and those of the estimator are notified.

    Args:
        fit: the fit; takes listeners in addition to those of the estimator.
        dataset: the rows of the fit, which its result keeps.
        alone: whether this fit is no part of another one, as far as its estimator knows.
        check: called with the result of the outermost fit.
    """
    alone = alone and not _inside.get() and not _is_a_trial()
    who = observer if alone else None
    token = _inside.set(True)
    try:
        made = None if who is None else _quietly(who.begun, estimator)
        listeners = [] if made is None else [made]
        with paused():
            try:
                found: Any = fit(listeners)
            except BaseException as e:
                tell([*getattr(estimator, "callbacks", ()), *listeners], "on_exception", e)
                raise
            if alone:
                check(found)
            if dataset is not None:
                found.dataset = dataset  # before the observer is called, which takes the signature from these rows
            if who is not None and made is not None:
                _quietly(who.ended, made, found)
            return found  # type: ignore[no-any-return]
    finally:
        _inside.reset(token)


def _is_a_trial() -> bool:
    """True if Spark's CrossValidator or TrainValidationSplit is fitting one of its models in this call.

    Only the stack shows this, because an estimator within a Pipeline is not notified.
    """
    places = ((frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in traceback.walk_stack(None))
    return ("pyspark.ml.tuning", "singleTask") in places


def _quietly(event: Callable[..., Any], *what: Any) -> Any:
    try:
        return event(*what)
    except Exception as e:
        why = secrets.redacted(repr(e))
        warnings.warn(f"the fit could not be logged, and goes on: {why}", RuntimeWarning, stacklevel=4)
        return None
