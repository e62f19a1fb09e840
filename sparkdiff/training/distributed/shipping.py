"""Content of the folder of a started process: sparkdiff's own code, an assignment, and the script that starts it."""

import pickle
import sys
import sysconfig
from pathlib import Path
from types import ModuleType
from typing import Any

from pyspark import cloudpickle

from sparkdiff.errors import InputError
from sparkdiff.machine import package
from sparkdiff.store import files

STAY = tuple(f"sparkdiff/{room}" for room in ("cli", "improvement", "search", "serving", "tuning"))
"""Large rooms that a training process never imports."""


def equip(here: Path, assignment: Any, loss: Any, module: str) -> None:
    """Write `sparkdiff.zip`, `assignment.pickle`, and `start.py`, which calls `main(folder)` of one of our modules.

    Args:
        here: the folder.
        loss: the option, whose module is sent, too, if it is the user's.
        module: the name of our module.

    Raises:
        InputError: the assignment cannot be pickled.
    """
    package.write_zip(here / "sparkdiff.zip", STAY)
    files.write_bytes(here / "assignment.pickle", _pickle_value(assignment, _own_module(loss)))
    paths = [str(Path(p).absolute()) for p in sys.path if p]
    files.write_bytes(
        here / "start.py",
        f"""import os, sys
here = os.path.dirname(os.path.abspath(__file__))
sys.path[:1] = [os.path.join(here, "sparkdiff.zip")]  # in place of this script's own folder
sys.path += [p for p in {paths!r} if p not in sys.path]
from {module} import main
main(here)
""".encode(),
    )


def _pickle_value(value: Any, module: ModuleType | None) -> bytes:
    try:
        if module is not None:
            cloudpickle.register_pickle_by_value(module)
        content: bytes = cloudpickle.dumps(value)
    except (TypeError, pickle.PicklingError, AttributeError) as e:
        raise InputError(
            f"the network or its loss cannot be sent to other processes ({e}): use numProcesses=1, or a loss "
            "and stages that contain only numbers and tensors"
        ) from e
    finally:
        if module is not None:
            cloudpickle.unregister_pickle_by_value(module)
    return content


def _own_module(loss: Any) -> ModuleType | None:
    """The user's module that defines a loss. It is sent by value, because only the driver may have its file."""
    module = sys.modules.get(getattr(loss, "__module__", "")) if callable(loss) else None
    file = getattr(module, "__file__", None)
    if module is None or file is None or module.__name__ == "__main__":  # which is pickled by value anyway
        return None
    installed = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return None if any(Path(file).is_relative_to(path) for path in installed) else module
