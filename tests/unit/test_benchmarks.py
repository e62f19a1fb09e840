"""Every benchmark still runs: those without Spark for each commit, all of them nightly; none is held against a bound."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import run_all

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.once
WITHOUT_SPARK = {
    "stream": [],
    "candidates": [],
    "guard_size": ["--cells", "500 rows"],
    "guard_size_metrics": ["--cells", "f1"],
}


def test_the_list_has_every_script() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - set(run_all.NO_BENCHMARK)
    assert scripts == {b.script for b in run_all.BENCHMARKS}


@pytest.mark.slow
@pytest.mark.parametrize("name", WITHOUT_SPARK)
def test_a_benchmark_runs_and_writes_what_it_found(name: str, tmp_path: Path) -> None:
    (benchmark,) = (b for b in run_all.BENCHMARKS if b.name == name)
    outcome = run_all.run(benchmark, tmp_path, ["--smoke", *WITHOUT_SPARK[name]])
    assert outcome.how == "ended", (tmp_path / f"{name}.txt").read_text()
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["figures"] == outcome.figures != {}
    assert report["machine"]["cores"] >= 1
    assert {"python", "torch"} <= set(report["versions"])


def test_the_table_holds_figures_beside_earlier_ones_and_what_was_not_run(tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_text(json.dumps({"figures": {"files": 2.0}}))
    absent = run_all.run(run_all.Benchmark("rival", "stream", needs=("no_such_package",)), tmp_path, [])
    outcomes = [run_all.Outcome("stream", "ended", 3.0, {"files": 1.0, "memory": 4.0}), absent]
    about = {
        "date": "2026-01-31", "commit": "abc", "machine": {"processor": "p", "cores": 2, "memoryGiB": 8, "system": "s"},
        "versions": {"torch": "2"}, "smoke": False, "hummingbird": None,
    }  # fmt: skip
    lines = run_all.page(outcomes, about, tmp_path).splitlines()
    assert "| stream | files | 1 | 2 | 0.50 |" in lines
    assert "| stream | memory | 4 | – | – |" in lines
    assert "| rival | not run: no_such_package not installed | 0 |" in lines
    assert any("Hummingbird was not run" in line for line in lines)


@pytest.mark.nightly
def test_all_benchmarks_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run_all.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    for benchmark in run_all.BENCHMARKS:
        assert f"{benchmark.name}: ended" in done.stderr
    assert "| stream |" in Path(done.stdout.strip()).read_text()
