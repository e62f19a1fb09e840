"""Which device a training takes: the one that is named or, of two, the faster one; what is kept of it, and what is missing."""

import copy
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from sparkdiff.data.stream.batches import Stream
from sparkdiff.errors import InputError
from sparkdiff.options import Options
from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.store.files import DamagedFile
from sparkdiff.tensors import device
from sparkdiff.tensors.device import CPU, Place
from sparkdiff.tensors.team import ALONE, Team
from sparkdiff.training.distributed import choice, preflight, worker
from sparkdiff.training.distributed.choice import DeviceNote, StepTimer, TimingDone, choose_place
from sparkdiff.training.distributed.worker import work
from tests.support import fake_gpu
from tests.support.train_in_processes import CASES, assignment, train, write_cache

FAKE = Place(torch.device(fake_gpu.NAME, 0))
SHOWN = "fakegpu:0 (a GPU that isn't there)"


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: 1)
    monkeypatch.setattr(choice, "place", lambda kind, precision, local: CPU if kind == "cpu" else FAKE)


def takes(cpu: float, gpu: float, timed: list[Place] | None = None) -> Callable[[Place, Team], float]:
    def seconds(at: Place, team: Team) -> float:
        if timed is not None:
            timed.append(at)
        return cpu if at.on_cpu else gpu

    return seconds


def refused(at: Place, team: Team) -> float:
    raise AssertionError("nothing is to be timed")


def test_without_a_gpu_the_cpu_is_taken_and_nothing_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "gpus", lambda: 0)
    said: list[str] = []
    assert choose_place(Options(), ALONE, tmp_path, refused, said.append) == (CPU, ALONE)
    assert choose_place(Options.of({"device": "cpu"}), ALONE, tmp_path, refused, said.append) == (CPU, ALONE)
    assert not said and not list(tmp_path.iterdir())


@pytest.mark.usefixtures("one_gpu")
def test_the_faster_one_is_taken_and_kept_for_the_next_run(tmp_path: Path) -> None:
    said: list[str] = []
    assert choose_place(Options(), ALONE, tmp_path, takes(2e-3, 5e-4), said.append)[0] == FAKE
    assert said == [f"device='auto' takes {SHOWN}: a step takes 0.5 ms there, 2 ms on cpu"]
    kept = json.loads((tmp_path / choice.DeviceNote.FILE).read_text())
    assert kept == {"device": "cuda", "trainedOn": SHOWN, "millisecondsPerStep": {"cpu": 2.0, "cuda": 0.5}}
    assert choose_place(Options(), ALONE, tmp_path, refused, said.append)[0] == FAKE
    assert len(said) == 1
    assert choose_place(Options(), ALONE, None, takes(1e-3, 2e-3), said.append)[0] == CPU


@pytest.mark.usefixtures("one_gpu")
def test_a_device_that_is_gone_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    choose_place(Options(), ALONE, tmp_path, takes(2e-3, 5e-4), print)
    with monkeypatch.context() as gone:
        gone.setattr(choice, "gpus", lambda: 0)
        assert choose_place(Options(), ALONE, tmp_path, refused, print)[0] == CPU
    assert DeviceNote.read(tmp_path) == DeviceNote("cpu", "cpu", {})
    timed: list[Place] = []
    assert choose_place(Options(), ALONE, tmp_path, takes(1e-3, 5e-4, timed), print)[0] == FAKE
    assert timed == [CPU, FAKE]


@pytest.mark.usefixtures("one_gpu")
def test_a_named_device_is_not_timed_and_its_name_is_kept(tmp_path: Path) -> None:
    assert choose_place(Options.of({"device": "cuda"}), ALONE, tmp_path, refused, print)[0] == FAKE
    assert DeviceNote.read(tmp_path) == DeviceNote("cuda", SHOWN, {})
    (tmp_path / choice.DeviceNote.FILE).write_text("{damaged")
    with pytest.warns(DamagedFile, match=r"device\.json is damaged and made again"):
        assert DeviceNote.read(tmp_path) is None
    assert choice.display_name(FAKE, 4) == f"4 processes, the first on {SHOWN}"


@pytest.mark.usefixtures("one_gpu")
def test_a_gpu_on_which_it_cannot_run_is_left_and_tried_again(tmp_path: Path) -> None:
    def broken(at: Place, team: Team) -> float:
        if at.on_cpu:
            return 1e-3
        raise RuntimeError("no kernel\nfor this")

    said: list[str] = []
    assert choose_place(Options(), ALONE, tmp_path, broken, said.append)[0] == CPU
    assert said == ["device='auto' takes cpu: training on fakegpu:0 failed (no kernel)"]
    assert choose_place(Options(), ALONE, tmp_path, takes(2e-3, 1e-3), said.append)[0] == FAKE

    def wrong(at: Place, team: Team) -> float:
        raise InputError("no gradient passes through the loss")

    with pytest.raises(InputError, match="no gradient"):
        choose_place(Options(), ALONE, None, wrong, said.append)


@pytest.mark.parametrize("takes_gpu", [False, True])
@pytest.mark.usefixtures("one_gpu")
def test_timing_leaves_the_training_as_it_was(takes_gpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits as without it on the CPU, nearly the same on the GPU; and it is really trained there."""
    case, timed = replace(CASES["noise, masks and mixtures"], worlds=(1,)), []
    write_cache(tmp_path, case)
    named = assignment(case, tmp_path)
    alone = train(named, ALONE)
    a = replace(named, options=replace(named.options, device="auto"))
    before = copy.deepcopy(a.network.state_dict())

    def seconds(clock: StepTimer) -> float:
        timed.append((clock.at.name, clock.now))
        return 1.0 if clock.at.on_cpu != takes_gpu else 2.0

    monkeypatch.setattr(StepTimer, "seconds_per_step", seconds)
    said: list[str] = []
    training, copies = a.training(), fake_gpu.copies
    with Stream(a.cache, backend="arrow", seed=a.options.seed) as stream:
        work(a, training, stream, ALONE, lambda training: None, folder=tmp_path, say=said.append)
    steps = timed[0][1]
    assert timed == [("cpu", steps), ("fakegpu:0", steps)] and 0 < steps < 9
    assert (len(said), fake_gpu.copies > copies, training.here.place == FAKE) == (1, True, takes_gpu)
    gains = torch.stack(training.gains)
    assert torch.equal(gains, alone["gains"]) or takes_gpu
    torch.testing.assert_close(gains, alone["gains"], rtol=1e-9, atol=1e-9)
    for name, x in a.network.state_dict().items():
        assert torch.equal(x, before[name])


def test_the_folder_of_a_run_may_hold_it(tmp_path: Path) -> None:
    folder = CheckpointFolder.open(tmp_path, "r", {"seed": 1}, replace=False)
    DeviceNote("cuda", SHOWN).write(folder.path)
    assert DeviceNote.read(folder.path) == DeviceNote("cuda", SHOWN, {})
    assert DeviceNote.read(CheckpointFolder.open(tmp_path, "r", {"seed": 2}, replace=True).path) is None


def test_the_clock_skips_first_steps_and_counts_over_epochs() -> None:
    clock = StepTimer(CPU, steps=10, epochs=100)
    for done in range(1, choice.WARM + choice.TIMED):
        clock(SimpleNamespace(epoch=1 + done // 10, step=done % 10))  # type: ignore[arg-type]
    with pytest.raises(TimingDone):
        clock(SimpleNamespace(epoch=5, step=0))  # type: ignore[arg-type]
    assert (clock.first, clock.now) == (choice.WARM, choice.WARM + choice.TIMED)
    assert clock.seconds_per_step() > 0
    assert (StepTimer(FAKE, 1, 1).warm, StepTimer(FAKE, 1, 1).last) == (
        0,
        1,
    )  # of a short training no more than a share
    assert StepTimer(FAKE, 2, 120).last - choice.WARM == 12


@pytest.mark.usefixtures("one_gpu")
def test_where_no_step_could_be_timed_the_cpu_is_taken(tmp_path: Path) -> None:
    """As of a training that ends within the steps that are not timed; `maxSeconds` doesn't end the one that is timed."""
    assert StepTimer(CPU, steps=10, epochs=100).seconds_per_step() == math.inf
    said: list[str] = []
    assert choose_place(Options(), ALONE, tmp_path, takes(math.inf, 1e-3), said.append)[0] == CPU
    assert said == ["device='auto' takes cpu: training ends before a step could be timed"]
    case = replace(CASES["noise, masks and mixtures"], worlds=(1,))
    write_cache(tmp_path / "cache", case)
    a = assignment(case, tmp_path / "cache")
    a = replace(a, options=replace(a.options, device="auto", maxSeconds=1e-9, maxEpochs=20))
    with Stream(a.cache, backend="arrow", seed=a.options.seed) as stream:
        work(a, a.training(), stream, ALONE, lambda training: None, folder=tmp_path, say=said.append)
    assert "a step takes" in said[1]


def test_the_clock_waits_for_the_device_that_it_times(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[Any] = []
    monkeypatch.setattr(fake_gpu.backend, "synchronize", waited.append)
    clock = StepTimer(Place(torch.device(fake_gpu.NAME, 1)), 10, 100)
    clock(SimpleNamespace(epoch=1, step=1))  # type: ignore[arg-type]
    assert waited == [torch.device(fake_gpu.NAME, 1)] * 2


def test_another_gpu_is_current_while_timed_and_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second, current = Place(torch.device(fake_gpu.NAME, 1)), fake_gpu.backend.current_device
    monkeypatch.setattr(choice, "gpus", lambda: 2)
    monkeypatch.setattr(choice, "place", lambda kind, precision, local: CPU if kind == "cpu" else second)
    seen: set[tuple[Place, int]] = set()

    def trained(at: Place, *others: Any) -> None:
        seen.add((at, current()))

    monkeypatch.setattr(worker, "_train_at", trained)
    monkeypatch.setattr(StepTimer, "seconds_per_step", lambda clock: 1.0 if clock.at.on_cpu else 0.5)
    case = CASES["from files"]
    write_cache(tmp_path, case)
    a = assignment(case, tmp_path)
    a = replace(a, options=replace(a.options, device="auto"))
    with Stream(a.cache, backend="arrow", seed=a.options.seed) as stream:
        on = stream.on
        monkeypatch.setattr(stream, "on", lambda at, **how: seen.add((at, current())) or on(at, **how))
        work(a, a.training(), stream, ALONE, lambda training: None)
    assert seen == {(CPU, 0), (second, 1)}
    assert current() == 0


def test_all_processes_take_the_cpu_if_one_fails_on_its_gpu(tmp_path: Path) -> None:
    """And with less memory if one runs out of it: the others, which wait in a sum, end, and all begin again."""
    path = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.auto_in_processes", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    took, attempts = json.loads((tmp_path / "found.json").read_text()).values()
    assert took[:2] == [
        "process 1: training ran out of memory on fakegpu:0 (too much); "
        "all processes go on from the last checkpoint with less there",
        "device='auto' takes cpu: process 1: training on fakegpu:0 failed (no kernel)",
    ]
    assert [sorted(errors) for errors in attempts] == [
        ["LostProcessError", "ShortOfMemoryError"],
        ["LostProcessError", "TimingError"],
        [],
    ]
    assert json.loads(next(tmp_path.rglob(choice.DeviceNote.FILE)).read_text()) == {
        "device": "cpu",
        "trainedOn": "cpu",
        "millisecondsPerStep": {},
    }


@pytest.fixture
def a_group(tmp_path: Path) -> Iterator[None]:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("a_group", "one_gpu")
def test_gpu_sums_without_their_own_group_go_over_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    team = Team(0, 2)  # of which only one is there
    x, n = torch.ones(2, dtype=torch.float64).to(FAKE.device), torch.tensor(3).to(FAKE.device)
    team.sum_(x, n)
    assert (x.tolist(), n.tolist(), n.dtype) == ([1.0, 1.0], 3, torch.int64)
    assert team.gather(x).device == FAKE.device
    # One of two processes sees no GPU: both take the CPU.
    assert choose_place(Options(), team, None, refused, print)[0] == CPU


@pytest.mark.parametrize(
    ("ids", "nccl", "why"),
    [(["a", "a"], True, "2 processes share 1 GPUs"), (["a", "b"], False, "torch .* was built without NCCL")],
)
def test_why_sums_go_over_the_cpu(ids: list[str], nccl: bool, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "all_gather_object", lambda every, own: every.__setitem__(slice(None), ids))
    monkeypatch.setattr(dist, "is_nccl_available", lambda: nccl)
    said: list[str] = []
    assert choice._join_gpu_group(Team(0, 2), FAKE, 60.0, said.append).gpus is None
    assert re.fullmatch(f"{why}: sums of the processes go over the CPU, which takes longer", said[0])


# What is missing ------------------------------------------------------------------------------------------------------


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "gpus", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(
        InputError, match=r"device='cuda', but torch .* was built without CUDA: .*; or set device='cpu'$"
    ):
        device.place("cuda", "float64")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(InputError, match="device='cuda:1', but CUDA_VISIBLE_DEVICES='' shows it none: unset it"):
        device.place("cuda:1", "float64")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    with pytest.raises(InputError, match="torch finds no NVIDIA driver or no GPU"):
        device.place("cuda", "float64")
    monkeypatch.setattr(device, "gpus", lambda: 2)
    with pytest.raises(InputError, match="device='cuda:2', but torch sees 2 GPUs, numbered from 0"):
        device.place("cuda:2", "float64")
    assert [device.place("cuda", "float64", local).name for local in (0, 1, 2)] == ["cuda:0", "cuda:1", "cuda:0"]


def session(master: str, **confs: str) -> Any:
    amounts = {f"spark.{part}.resource.gpu.amount": amount for part, amount in confs.items()}
    return SimpleNamespace(conf={"spark.master": master, **amounts})


@pytest.mark.parametrize(
    ("master", "confs", "local", "found"),
    [
        ("local[4]", {}, True, False),  # the processes take what torch sees
        ("local[4]", {"driver": "2"}, True, True),
        (
            "local[4]",
            {"driver": "1"},
            True,
            "numProcesses=2, but spark.driver.resource.gpu.amount=1: set numProcesses=1,",
        ),
        ("local[4]", {"task": "1"}, False, "master local.4. gives no GPU to a task: set localMode='true'"),
        ("yarn", {}, True, False),
        ("yarn", {"executor": "2", "task": "1"}, False, True),
        (
            "yarn",
            {},
            False,
            "as spark.executor.resource.gpu.amount and spark.task.resource.gpu.amount are not set: submit with --conf .*"
            "--conf spark.executor.resource.gpu.discoveryScript=<.*>, or set device='cpu'",
        ),
        ("yarn", {"executor": "2"}, False, "as spark.task.resource.gpu.amount is not set"),
        ("yarn", {"executor": "1", "task": "0.5"}, False, "spark.task.resource.gpu.amount=0.5: .* set it to 1"),
        (
            "yarn",
            {"executor": "4", "task": "2"},
            False,
            "spark.task.resource.gpu.amount=2: a process trains on one GPU",
        ),
    ],
)
def test_what_spark_gives_to_the_processes(master: str, confs: dict[str, str], local: bool, found: bool | str) -> None:
    spark = session(master, **confs)
    if isinstance(found, bool):
        assert preflight.gives_gpus(spark, "cuda", 2, local) == found
    else:
        with pytest.raises(InputError, match=found):
            preflight.gives_gpus(spark, "cuda", 2, local)
    for device_ in ("auto", "cpu"):  # which never fails
        given = preflight.gives_gpus(spark, device_, 2, local)
        assert given == (device_ == "auto" and found is True and not local)


GOOD = {
    "python": "python",
    "host": "worker-1",
    "sees": True,
    "lacks": [],
    "given": ["0"],
    "shown": None,
    "look": ["2.9.0", "1", "2"],
    "failed": "",
}


@pytest.mark.parametrize(
    ("lack", "said"),
    [
        ({"given": []}, "Spark gave no GPU to a task on worker-1: let .*discoveryScript name a script"),
        ({"given": ["GPU-1f"]}, "Spark's GPUs on worker-1 are GPU-1f: let .* lists them by number"),
        ({"shown": "0,1"}, "CUDA_VISIBLE_DEVICES='0,1' is set for the executors on worker-1, .*: unset it there"),
        (
            {"look": [], "failed": "OSError: no library"},
            "torch can't be imported on worker-1 .OSError: no library.: repair",
        ),
        (
            {"look": ["2.9.0+cpu", "0", "0"]},
            r"torch 2.9.0\+cpu on worker-1 was built without CUDA: install a build with it",
        ),
        (
            {"look": ["2.9.0", "1", "0"], "shown": ""},
            "CUDA_VISIBLE_DEVICES is empty on worker-1, .*worker.reuse=false",
        ),
        ({"look": ["2.9.0", "1", "0"]}, "torch finds no NVIDIA driver or no GPU on worker-1: `nvidia-smi` there tells"),
    ],
)
def test_what_the_executors_lack_for_a_gpu(
    lack: dict[str, Any], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [GOOD, GOOD | lack]
    monkeypatch.setattr(preflight, "_check_slots", lambda *given: None)
    monkeypatch.setattr(preflight, "_probe_executors", lambda *given: found)
    with pytest.raises(InputError, match=f"^device='cuda', but {said}.*; or set device='cpu'$"):
        preflight.check_cluster(session("yarn"), 2, tmp_path, ["torch"], "cuda")
    assert preflight.check_cluster(session("yarn"), 2, tmp_path, ["torch"], "auto") == ("given" not in lack)
    found[:] = [GOOD]
    assert preflight.check_cluster(session("yarn"), 2, tmp_path, ["torch"], "cuda")
