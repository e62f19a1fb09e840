"""Folders on any file system that Spark supports (a "store"): HDFS, S3, ADLS, GCS and others, through Hadoop's own API
on the driver.

Such a folder has a working copy on the driver's local disk. All working copies lie in one tree of folders,
in which each path corresponds to one URL. Python reads and writes the copy, Spark reads and writes the URL, and `fetch`
and `send` copy small files between the two. The tree lies in Spark's own temporary folder, which its JVM deletes when
it ends, even if the driver's Python was killed. If the JVM itself was killed, the next driver of this user on the
machine deletes the tree.
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
from sparkdiff.jvm.java_objects import packages
from sparkdiff.jvm.sessions import SparkError, in_process, session
from sparkdiff.machine import atomic_files, paths, processes

URL = re.compile(r"([A-Za-z][\w+.-]*):(?://([^/]*))?(/.*)?")
CODES = (
    (errno.ENOSPC, r"No space left|[Qq]uota|not enough space"),
    (errno.EEXIST, r"AlreadyExists|AlreadyBeingCreated"),
    (errno.ENOENT, r"FileNotFound|NoSuchFile|does not exist"),
    (errno.EROFS, r"[Rr]ead-?only"),
    (errno.EACCES, r"AccessControl|AccessDenied|[Pp]ermission|denied|[Ff]orbidden|\b403\b"),
)
"""Error numbers (errno) for failed calls of Java, each with a pattern for the class and message of the exception."""


@contextlib.contextmanager
def as_store_error(url: str) -> Iterator[None]:
    """Turn an error of Java in this context into a StoreError that names the URL."""
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


def open_file_system(url: str) -> tuple[Any, Any, Any]:
    """Hadoop's FileSystem, Path and settings for a URL.

    Raises:
        StoreError: the scheme has no file system.
    """
    spark: Any = session()
    with as_store_error(url):
        path = java_files().Path(url)
        settings = spark._jsparkSession.sessionState().newHadoopConf()
        return path.getFileSystem(settings), path, settings


@contextlib.contextmanager
def in_store(url: str) -> Iterator[tuple[Any, Any]]:
    """Yield Hadoop's FileSystem and Path for a URL; an error of Java in this context becomes a StoreError that names
    the URL.
    """
    system, path, _ = open_file_system(url)
    with as_store_error(url):
        yield system, path


def store_url(option: str, given: str) -> str | None:
    """Qualified URL of a folder on a file system of Hadoop that an option names; None for a folder of this machine.

    A relative path belongs to `fs.defaultFS`, as everywhere in Spark; if that is the local file system, to this
    machine. An absolute path without a scheme belongs to this machine (or to a mount, such as `/dbfs` or `/Volumes`).

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
        system, path, _ = open_file_system(given)
    except StoreError as e:
        raise InputError(
            f"{option}={given!r} can't be used, as Spark has no file system for it ({e.strerror}): add its jar "
            "(spark.jars.packages) and its settings (spark.hadoop.*), or choose another folder"
        ) from e
    url = str(system.makeQualified(path).toString())
    return None if url.startswith("file:") and known is None else url


def check_writable(option: str, given: str, url: str) -> None:
    """Raise InputError if nothing can be written to a folder. The check writes to the folder itself, because its
    parents may be read-only, and removes the folders that it creates.
    """
    try:
        with in_store(url) as (system, path):
            made, above = [java_files().Path(path, f".sparkdiff-{uuid.uuid4().hex[:8]}")], path
            while above is not None and not system.exists(above):
                made, above = [*made, above], above.getParent()
            if not system.mkdirs(made[0]):
                raise StoreError(errno.EACCES, f"nothing can be created in {path.toString()}", url)
            for folder in made:  # except one that another process has written to meanwhile
                if not len(system.listStatus(folder)):
                    system.delete(folder, False)
    except StoreError as e:
        raise InputError(f"{option}={given!r} cannot be used: {e.strerror}; choose a folder that can be written") from e


NO_HOST = "-"
"""Name in place of the host, in the tree of working copies, for a URL without a host."""


OWNER = ".owner"
"""The file of a tree that names the JVM to which it belongs."""


@functools.cache
def _tree(application: Any) -> Path:
    root = Path(application._temp_dir).resolve() / "stores"
    with contextlib.suppress(OSError):  # a full disk, on which writing to the tree will fail, too
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
    """Path of the working copy of a URL."""
    found, root = URL.fullmatch(url), tree()
    assert found is not None and root is not None
    return root / found[1].lower() / (found[2] or NO_HOST) / (found[3] or "/").lstrip("/")


def url_of(path: str | Path) -> str | None:
    """URL of which this path is the working copy; None for any other path."""
    if "stores" not in Path(path).parts or (root := tree()) is None or not Path(path).is_relative_to(root):
        return None
    scheme, host, *rest = *Path(path).relative_to(root).parts, "", ""
    rest = [part for part in rest if part]
    if not host:
        raise InputError(f"{path} is above all folders of a store: choose a folder below the root of the store")
    return f"{scheme}://{'' if host == NO_HOST else host}/{'/'.join(rest)}"


def path_or_url(path: Path) -> str:
    """A path in the form that users know: for a working copy its URL."""
    return url_of(path) or str(path)


def address(path: str | Path) -> str:
    """URL to which Spark writes the files of a local path."""
    return url_of(path) or f"file://{path}"


def local_of(where: str) -> Path:
    """Local path of a URL from `address`."""
    return Path(where.removeprefix("file://")) if where.startswith("file:/") else working(where)


def readable(path: str | Path) -> str:
    """URL with which Spark's readers, which treat every path as a glob, find the files of a path or URL."""
    url = url_of(path)
    return paths.address(path) if url is None else paths.by_name(url)


def fetch(path: Path) -> Path:
    """Copy a file or folder from the store over its working copy; does nothing for a path of this machine.

    Raises:
        StoreError: it does not exist, or cannot be read.
        OSError: the local disk is full.
    """
    if (url := url_of(path)) is not None:
        system, there, _ = open_file_system(url)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_files.temporary(path) as part:  # a copy that exists must be complete
            with as_store_error(url):
                system.copyToLocalFile(False, there, java_files().Path(f"file://{part}"), True)
            atomic_files.remove(path)
            os.rename(part, path)
    return path


def take(path: Path) -> Path:
    """Move files from the store to their working copy: `fetch` them and delete them from the store. For files that
    Spark has written only for this process.
    """
    fetch(path)
    delete(path)
    return path


def fetch_folder(where: str) -> Path | None:
    """Path on this machine of the folder at a path or URL, fetched if necessary; None if it does not exist."""
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
    """Size in bytes of all files in a folder; if it is a working copy, of those in the store."""
    url = url_of(path)
    if url is None:
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    with in_store(url) as (system, there):
        return int(system.getContentSummary(there).getLength())


def send(path: Path) -> None:
    """Copy a file or a folder of the working copy to the store. A file is replaced as a whole, see `_replace`.

    Raises:
        StoreError: the store refuses it.
    """
    url = url_of(path)
    if url is None:
        return
    system, there, settings = open_file_system(url)
    java = java_files()
    here = java.Path(f"file://{path}")
    with as_store_error(url):
        if path.is_dir():
            system.delete(there, True)
            system.mkdirs(there.getParent())
            system.copyFromLocalFile(False, True, here, there)
            return
        part = java.Path(there.getParent(), atomic_files.hidden(path).name)
        try:
            system.copyFromLocalFile(False, True, here, part)
            _replace(system, part, there, settings)
        finally:
            system.delete(part, False)


def _replace(system: Any, part: Any, there: Any, settings: Any) -> None:
    """Replace the file `there` by the file `part`, with a rename. This is atomic if the file system's rename is (as in
    HDFS); object stores copy the object. A store without Hadoop's FileContext deletes `there` first.
    """
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
    """Names of the entries of a folder, sorted; empty if it doesn't exist."""
    url = url_of(path)
    if url is None:
        return sorted(os.listdir(path)) if path.is_dir() else []
    with in_store(url) as (system, there):
        if not system.exists(there):
            return []
        return sorted(str(status.getPath().getName()) for status in system.listStatus(there))


def exists(path: Path) -> bool:
    """True if a file or folder exists, in the store if the path is that of a working copy."""
    url = url_of(path)
    if url is None:
        return path.exists()
    with in_store(url) as (system, there):
        return bool(system.exists(there))


def read(path: Path) -> bytes | None:
    """Content of a small file, read from the store without a working copy if the path belongs to one; None if it
    doesn't exist.
    """
    if (url := url_of(path)) is None:
        return path.read_bytes() if path.is_file() else None
    with in_store(url) as (system, there):
        if not system.exists(there):
            return None
        with contextlib.closing(system.open(there)) as stream:
            return bytes(packages().org.apache.commons.io.IOUtils.toByteArray(stream))


def create(path: Path, content: bytes) -> bool:
    """Write a small file to the store unless it exists. Returns whether it was written. If several processes try, at
    most one succeeds, provided that the store can ensure this.
    """
    try:
        with in_store(str(url_of(path))) as (system, there), contextlib.closing(system.create(there, False)) as stream:
            stream.write(bytearray(content))
    except StoreError as e:
        if e.errno == errno.EEXIST:
            return False
        raise
    return True


def overwrite(path: Path, content: bytes) -> None:
    """Overwrite a small file in the store. Meanwhile the file may be empty for a moment, but it never disappears.

    Raises:
        StoreError: the store refuses it.
    """
    with in_store(str(url_of(path))) as (system, there), contextlib.closing(system.create(there, True)) as stream:
        stream.write(bytearray(content))


def modification_time(path: Path) -> int | None:
    """Modification time of a file in the store, in milliseconds of the store's clock; None if it doesn't exist."""
    with in_store(str(url_of(path))) as (system, there):
        return int(system.getFileStatus(there).getModificationTime()) if system.exists(there) else None


def make(path: Path, *, private: bool = True) -> None:
    """Make a folder, in the store too.

    Args:
        private: whether only its user may read it, if the store has permissions.

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
    """Rename a file or folder in the store, to a name that doesn't exist yet. Renaming a folder may not be atomic.

    Raises:
        StoreError: it cannot be renamed.
    """
    url, target = url_of(path), url_of(other)
    if url is None or target is None:
        os.rename(path, other)
        return
    with in_store(url) as (system, there):
        goal = open_file_system(target)[1]
        system.mkdirs(goal.getParent())
        # If the target were an existing folder, `rename` would move the source into it.
        if system.exists(goal) or not system.rename(there, goal):
            raise StoreError(errno.EIO, f"it cannot be renamed to {target}", url)


def write(path: Path, content: bytes) -> None:
    """Write a file to its local path and, if it belongs to a store, send it there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.write_bytes(content)
    send(path)


def remove(path: Path) -> None:
    """Remove a file or folder, from the store too; errors are ignored."""
    forget(path)
    atomic_files.remove(path)


def forget(path: Path) -> None:
    """Remove a file or folder from the store only; errors are ignored."""
    with contextlib.suppress(StoreError, InputError, *SparkError):  # if the session has ended, its tree is gone, too
        delete(path)


def delete(path: Path) -> None:
    """Remove a file or folder from the store only.

    Raises:
        StoreError: the store refuses it.
    """
    if (url := url_of(path)) is not None:
        with in_store(url) as (system, there):
            if system.exists(there) and not system.delete(there, True):
                raise StoreError(errno.EIO, "it cannot be deleted", url)


def remove_empty(path: Path) -> None:
    """Remove a folder if it is empty, from the store too; errors are ignored."""
    with contextlib.suppress(OSError):  # something is in it
        path.rmdir()
        if (url := url_of(path)) is not None and exists(path) and not names(path):
            with in_store(url) as (system, there):
                system.delete(there, False)
