"""Trains in two processes with device='auto', where training on one's GPU first runs out of memory and then fails.

    python -m tests.support.auto_in_processes FOLDER

The driver's part is that of a job, but the processes are forked, and joined by gloo. Leaves in FOLDER/found.json what the driver
said, and the errors of each attempt.
"""

import json
import multiprocessing
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from sparkdiff.store.checkpoint_folder import CheckpointFolder
from sparkdiff.training.distributed import choice, launch, worker
from sparkdiff.training.distributed.attempt import Attempt, OnEpoch
from sparkdiff.training.training_run import Training
from tests.support.train_in_processes import CASES, assignment, with_gpu, write_cache


def process(rank: int, here: Path, port: int) -> None:
    torch.set_num_threads(1)
    with_gpu()
    choice.gpus = lambda: 1
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    take_step = Training.take_step

    def fails(training: Training, *given: Any) -> None:
        if rank == 1 and not training.here.place.on_cpu and training.step == 1:
            if not training.fallbacks:
                raise torch.OutOfMemoryError("too much")
            raise RuntimeError("no kernel\nfor this")
        take_step(training, *given)

    Training.take_step = fails  # type: ignore[method-assign]
    worker.main(str(here))


class Forked(Attempt):
    def __init__(self, spark: Any, here: Path, processes: int, *others: Any):
        self.here, self.processes, self.gpus = here, processes, False

    def run(self, on_line: OnEpoch) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        fork = multiprocessing.get_context("fork")
        every = [fork.Process(target=process, args=(rank, self.here, port)) for rank in range(self.processes)]
        for p in every:
            p.start()
        for p in every:
            p.join()
        errors.append([r["error"] for r in self.ranks() if "error" in r])


errors: list[list[str]] = []


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.optim.LBFGS([torch.zeros(1)])  # imports a thousand modules, here instead of in each process
    case = CASES["from files"]
    write_cache(folder / "cache", case)
    a = assignment(case, folder / "cache")
    a = replace(a, options=replace(a.options, device="auto", numProcesses=2, maxEpochs=2))
    launch.jvm.session = lambda: SimpleNamespace(conf={"spark.master": "local[2]"})  # type: ignore[assignment, return-value]
    launch.Attempt = Forked  # type: ignore[misc]
    said: list[str] = []
    launch.run(a, None, CheckpointFolder.open(folder, "r", {}, replace=False), said.append)  # type: ignore[arg-type]
    (folder / "found.json").write_text(json.dumps({"said": said, "errors": errors}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
