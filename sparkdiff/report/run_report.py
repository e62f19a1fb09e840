"""Reports of finished runs, made only from the files in the runs' output folders."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sparkdiff.errors import InputError, warn
from sparkdiff.machine.atomic_files import read_object
from sparkdiff.report.page import by_side, comparison, headline, number, page
from sparkdiff.report.sections import aligned

T = TypeVar("T")
REPORT, LINEAGE = "report.html", "lineage.json"


def report_of(folder: Path) -> str:
    """The report of a run as HTML.

    Raises:
        InputError: the folder holds no summary.json of a run.
    """
    summary = read_summary(folder)
    history, trials = (_read_whole(folder / name, _rows) or [] for name in ("history.csv", "trials.csv"))
    try:
        return page(
            summary,
            history,
            plan=_read_whole(folder / "plan.json", read_object),
            lineage=_read_whole(folder / LINEAGE, read_object),
            trials=trials,
            command=summary.get("command"),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise InputError(
            f"the files in {folder} are not those of a run of this version ({type(e).__name__}: {e})"
        ) from e


def write_report(folder: Path) -> None:
    """Write the report into a run folder. If it can't be made, only a warning is issued, so that the run is not lost."""
    try:
        (folder / REPORT).write_text(report_of(folder), encoding="utf-8")
    except Exception as e:
        why = e if isinstance(e, InputError) else repr(e)
        warn(f"the run has no {REPORT}: {why}; `sparkdiff report {folder}` tries again")


def comparison_of(folders: Sequence[Path]) -> str:
    """A comparison of runs as HTML.

    Raises:
        InputError: a folder holds no summary.json of a run.
    """
    return comparison(_summaries_by_name(folders))


def comparison_text(folders: Sequence[Path]) -> str:
    """A comparison of runs as text.

    Raises:
        InputError: a folder holds no summary.json of a run.
    """
    rows = [("run", "decision", "metric", "rows", "original", "new", "gain")]
    for name, s in _summaries_by_name(folders).items():
        sides = dict(by_side(s))
        side = next((k for k in ("test", "validation", "train") if k in sides), "")
        values = sides.get(side, {"before": None, "after": None})
        rows.append(
            (name, s["decision"], s["metric"], side, number(values["before"]), number(values["after"]), headline(s))
        )
    lines = aligned(rows, left=(0, 1, 2, 3))
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def _summaries_by_name(folders: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """The summaries of runs, by the names of their folders, or by the folders' paths if two folders have the same name."""
    names = [f.resolve().name for f in folders]
    shown = names if len(set(names)) == len(names) else [str(f) for f in folders]
    return {name: read_summary(folder) for name, folder in zip(shown, folders, strict=True)}


def read_summary(folder: Path) -> dict[str, Any]:
    """The content of summary.json.

    Raises:
        InputError: the file does not exist, or is not the summary of a run.
    """
    file = folder / "summary.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        there = "a folder without summary.json" if folder.is_dir() else "no folder"
        raise InputError(f"{folder} is {there}: name the output folder of a run") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{file} cannot be read: {e}") from e
    if not isinstance(found, dict) or not {"decision", "metric", "reason"} <= found.keys():
        raise InputError(f"{file} is not the summary of a run of sparkdiff: it has no decision, metric and reason")
    return found


def _read_whole(file: Path, read: Callable[[Path], T]) -> T | None:
    """Read a file of a run; return None if it does not exist or, with a warning, if it is damaged."""
    try:
        return read(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, csv.Error) as e:
        warn(f"{file} is damaged, and is left out of the report: {e}")
        return None


def _rows(file: Path) -> list[dict[str, Any]]:
    """Rows of a CSV table; numbers become numbers, empty cells None."""
    with file.open(newline="", encoding="utf-8") as lines:
        return [{k: _value(v) for k, v in row.items()} for row in csv.DictReader(lines) if row]


def _value(text: str | None) -> Any:
    if not text:
        return None
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
