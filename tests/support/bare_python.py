"""Pythons that lack packages of this environment, and ours."""

import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement


def python_without(folder: Path, *packages: str) -> str:
    """A Python with this environment's packages, but for those and for ours."""
    return _python(folder, lambda name: name not in packages)


def python_with(folder: Path, *packages: str) -> str:
    """A Python with those of this environment's packages and what they require, nothing else."""
    tops: set[str] = set()
    waiting, seen = list(packages), set()
    while waiting:
        name = waiting.pop()
        try:
            found = distribution(name)
        except PackageNotFoundError:  # of another system, or optional
            continue
        if found.metadata["Name"] in seen:
            continue
        seen.add(found.metadata["Name"])
        tops |= {file.parts[0] for file in found.files or () if not file.parts[0].startswith("..")}
        required = map(Requirement, found.requires or ())
        waiting += [r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    return _python(folder, lambda name: name in {top.partition("-")[0] for top in tops})


def _python(folder: Path, takes: Callable[[str], bool]) -> str:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    there = next((folder / "lib").glob("python*")) / "site-packages"
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        name = entry.name.partition("-")[0]
        # An editable installation is a .pth file.
        if entry.suffix != ".pth" and name != "sparkdiff" and takes(name):
            (there / entry.name).symlink_to(entry)
    return str(folder / "bin" / "python")
