"""The class archive of this machine: Java maps Spark's classes from one file instead of reading and checking each at
every start.

It is an application class data sharing archive (JEP 350). If an archive doesn't match Java's version or the jars, Java
itself refuses it, and starts without it.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyspark
from pyspark.find_spark_home import _find_spark_home

from sparkdiff.errors import InputError
from sparkdiff.machine import atomic_files

MAGIC = (0xF00BABA8).to_bytes(4, sys.byteorder)
"""First bytes of an archive (HotSpot's CDS_DYNAMIC_ARCHIVE_MAGIC); Java writes them last."""
WRITE = "-XX:ArchiveClassesAtExit"
ELSEWHERE = ("HADOOP_CONF_DIR", "YARN_CONF_DIR", "SPARK_REMOTE", "PYSPARK_GATEWAY_PORT", "PYSPARK_GATEWAY_SECRET")
SILENT = "-Xlog:cds=off -Xlog:cds+dynamic=off"
"""Options that suppress Java's messages about an archive that it doesn't use."""


def place(java: str) -> Path:
    """Path of the archive for a Java and this Spark, whether it exists or not.

    Args:
        java: Java's version text.
    """
    said = [
        line for line in java.splitlines() if "Picked up" not in line
    ]  # options from variables, not part of the version
    key = hashlib.sha256("\n".join([*said, _find_spark_home(), pyspark.__version__]).encode()).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "sparkdiff" / f"spark-{pyspark.__version__}-{key}.jsa"


def archive_option(java: str) -> str:
    """JVM option that makes a Java use its archive; empty if no usable archive exists.

    Args:
        java: Java's version text, as `check_java` returns it; empty if this process starts no Java.
    """
    if not java or WRITE in os.environ.get("SPARK_SUBMIT_OPTS", ""):
        return ""
    try:
        where = place(java)
        there = where.exists() and _folder_with_files() is None
    except (OSError, RuntimeError):  # no home folder, or one that this user may not read
        return ""
    return f'-XX:SharedArchiveFile="{where}" {SILENT}' if there else ""


def write_archive(program: Sequence[str], java: str) -> Path:
    """Run a Python program that starts Spark, and archive the classes that it loads. Returns the archive's path.

    Args:
        program: arguments of Python. The output of the program and its JVM is shown only if they fail.
        java: Java's version text.

    Raises:
        InputError: the class path has a folder with files, for which Java writes no archive; the user's cache folder
            cannot be written; or no archive was written, for example by a Java that writes none.
    """
    if folder := _folder_with_files():
        way = "unset SPARK_CONF_DIR" if os.environ.get("SPARK_CONF_DIR") else "set SPARK_CONF_DIR to an empty folder"
        raise InputError(
            f"Java archives no classes, because {folder}, a folder with files, is on its class path: {way}, or go on "
            "without an archive"
        )
    try:
        where = place(java)
        where.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as e:
        raise InputError(
            f"the user's cache folder cannot be written ({e}): set XDG_CACHE_HOME to another folder"
        ) from e
    # The program gets its own JVM, without folders of a cluster's settings on the class path.
    kept = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    with atomic_files.temporary(where) as part:
        told = f'{WRITE}="{part}" {SILENT} {os.environ.get("SPARK_SUBMIT_OPTS", "")}'
        # This waits for the JVM too, which has the same streams.
        done = subprocess.run(
            [sys.executable, *program], env={**kept, "SPARK_SUBMIT_OPTS": told}, capture_output=True, text=True
        )
        if done.returncode or not _complete(part):
            said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise InputError(
                f"no archive was written; it needs Java 17 or later, and 500 MB in {where.parent}:\n{said}"
            )
        os.replace(part, where)
    return where


def _complete(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _folder_with_files() -> Path | None:
    """Folder of Spark's settings, which is on the class path, if it has files; else None."""
    folder = Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home()) / "conf")
    return folder if folder.is_dir() and any(folder.iterdir()) else None
