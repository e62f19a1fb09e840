"""Atomic saving of a model to a new folder: completely or not at all."""

from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.evaluation.prediction_differences import FIRST, check_saved
from sparkdiff.machine import atomic_files
from sparkdiff.store import files


def new_folder(option: str, given: str) -> Path:
    """The path of the folder on this machine that an option names, which must not exist yet.

    Raises:
        InputError: the folder exists, is not on this machine, or cannot be written.
    """
    path = files.new_path(option, given)
    jvm.check_writable(option, given, path)
    return path


@jvm.interruptible()
def save(model: Any, folder: Path, rows: DataFrame | None) -> None:
    """Save a fitted pipeline under a temporary name, check it, and rename it to `folder`; after a failure, nothing is
    left.

    Args:
        rows: raw rows, on which the saved pipeline is compared with the one in memory; None: the saved pipeline is only
            loaded.

    Raises:
        InputError: the pipeline in memory fails on the rows, or returns none of them.
        SparkdiffError: the pipeline cannot be written; the message gives the reason.
        ParityError: the saved pipeline cannot be loaded, or its outputs differ.
    """
    try:
        with (
            atomic_files.remove_empty_folders_above(folder),
            files.room("the pipeline", folder, "free some space, or choose a folder on a disk with more space"),
            atomic_files.new_folder(folder) as temporary,
        ):
            folder.parent.mkdir(parents=True, exist_ok=True)
            model.write().save(f"file://{temporary}")
            compared = check_saved(model, temporary, None if rows is None else lambda: rows)
            if "why" in compared:
                raise InputError(f"the saved pipeline cannot be compared: {compared['why']}; pass rows that it accepts")
            if rows is not None and compared.get("rows") == 0:
                raise InputError(
                    f"the pipeline returns none of the first {FIRST:,} rows, so that nothing can be compared: pass others"
                )
    except (OSError, *jvm.SparkError) as e:
        raise SparkdiffError(
            f"the pipeline cannot be written to {folder}: {jvm.cause(e)}; choose another folder"
        ) from e
