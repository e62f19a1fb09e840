"""Hadoop's file systems: the handle of a URL, Java's errors as OSErrors, and whether a folder can be used."""

import contextlib
import errno
import os
import re
import uuid
from collections.abc import Iterator
from typing import Any

from py4j.protocol import Py4JJavaError

from sparkdiff.errors import InputError, StoreError
from sparkdiff.jvm.objects import packages
from sparkdiff.jvm.sessions import in_process, session
from sparkdiff.machine import paths

URL = re.compile(r"([A-Za-z][\w+.-]*):(?://([^/]*))?(/.*)?")
CODES = (
    (errno.ENOSPC, r"No space left|[Qq]uota|not enough space"),
    (errno.EEXIST, r"AlreadyExists|AlreadyBeingCreated"),
    (errno.ENOENT, r"FileNotFound|NoSuchFile|does not exist"),
    (errno.EROFS, r"[Rr]ead-?only"),
    (errno.EACCES, r"AccessControl|AccessDenied|[Pp]ermission|denied|[Ff]orbidden|\b403\b"),
)
"""The system's numbers for what Java says of a failed call, by its class and its message."""


@contextlib.contextmanager
def as_store_error(url: str) -> Iterator[None]:
    """Within this context, Java's error is a StoreError that names the URL."""
    try:
        yield
    except Py4JJavaError as e:
        java = e.java_exception
        while java.getCause() is not None:
            java = java.getCause()
        message = str(java.getMessage() or java.getClass().getSimpleName()).strip().splitlines()[0].rstrip(".")
        said = f"{e.java_exception.getClass().getName()} {java.getClass().getName()} {message}"
        code = next((number for number, words in CODES if re.search(words, said)), errno.EIO)
        raise StoreError(code, message, url) from e


def java_files() -> Any:
    return packages().org.apache.hadoop.fs


def opened(url: str) -> tuple[Any, Any, Any]:
    """Hadoop's FileSystem, Path and settings of a URL.

    Raises:
        StoreError: there is none for this scheme.
    """
    spark: Any = session()
    with as_store_error(url):
        path = java_files().Path(url)
        settings = spark._jsparkSession.sessionState().newHadoopConf()
        return path.getFileSystem(settings), path, settings


@contextlib.contextmanager
def in_store(url: str) -> Iterator[tuple[Any, Any]]:
    """Within this context, Hadoop's FileSystem and Path of a URL; Java's error is a StoreError that names it."""
    system, path, _ = opened(url)
    with as_store_error(url):
        yield system, path


def located(option: str, given: str) -> str | None:
    """The URL of a folder on a file system of Hadoop that an option names, qualified; None for a folder of this machine.

    A relative path is one of `fs.defaultFS`, as everywhere in Spark; where that is the local file system, of this machine. An
    absolute path without a scheme is one of this machine (or of a mount, as `/dbfs` or `/Volumes`).

    Raises:
        InputError: Spark has no file system for the scheme, or it can't be reached from Python.
    """
    known = URL.match(given) if paths.local(given) is None else None
    if known is None and (os.path.isabs(os.path.expanduser(given)) or paths.local(given) is None or ":" in given):
        return None
    if not in_process(session()):
        if known is None:
            return None
        raise InputError(
            f"{option}={given!r}: through Spark Connect this process has no access to the server's file systems: choose a folder "
            "in which both see the same files"
        )
    try:
        system, path, _ = opened(given)
    except StoreError as e:
        raise InputError(
            f"{option}={given!r} can't be used, as Spark has no file system for it ({e.strerror}): add its jar "
            "(spark.jars.packages) and its settings (spark.hadoop.*), or choose another folder"
        ) from e
    url = str(system.makeQualified(path).toString())
    return None if url.startswith("file:") and known is None else url


def check_writable(option: str, given: str, url: str) -> None:
    """Raise InputError if nothing can be written to a folder. It is looked at itself, as those above may forbid what it allows; a
    folder that is created for it is removed again."""
    try:
        with in_store(url) as (system, path):
            made, above = [java_files().Path(path, f".sparkdiff-{uuid.uuid4().hex[:8]}")], path
            while above is not None and not system.exists(above):
                made, above = [*made, above], above.getParent()
            if not system.mkdirs(made[0]):
                raise StoreError(errno.EACCES, f"nothing can be created in {path.toString()}", url)
            for folder in made:  # none that another process has written to meanwhile
                if not len(system.listStatus(folder)):
                    system.delete(folder, False)
    except StoreError as e:
        raise InputError(f"{option}={given!r} cannot be used: {e.strerror}; choose a folder that can be written") from e
