"""What the benchmarks share: their flags, where they ran, and the JSON that they write."""

import argparse
import atexit
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkdiff.report.run_record import versions

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "conf" / "bikeshare.yaml"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that knows --smoke and --out."""
    out = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    out.add_argument("--smoke", action="store_true", help="run every arm once on little data, without bounds")
    out.add_argument("--out", type=Path, metavar="FILE", help="where to write the results as JSON")
    return out


def parse(parser: argparse.ArgumentParser, **smoke: Any) -> argparse.Namespace:
    """The options of the command line; with --smoke those that are not given are as small as `smoke` says."""
    if "--smoke" in sys.argv[1:]:
        parser.set_defaults(**smoke)
    return parser.parse_args()


def processor() -> str:
    if (cpus := Path("/proc/cpuinfo")).exists():
        for line in cpus.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def surroundings() -> dict[str, Any]:
    """When, on which machine and with which versions this runs."""
    commit = ""
    if shutil.which("git"):
        describe = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "machine": {
            "processor": processor(),
            "cores": cores,
            "memoryGiB": round(memory, 1),
            "system": platform.system(),
        },
        "versions": versions(),
    }


def earlier(given: argparse.Namespace) -> Any:
    """The results that an earlier run wrote to --out, None if there are none."""
    return json.loads(given.out.read_text())["results"] if given.out and given.out.exists() else None


def read_lines(file: Path | None) -> list[dict[str, Any]]:
    """What an earlier run wrote to this file of JSON lines; nothing where there is none."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file and file.exists() else []


def append_lines(file: Path | None, *lines: Mapping[str, Any]) -> None:
    """Add them to a file of JSON lines, if it is given: in one call, so that processes do not mix theirs."""
    if file:
        with file.open("ab", buffering=0) as out:
            out.write("".join(f"{json.dumps(line)}\n" for line in lines).encode())


def folder_of(given: argparse.Namespace) -> Path:
    """--folder, or one that is deleted at the end."""
    if given.folder:
        return Path(given.folder.resolve())
    name = Path(tempfile.mkdtemp(prefix="sparkdiff-benchmark-"))
    atexit.register(shutil.rmtree, name, ignore_errors=True)
    return name


def write(given: argparse.Namespace, results: Any, figures: Mapping[str, float]) -> None:
    """Write the results to --out, if it is given; `figures` are those that a later run is compared with."""
    if given.out:
        chosen = {k: str(v) if isinstance(v, Path) else v for k, v in vars(given).items()}
        report = {**surroundings(), "options": chosen, "figures": dict(figures), "results": results}
        given.out.write_text(json.dumps(report, indent=1) + "\n")


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return "\n".join([lines[0], "|---" * len(head) + "|", *lines[1:]])


def lightgbm_settings(trial: Any) -> dict[str, Any]:
    """Settings of LightGBM that Optuna suggests for a trial."""
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.02, 0.3, log=True),
        "num_leaves": trial.suggest_int("num_leaves", 4, 128, log=True),
        "min_data_in_leaf": trial.suggest_int("min_data_in_leaf", 5, 100, log=True),
        "feature_fraction": trial.suggest_float("feature_fraction", 0.4, 1.0),
        "bagging_fraction": trial.suggest_float("bagging_fraction", 0.5, 1.0),
        "bagging_freq": 1,
        "lambda_l2": trial.suggest_float("lambda_l2", 1e-3, 100.0, log=True),
    }


def exit_code(given: argparse.Namespace, missed: object) -> int:
    """1 where a bound is missed; the small data of --smoke are held against none."""
    if given.smoke:
        print("\nA smoke run: on so little data no bound counts, and no figure.")
    return int(bool(missed) and not given.smoke)
