"""Checks whether runs will work on this machine; each problem is reported with a remedy. Only temporary files are
written.
"""

import dataclasses
import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyspark
from packaging.requirements import Requirement
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.data.loading import start_session
from sparkdiff.errors import InputError
from sparkdiff.history.caches import DAY, entries_below, table
from sparkdiff.machine import atomic_files, paths, secrets

OK, NOTE, PROBLEM = "ok", "note", "problem"
LEAST_SPACE = 2e9
"""Free bytes of a disk below which a typical cache may not fit."""
PYTHONS = ((3, 10), (3, 13))
"""The oldest and the newest tested version of Python."""


@dataclasses.dataclass(frozen=True)
class Finding:
    """The result of a check.

    Attributes:
        name: the thing that was checked.
        state: "ok"; "note" (runs work nevertheless); or "problem" (some runs do not work).
        found: the result, as text.
        remedy: text on what to do, also to improve what works; empty if there is nothing to do.
    """

    name: str
    state: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.name:<10} {self.found}"
        return f"{line}\n{'':<20}{self.remedy}" if self.remedy else line


def run_checks(folder: str | None = None, *, start: bool = True) -> Iterator[Finding]:
    """Run all checks, and yield each finding as soon as it is known.

    Args:
        folder: folder of caches and outputs to check: a path whose files Spark and this process must both see, or a URL
            to which Spark must be able to write; by default the system's temporary folder.
        start: also start Spark and let it write a file, which takes some seconds.
    """
    for check in (_python, _packages, _java, _spark, _torch, _petastorm):
        yield from check()
    given = folder or tempfile.gettempdir()
    if (where := paths.local(given)) is not None:
        yield from _disk(where.absolute())
        yield from _caches(where if folder else Path.cwd())
    if start:
        yield from _session(given)


def _python() -> Iterator[Finding]:
    (oldest, newest), version = PYTHONS, sys.version_info[:2]
    told = f"{sys.version.split()[0]} ({sys.executable})"
    if version < oldest or version > newest:
        names = " to ".join(".".join(map(str, v)) for v in PYTHONS)
        yield Finding("Python", PROBLEM if version < oldest else NOTE, told, f"use Python {names}, which are tested")
    else:
        yield Finding("Python", OK, told)


def _packages() -> Iterator[Finding]:
    """Check the requirements of sparkdiff, from its own metadata."""
    try:
        needed = importlib.metadata.requires("sparkdiff") or []
    except importlib.metadata.PackageNotFoundError:
        way = "install it where its versions are to be checked: pip install ."
        yield Finding("packages", NOTE, "sparkdiff is not installed, but found on the Python path", way)
        return
    wrong = [text for need in map(Requirement, needed) if (text := _unmet(need))]
    if wrong:
        yield Finding(
            "packages", PROBLEM, "; ".join(wrong), "install sparkdiff again, with a constraints file (docs/versions.md)"
        )
    else:
        yield Finding("packages", OK, f"sparkdiff {importlib.metadata.version('sparkdiff')} and all that it needs")


def _unmet(need: Requirement) -> str:
    """The problem with a requirement, as text; empty if it is met, or if only an optional extra needs it."""
    if need.marker is not None and not need.marker.evaluate({"extra": ""}):
        return ""
    try:
        version = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{need.name} is missing"
    return (
        ""
        if need.specifier.contains(version, prereleases=True)
        else f"{need.name} is {version}, needed is {need.specifier}"
    )


def _java() -> Iterator[Finding]:
    try:
        java = jvm.check_java()
    except InputError as e:
        found, _, remedy = str(e).partition(": ")
        yield Finding("Java", PROBLEM, found, remedy)
        return
    if not java:
        yield Finding("Java", OK, "chosen by Spark's own scripts (spark-submit, spark-env.sh, or a session that runs)")
        return
    version, place = re.search(r'version "([^"]+)"', java), os.environ.get("JAVA_HOME") or "on PATH"
    told = f"{version[1] if version else java.splitlines()[0]} ({place})"
    quick = bool(jvm.archive_option(java))
    yield Finding(
        "Java", OK, told, "" if quick else "`sparkdiff prepare`, once, halves the time that Spark takes to start"
    )


def _spark() -> Iterator[Finding]:
    version, home = pyspark.__version__, os.environ.get("SPARK_HOME")
    jars = [*Path(home, "jars").glob("spark-core_*.jar")] if home else []
    other = jars[0].stem.rpartition("-")[2] if jars else version
    if other != version:
        remedy = f"unset SPARK_HOME, or install pyspark=={other}"
        yield Finding("Spark", PROBLEM, f"pyspark {version}, but SPARK_HOME={home} is Spark {other}", remedy)
    else:
        yield Finding("Spark", OK, f"{version} ({Path(pyspark.__file__).parent})")


def _torch() -> Iterator[Finding]:
    try:
        torch: Any = importlib.import_module("torch")
    except (ImportError, OSError) as e:
        yield Finding(
            "torch",
            PROBLEM,
            f"cannot be imported: {e}",
            "pip install torch (docs/versions.md names the index of CPU wheels)",
        )
        return
    yield Finding("torch", OK, f"{torch.__version__}, {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        gpus = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        yield Finding("CUDA", OK, gpus)
    elif shutil.which("nvidia-smi"):
        remedy = "for training on it, install a torch with CUDA, and a driver that is new enough (docs/gpu.md)"
        yield Finding("CUDA", NOTE, "there is an NVIDIA driver, but torch sees no GPU", remedy)
    else:
        yield Finding("CUDA", OK, "no GPU: training runs on the CPU")


def _petastorm() -> Iterator[Finding]:
    try:
        version = importlib.metadata.version("petastorm")
    except importlib.metadata.PackageNotFoundError:
        yield Finding("Petastorm", OK, "not installed: Arrow reads the cache, with the same batches")
        return
    try:
        importlib.import_module("petastorm.pyarrow_helpers.batching_table_queue")
        importlib.import_module("petastorm.reader")
    except Exception as e:
        remedy = "pip install 'sparkdiff[petastorm]', which brings the versions that it needs; or set stream=arrow"
        yield Finding("Petastorm", PROBLEM, f"{version} cannot be imported: {type(e).__name__}: {e}", remedy)
    else:
        yield Finding("Petastorm", OK, version)


def _disk(folder: Path) -> Iterator[Finding]:
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    told = f"{free / 1e9:.1f} GB free for {folder}"
    remedy = "make room, or set cacheDir and output to folders of a larger disk (--path checks another one)"
    yield Finding("disk", NOTE if free < LEAST_SPACE else OK, told, remedy if free < LEAST_SPACE else "")
    if not os.access(existing, os.W_OK):
        yield Finding("disk", PROBLEM, f"{folder} cannot be written", "choose a folder that this user may write")


def _caches(folder: Path) -> Iterator[Finding]:
    """Report the caches in a folder and the caches of jobs below it."""
    if found := entries_below(folder):
        old, places = max(item.age for item in found) / DAY, sorted({str(item.path.parent) for item in found})
        yield Finding(
            "caches",
            OK,
            f"{table(found)[-1]} in {', '.join(places)}, the oldest unused for {old:.1f} days",
            "they hold rows: `sparkdiff cache list` shows them; `cache prune` or the option cacheMaxAge removes old ones",
        )


def _session(given: str) -> Iterator[Finding]:
    """Check that Spark starts and can write to a folder."""
    begun = time.perf_counter()
    try:
        spark = start_session({}, size=0)
    except Exception as e:
        remedy = "look for Spark's own message above; the findings about Java and Spark come first"
        yield Finding("session", PROBLEM, f"Spark does not start: {jvm.cause(e) or e}", remedy)
        return
    master = spark.conf.get("spark.master", None) or "Spark Connect"
    yield Finding("session", OK, f"{master}, started in {time.perf_counter() - begun:.1f} s")
    folder = paths.local(given)
    yield from _store(given) if folder is None else _folder(spark, folder.absolute())


def _store(given: str) -> Iterator[Finding]:
    """Check that Spark has a file system for a URL, and can write there."""
    try:
        jvm.check_writable("--path", given, jvm.folder("--path", given))
    except InputError as e:
        yield Finding("paths", PROBLEM, str(e), "set cacheDir and output to a folder to which Spark can write")
    else:
        yield Finding("paths", OK, secrets.redacted(f"Spark can write to {given}"))


def _folder(spark: SparkSession, folder: Path) -> Iterator[Finding]:
    """Check that Spark can write a file to a folder of this machine, and that this process sees it."""
    place = folder / "sparkdiff-doctor"
    with atomic_files.remove_empty_folders_above(place), atomic_files.temporary(place) as where:
        try:
            spark.range(1).write.parquet(paths.address(str(where)))
            seen, why = (
                any(where.glob("*.parquet")),
                f"Spark wrote a file to {folder}, and this process does not see it",
            )
        except jvm.SparkError as e:
            seen, why = False, f"Spark cannot write to {folder}: {jvm.cause(e)}"
    if seen:
        yield Finding("paths", OK, f"Spark and this process see the same files in {folder}")
    else:
        yield Finding(
            "paths", PROBLEM, why, "set cacheDir and output to a folder that all machines share (--path checks it)"
        )
