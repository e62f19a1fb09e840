"""The class archive of this machine: Java maps Spark's classes from one file, where it would read and check each at every start.

An application class data sharing archive (JEP 350). Java itself refuses one that doesn't fit its version or the jars, and starts
without it.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pyspark
from pyspark.find_spark_home import _find_spark_home

from sparkdiff.errors import InputError

MAGIC = (0xF00BABA8).to_bytes(4, sys.byteorder)
"""What an archive begins with (HotSpot's CDS_DYNAMIC_ARCHIVE_MAGIC); Java writes it last."""
SILENT = "-Xlog:cds=off -Xlog:cds+dynamic=off"
"""Java says nothing of an archive that it doesn't use."""


def place() -> Path:
    """Where the archive of this Java and this Spark lies, if it was written."""
    home = os.environ.get("JAVA_HOME")
    java = Path(shutil.which(f"{home}/bin/java" if home else "java") or "java")
    parts = [java.resolve(), java.stat().st_mtime_ns if java.exists() else 0, _find_spark_home(), pyspark.__version__]
    key = hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:12]
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "sparkdiff" / f"spark-{pyspark.__version__}-{key}.jsa"


def archive_option() -> str:
    """The Java option that uses the archive; empty if there is none that Java could use."""
    where = place()
    return f'-XX:SharedArchiveFile="{where}" {SILENT}' if where.exists() and _folder_with_files() is None else ""


def write_archive(program: Sequence[str]) -> Path:
    """Run a Python program that starts Spark, and archive the classes that it loads.

    Args:
        program: arguments of Python. What it and its JVM print is shown only if they fail.

    Raises:
        InputError: this Java writes no archive, or not for a class path such as this one.
    """
    if folder := _folder_with_files():
        raise InputError(
            f"Java archives no classes where the class path has a folder with files, which {folder} is: unset "
            "SPARK_CONF_DIR, or go on without an archive"
        )
    where = place()
    where.parent.mkdir(parents=True, exist_ok=True)
    part = where.with_name(f".{where.name}.{os.getpid()}")
    told = f'-XX:ArchiveClassesAtExit="{part}" {SILENT} {os.environ.get("SPARK_SUBMIT_OPTS", "")}'
    try:
        # Ends when the JVM, which has the same streams, has ended too.
        done = subprocess.run(
            [sys.executable, *program], env={**os.environ, "SPARK_SUBMIT_OPTS": told}, capture_output=True, text=True
        )
        if done.returncode or not _complete(part):
            said = "\n".join((done.stdout + done.stderr).splitlines()[-20:])
            raise InputError(
                f"no archive was written; it needs Java 17 or later, and 500 MB in {where.parent}:\n{said}"
            )
        os.replace(part, where)
    finally:
        part.unlink(missing_ok=True)
    return where


def _complete(path: Path) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def _folder_with_files() -> Path | None:
    """The folder of Spark's settings, which is on the class path, if it has files."""
    folder = Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home()) / "conf")
    return folder if folder.is_dir() and any(folder.iterdir()) else None
