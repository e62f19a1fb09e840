"""What does a GPU bring to training, and to the forward pass of trees?

Each case trains with the real loop of one process, from a cache of rows of chance, in several arms: on the CPU, with as many
threads as training takes there; on the GPU with steps as CUDA graphs; the same with kernels that are started one by one, with
float32 rows, and with rows that stay in pinned memory and are copied ahead. Seconds are those of an epoch's steps and of its
validation, the median over the epochs after the first one, in which rows are read, kernels are chosen and graphs are recorded.
Kernels (copies are among them) are counted by torch.profiler over some steps of a training of their own; the GPU's idle time is
what they leave of a step that is timed without it. Gains per epoch and the final weights are compared with the CPU's, over the
largest of them; and a second run on the GPU with the first, bit by bit.

Trees: a forward pass over rows that lie on the device, against Hummingbird's three implementations there (float32, the best of
batches of 10,000, 100,000 and all rows), if --hummingbird, or this interpreter, has the package.

    python benchmarks/gpu.py --out gpu.json --page docs/measured/gpu.md   # all cases
    python benchmarks/gpu.py --case wide --candidates 1 4 --out gpu.json  # adds some figures to gpu.json
    python benchmarks/gpu.py --read gpu.json --page docs/measured/gpu.md  # the page of figures that were measured before

Neither Java nor a Spark session is needed, only Spark's Python files. A machine that has torch, numpy, pandas, pyarrow and
scikit-learn, but no network, is given these, 10 MB, from one with sparkdiff installed:

    cd "$(python -c 'import pathlib, pyspark; print(pathlib.Path(pyspark.__file__).parents[1])')"
    tar -czf ~/pyspark.tgz --exclude=pyspark/{jars,pandas,examples} --exclude={tests,__pycache__} pyspark py4j     # here
    mkdir /tmp/spark && tar -xzf pyspark.tgz -C /tmp/spark && export PYTHONPATH=/tmp/spark:.                     # there
"""

import argparse
import datetime
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import ROOT, exit_code, folder_of, markdown, parse, parser, surroundings, write
from gpu_cases import CASES, INPUT, Case, Start, recipes, start, write_cache
from hummingbird_arm import FEATURES, forest
from torch import Tensor
from tree_forward import nodes_of

from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.stages.trees import RandomForestRegression
from sparkdiff.tensors.device import CPU, Place, copy_to, home, module_of, place, why_no_gpu
from sparkdiff.training.loop import train
from sparkdiff.training.preparation import resolve_objectives
from sparkdiff.training.training_run import Training

TREES = "trees"
FOREST, FEW = (100, 6, 1_000_000), (5, 3, 500)
"""Trees, depth, rows; of --smoke."""
PROFILED = 100  # steps
BOUNDS = {"64 candidates over one": 1.5, "rows a second over the CPU's": 20.0, "trees over Hummingbird": 1.0}
"""At most, at least, at least."""
BEGIN, END = "<!-- figures of benchmarks/gpu.py -->", "<!-- end of the figures -->"


@dataclass(frozen=True)
class Arm:
    """A way to train: where, and how."""

    name: str
    gpu: bool = True
    precision: str = "float64"
    graphs: bool = True
    resident: bool = True
    every: bool = False  # also one candidate alone

    def place(self, device: torch.device) -> Place:
        return Place(device, getattr(torch, self.precision)) if self.gpu else CPU


OWN, PLAIN = Arm("GPU", every=True), Arm("CPU", gpu=False, every=True)
ARMS = (
    PLAIN,
    OWN,
    Arm("GPU, no graphs", graphs=False),
    Arm("GPU, float32 rows", precision="float32"),
    Arm("GPU, rows copied ahead", resident=False),
)


# One training ---------------------------------------------------------------------------------------------------------


class EnoughError(Exception):
    """What there is to measure has been measured."""


def seconds(at: Place) -> float:
    """The time, after all that was asked of the device is done."""
    if not at.on_cpu:
        module_of(at.device).synchronize(at.device)
    return time.perf_counter()


class Clock:
    """Times the epochs of a training; called after each step and epoch."""

    def __init__(self, at: Place, steps: int, epochs: int):
        self.at, self.steps, self.epochs = at, steps, epochs
        self.taken: list[float] = []  # seconds of an epoch's steps
        self.validation: list[float] = []
        self.result: tuple[Tensor, Tensor] | None = None  # gains (E * K,), weights (K, p)
        self.last = seconds(at)

    def __call__(self, training: Training) -> None:
        if training.step == 0:
            now = seconds(self.at)
            self.validation.append(now - self.last)
            self.last = now
            if len(self.validation) == self.epochs:
                gains = torch.stack(training.gains).sum(1)
                weights = training.state()["candidates"]["u"] if training.parts == 1 else torch.empty(0)
                self.result = gains, weights.clone()
                raise EnoughError
        elif training.step == self.steps:
            now = seconds(self.at)
            if len(self.taken) == len(self.validation):
                self.taken.append(0.0)
            self.taken[-1] += now - self.last  # where memory was short, of all parts of the candidates
            self.last = now


class Watch:
    """Watches the kernels of some steps of an epoch, when all kinds of batches have been seen; called after each step."""

    def __init__(self, at: Place, steps: int):
        self.at, self.first = at, min(steps // 2, 1000)
        self.last = self.first + max(1, min(PROFILED, steps - self.first))
        self.kernels: dict[str, float] = {}

    def __call__(self, training: Training) -> None:
        if training.step == self.first:
            seconds(self.at)
            self.profile = profiler(self.at)
            self.profile.__enter__()
        elif training.step == self.last:
            seconds(self.at)
            self.profile.__exit__(None, None, None)
            self.kernels = kernels_of(self.profile, self.last - self.first)
            raise EnoughError


def profiler(at: Place) -> Any:
    # As torch does for its own graphs: a library that is torn down and started again breaks them.
    os.environ.update(TEARDOWN_CUPTI="0", DISABLE_CUPTI_LAZY_REINIT="1")
    kinds = torch.profiler.ProfilerActivity
    return torch.profiler.profile(activities=[kinds.CPU, *([kinds.CUDA] if at.device.type == "cuda" else [])])


def kernels_of(profile: Any, times: int) -> dict[str, float]:
    """What the profiler saw in `times` steps; nothing where it saw no kernel.

    Source of the names of launches: the CUDA runtime's and driver's API.
    """
    events = list(profile.events())
    device = torch.autograd.DeviceType.CUDA
    spans = sorted(
        (e.time_range.start, e.time_range.end)
        for e in events
        if e.device_type == device and not getattr(e, "is_user_annotation", False)
    )
    busy, end = 0.0, -1.0
    for first, last in spans:
        busy += max(0.0, last - max(first, end))
        end = max(end, last)
    starts = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
    launches = sum(e.device_type != device and e.name.startswith(starts) for e in events)
    found = {"kernels": len(spans), "launches": launches, "busyMicroseconds": busy}
    return {name: x / times for name, x in found.items()} if spans else {}


def training_of(
    _case: Case, arm: Arm, number: int, ground: "Ground", device: torch.device, on_step: Callable[[Training], None]
) -> Training:
    """Train so many candidates until `on_step` has enough."""
    at, began = arm.place(device), ground.start
    stream = ground.stream.on(at, resident=arm.resident)
    training = Training(
        began.network.clone(), recipes(number), began.options, began.units, ground.original, began.stats
    )
    training.graphs = arm.graphs
    training.move(at)
    objective, metric = resolve_objectives(began.options, began.network, began.label)
    data = Data(stream, {INPUT: "c0"}, rows=rows_at_once(began.network, stream))
    with suppress(EnoughError):
        train(training, data, objective, metric, on_step)
    stream.leave()
    return training


def run(
    case: Case, arm: Arm, number: int, epochs: int, ground: "Ground", device: torch.device
) -> tuple[dict[str, Any], tuple[Tensor, Tensor] | None]:
    """What one training took, and its gains and weights."""
    at = arm.place(device)
    clock = Clock(at, ground.stream.steps("train", case.batchSize), epochs)
    with peak(at) as memory:
        fallbacks = training_of(case, arm, number, ground, device, clock).fallbacks
    taken, rows = statistics.median(clock.taken[1:]), ground.stream.rows("train")
    return {
        "arm": arm.name,
        "candidates": number,
        "steps": clock.steps,
        "firstEpochSeconds": clock.taken[0],
        "stepSeconds": taken,
        "rowsPerSecond": rows / taken,
        "validationSeconds": statistics.median(clock.validation[1:]),
        **memory,
        **({"fallbacks": fallbacks} if fallbacks else {}),
    }, clock.result


@contextmanager
def peak(at: Place) -> Iterator[dict[str, int]]:
    """The most memory of the device that is in use meanwhile, where the device counts it."""
    out: dict[str, int] = {}
    gc.collect()
    module = None if at.on_cpu else module_of(at.device)
    if module is not None:
        module.empty_cache()
    counts = hasattr(module, "max_memory_allocated")
    if counts:
        module.reset_peak_memory_stats(at.device)
    yield out
    if counts:
        out["peakBytes"] = module.max_memory_allocated(at.device)


@dataclass(frozen=True)
class Ground:
    """What all trainings of a case share."""

    start: Start
    stream: Stream
    original: Score


@contextmanager
def ground_of(case: Case, epochs: int, folder: Path) -> Iterator[Ground]:
    """The case's rows, which are written where they are not there yet, and what its trainings start from."""
    cache = folder / case.data
    if not (cache / "manifest.json").exists():
        cache.mkdir(parents=True, exist_ok=True)
        write_cache(cache, case)
    began = start(case, epochs + 1)
    _, metric = resolve_objectives(began.options, began.network, began.label)
    with Stream(cache, backend="arrow", seed=began.options.seed) as stream:
        data = Data(stream, {INPUT: "c0"}, rows=rows_at_once(began.network, stream))
        yield Ground(began, stream, score(began.network, data, "validation", metric))


def arms(number: int, device: torch.device | None) -> list[Arm]:
    return [arm for arm in ARMS if not (arm.gpu and device is None) and (arm.every or number > 1)]


def measure(case: Case, epochs: int, folder: Path, device: torch.device | None) -> Iterator[list[dict[str, Any]]]:
    """All arms of a case, for each number of candidates."""
    with ground_of(case, epochs, folder) as ground:
        for number in case.candidates:
            reference: tuple[Tensor, Tensor] | None = None
            rows = []
            for arm in arms(number, device):
                row, result = run(case, arm, number, epochs, ground, device or CPU.device)
                if arm.gpu and result and reference:
                    row["gainsDiffer"], row["weightsDiffer"] = map(apart, result, reference)
                if arm is PLAIN:
                    reference = result
                elif arm is OWN:
                    _, again = run(case, arm, number, epochs, ground, device or CPU.device)
                    row["runsEqual"] = result is not None and again is not None and all(map(same, result, again))
                rows.append(row)
                print(f"{case.name}: {number} candidates, {arm.name}: {row['stepSeconds']:.3g} s an epoch", flush=True)
            yield rows


Watched = dict[tuple[str, int | None], dict[str, float]]
"""By arm and number of candidates: what the profiler saw."""


def watch(case: Case, folder: Path, device: torch.device) -> Watched:
    """The kernels of each arm on the device."""
    out: Watched = {}
    with ground_of(case, 1, folder) as ground:
        for number in case.candidates:
            for arm in arms(number, device):
                if arm.gpu:
                    seen = Watch(arm.place(device), ground.stream.steps("train", case.batchSize))
                    training_of(case, arm, number, ground, device, seen)
                    out[arm.name, number] = seen.kernels
                    gc.collect()
    return out


def apart(x: Tensor, y: Tensor) -> float | None:
    """The largest difference over the largest entry; None where there is nothing to compare."""
    return float((x - y).abs().max() / y.abs().max()) if x.shape == y.shape and len(y) else None


def same(x: Tensor, y: Tensor) -> bool:
    return x.shape == y.shape and bool((x == y).logical_or(x.isnan() & y.isnan()).all())


# Trees ----------------------------------------------------------------------------------------------------------------


def forest_of(given: argparse.Namespace) -> tuple[RandomForestRegression, Tensor, Tensor]:
    """Trees, rows for them, and what scikit-learn predicts for the first rows."""
    trees, depth, rows = FEW if given.smoke else FOREST
    fitted, some = forest(trees, depth)
    module = RandomForestRegression(nodes_of(fitted), None, ("predictionCol",), "forest").requires_grad_(False)
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((rows, FEATURES)).astype(np.float32)).double()
    return module, x, torch.from_numpy(fitted.predict(x[: len(some)].numpy().astype(np.float32)))


def measure_trees(given: argparse.Namespace, device: torch.device | None) -> list[dict[str, Any]]:
    module, x, expected = forest_of(given)
    out = []
    for name, at in (("CPU", CPU), *([("GPU", Place(device))] if device is not None else [])):
        forward = partial(copy_to(module, at.device).margin, at.numbers(x))
        with peak(at) as memory, torch.no_grad():
            found = home(forward()[: len(expected)])
            assert (found - expected).abs().max() < 1e-12 * expected.abs().max()
            taken = statistics.median(pass_seconds(forward, at) for _ in range(1 if given.smoke else 5))
        out.append({"arm": name, "stepSeconds": taken, "rowsPerSecond": len(x) / taken, **memory})
    rival = hummingbird(given)
    return out + [{"arm": f"Hummingbird, {n}", "stepSeconds": t, "rowsPerSecond": len(x) / t} for n, t in rival.items()]


@torch.no_grad()
def watch_trees(given: argparse.Namespace, device: torch.device) -> Watched:
    module, x, _ = forest_of(given)
    at = Place(device)
    forward = partial(copy_to(module, at.device).margin, at.numbers(x))
    forward()
    with profiler(at) as profile:
        pass_seconds(forward, at)
    return {("GPU", None): kernels_of(profile, 1)}


def pass_seconds(forward: Callable[[], object], at: Place) -> float:
    began = seconds(at)
    forward()
    return seconds(at) - began


def hummingbird(given: argparse.Namespace) -> dict[str, float]:
    """Seconds of a pass of each of Hummingbird's implementations on the GPU; none where there is no GPU or no Hummingbird."""
    if given.device.partition(":")[0] != "cuda":
        return {}
    if given.hummingbird is None and importlib.util.find_spec("hummingbird") is None:
        print("Hummingbird is left out: this interpreter has no hummingbird-ml, and no --hummingbird PYTHON was given.")
        return {}
    trees, depth, rows = FEW if given.smoke else FOREST
    python, script = str(given.hummingbird or sys.executable), str(ROOT / "benchmarks" / "hummingbird_arm.py")
    asked = [str(trees), str(depth), "--device", given.device, "--rows", str(rows)]
    done = subprocess.run([python, "-W", "ignore", script, *asked], stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


# Results --------------------------------------------------------------------------------------------------------------

Results = Mapping[str, Mapping[str, Any]]
"""By case: the machine, and the rows."""


def verdicts(results: Results) -> dict[str, tuple[float, bool]]:
    """What is wanted, as it was measured on a GPU: the figure, and whether it is good enough."""
    out: dict[str, tuple[float, bool]] = {}
    for name, result in results.items():
        found = {(r["arm"], r.get("candidates")): r for r in result["rows"]}
        if name == TREES:
            rivals = [r["rowsPerSecond"] for r in result["rows"] if r["arm"].startswith("Hummingbird")]
            if rivals and ("GPU", None) in found:
                ratio = found["GPU", None]["rowsPerSecond"] / max(rivals)
                out["trees, rows a second over Hummingbird's best"] = ratio, ratio >= BOUNDS["trees over Hummingbird"]
            continue
        case = CASES[name]
        if case.search and {("GPU", 1), ("GPU", 64)} <= set(found):
            ratio = found["GPU", 64]["stepSeconds"] / found["GPU", 1]["stepSeconds"]
            out[f"{name}, 64 candidates over one"] = ratio, ratio <= BOUNDS["64 candidates over one"]
        for number in case.candidates if case.table else ():
            if {("GPU", number), ("CPU", number)} <= set(found):
                ratio = found["GPU", number]["rowsPerSecond"] / found["CPU", number]["rowsPerSecond"]
                good = ratio >= BOUNDS["rows a second over the CPU's"]
                out[f"{name}, candidates: {number}, rows a second over the CPU's"] = ratio, good
    return out


def figures(results: Results) -> dict[str, float]:
    out = {}
    for name, result in results.items():
        for r in result["rows"]:
            number = f", candidates: {r['candidates']}" if "candidates" in r else ""
            out[f"{name}{number}, {r['arm']}, rows a second"] = r["rowsPerSecond"]
    return out | {name: ratio for name, (ratio, _) in verdicts(results).items()}


def number(x: float | None, form: str) -> str:
    return "–" if x is None else format(x, form)


def idle(row: Mapping[str, Any]) -> float | None:
    """Share of a step in which the GPU does nothing; None if the profiler saw nothing."""
    busy, steps = row.get("watched", {}).get("busyMicroseconds"), row.get("steps", 1)
    return None if busy is None else max(0.0, 1 - busy * steps / (1e6 * row["stepSeconds"]))


def differences(row: Mapping[str, Any]) -> list[str]:
    """How far gains and weights differ from the CPU's."""
    return [number(row.get(k), ".1e") for k in ("gainsDiffer", "weightsDiffer")]


def equal(row: Mapping[str, Any]) -> str:
    return {True: "yes", False: "no"}.get(row.get("runsEqual"), "")  # type: ignore[arg-type]


def tables(results: Results) -> str:
    """What each arm took, and what the profiler saw and the numbers are."""
    speed, kernels = [], []
    for name, result in results.items():
        cpu = {r.get("candidates"): r["rowsPerSecond"] for r in result["rows"] if r["arm"] == "CPU"}
        for r in result["rows"]:
            row = [name, str(r.get("candidates", "")), r["arm"]]
            gib = r["peakBytes"] / 2**30 if "peakBytes" in r else None
            speed.append(
                [
                    *row,
                    f"{r['stepSeconds']:.3g}",
                    f"{r['rowsPerSecond']:,.0f}",
                    f"{r['rowsPerSecond'] / cpu[r.get('candidates')]:.3g}" if r.get("candidates") in cpu else "–",
                    number(r.get("validationSeconds"), ".3g"),
                    number(gib, ".2f"),
                    "; ".join(r.get("fallbacks", [])),
                ]
            )
            if "watched" not in r and "gainsDiffer" not in r:
                continue
            watched, step = r.get("watched", {}), 1e6 * r["stepSeconds"] / r.get("steps", 1)
            kernels.append(
                [
                    *row,
                    *(number(watched.get(k), ".4g") for k in ("kernels", "launches", "busyMicroseconds")),
                    f"{step:.4g}",
                    number(idle(r), ".0%"),
                    *differences(r),
                    equal(r),
                ]
            )
    first = ["case", "candidates", "arm"]
    head = [
        *first,
        "seconds of an epoch's steps, or of a pass",
        "rows a second",
        "over the CPU's",
        "validation, s",
        "peak GPU memory, GiB",
        "where memory was short",
    ]
    second = [
        *first,
        "kernels a step",
        "launches a step",
        "µs busy",
        "µs a step",
        "GPU idle",
        "gains differ from the CPU's",
        "weights",
        "two runs equal",
    ]
    return markdown(head, speed) + ("\n\n" + markdown(second, kernels) if kernels else "")


def short_tables(results: Results) -> str:
    """The tables of the page: a row for each number of candidates of a case, its arms side by side; then the trees."""
    speed, rest, trees, fallbacks = [], [], [], []
    for name, result in results.items():
        rows = result["rows"]
        found = {(r.get("candidates"), r["arm"]): r for r in rows}
        if name == TREES:
            cpu = found.get((None, "CPU"), {}).get("rowsPerSecond")
            trees = [
                [
                    r["arm"],
                    f"{r['stepSeconds']:.3g}",
                    f"{r['rowsPerSecond']:,.0f}",
                    number(cpu and r["rowsPerSecond"] / cpu, ".3g"),
                ]
                for r in rows
            ]
            continue
        for k in dict.fromkeys(r["candidates"] for r in rows):
            cpu, gpu, plain, single, ahead = (found.get((k, arm.name), {}) for arm in ARMS)
            both = cpu and gpu and gpu["rowsPerSecond"] / cpu["rowsPerSecond"]
            speed.append(
                [
                    name,
                    str(k),
                    *(number(r.get("stepSeconds"), ".3g") for r in (cpu, gpu)),
                    number(both or None, ".3g"),
                    *(number(r.get("stepSeconds"), ".3g") for r in (plain, single, ahead)),
                ]
            )
            rest.append(
                [
                    name,
                    str(k),
                    *(number(r.get("validationSeconds"), ".3g") for r in (cpu, gpu)),
                    *(
                        number(r["peakBytes"] / 2**30 if "peakBytes" in r else None, ".2f")
                        for r in (gpu, single, ahead)
                    ),
                    number(idle(gpu), ".0%") if gpu else "–",
                    *differences(gpu),
                    *differences(single),
                    equal(gpu),
                ]
            )
        fallbacks += [
            f"- {name}, candidates: {r['candidates']}, {r['arm']}: {'; '.join(r['fallbacks'])}"
            for r in rows
            if r.get("fallbacks")
        ]
    first = ["case", "candidates"]
    head = [*first, "CPU, s", "GPU, s", "times as fast", "no graphs, s", "float32 rows, s", "rows copied ahead, s"]
    second = [
        *first,
        "validation: CPU, s",
        "GPU, s",
        "peak memory, GiB",
        "float32 rows",
        "rows copied ahead",
        "GPU idle",
        "gains differ from the CPU's",
        "weights",
        "float32 rows: gains",
        "weights",
        "two runs equal",
    ]
    last = ["trees", "seconds of a pass", "rows a second", "over the CPU's"]
    return "\n\n".join(
        [
            *(["Seconds of an epoch's steps:", markdown(head, speed), markdown(second, rest)] if speed else []),
            *([markdown(last, trees)] if trees else []),
            *(["Where memory was short:", "\n".join(fallbacks)] if fallbacks else []),
        ]
    )


def section(results: Results) -> str:
    """What stands in the page between its marks: machines and dates, the bounds, the tables, and what wasn't measured."""
    machines: dict[str, list[str]] = {}
    for name, r in results.items():
        machines.setdefault(f"{r['date'][:10]}, {where(r)}", []).append(name)
    sizes = [f"- {n}: {CASES[n].text}" for n in results if n in CASES]
    if TREES in results:
        sizes.append(f"- {TREES}: {FOREST[0]} trees of depth {FOREST[1]}, {FOREST[2]:,} rows × {FEATURES}")
    wanted = [[n, f"{v:.3g}", "yes" if good else "no"] for n, (v, good) in verdicts(results).items()]
    absent = [n for n in (*CASES, TREES) if n not in results]
    return "\n\n".join(
        [
            "\n".join(f"- Measured {text}: {', '.join(names)}" for text, names in machines.items()),
            "\n".join(sizes),
            *([markdown(["wanted", "found", "good enough"], wanted)] if wanted else []),
            short_tables(results),
            *([f"Not measured: {', '.join(absent)}."] if absent else []),
            *(["Hummingbird was not measured: it wasn't there."] if TREES in results and not rivals(results) else []),
        ]
    )


def rivals(results: Results) -> bool:
    return any(r["arm"].startswith("Hummingbird") for r in results[TREES]["rows"])


def write_page(path: Path, results: Results) -> None:
    """Put the figures between the page's marks."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"{path} lacks the lines {BEGIN} and {END}: write them where the figures are to stand")
    path.write_text(f"{before}{BEGIN}\n\n{section(results)}\n\n{END}{after}", encoding="utf-8")


def case_of(given: argparse.Namespace, name: str) -> Case:
    case = CASES[name].small() if given.smoke else CASES[name]
    return replace(case, candidates=tuple(k for k in case.candidates if not given.candidates or k in given.candidates))


def added(results: dict[str, Any], name: str, new: Mapping[str, Any]) -> None:
    """Put a case's result among the others. Rows that were there stay for other numbers of candidates, if they were measured on
    the same machine.
    """
    before, numbers = results.get(name), {r.get("candidates") for r in new["rows"]}
    rows = [r for r in before["rows"] if r.get("candidates") not in numbers] if before else []
    if rows and where(before) != where(new):
        print(f"{name}: earlier figures, of another machine, commit or version, are dropped: {where(before)}")
        rows = []
    rows = sorted([*rows, *new["rows"]], key=lambda r: r.get("candidates", 0))
    results[name] = {**new, "rows": rows}


def where(result: Mapping[str, Any]) -> str:
    """What a case ran on, as the page says it."""
    machine, versions = result["machine"], result["versions"]
    return (
        f"{result['gpu'] or 'no GPU'}, {machine['processor']} with {machine['cores']} cores, {machine['system']}, Python "
        f"{versions['python']}, torch {versions['torch']}, commit {result['commit'] or 'unknown'}"
        + (", a smoke run" if result["smoke"] else "")
    )


def measured_on_gpus(results: Results) -> dict[str, Any]:
    return {name: dict(r) for name, r in results.items() if r["gpu"] and not r["smoke"]}


def device_of(name: str) -> torch.device | None:
    """The device that is measured beside the CPU; None for none."""
    if name == "cpu":
        return None
    if name == "fakegpu":  # of the tests: what runs there is right, and slow
        sys.path.insert(0, str(ROOT))
        importlib.import_module("tests.support.fake_gpu")
        return torch.device(name, 0)
    try:
        return place(name, "float64").device
    except InputError as e:
        raise SystemExit(f"--device: {e}") from e


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--device", help="cuda, cuda:<number> or cpu; if not given, cuda where there is one")
    p.add_argument(
        "--case", nargs="+", choices=[*CASES, TREES], default=[*CASES, TREES], metavar="NAME", help="only these"
    )
    p.add_argument("--candidates", type=int, nargs="+", metavar="NUMBER", help="only these numbers of candidates")
    p.add_argument("--epochs", type=int, default=3, help="epochs of each training; the first one does not count")
    p.add_argument("--folder", type=Path, help="where the caches go; if not given, a folder that is deleted at the end")
    p.add_argument("--hummingbird", type=Path, metavar="PYTHON", help="an interpreter that can import hummingbird")
    p.add_argument(
        "--read", nargs="+", default=[], metavar="FILE", help="measure nothing: take the results of these files"
    )
    p.add_argument("--page", type=Path, metavar="FILE", help="the page whose section of figures is replaced")
    given = parse(p, epochs=2)
    results: dict[str, Any] = {}
    for file in given.read or ([given.out] if given.out and given.out.exists() else []):
        for name, result in json.loads(Path(file).read_text())["results"].items():
            added(results, name, result)
    if not given.read:
        given.device = given.device or ("cuda" if torch.cuda.is_available() else "cpu" if given.smoke else "")
        if not given.device:
            if given.page:
                raise SystemExit(
                    f"--page needs figures of a GPU, and {why_no_gpu()}; or --read those of an earlier run"
                )
            print(f"Not run: {why_no_gpu()}. With --device cpu, the CPU alone is measured.")
            return 0
        device, folder = device_of(given.device), folder_of(given)
        about = {**surroundings(), "smoke": given.smoke, "gpu": ""}
        about["versions"]["torch"] = torch.__version__  # with what it was built for
        if device is not None and device.type == "cuda":
            about["gpu"] = f"{module_of(device).get_device_name(device)} with CUDA {torch.version.cuda}"
        for name in given.case:
            every = (
                iter([measure_trees(given, device)])
                if name == TREES
                else (measure(case_of(given, name), given.epochs, folder, device))
            )
            for rows in every:
                now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
                added(results, name, {**about, "date": now, "rows": rows})
                write(given, results, figures(results))  # at once: the rest may take too long
        # The profiler last: it stays in the process, and what is timed after it takes longer.
        for name in given.case if device is not None else ():
            seen = watch_trees(given, device) if name == TREES else watch(case_of(given, name), folder, device)
            for row in results[name]["rows"]:
                row |= {"watched": found} if (found := seen.get((row["arm"], row.get("candidates")))) else {}
            write(given, results, figures(results))
    real = measured_on_gpus(results)
    print("\n" + tables(results))
    missed = [f"{name}: {ratio:.3g}" for name, (ratio, good) in verdicts(real).items() if not good]
    for line in missed:
        print(f"missed: {line}")
    if given.page:
        if not real:
            raise SystemExit(f"--page needs figures of a GPU, and these are none of one: {given.page} stays as it is")
        write_page(given.page, real)
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
