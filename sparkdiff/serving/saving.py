"""A model written to a new folder, which is there whole or not at all."""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.machine import paths


def new_folder(option: str, given: str) -> Path:
    """The local folder that an option names.

    Raises:
        InputError: it exists, is no folder of this machine, or cannot be written.
    """
    if (why := paths.not_local(option, given)) is not None:
        raise InputError(why)
    path = Path(os.path.abspath(str(paths.local(given))))
    if os.path.lexists(path):
        raise InputError(f"{option}={given!r} exists already: choose a folder that does not")
    jvm.check_writable(option, given, path)
    return path


def save(model: Any, folder: Path) -> None:
    """Save a fitted pipeline under a temporary name beside the folder, and rename it.

    Raises:
        OSError, SparkError: it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        model.write().save(f"file://{temporary}")
        os.rename(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
