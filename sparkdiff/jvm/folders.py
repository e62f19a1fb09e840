"""Folders given as options, on this machine or on any file system that Spark supports, and the URLs with which Spark
reads files.
"""

import contextlib
import contextvars
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from sparkdiff.errors import InputError
from sparkdiff.jvm import stores
from sparkdiff.jvm.sessions import VERSION, in_process, session
from sparkdiff.machine import paths


def model_at(path: str | Path) -> str:
    """URL with which this Spark loads the model saved at a path or URL; special characters in names are escaped."""
    where = stores.readable(path)
    # Spark 3.5 reads metadata as Hadoop text files, whose paths end at a comma outside of braces.
    return where.replace(",", "{\\,}") if VERSION < (4, 0) else where


def folder(option: str, given: str) -> Path:
    """Absolute path of a folder that an option names; for a folder on another file system, its working copy (`stores`).

    Raises:
        InputError: Spark has no file system for it.
    """
    if refused := paths.unusable(option, given):
        raise InputError(refused)
    if (url := stores.store_url(option, given)) is not None:
        return stores.working(url)
    path = paths.local(given)
    assert path is not None
    return path.absolute()


def check_writable(option: str, given: str | Path, path: Path) -> None:
    """Raise InputError if a folder cannot be created or written to. The check does not create it, and leaves no file
    in its parent.
    """
    if (url := stores.url_of(path)) is not None:
        stores.check_writable(option, str(given), url)
        return
    above = next(p for p in (path, *path.parents) if os.path.lexists(p))
    try:
        os.rmdir(tempfile.mkdtemp(prefix=".sparkdiff-", dir=above))
    except OSError as e:
        raise InputError(
            f"{option}={str(given)!r} cannot be used: {e.strerror}; choose a folder that can be written"
        ) from e


def shared_folder(cacheDir: str | None = None) -> Path | None:
    """The folder named by the option or, by default, by the conf `spark.sparkdiff.cacheDir`; created if missing.

    None if neither is set and a temporary folder is sufficient, because Spark runs on one machine.

    Raises:
        InputError: a temporary folder is not sufficient; or Spark has no file system for the folder, or it cannot be
            written.
    """
    spark = session()
    given = cacheDir or spark.conf.get("spark.sparkdiff.cacheDir", None)
    if given is None:
        master = spark.conf.get("spark.master", None) or ""
        if not master.startswith("local"):
            raise InputError(
                f"cacheDir is unset and the master is {master}: set cacheDir (or conf spark.sparkdiff.cacheDir) to a folder in "
                "which Spark and this process see the same files, or to one on a file system that Spark knows (s3a://..., hdfs://...)"
            )
        return None
    path = folder("cacheDir", given)
    try:
        stores.make(path)
    except OSError as e:
        raise InputError(f"cacheDir={given!r} cannot be used: {e.strerror}; choose a folder that can be written") from e
    check_writable("cacheDir", given, path)
    return path


def sees(spark: SparkSession, folder: Path) -> bool:
    """True if Spark sees a file that this process writes to a folder. Runs no job."""
    if in_process(spark):
        return True
    with tempfile.NamedTemporaryFile(prefix="seen-by-spark-", dir=folder) as file:
        try:
            return bool(spark.read.text(paths.address(file.name)).columns)
        except PySparkException:
            return False


_scratch: contextvars.ContextVar[Path | None] = contextvars.ContextVar("scratch", default=None)


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[None]:
    """Make `rebuild` write temporary files below this folder, which Spark must see too, within this context."""
    token = _scratch.set(folder)
    try:
        yield
    finally:
        _scratch.reset(token)


def scratch_folder() -> Path | None:
    """The folder of `scratch`, else `shared_folder`; None if a temporary folder is sufficient."""
    return _scratch.get() or shared_folder()


@contextlib.contextmanager
def temporary(prefix: str, inside: Path | None) -> Iterator[Path]:
    """Yield a new folder, and remove it at the end of this context. If it is the working copy of a folder in a store
    (`stores`), remove that folder, too.

    Args:
        inside: the parent folder; None for the system's temporary folder.
    """
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=inside))
    stores.make(path)
    try:
        yield path
    finally:
        stores.remove(path)
