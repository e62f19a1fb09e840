"""Who hears of every fit of this process without being named in it."""

import contextvars
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sparkdiff.machine import secrets
from sparkdiff.machine.autologging import paused
from sparkdiff.report.progress import Events, tell


class Observer(Protocol):
    """Hears of fits; what it raises is a warning. A fit that fails tells its listener (`on_exception`)."""

    def begun(self, estimator: Any) -> Events:
        """A fit begins; returns a listener for its events."""

    def ended(self, listener: Events, model: Any) -> None:
        """The fit has ended; `model` is its result."""


Found = TypeVar("Found")
observer: Observer | None = None
_inside = contextvars.ContextVar("_inside", default=False)
"""Whether this thread is at work for a fit. Threads that a fit starts for others take the context over."""


def observe(new: Observer | None) -> None:
    """Set the observer of later fits; None: nobody."""
    global observer
    observer = new


def observed(
    estimator: Any, fit: Callable[[Sequence[Events]], Found], dataset: Any = None, *, alone: bool = True,
    check: Callable[[Any], None] = lambda found: None,
) -> Found:  # fmt: skip
    """Run a fit with the listener of the observer. Of fits inside one another only the outermost is observed.

    If the fit fails, its listeners and those of the estimator hear of it.

    Args:
        fit: takes listeners beside those of the estimator.
        dataset: the rows of the fit, which its result keeps.
        alone: whether this fit is no part of another one, as far as its estimator knows.
        check: is called with what the outermost fit has found.
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
                found.dataset = dataset  # before the observer hears of it, who takes the signature from these rows
            if who is not None and made is not None:
                _quietly(who.ended, made, found)
            return found  # type: ignore[no-any-return]
    finally:
        _inside.reset(token)


def _is_a_trial() -> bool:
    """Whether Spark's CrossValidator or TrainValidationSplit fits one of its models here, which only the stack tells: an
    estimator within a Pipeline isn't told.
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
