"""Other libraries' automatic logging of fits, which the fits inside ours must not set off."""

import contextlib
import sys
import threading
from collections.abc import Iterator

MODULE, DISABLED = "mlflow.utils.autologging_utils", "_AUTOLOGGING_GLOBALLY_DISABLED"
_lock, _depth = threading.Lock(), 0
_held = contextlib.ExitStack()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Within this context, in all threads, MLflow logs no fit of its own accord; nothing where MLflow isn't imported.

    Its switch belongs to the process and is no stack: whoever leaves first would turn it on again, so contexts are counted.
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
