"""Runs all benchmarks, and writes one table of their figures, with date, machine and versions.

    python benchmarks/run_all.py --against runs/bench/2026-01-31T12-00-00

`make bench` does so. Each benchmark runs in a process of its own; what it prints and its JSON go to a folder below --folder, and
the table to a file beside that. With --against, the folder of an earlier run, its figures stand beside those of this one. All
of them take hours; --only chooses some, --smoke runs every arm on little data.
"""

import argparse
import dataclasses
import datetime
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import ROOT, markdown, surroundings

from sparkdiff.tensors.device import gpus, why_no_gpu


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A script with the arguments of its run, and the packages, or the GPU, that it cannot do without."""

    name: str
    script: str
    arguments: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    gpu: bool = False


BENCHMARKS = (
    Benchmark("stream", "stream"),
    Benchmark("scale", "scale", needs=("scipy",)),
    Benchmark("processes", "processes"),
    Benchmark("shares", "shares"),
    Benchmark("candidates", "candidates"),
    Benchmark("decision", "decision"),
    Benchmark("time_cuts", "time_cuts"),
    Benchmark("tree_io", "tree_io"),
    Benchmark("tree_forward", "tree_forward", needs=("sklearn",)),
    Benchmark("gpu", "gpu", needs=("sklearn",), gpu=True),
    Benchmark("sparse", "sparse", needs=("scipy", "sklearn")),
    Benchmark("search", "search"),
    Benchmark("search_memory", "search_memory"),
    Benchmark("samplers", "samplers", needs=("optuna", "flaml")),
    Benchmark("joint_training", "joint_training"),
    Benchmark("hypergradients", "hypergradients"),
    Benchmark("poster_table", "poster_table"),
    Benchmark("tree_gains", "tree_gains", needs=("lightgbm", "sklearn")),
    Benchmark("drift", "drift"),
    Benchmark("rare_levels", "rare_levels"),
    Benchmark("recipes", "recipes"),
    Benchmark("augmentation", "augmentation"),
    Benchmark("fold_fits", "fold_fits"),
    Benchmark("tree_recipes", "tree_recipes", needs=("lightgbm", "sklearn")),
    Benchmark("guard_size", "guard_size"),
    Benchmark("guard_size_metrics", "guard_size", ("--metrics",)),
    Benchmark("guard_size_rare", "guard_size", ("--rare",)),
    Benchmark("guard_real", "guard_real"),
    Benchmark("unseen_errors", "unseen_errors", needs=("sklearn",)),
    Benchmark("proof_size", "proof_size"),
    Benchmark("seen_rows", "seen_rows"),
    Benchmark("seen_rows_trees", "seen_rows", ("--trees",), needs=("sklearn",)),
    Benchmark("soft_labels", "soft_labels"),
    Benchmark("few_votes", "few_votes"),
    Benchmark("label_models", "label_models", needs=("snorkel",)),
    Benchmark("serving_costs", "serving_costs"),
    Benchmark("compact", "compact"),
    Benchmark("torch_transformer", "torch_transformer", needs=("onnxruntime",)),
    Benchmark("serving", "serving", needs=("onnxruntime",)),
    Benchmark("run_store", "run_store"),
    Benchmark("edits", "edits", needs=("scipy", "sklearn")),
    Benchmark("fleet", "fleet", needs=("sklearn", "statsmodels")),
    Benchmark("triage", "triage", needs=("sklearn",)),
    Benchmark("arms", "arms", needs=("sklearn", "statsmodels", "optuna")),
    Benchmark("arm_order", "arm_order", needs=("sklearn",)),
    Benchmark("growth", "growth", needs=("lightgbm", "optuna", "sklearn")),
    Benchmark("growth_null", "growth_null", needs=("sklearn",)),
    Benchmark("improve_null", "improve_null", needs=("sklearn",)),
    Benchmark("gap", "gap", needs=("flaml", "lightgbm", "optuna", "sklearn", "statsmodels")),
    Benchmark("evidence", "evidence", needs=("lightgbm", "optuna")),
    Benchmark("single_arms", "single_arms", needs=("lightgbm", "sklearn", "optuna")),
    Benchmark("growth_idle", "growth_idle"),
    Benchmark("faults", "faults"),
)
NO_BENCHMARK = ("common", "evidence_tables", "gpu_cases", "guard_rare", "hummingbird_arm", "run_all", "strengths")
"""What lies beside them: what they share, the tables, cases and search of some, a child process, and this."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, after how long, and its figures."""

    name: str
    how: str
    seconds: float = 0.0
    figures: dict[str, float] = dataclasses.field(default_factory=dict)


def missing(benchmark: Benchmark) -> list[str]:
    """The packages that are needed and not installed."""
    return [name for name in benchmark.needs if importlib.util.find_spec(name) is None]


def run(benchmark: Benchmark, folder: Path, more: list[str]) -> Outcome:
    """One benchmark in a process of its own; its JSON and what it prints go to the folder."""
    if absent := missing(benchmark):
        return Outcome(benchmark.name, f"not run: {' and '.join(absent)} not installed")
    if benchmark.gpu and "--smoke" not in more and not gpus():
        return Outcome(benchmark.name, f"not run: {why_no_gpu()}")
    out = folder / f"{benchmark.name}.json"
    environment = {"SPARK_CONF_DIR": str(ROOT / "conf"), "PYSPARK_PYTHON": sys.executable, **os.environ}
    command = [sys.executable, str(ROOT / "benchmarks" / f"{benchmark.script}.py"), *benchmark.arguments, *more]
    start = time.monotonic()
    with out.with_suffix(".txt").open("w") as log:
        code = subprocess.run(
            [*command, "--out", str(out)],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    seconds = time.monotonic() - start
    how = "ended" if code == 0 else f"exit code {code}, see {out.with_suffix('.txt').name}"
    return Outcome(benchmark.name, how, seconds, read(out))


def read(path: Path) -> dict[str, float]:
    """The figures of a run; none where it wrote none."""
    return dict(json.loads(path.read_text())["figures"]) if path.exists() else {}


def page(outcomes: list[Outcome], about: dict[str, Any], against: Path | None) -> str:
    """All figures in one table, and how the runs ended."""
    machine, versions = about["machine"], about["versions"]
    lines = []
    for o in outcomes:
        before = read(against / f"{o.name}.json") if against else {}
        for name, value in o.figures.items():
            cells = [o.name, name, f"{value:.4g}"]
            if against:
                old = before.get(name)
                cells += ["–" if old is None else f"{old:.4g}", f"{value / old:.2f}" if old else "–"]
            lines.append(cells)
    head = ["benchmark", "figure", "value", *(["before", "value / before"] if against else [])]
    return "\n".join(
        [
            f"# Benchmarks, {about['date']}\n",
            f"Commit {about['commit'] or 'unknown'}; {machine['processor']}, {machine['cores']} cores, "
            f"{machine['memoryGiB']:g} GiB, {machine['system']}; {', '.join(f'{k} {v}' for k, v in versions.items())}.\n",
            *(["A smoke run on little data: no figure means anything.\n"] if about["smoke"] else []),
            markdown(head, lines),
            "\n## Runs\n",
            markdown(["benchmark", "outcome", "seconds"], [[o.name, o.how, f"{o.seconds:.0f}"] for o in outcomes]),
            *(
                []
                if about["hummingbird"]
                else ["\ntree_forward's arm Hummingbird was not run: no --hummingbird PYTHON was given."]
            ),
            "",
        ]
    )


def main() -> int:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--smoke", action="store_true", help="run every arm once on little data, without bounds")
    p.add_argument("--only", nargs="+", choices=[b.name for b in BENCHMARKS], metavar="NAME", help="only these")
    p.add_argument("--folder", type=Path, default=ROOT / "runs" / "bench", help="where the results go")
    p.add_argument("--against", type=Path, metavar="FOLDER", help="the folder of an earlier run's results")
    p.add_argument("--hummingbird", type=Path, metavar="PYTHON", help="an interpreter that can import hummingbird")
    given = p.parse_args()
    started = datetime.datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    folder = given.folder.resolve() / started
    folder.mkdir(parents=True)
    about = {**surroundings(), "smoke": given.smoke, "hummingbird": given.hummingbird}
    table, outcomes = folder.with_name(f"{started}.md"), []
    for benchmark in BENCHMARKS:
        if given.only and benchmark.name not in given.only:
            continue
        more = ["--smoke"] if given.smoke else []
        if given.hummingbird and benchmark.script in ("gpu", "tree_forward"):
            more += ["--hummingbird", str(given.hummingbird)]
        outcomes.append(run(benchmark, folder, more))
        print(f"{outcomes[-1].seconds:6.0f} s  {benchmark.name}: {outcomes[-1].how}", file=sys.stderr, flush=True)
        table.write_text(page(outcomes, about, given.against))
    print(table)
    return int(any(o.how.startswith("exit code") for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
