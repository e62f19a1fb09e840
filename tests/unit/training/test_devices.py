"""Training on a GPU finds what the CPU finds: on one that isn't there (fake_gpu.py), and on a real one where torch sees it."""

import contextlib
import dataclasses
import json
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.data.stream import device_batches
from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import InputError
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.stages.clustering import GaussianMixture, KMeans
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.trees import GBTRegression
from sparkdiff.tensors import device
from sparkdiff.tensors.device import CPU, Place
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.tensors.team import Team
from sparkdiff.training.cuda_graphs import CapturedSteps
from sparkdiff.training.distributed.attempt import Attempt
from sparkdiff.training.distributed.worker import Assignment
from sparkdiff.training.loop import train
from sparkdiff.training.preparation import resolve_objectives
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.training_run import ShortOfMemoryError, Training, _all_count
from tests.support.random_trees import WIDTH as TREE_WIDTH
from tests.support.small_networks import F64, logistic, network, normal, trees
from tests.support.some_gpu import FAKE_ONLY, GPU, REAL, no_reads
from tests.support.train_in_processes import CASES, Case, assignment, sparse, write_cache

PLAIN, NOISY = Recipe(1e-2, 1e-3), Recipe(1e-2, 1e-3, noise=0.3)
SHOWN = ("rawPredictionCol", "probabilityCol", "predictionCol")


def perceptron() -> Any:
    return network(
        (MultilayerPerceptron(normal(6 * 4 + 4 + 4 * 2 + 2), [6, 4, 2], shown=SHOWN, thresholds=None), ["x"], "p")
    )


def bounded() -> Any:
    bounds = {"lower coefficientMatrix": torch.full((1, 6), -0.1, dtype=F64)}
    return network((logistic(6, bounds=bounds), ["x"], "p"))


def mixture() -> Any:
    sigmas = torch.eye(6, dtype=F64).repeat(2, 1, 1)
    return network(
        (
            GaussianMixture(torch.tensor([0.4, 0.6], dtype=F64), normal(2, 6), sigmas, "m", ("predictionCol",)),
            ["x"],
            "p",
        )
    )


def centres() -> Any:
    return network((KMeans(normal(3, 6), False, "k", ("predictionCol",)), ["x"], "p"))


MORE = {
    "softmax": Case(lambda: network((logistic(6, 3), ["x"], "p")), 6, (PLAIN, NOISY), {"batchSize": 24}, classes=True),
    "perceptron": Case(perceptron, 6, (PLAIN, NOISY), {"batchSize": 24, "ema": 0.9}, classes=True),
    "bounds": Case(bounded, 6, (PLAIN, Recipe(1e-1, 0.0)), {"batchSize": 24}, classes=True),
    "mixture of Gaussians": Case(mixture, 6, (PLAIN,), {"batchSize": 24}),
    "clusters": Case(centres, 6, (PLAIN, NOISY), {"batchSize": 24}),
    "few active columns": Case(sparse, 900, (PLAIN, NOISY), {"batchSize": 2}, stored=4, support=1, classes=True),
    "trees whose thresholds train": Case(
        lambda: network((thresholds(), ["x"], "p")), TREE_WIDTH, (PLAIN, NOISY), {"batchSize": 48}
    ),
}


def thresholds() -> GBTRegression:
    out = trees(GBTRegression, 5)
    out.thresholds.requires_grad_()
    return out


EVERY = CASES | MORE


class Watched(Training):
    """A training that keeps the gradient of each epoch, and lets no step wait for the device once there were a few."""

    strict = False

    def take_step(self, candidates: Any, *rest: Any) -> None:
        steady = self.strict and self.epoch > 1
        with no_reads() if steady else contextlib.nullcontext():
            super().take_step(candidates, *rest)
        if self.parts > 1:
            return
        sums = vars(self).setdefault("gradients", {})
        own = candidates.updates.matrix.gradient.detach().cpu().clone()
        sums[self.epoch] = sums[self.epoch] + own if self.epoch in sums and not candidates.lazy else own


def begun(a: Assignment) -> Watched:
    start = a.start
    return Watched(a.network, start.recipes, a.options, start.units, a.original, start.stats, a.monotone)


def fitted(
    a: Assignment,
    place: Place,
    training: Watched | None = None,
    *,
    resident: bool = True,
    strict: bool = False,
    on_step: Any = None,
) -> Watched:
    training = training or begun(a)
    training.strict = strict
    training.move(place)
    objective, metric = resolve_objectives(a.options, training.here.network, a.label)
    with Stream(a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed) as stream:
        data = Data(stream.on(place, resident=resident), a.columns, rows=rows_at_once(a.network, stream))
        train(training, data, objective, metric, on_step or (lambda training: None))
    return training


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the assignment of a case, and what the CPU finds; each made once."""
    known: dict[Any, tuple[Assignment, Watched]] = {}

    def of(name: str, *, zeros: bool = False, **options: Any) -> tuple[Assignment, Watched]:
        key = name, zeros, *options.items()
        if key not in known:
            case = EVERY[name]
            case = dataclasses.replace(case, zeros=zeros, options={**case.options, **options})
            folder = tmp_path_factory.mktemp("case")
            write_cache(folder, case)
            a = assignment(case, folder)
            known[key] = a, fitted(a, CPU)
        return known[key]

    return of


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest value."""
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-300))


def vectors(training: Watched) -> Tensor:
    assert training.candidates is not None
    return training.candidates.u.cpu()


def assert_same(found: Watched, wanted: Watched, gradients: float = 1e-9, weights: float = 1e-6) -> None:
    assert [h["epoch"] for h in found.history] == [h["epoch"] for h in wanted.history]
    for epoch, gradient in wanted.gradients.items():  # type: ignore[attr-defined]
        assert distance(found.gradients[epoch], gradient) <= gradients  # type: ignore[attr-defined]
    assert distance(vectors(found), vectors(wanted)) <= weights
    assert distance(torch.stack(found.gains), torch.stack(wanted.gains)) <= weights
    assert found.best.column == wanted.best.column


WITH_ZEROS = {"noise, masks and mixtures", "sparse rows", "softmax", "trees"}
"""Cases of which some rows have no weight on each commit: how steps look at weights is one for all stages."""


@pytest.mark.parametrize(
    ("name", "zeros"),
    [
        pytest.param(name, zeros, marks=pytest.mark.nightly if zeros and name not in WITH_ZEROS else ())
        for name in EVERY
        for zeros in (True, False)
    ],
)
def test_a_gpu_finds_what_the_cpu_finds_and_the_same_twice(made: Any, name: str, zeros: bool) -> None:
    """With rows of weight 0, where steps look at their weights, and without, where they are graphs."""
    a, wanted = made(name, zeros=zeros)
    found = fitted(a, GPU)
    assert_same(found, wanted)
    assert found.candidates is not None
    assert found.candidates.lazy == (name == "few active columns")
    if name == "mixture of Gaussians" and not zeros:  # no graph can hold its eigenvalues
        assert "start their kernels one by one" in found.fallbacks[0]
    else:
        assert found.fallbacks == []
    if REAL:  # the kernels of the fake are the CPU's
        again = fitted(a, GPU)
        assert torch.equal(vectors(again), vectors(found))
        assert torch.equal(torch.stack(again.gains), torch.stack(found.gains))


# The test above trains all cases, and finds none that fell back from a graph.
GRAPHS = [
    *("noise, masks and mixtures", "perceptron", "trees"),
    *(pytest.param(name, marks=pytest.mark.nightly) for name in ("softmax", "clusters")),
]


@pytest.mark.parametrize("name", GRAPHS)
def test_no_step_waits_for_the_gpu(made: Any, name: str) -> None:
    a, wanted = made(name, maxEpochs=3)
    found = fitted(a, GPU, strict=True)
    assert_same(found, wanted)
    assert found._graphs is not None
    assert found._graphs.steps is not None
    assert 0 < len(found._graphs.adds) <= 16


# Less memory ----------------------------------------------------------------------------------------------------------


def budget(size: int) -> contextlib.AbstractContextManager[None]:
    from tests.support import fake_gpu  # only here: not beside a real GPU

    return fake_gpu.budget(size)


ROWS, PARTS = "rows are copied there batch by batch", "one after the other"


@FAKE_ONLY
@pytest.mark.parametrize("name", [pytest.param("noise, masks and mixtures", marks=pytest.mark.nightly), "perceptron"])
def test_low_memory_evicts_rows_then_candidates_take_turns(
    made: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each way down is told, and nothing is lost: the result is that of all memory."""
    monkeypatch.setattr(device_batches, "CHUNK_BYTES", 1 << 13)
    monkeypatch.setattr(device_batches, "SPARE_BYTES", 0)
    a, wanted = made(name, batchSize=40)
    told: dict[str, int] = {}
    size = 138_000
    while size > 1 << 12:
        try:
            with budget(size):
                found = fitted(a, GPU)
        except InputError as e:
            told["error"], message = size, str(e)
            break
        assert distance(torch.stack(found.gains), torch.stack(wanted.gains)) <= 1e-9
        assert all(
            torch.allclose(s.flat, t.flat, rtol=1e-9) for s, t in zip(found.standings, wanted.standings, strict=True)
        )
        assert [(h["epoch"], h["candidate"]) for h in found.history] == [
            (h["epoch"], h["candidate"]) for h in wanted.history
        ]
        for key in (ROWS, PARTS):
            if any(key in fallback for fallback in found.fallbacks):
                told.setdefault(key, size)
        size = int(size / 1.5)
    assert "fakegpu:0" in message
    assert "set device='cpu'" in message
    assert told[ROWS] >= told[PARTS] > told["error"]


@FAKE_ONLY
def test_processes_begin_again_with_less_on_their_devices(made: Any, tmp_path: Path) -> None:
    """One that runs out of memory can't go on alone: it tells the driver, which starts all with less."""
    a, wanted = made("noise, masks and mixtures")
    training = begun(a)
    training.move(GPU)
    with Stream(a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed) as stream:
        data = Data(stream.on(GPU), a.columns, Team(1, 2))
        with pytest.raises(
            ShortOfMemoryError, match=r"^process 1: training ran out of memory on fakegpu:0 .too much.$"
        ) as e:
            training.with_less(data, "too much")
    for rank, error in enumerate(("LostProcessError", type(e.value).__name__)):
        told = {"error": error, "message": str(e.value), "ours": True}
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(told))
    attempt = Attempt.__new__(Attempt)
    attempt.here = tmp_path
    assert attempt.failure_message(ShortOfMemoryError) == str(e.value)
    for level, told in ((1, ROWS), (2, "2 parts"), (3, "4 parts")):
        found = begun(a)
        found.move(GPU)
        found.reduce(level)
        found = fitted(a, GPU, found, resident=False)
        assert told in found.fallbacks[-1]
        assert distance(torch.stack(found.gains), torch.stack(wanted.gains)) <= 1e-9


def test_rows_that_are_copied_ahead_are_the_same(made: Any) -> None:
    for name in ("noise, masks and mixtures", "from files", "sparse rows"):
        a, wanted = made(name)
        assert_same(fitted(a, GPU, resident=False), wanted)


def test_a_buffer_is_filled_again_only_after_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies go on while the process does: a buffer that is filled too early would change rows that are under way."""
    buffers, table = device_batches.StagingBuffers(GPU), {"x": normal(30, 2), "n": torch.arange(30)}
    parts = [np.arange(10 * k, 10 * k + 10)[::-1].copy() for k in range(3)]
    second: Any = None
    waited: list[str] = []
    for name, rows in (("first", parts[0]), ("second", parts[1])):
        first, second = second, buffers.gather(table, rows)
        buffers.send(second)
        event = types.SimpleNamespace(synchronize=lambda name=name: waited.append(name))
        buffers._copied[buffers._now] = event
    assert not waited
    for found, rows in ((first, parts[0]), (second, parts[1])):
        assert all(torch.equal(found[name], x[torch.from_numpy(rows)]) for name, x in table.items())
    third = buffers.gather(table, parts[2])
    assert waited == ["first"]
    assert third["x"].data_ptr() == first["x"].data_ptr()
    assert torch.equal(second["x"], table["x"][10:20].flip(0))


@pytest.mark.parametrize("step", ["_aside", "_record"])
def test_a_step_that_no_memory_is_left_to_record_needs_no_graph(
    made: Any, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(*given: Any) -> None:
        raise torch.OutOfMemoryError("out of memory: too little for a graph")

    monkeypatch.setattr(CapturedSteps, step, short)
    a, wanted = made("noise, masks and mixtures")
    found = fitted(a, GPU)
    assert_same(found, wanted)
    [told] = found.fallbacks
    assert "start their kernels one by one" in told
    assert "too little for a graph" in told


def test_what_follows_a_failed_step_waits_for_its_kernels() -> None:
    """They run on a stream of their own, and write to what is then put back."""
    waited: list[tuple[str, str]] = []

    class Queue(types.SimpleNamespace):
        def wait_stream(self, other: Any) -> None:
            waited.append((self.name, other.name))

    def fails(argument: Any) -> None:
        waited.append(("fails", argument))
        raise RuntimeError("in the middle of it")

    steps = CapturedSteps.__new__(CapturedSteps)
    steps.device, steps.side = GPU.device, Queue(name="side")
    steps.module = types.SimpleNamespace(
        current_stream=lambda device: Queue(name="now"), stream=lambda side: contextlib.nullcontext()
    )
    with pytest.raises(RuntimeError, match=r"^in the middle of it$"):
        steps._aside(fails, "x")
    assert waited == [("side", "now"), ("fails", "x"), ("now", "side")]


@pytest.mark.parametrize("others", [0, 3])
def test_steps_read_weights_if_any_process_has_weights_of_0(made: Any, others: int) -> None:
    class Two(Team):
        def sum_(self, *tensors: Tensor) -> None:
            for tensor in tensors:
                tensor += others

    a, _ = made("softmax")
    with Stream(a.cache, backend=a.backend) as stream:
        assert _all_count(Data(stream.on(GPU), a.columns, Two())) is (others == 0)
        assert stream.zero_weights("train") == 0
    a, _ = made("softmax", zeros=True)
    with Stream(a.cache, backend=a.backend) as stream:
        assert stream.zero_weights("train") == sum(
            int((b["weight"] == 0).sum()) for b in stream.batches("train", batchSize=8)
        )


@FAKE_ONLY
def test_the_estimate_of_memory_is_what_rows_take(made: Any) -> None:
    for name in ("sparse rows", "softmax"):
        a, _ = made(name)
        for dtype in (torch.float64, torch.float32):
            with Stream(a.cache, backend=a.backend) as stream:
                place = Place(GPU.device, dtype)
                whole = device_batches.SPARE_BYTES + 2 * device_batches.CHUNK_BYTES
                [b] = stream.batches("train", batchSize=10_000)
                here = device_batches.here(b, place)
                taken = sum(
                    t.nbytes
                    for x in here.values()
                    for t in ((x.indices, x.values, x.offsets) if isinstance(x, SparseRows) else (x,))
                )
                assert device_batches.bytes_of(b, place) == taken
                table = stream._rows_of_rank("train", 0, 1)
                taken = device_batches.bytes_of(table, place)
                for free, fits in ((taken, True), (taken - 1, False)):
                    with budget(whole + free):
                        assert stream.on(place).fits(("train",), 0) is fits


# Interruptions --------------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


GOES_ON = {("sparse rows", GPU, CPU), ("trees", CPU, GPU), ("noise, masks and mixtures", GPU, GPU)}


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        pytest.param(name, *places, marks=() if (name, *places) in GOES_ON else pytest.mark.nightly)
        for name in ("noise, masks and mixtures", "sparse rows", "trees")
        for places in ((GPU, CPU), (CPU, GPU), (GPU, GPU))
    ],
)
def test_a_checkpoint_of_one_device_goes_on_on_another(
    made: Any, name: str, first: Place, then: Place, tmp_path: Path
) -> None:
    a, wanted = made(name)
    saved = tmp_path / "state.pt"

    def stops(training: Training) -> None:
        if (training.epoch, training.step) == (2, 2):
            torch.save(training.state(), saved)
            raise Killed

    with pytest.raises(Killed):
        fitted(a, first, on_step=stops)
    training = begun(a)
    training.load(torch.load(saved, weights_only=True))  # no tensor of a device is in it
    found = fitted(a, then, training)
    assert distance(torch.stack(found.gains), torch.stack(wanted.gains)) <= 1e-9


def test_a_checkpoint_of_candidates_that_take_turns(made: Any) -> None:
    a, wanted = made("noise, masks and mixtures")
    saved: dict[str, Any] = {}

    def stops(training: Training) -> None:
        if (training.epoch, training.step) == (2, 2):
            saved.update(training.state())
            raise Killed

    whole = begun(a)
    whole.parts = 3
    with pytest.raises(Killed):
        fitted(a, GPU, whole, on_step=stops)
    assert saved["step"] == 0
    training = begun(a)
    training.load(saved)
    found = fitted(a, CPU, training)
    assert distance(torch.stack(found.gains), torch.stack(wanted.gains)) <= 1e-9


# Graphs that can't be, and float32 ------------------------------------------------------------------------------------


def unsteady(outputs: Any, label: Tensor, weight: Tensor) -> Tensor:
    """A loss that asks for a number of the CPU in each step, which no graph can hold."""
    return (next(iter(outputs.values())) - label) ** 2 * (1.0 if float(label.sum()) >= 0 else 2.0)


def test_a_step_without_a_graph_runs_kernel_by_kernel(made: Any) -> None:
    a, wanted = made("noise, masks and mixtures", loss=unsteady)
    found = fitted(a, GPU)
    assert_same(found, wanted)
    [told] = found.fallbacks
    assert "start their kernels one by one" in told
    assert ("synchronizing CUDA operation" if REAL else "aten._local_scalar_dense.default waits for the device") in told
    GPU.trim()  # which fails where a recording has failed
    assert not device.module_of(GPU.device).get_sync_debug_mode()


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("noise, masks and mixtures", GPU.device),
        ("sparse rows with noise", CPU.device),
        ("softmax", CPU.device),
        ("perceptron", GPU.device),
        ("clusters", CPU.device),
        ("mixture of Gaussians", GPU.device),
        pytest.param("noise, masks and mixtures", CPU.device, marks=pytest.mark.nightly),
        pytest.param("sparse rows with noise", GPU.device, marks=pytest.mark.nightly),
        pytest.param("softmax", GPU.device, marks=pytest.mark.nightly),
        pytest.param("perceptron", CPU.device, marks=pytest.mark.nightly),
        pytest.param("clusters", GPU.device, marks=pytest.mark.nightly),
        pytest.param("mixture of Gaussians", CPU.device, marks=pytest.mark.nightly),
    ],
)
def test_float32_rows_train_to_about_the_same(made: Any, name: str, at: torch.device) -> None:
    a, wanted = made(name)
    found = fitted(a, Place(at, torch.float32))
    assert all(s.flat.dtype == torch.float64 for s in found.standings)
    assert vectors(found).dtype == torch.float64
    assert_same(found, wanted, 1e-4, 1e-3)
    assert not torch.equal(vectors(found), vectors(wanted))


def test_without_a_gpu_a_name_of_one_is_refused() -> None:
    if REAL:
        pytest.skip("torch sees a GPU")
    with pytest.raises(InputError, match=r"^device='cuda:1', but .*; or set device='cpu'$"):
        device.place("cuda:1", "float64")
