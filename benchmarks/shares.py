"""Where does the time of an epoch go, in one process and in several?

One training (VectorAssembler, StandardScaler, LogisticRegression; one candidate) over one cache, in one process and in more, on
one machine, joined by gloo. Of the steps of an epoch after the first it prints, for the mean process: the share that it waits
for the slowest other one before a sum over the processes, the share of the sums themselves, that of reading (gathering the rows
of the next steps and what is computed ahead from them), and the rest, which is the step. What could be done while a sum is under
way is the reading.

    SPARK_CONF_DIR=conf python benchmarks/shares.py --rows 200000 --batch 128 4096 --processes 1 2
"""

import multiprocessing
import pickle
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from common import exit_code, folder_of, markdown, parse, parser, write
from processes import pipeline, trained
from torch import Tensor

from sparkdiff.data.stream.batches import Stream
from sparkdiff.tensors.team import Team
from sparkdiff.training.distributed.worker import Assignment, work
from sparkdiff.training.training_run import Training

EPOCHS = 4
PARTS = ("waiting", "sums", "reading", "the step")


@dataclass(frozen=True)
class TimedTeam(Team):
    """Notes when each sum begins and ends."""

    sums: list[tuple[float, float]] = field(default_factory=list)

    def sum_(self, *tensors: Tensor) -> None:
        begun = time.monotonic()
        super().sum_(*tensors)
        self.sums.append((begun, time.monotonic()))


class TimedStream(Stream):
    """Notes the seconds in which a step's rows are awaited."""

    reading = 0.0

    def batches(self, *args: Any, **options: Any) -> Iterator[Any]:
        steps = super().batches(*args, **options)
        while True:
            begun = time.monotonic()
            try:
                batch = next(steps)
            except StopIteration:
                return
            finally:
                TimedStream.reading += time.monotonic() - begun
            yield batch


def process(rank: int, world: int, folder: Path, threads: int) -> None:
    """Train as one process of several, and leave when it summed and how long it read in the steps of the last epochs."""
    torch.set_num_threads(threads)
    meeting = f"file://{folder}/meeting-{world}"
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world, timeout=timedelta(minutes=5)
    )
    assignment: Assignment = pickle.loads((folder / "assignment.pickle").read_bytes())
    team, whole, reading = TimedTeam(rank, world), 0.0, 0.0
    steps: list[tuple[float, float]] = []
    first: tuple[float, float, int] | None = None

    def on_step(training: Training) -> None:
        """The steps between the first and the last of an epoch; neither the first epoch nor the measuring after one counts."""
        nonlocal whole, reading, first
        if training.epoch == 1:
            return
        if training.step == 1:
            first = time.monotonic(), TimedStream.reading, len(team.sums)
        elif first is not None and training.step == last:
            whole += time.monotonic() - first[0]
            reading += TimedStream.reading - first[1]
            steps.extend(team.sums[first[2] :])

    training = assignment.training()
    with TimedStream(
        assignment.cache, backend=assignment.backend, inMemory=assignment.inMemory, seed=assignment.options.seed
    ) as stream:
        last = stream.steps("train", assignment.options.batchSize)
        work(assignment, training, stream, team, on_step)
    found = {"whole": whole, "reading": reading, "sums": steps}
    (folder / f"found-{world}-{rank}").write_bytes(pickle.dumps(found))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def shares(folder: Path, world: int) -> dict[str, float]:
    """Seconds of an epoch's steps, and the shares of `PARTS`, of the mean process."""
    threads = max(1, torch.get_num_threads() // world)
    there = [
        multiprocessing.get_context("spawn").Process(target=process, args=(rank, world, folder, threads))
        for rank in range(world)
    ]
    for p in there:
        p.start()
    for p in there:
        p.join()
    if any(p.exitcode for p in there):
        raise SystemExit(f"a process of {world} failed")
    found = [pickle.loads((folder / f"found-{world}-{rank}").read_bytes()) for rank in range(world)]
    sums = torch.tensor([f["sums"] for f in found], dtype=torch.float64)  # (processes, sums, 2)
    whole = sum(f["whole"] for f in found) / world
    begun, ended = sums[..., 0], sums[..., 1]
    there_all = begun.amax(0)
    seconds = {
        "waiting": float((there_all - begun).sum(1).mean()) if world > 1 else 0.0,
        "sums": float((ended - there_all).sum(1).mean()) if world > 1 else 0.0,
        "reading": sum(f["reading"] for f in found) / world,
    }
    seconds["the step"] = whole - sum(seconds.values())
    return {"epoch": whole / (EPOCHS - 1)} | {name: seconds[name] / whole for name in PARTS}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--columns", type=int, default=50)
    options.add_argument("--batch", type=int, nargs="+", default=[128, 4096])
    options.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    options.add_argument("--files", action="store_true", help="read the rows anew in each epoch")
    options.add_argument("--folder", type=Path)
    given = parse(options, rows=2000, columns=4, batch=[128], processes=[1, 2])

    from sparkdiff.training.distributed import launch

    folder = folder_of(given)
    model, df = pipeline(folder, given.rows, given.columns)
    taken: list[Assignment] = []

    def take(assignment: Assignment, *others: Any, **options: Any) -> None:
        taken.append(assignment)
        work(assignment, *others, **options)

    results, table, figures = list[dict[str, Any]](), list[list[str]](), dict[str, float]()
    for batch in given.batch:
        with mock.patch.object(launch, "work", take):
            trained(model, df, folder, batch, EPOCHS)
        seen = taken[-1]
        network = seen.network.without_spark()
        assignment = replace(seen, network=network, cache=seen.cache.resolve(), inMemory=not given.files)
        for world in given.processes:
            here = folder / f"{batch}-{world}"
            here.mkdir()
            (here / "assignment.pickle").write_bytes(pickle.dumps(assignment))
            found = shares(here, world)
            results.append({"batch": batch, "processes": world, **found})
            table.append([f"{batch:,}", str(world), f"{found['epoch']:.2f}", *(f"{found[name]:.0%}" for name in PARTS)])
            figures[f"{batch}, {world} processes: sums"] = found["sums"]
    print(markdown(["batch", "processes", "steps of an epoch, s", *PARTS], table))
    write(given, results, figures)
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
