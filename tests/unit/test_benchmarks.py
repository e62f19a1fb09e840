"""Every benchmark still runs: some of those without Spark for each commit, all of them nightly; none is held against a bound."""

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import evidence
import evidence_tables
import gap
import gpu
import numpy as np
import pandas as pd
import pytest
import run_all
import torch

ROOT = Path(__file__).parents[2]
WITHOUT_SPARK = {
    "stream": [],
    "candidates": [],
    "gpu": ["--device", "fakegpu", "--case", "small", "trees", "--candidates", "4"],
    "hypergradients": [],
    "guard_size": ["--cells", "500 rows"],
    "guard_size_metrics": ["--cells", "f1"],
    "unseen_errors": [],
    "proof_size": ["--runs", "1"],
    "seen_rows": ["--cells", "5 columns, 1,500"],
    "growth_idle": [],
    "augmentation": [],
}


def test_the_list_has_every_script() -> None:
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - set(run_all.NO_BENCHMARK)
    assert scripts == {b.script for b in run_all.BENCHMARKS}


@pytest.mark.parametrize("folder", ["benchmarks", "examples", "jobs", "tools"])
def test_what_scripts_import_from_the_package_is_there(folder: str) -> None:
    missing = [
        f"{path.name}: {node.module}.{alias.name}"
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sparkdiff"
        for alias in node.names
        if not has(str(node.module), alias.name)
    ]
    assert missing == []


def has(module: str, name: str) -> bool:
    """Whether a module has a name, or a package such a module."""
    try:
        return hasattr(importlib.import_module(module), name) or bool(importlib.util.find_spec(f"{module}.{name}"))
    except ModuleNotFoundError:
        return False


EACH_COMMIT = {"guard_size"}
"""As a sign that they run; all of them are nightly, by themselves and in `test_all_benchmarks_run`."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in EACH_COMMIT else pytest.mark.nightly) for n in WITHOUT_SPARK]
)
def test_a_benchmark_runs_and_writes_what_it_found(name: str, tmp_path: Path) -> None:
    (benchmark,) = (b for b in run_all.BENCHMARKS if b.name == name)
    outcome = run_all.run(benchmark, tmp_path, ["--smoke", *WITHOUT_SPARK[name]])
    assert outcome.how == "ended", (tmp_path / f"{name}.txt").read_text()
    report = json.loads((tmp_path / f"{name}.json").read_text())
    assert report["figures"] == outcome.figures != {}
    assert report["machine"]["cores"] >= 1
    assert {"python", "torch"} <= set(report["versions"])


def test_the_table_has_earlier_figures_and_what_was_not_run(tmp_path: Path) -> None:
    (tmp_path / "stream.json").write_text(json.dumps({"figures": {"files": 2.0}}))
    absent = run_all.run(run_all.Benchmark("rival", "stream", needs=("no_such_package",)), tmp_path, [])
    outcomes = [run_all.Outcome("stream", "ended", 3.0, {"files": 1.0, "memory": 4.0}), absent]
    about = {
        "date": "2026-01-31",
        "commit": "abc",
        "machine": {"processor": "p", "cores": 2, "memoryGiB": 8, "system": "s"},
        "versions": {"torch": "2"},
        "smoke": False,
        "hummingbird": None,
    }
    lines = run_all.page(outcomes, about, tmp_path).splitlines()
    assert "| stream | files | 1 | 2 | 0.50 |" in lines
    assert "| stream | memory | 4 | – | – |" in lines
    assert "| rival | not run: no_such_package not installed | 0 |" in lines
    assert any("Hummingbird was not run" in line for line in lines)


def result(rows: list[dict[str, Any]], gpu: str = "a GPU", smoke: bool = False) -> dict[str, Any]:
    machine = {"processor": "p", "cores": 2, "system": "s"}
    return {
        "date": "2026-01-31T12:00",
        "commit": "abc",
        "machine": machine,
        "versions": {"torch": "2", "python": "3"},
        "gpu": gpu,
        "smoke": smoke,
        "rows": rows,
    }


def arm(name: str, candidates: int, seconds: float, **more: Any) -> dict[str, Any]:
    return {"arm": name, "candidates": candidates, "stepSeconds": seconds, "rowsPerSecond": 800 / seconds, **more}


def test_gpu_figures_replace_those_of_the_page_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"Before.\n\n{gpu.BEGIN}\n\nOld.\n\n{gpu.END}\n\nAfter.\n")
    wide = [
        arm("CPU", 1, 9.0),
        arm("GPU", 1, 0.3),
        arm("GPU", 64, 0.6, gainsDiffer=2e-12, weightsDiffer=None, runsEqual=True),
    ]
    results = {"wide": result(wide), "small": result([], gpu=""), "text": result([], smoke=True)}
    gpu.write_page(page, gpu.measured_on_gpus(results))
    text = page.read_text()
    assert (
        text.startswith(f"Before.\n\n{gpu.BEGIN}\n\n- Measured 2026-01-31, a GPU, p with 2 cores")
        and "Old." not in text
    )
    assert text.endswith(f"{gpu.END}\n\nAfter.\n")
    assert "| wide, 64 candidates over one | 2 | no |" in text
    assert "| wide, candidates: 1, rows a second over the CPU's | 30 | yes |" in text
    assert "| wide | 1 | 9 | 0.3 | 30 | – | – | – |\n| wide | 64 | – | 0.6 | – | – | – | – |" in text
    assert "| wide | 64 | – | – | – | – | – | – | 2.0e-12 | – | – | – | yes |" in text
    assert "Not measured: small, wide, large batches, softmax, text," in text
    page.write_text("No marks.")
    with pytest.raises(SystemExit, match="lacks the lines"):
        gpu.write_page(page, results)


def test_one_machine_may_measure_candidate_numbers_in_turn() -> None:
    results: dict[str, Any] = {}
    gpu.added(results, "wide", result([arm("GPU", 64, 2.0)]))
    gpu.added(results, "wide", result([arm("GPU", 1, 1.0)]))
    assert [r["candidates"] for r in results["wide"]["rows"]] == [1, 64]
    assert gpu.verdicts(results) == {"wide, 64 candidates over one": (2.0, False)}
    gpu.added(results, "wide", result([arm("GPU", 64, 1.0)], gpu="another"))
    assert [r["candidates"] for r in results["wide"]["rows"]] == [64]


def test_kernels_that_overlap_are_busy_once() -> None:
    on, off = torch.autograd.DeviceType.CUDA, torch.autograd.DeviceType.CPU

    def event(name: str, at: Any, start: float, end: float) -> SimpleNamespace:
        return SimpleNamespace(name=name, device_type=at, time_range=SimpleNamespace(start=start, end=end))

    events = [
        event("add", on, 0, 4),
        event("mul", on, 2, 6),
        event("copy", on, 8, 10),
        event("cudaGraphLaunch", off, 0, 1),
    ]
    events += [event("cudaLaunchKernel", off, 1, 2), event("aten::add", off, 0, 3)]
    found = gpu.kernels_of(SimpleNamespace(events=lambda: events), 2)
    assert found == {"kernels": 1.5, "launches": 1, "busyMicroseconds": 4}
    speed = arm("GPU", 4, 20e-6, watched=found, steps=2)
    assert "| small | 4 | GPU | 1.5 | 1 | 4 | 10 | 60% | – | – |  |" in gpu.tables({"small": result([speed])})
    assert gpu.kernels_of(SimpleNamespace(events=lambda: events[-1:]), 2) == {}  # not seen is not 0


def test_without_a_gpu_its_benchmark_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "gpus", lambda: 0)
    [benchmark] = (b for b in run_all.BENCHMARKS if b.gpu)
    assert run_all.run(benchmark, tmp_path, []).how.startswith("not run: torch")


def cell_of_gap(value: float, name: str = "a", worse: float = 1.0, **rivals: float) -> list[dict[str, Any]]:
    shared = {"set": name, "seed": 0, "loss": "squared", "real": True}
    own = {"arm": "improve", "kind": "pca", "original": 2.0, "value": value, "worse": worse, "table": []}
    kinds = {r: "squared" if r in gap.SHARED else "pca" for r in rivals}
    return [shared | own, *(shared | {"arm": r, "kind": kinds[r], "value": v} for r, v in rivals.items())]


def test_the_gap_is_that_to_the_best_rival_of_the_same_original() -> None:
    strangers = [{"set": "a", "seed": 0, "kind": k, "arm": "optuna", "value": 0.1} for k in ("poisson", "logLoss")]
    [cell] = gap.cells_of([*cell_of_gap(1.25, refit=1.5, optuna=1.0), *strangers])
    assert (cell.best, cell.gained, cell.closed) == ("optuna", 0.5, 0.75)
    assert [c.closed for value in (0.1, 9.0) for c in gap.cells_of(cell_of_gap(value, refit=1.5))] == [1.2, -1.0]


def test_the_median_and_losses_may_miss_a_bound_of_the_gap() -> None:
    done = [*cell_of_gap(1.25, refit=1.0), *cell_of_gap(1.9, "b", refit=1.0), *cell_of_gap(2.0, "c", refit=2.0)]
    told, missed, figures = gap.summed(gap.cells_of(done))
    assert figures == {"gap closed, median, real sets": pytest.approx(0.425)} and len(missed) == 1
    assert "real sets: 1 cells without a gap, 0 accepted losses in them" in told
    _, missed, _ = gap.summed(gap.cells_of([*cell_of_gap(1.0, refit=1.0), *cell_of_gap(2.1, "b", 0.01, refit=2.0)]))
    assert missed == ["b, pca, 0: an accepted loss without a gap", "b: a significant loss, p 0.02"]


def test_losses_of_the_gap_follow_scipy_and_the_definition() -> None:
    assert gap.holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
    y, mean = np.array([0.0, 1.0, 3.0]), np.array([1.0, 1.0, 2.0])
    assert gap.losses("poisson", y, mean) == pytest.approx([1.0, 0.0, 3 * np.log(1.5) - 1])
    assert gap.losses("squared", y, mean).tolist() == [1.0, 0.0, 1.0]
    p = np.array([[0.25, 0.75], [0.25, 0.75], [0.5, 0.5]])
    assert np.exp(-gap.losses("logLoss", np.array([0.0, 1.0, 1.0]), p)) == pytest.approx([0.25, 0.75, 0.5])


def line_of_evidence(arm: str, value: float, se: float, shipped: str | None = None) -> dict[str, Any]:
    place = {
        "table": "t",
        "digest": "d",
        "original": "linear",
        "seed": 0,
        "loss": "squared",
        "clusters": 400,
        "commit": "c",
    }
    found = {"before": 1.0, "value": value, "difference": value - 1.0, "se": se, "seconds": 66.0, "cpu": 90.0}
    more = {"decision": "improved" if shipped else "kept original", "shipped": shipped}
    return {**place, **found, "arm": arm, "budget": "60s" if arm == evidence.OURS else None, "more": more}


def test_evidence_tells_large_gaps_and_losses_from_noise() -> None:
    def cell(ours: float, best: float, se: float, shipped: str | None = "trees") -> evidence.Cell:
        lines = [line_of_evidence("ours", ours, se, shipped), line_of_evidence("lightgbm", best, se)]
        [found] = evidence.cells_of(lines)
        return found

    good = cell(0.85, 0.8, 0.02)
    assert good.has_gap and good.closed == pytest.approx(0.75) and good.verdict == "better" and good.overtime == 1.1
    assert not cell(0.9, 0.98, 0.001).has_gap  # below 3%
    assert not cell(0.9, 0.95, 0.03).has_gap  # below two standard errors
    assert [cell(1.02, 0.8, se).is_lost for se in (0.005, 0.02)] == [True, False]
    assert cell(1.0, 0.8, 0.0, None).verdict == "kept" and not cell(1.0, 0.8, 0.0, None).is_lost
    assert evidence.summarize([good])[1]["gap closed, median"] == pytest.approx(0.75)


def test_evidence_tells_broken_cells_and_mixed_commits() -> None:
    broken = line_of_evidence("ours", 1.0, 0.0) | {"more": {"decision": "failed", "shipped": None}, "commit": "later"}
    found = evidence.cells_of([broken, line_of_evidence("lightgbm", 0.8, 0.02)])
    assert found[0].verdict == "failed" and "0 kept, 0 worse, 1 failed" in evidence.summarize(found)[0][1]
    kept = evidence.cells_of([line_of_evidence("ours", 1.0, 0.0)])
    told = evidence.summarize([*found, *kept])[0][-1]
    assert "of 2 commits (c, later)" in told and "commits" not in evidence.summarize(kept)[0][-1]


def test_errors_of_evidence_are_of_rows_or_whole_clusters() -> None:
    before, after = np.zeros(6), np.array([1.0, 1.0, 0.0, 0.0, 2.0, 2.0])
    alone = evidence.paired_difference(before, after, np.arange(6))
    assert alone == pytest.approx({"difference": 1.0, "se": after.std(ddof=1) / 6**0.5})
    together = evidence.paired_difference(before, after, np.array([5, 5, 2, 2, 7, 7]))
    assert together["se"] == pytest.approx(np.std([1.0, 0.0, 2.0], ddof=1) / 3**0.5)
    y, few = np.array([0.0, 2.0]), np.array([[1.0, 0.0], [0.5, 0.5]])  # the third class was never seen
    assert np.exp(-evidence.losses("logLoss", y, few)) == pytest.approx([1.0, 1e-6])


@pytest.mark.parametrize("by", [{"time": "t"}, {"group": "g"}, {}])
def test_evidence_parts_hold_whole_groups_and_follow_time(by: dict[str, str]) -> None:
    n = 1000
    raw = pd.DataFrame(
        {"x": np.arange(n) % 7, "t": pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(n) // 3, "D")}
    )
    raw["g"], raw["y"] = np.arange(n) // 4, np.arange(n, dtype=float)
    table = evidence_tables.Table("a", "file:none", "y", "regression", "b", **by)
    rows, numbers, words = evidence_tables.prepare(table, raw)
    assert {*numbers, *words} == {"x", "t", "g"} - {*by.values()}
    part = np.digitize(evidence_tables.shares_before(table, rows, "split 0"), evidence_tables.SHARES)
    assert np.bincount(part) / n == pytest.approx([0.6, 0.2, 0.2], abs=0.01)
    for column in by.values():
        assert (pd.Series(part).groupby(rows[column].to_numpy()).nunique() == 1).all()
    assert not by.get("time") or (np.diff(part) >= 0).all()
    other = evidence_tables.shares_before(table, rows, "split 1")
    assert (np.digitize(other, evidence_tables.SHARES) == part).all() == ("time" in by)


def test_each_table_of_evidence_is_one_entry_with_a_loader() -> None:
    tables = evidence_tables.TABLES
    assert len({t.name for t in tables}) == len(tables) == 24
    assert {t.source.partition(":")[0] for t in tables} < {*evidence_tables.LOADERS}
    assert {t.half for t in tables} == {"b", "r"} and not any(t.time and t.group for t in tables)


@pytest.mark.nightly
def test_all_benchmarks_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "run_all.py"), "--smoke", "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    assert done.returncode == 0, done.stderr
    absent = {b.name for b in run_all.BENCHMARKS if run_all.missing(b)}
    assert absent <= {"label_models"}  # the stack has all packages but snorkel
    for benchmark in run_all.BENCHMARKS:
        assert f"{benchmark.name}: {'not run' if benchmark.name in absent else 'ended'}" in done.stderr
    assert "| stream |" in Path(done.stdout.strip()).read_text()
