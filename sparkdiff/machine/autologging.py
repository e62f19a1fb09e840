"""A pause of other libraries' automatic logging of fits, for the fits that a fit of this package makes."""

import contextlib
import sys
import threading
from collections.abc import Iterator

MODULE, DISABLED = "mlflow.utils.autologging_utils", "_AUTOLOGGING_GLOBALLY_DISABLED"
_lock, _depth = threading.Lock(), 0
_held = contextlib.ExitStack()


@contextlib.contextmanager
def pause_autologging() -> Iterator[None]:
    """Stop MLflow's automatic logging of fits within this context, in all threads; do nothing if MLflow isn't imported.

    MLflow has a single switch per process, so the first of several contexts to end would switch logging on again;
    therefore active contexts are counted.
    """
    global _depth
    module = sys.modules.get(MODULE)
    with _lock:
        if _depth == 0 and module is not None and not getattr(module, DISABLED, False):
            _held.enter_context(module.disable_autologging())
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _held.close()
