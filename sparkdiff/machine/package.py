"""This package as a zip file that other processes can import without having it installed."""

import importlib.resources
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

DATE = (1980, 1, 1, 0, 0, 0)
"""The date of every entry, so that the same code gives the same file."""


def write_zip(path: Path, without: Collection[str] = ()) -> None:
    """Write sparkdiff's modules to a zip file.

    Args:
        without: folders to leave out, such as `sparkdiff/cli`.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        _add(archive, importlib.resources.files("sparkdiff"), "sparkdiff", without)


def _add(archive: zipfile.ZipFile, folder: Any, name: str, without: Collection[str]) -> None:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        inside = f"{name}/{entry.name}"
        if inside in without:
            continue
        if entry.is_dir():
            _add(archive, entry, inside, without)
        elif entry.name.endswith(".py"):
            archive.writestr(zipfile.ZipInfo(inside, DATE), entry.read_bytes(), zipfile.ZIP_DEFLATED)
