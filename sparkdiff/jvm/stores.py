"""Folders on any file system that Spark knows: HDFS, S3, ADLS, GCS and others, by Hadoop's own API on the driver.

Such a folder has a working copy on the driver's local disk, in one tree of all of them, so that each path in this tree has one
URL. Python reads and writes the copy; Spark reads and writes the URL; `fetch` and `send` carry small files between them. The tree
lies in Spark's own temporary folder, which its JVM deletes when it ends, also after the driver's Python was killed. That of a JVM
which was itself killed is deleted by the next driver of this user on the machine.
"""

import contextlib
import errno
import functools
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark import SparkContext

from sparkdiff.errors import InputError, StoreError
from sparkdiff.jvm.objects import packages
from sparkdiff.jvm.sessions import SparkError, in_process, session
from sparkdiff.machine import paths, processes, whole

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


NO_HOST = "-"
"""In the tree of working copies, the name of the host of a URL that has none."""


OWNER = ".owner"
"""The file of a tree that names the JVM to which it belongs."""


@functools.cache
def _tree(application: Any) -> Path:
    root = Path(application._temp_dir).resolve() / "stores"
    with contextlib.suppress(OSError):  # a full disk, which what is to lie in the tree meets, too
        root.mkdir(mode=0o700, exist_ok=True)
        java = int(application._jvm.java.lang.ProcessHandle.current().pid())
        processes.write_owner(root / OWNER, java)
        for other in root.parents[2].glob(f"spark-*/pyspark-*/stores/{OWNER}"):
            if other.parent != root and processes.is_orphan(other):
                shutil.rmtree(other.parent, ignore_errors=True)
    return root


def tree() -> Path | None:
    """The tree of the working copies; None through Spark Connect, and in a process without a session."""
    try:
        spark = session()
    except InputError:
        return None
    return _tree(spark.sparkContext) if in_process(spark) else None


def working(url: str) -> Path:
    """Where the working copy of a URL lies."""
    found, root = URL.fullmatch(url), tree()
    assert found is not None and root is not None
    return root / found[1].lower() / (found[2] or NO_HOST) / (found[3] or "/").lstrip("/")


def url_of(path: str | Path) -> str | None:
    """The URL of which a path is the working copy; None for any other path."""
    if "stores" not in Path(path).parts or (root := tree()) is None or not Path(path).is_relative_to(root):
        return None
    scheme, host, *rest = *Path(path).relative_to(root).parts, "", ""
    rest = [part for part in rest if part]
    if not host:
        raise InputError(f"{path} is above all folders of a store: choose a folder below the root of the store")
    return f"{scheme}://{'' if host == NO_HOST else host}/{'/'.join(rest)}"


def named(path: Path) -> str:
    """A path as a user knows it: the URL of a working copy."""
    return url_of(path) or str(path)


def address(path: str | Path) -> str:
    """The URL to which Spark writes what belongs to a local path."""
    return url_of(path) or f"file://{path}"


def local_of(where: str) -> Path:
    """The local path of an address."""
    return Path(where.removeprefix("file://")) if where.startswith("file:/") else working(where)


def readable(path: str | Path) -> str:
    """The URL by which Spark's readers, which treat every path as a glob, find what belongs to a path or a URL."""
    url = url_of(path)
    return paths.address(path) if url is None else paths.by_name(url)


def fetch(path: Path) -> Path:
    """Copy what the store has, a file or a folder, over the working copy; nothing for a path of this machine.

    Raises:
        StoreError: it is not there, or cannot be read.
        OSError: the local disk is full.
    """
    if (url := url_of(path)) is not None:
        system, there, _ = opened(url)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with whole.temporary(path) as part:  # whoever finds the copy takes it for whole
            with as_store_error(url):
                system.copyToLocalFile(False, there, java_files().Path(f"file://{part}"), True)
            whole.remove(path)
            os.rename(part, path)
    return path


def take(path: Path) -> Path:
    """`fetch` what Spark has written for this process alone, and remove it from the store."""
    fetch(path)
    delete(path)
    return path


def brought(where: str) -> Path | None:
    """The folder at a path or URL, on this machine; None if it is not there."""
    local = paths.local(where)
    if local is not None:
        if url_of(local) is not None and not local.exists():
            return fetch(local) if exists(local) else None
        return local if local.is_dir() else None
    try:
        return fetch(working(where)) if URL.fullmatch(where) and tree() is not None else None
    except OSError:
        return None


def size(path: Path) -> int:
    """Bytes of all files of a folder, in the store if it is a working copy."""
    url = url_of(path)
    if url is None:
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    with in_store(url) as (system, there):
        return int(system.getContentSummary(there).getLength())


def send(path: Path) -> None:
    """Copy a file or a folder of the working copy to the store. A file is there whole, or as it was before.

    Raises:
        StoreError: the store refuses it.
    """
    url = url_of(path)
    if url is None:
        return
    system, there, settings = opened(url)
    java = java_files()
    here = java.Path(f"file://{path}")
    with as_store_error(url):
        if path.is_dir():
            system.delete(there, True)
            system.mkdirs(there.getParent())
            system.copyFromLocalFile(False, True, here, there)
            return
        part = java.Path(there.getParent(), whole.hidden(path).name)
        try:
            system.copyFromLocalFile(False, True, here, part)
            _replace(system, part, there, settings)
        finally:
            system.delete(part, False)


def _replace(system: Any, part: Any, there: Any, settings: Any) -> None:
    """Rename a file over another one: atomic where the file system's is (as HDFS), else a copy of one object."""
    java: Any = java_files()
    gateway: Any = SparkContext._gateway
    over = gateway.new_array(java.Options.Rename, 1)
    over[0] = java.Options.Rename.OVERWRITE
    try:
        java.FileContext.getFileContext(there.toUri(), settings).rename(part, there, over)
    except Py4JJavaError as e:
        if "Unsupported" not in e.java_exception.getClass().getName():  # a store without this newer interface
            raise
        system.delete(there, False)
        system.rename(part, there)


def names(path: Path) -> list[str]:
    """The names of what is in a folder, sorted; empty if it doesn't exist."""
    url = url_of(path)
    if url is None:
        return sorted(os.listdir(path)) if path.is_dir() else []
    with in_store(url) as (system, there):
        if not system.exists(there):
            return []
        return sorted(str(status.getPath().getName()) for status in system.listStatus(there))


def exists(path: Path) -> bool:
    """Whether there is a file or a folder, in the store if it is the path of a working copy."""
    url = url_of(path)
    if url is None:
        return path.exists()
    with in_store(url) as (system, there):
        return bool(system.exists(there))


def read(path: Path) -> bytes | None:
    """The content of a small file, of one in the store without a working copy; None if there is none."""
    if (url := url_of(path)) is None:
        return path.read_bytes() if path.is_file() else None
    with in_store(url) as (system, there):
        if not system.exists(there):
            return None
        with contextlib.closing(system.open(there)) as stream:
            return bytes(packages().org.apache.commons.io.IOUtils.toByteArray(stream))


def create(path: Path, content: bytes) -> bool:
    """Write a small file to the store unless there is one: at most one of several processes does, if the store can."""
    try:
        with in_store(str(url_of(path))) as (system, there), contextlib.closing(system.create(there, False)) as stream:
            stream.write(bytearray(content))
    except StoreError as e:
        if e.errno == errno.EEXIST:
            return False
        raise
    return True


def overwrite(path: Path, content: bytes) -> None:
    """Write a small file that may be empty for a moment, but is never gone.

    Raises:
        StoreError: the store refuses it.
    """
    with in_store(str(url_of(path))) as (system, there), contextlib.closing(system.create(there, True)) as stream:
        stream.write(bytearray(content))


def modified(path: Path) -> int | None:
    """When a file of the store was written, in milliseconds of the store's clock; None if there is none."""
    with in_store(str(url_of(path))) as (system, there):
        return int(system.getFileStatus(there).getModificationTime()) if system.exists(there) else None


def make(path: Path, *, private: bool = True) -> None:
    """Make a folder, in the store too.

    Args:
        private: only its user may read it, where the store has permissions.

    Raises:
        OSError: it cannot be made.
    """
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (url := url_of(path)) is not None:
        with in_store(url) as (system, there):
            mode = [java_files().permission.FsPermission("700")] if private else []
            if not system.exists(there) and not system.mkdirs(there, *mode):
                raise StoreError(errno.EACCES, "the folder cannot be created", url)


def rename(path: Path, other: Path) -> None:
    """Rename a file or a folder in the store, to a name that isn't there. Of a folder it may be seen half done.

    Raises:
        StoreError: it cannot be renamed.
    """
    url, target = url_of(path), url_of(other)
    if url is None or target is None:
        os.rename(path, other)
        return
    with in_store(url) as (system, there):
        goal = opened(target)[1]
        system.mkdirs(goal.getParent())
        # Into a folder that is there, it would be moved.
        if system.exists(goal) or not system.rename(there, goal):
            raise StoreError(errno.EIO, f"it cannot be renamed to {target}", url)


def write(path: Path, content: bytes) -> None:
    """Write a file, and send it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(content)
    send(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, in the store too; an error is passed over."""
    forget(path)
    whole.remove(path)


def forget(path: Path) -> None:
    """Remove a file or a folder from the store alone; an error is passed over."""
    with contextlib.suppress(StoreError, InputError, *SparkError):  # where the session has ended, its tree ends with it
        delete(path)


def delete(path: Path) -> None:
    """Remove a file or a folder from the store alone.

    Raises:
        StoreError: the store refuses it.
    """
    if (url := url_of(path)) is not None:
        with in_store(url) as (system, there):
            if system.exists(there) and not system.delete(there, True):
                raise StoreError(errno.EIO, "it cannot be deleted", url)


def remove_empty(path: Path) -> None:
    """Remove a folder if nothing is in it, from the store too; an error is passed over."""
    with contextlib.suppress(OSError):  # something is in it
        path.rmdir()
        if (url := url_of(path)) is not None and exists(path) and not names(path):
            with in_store(url) as (system, there):
                system.delete(there, False)
