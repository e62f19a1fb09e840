"""A model written to a new folder, which is there whole or not at all."""

import contextlib
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from sparkdiff import jvm
from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.machine import paths
from sparkdiff.store import files


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
    """Save a fitted pipeline under a temporary name beside the folder, and rename it; where that fails, nothing is left.

    Raises:
        SparkdiffError: it cannot be written; says why.
    """
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    missing = [parent for parent in folder.parents if not parent.exists()]
    try:
        with files.room("the pipeline", folder, "free some space, or choose a folder on a disk with more space"):
            folder.parent.mkdir(parents=True, exist_ok=True)
            model.write().save(f"file://{temporary}")
            os.rename(temporary, folder)
    except (OSError, *jvm.SparkError) as e:
        raise SparkdiffError(
            f"the pipeline cannot be written to {folder}: {jvm.cause(e)}; choose another folder"
        ) from e
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in missing:
            with contextlib.suppress(OSError):  # something is in it
                parent.rmdir()
