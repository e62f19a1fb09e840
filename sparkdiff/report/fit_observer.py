"""A process-wide observer of fits, which need not name it (used by `sparkdiff.mlflow.autolog`)."""

import contextvars
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from sparkdiff.machine.autologging import pause_autologging
from sparkdiff.report.progress import Events, call_or_warn, tell


class Observer(Protocol):
    """An observer of fits. Its exceptions become warnings; if a fit fails, the observer's listener gets `on_exception`."""

    def on_fit_begin(self, estimator: Any) -> Events:
        """Return a listener for the events of a fit that begins."""

    def on_fit_end(self, listener: Events, model: Any) -> None:
        """Process the end of a fit; `model` is its result."""


Found = TypeVar("Found")
NOT_LOGGED = "the fit could not be logged, and goes on"
observer: Observer | None = None
_inside = contextvars.ContextVar("_inside", default=False)
"""True while this thread works for a fit. Threads that a fit starts for other fits get a copy of its context variables."""


def observe(new: Observer | None) -> None:
    """Set the observer of later fits; None: no observer."""
    global observer
    observer = new


def fit_with_observer(
    estimator: Any,
    fit: Callable[[Sequence[Events]], Found],
    dataset: Any = None,
    *,
    alone: bool = True,
    check: Callable[[Any], None] = lambda _found: None,
) -> Found:
    """Run a fit with the observer's listener, and return its result. Of nested fits, only the outermost is observed.

    If the fit fails, the observer's listener and the estimator's callbacks are notified.

    Args:
        fit: function that runs the fit; it takes listeners to notify in addition to the estimator's callbacks.
        dataset: the rows of the fit; they become the result's attribute `dataset`.
        alone: False if the caller knows that this fit is part of something else, such as `fitMultiple` or a job; it is then
            neither observed nor checked.
        check: function that is called with the result of a fit that is not part of another one.
    """
    alone = alone and not _inside.get() and not _is_a_trial()
    who = observer if alone else None
    token = _inside.set(True)
    try:
        made = None if who is None else call_or_warn(NOT_LOGGED, who.on_fit_begin, estimator)
        listeners = [] if made is None else [made]
        with pause_autologging():
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
                call_or_warn(NOT_LOGGED, who.on_fit_end, made, found)
            return found  # type: ignore[no-any-return]
    finally:
        _inside.reset(token)


def _is_a_trial() -> bool:
    """True if this fit was called by Spark's CrossValidator or TrainValidationSplit for one of its settings.

    Only the call stack shows this, because an estimator inside a Pipeline does not learn who fits the Pipeline.
    """
    places = ((frame.f_globals.get("__name__"), frame.f_code.co_name) for frame, _ in traceback.walk_stack(None))
    return ("pyspark.ml.tuning", "singleTask") in places
