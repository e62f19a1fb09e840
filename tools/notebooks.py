"""Runs the notebooks and stores their outputs; a cell that fails ends it.

    python tools/notebooks.py [NAME ...]            runs them, and writes their outputs into notebooks/
    python tools/notebooks.py --check [NAME ...]    runs them, and writes nothing

Without names all run. What is stored is the same on every machine but for the seconds that phases took: no paths, no dates, no
lines that Spark's JVM writes to stderr. Set SPARK_REMOTE=local to run them over Spark Connect.
"""

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SECONDS = 900
"""The most that a cell may take."""


def executed(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in a fresh kernel. What it writes to a temporary place goes to `folder`."""
    notebook = nbformat.read(path, as_version=4)
    os.environ.pop("SPARK_CONF_DIR", None)  # as a reader has it: without the settings of this repository
    os.environ |= {"TMPDIR": str(folder), "PYSPARK_PYTHON": sys.executable}
    os.environ.setdefault(
        "SPARK_LOCAL_DIRS", "/tmp"
    )  # the JVM ends, and clears its own place, a moment after the kernel
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    NotebookClient(
        notebook, timeout=SECONDS, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}
    ).execute()
    return notebook


def stored(notebook: nbformat.NotebookNode, folder: Path) -> nbformat.NotebookNode:
    """The notebook as it stands in the repository: without what belongs to a machine or to one run."""
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    uids: dict[str, str] = {}
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number}", {}
        if cell.cell_type == "code":
            shown = [output for output in cell.outputs if output.get("name") != "stderr"]
            cell.outputs = [portable(output, lambda text: cleaned(text, folder, uids)) for output in shown]
    return notebook


def portable(value: Any, change: Callable[[str], str]) -> Any:
    """An output with a change in all of its texts, and without the numbers of displays."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [portable(part, change) for part in value]
    if isinstance(value, dict):
        return nbformat.from_dict({k: portable(v, change) for k, v in value.items() if k != "transient"})
    return value


def cleaned(text: str, folder: Path, uids: dict[str, str]) -> str:
    """A text without the paths of this machine. The random ends of Spark's uids are numbered in the order of their appearance."""
    text = text.replace(str(folder), "/tmp").replace(f"{ROOT}/", "")
    text = re.sub(r"\b0x[0-9a-f]{8,}", "0x0", text)
    return re.sub(r"(?<=_)[0-9a-f]{12}\b", lambda found: uids.setdefault(found[0], f"{len(uids) + 1:012x}"), text)


def written(path: Path, notebook: nbformat.NotebookNode) -> None:
    temporary = path.with_suffix(".tmp")
    nbformat.write(notebook, temporary)
    temporary.replace(path)


def chosen(names: list[str]) -> Iterator[Path]:
    known = {path.stem: path for path in sorted(FOLDER.glob("*.ipynb"))}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no notebook {', '.join(unknown)}; there are {', '.join(known)}")
    yield from (known[name] for name in names or known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    for path in chosen(given.names):
        start = time.perf_counter()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            try:
                notebook = executed(path, Path(folder))
            except CellExecutionError as e:
                sys.exit(f"{path.name}: {re.sub(chr(27) + '[^m]*m', '', str(e))}")
            if not given.check:
                written(path, stored(notebook, Path(folder)))
        print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
