"""Trains small networks in 1 to 12 processes, joined by gloo as those of a job are, and leaves what each number found.

    python -m tests.support.train_in_processes FOLDER [every]

The processes are forked from one, which has imported all once. For every case and number of processes the first of them
leaves FOLDER/CASE-NUMBER.pt: the weights and the history. Without `every` each case trains in few numbers of processes.
"""

import hashlib
import json
import multiprocessing
import sys
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.distributed as dist

from sparkdiff.data.stream.batches import Stream
from sparkdiff.evaluation.scores import score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import StandardScaler
from sparkdiff.stages.trees import GBTRegression
from sparkdiff.tensors.device import CPU, Place, home
from sparkdiff.tensors.team import Team
from sparkdiff.training.distributed import choice
from sparkdiff.training.distributed.worker import Assignment, work
from sparkdiff.training.preparation import Start, resolve_objectives
from sparkdiff.training.recipes import Recipe
from tests.support.random_trees import WIDTH as TREE_WIDTH
from tests.support.small_networks import F64, glr, logistic, natural_units, network, normal, trees

EVERY, SOME, FEW = tuple(range(1, 13)), (1, 3, 12), (1, 3)
TRAIN = [[10, 6], [15], [], [2], [5, 8], [20], [1], [11]]  # rows of a shard's pieces
VALIDATION = [[11], [2], [14], [], [9, 5], [7], [1], [12]]
LABELS = LabelStats(1.0, 2.0, 0.0, 9.0, torch.tensor([99, 99]))


@dataclass(frozen=True)
class Case:
    """A network on one column of so many entries a row, of which so many are stored where it is sparse."""

    make: Any  # () -> Network
    width: int
    recipes: tuple[Recipe, ...]
    options: dict[str, Any]
    stored: int | None = None
    support: int = 4  # training rows that have an entry in a column, where they are sparse
    classes: bool = False
    inMemory: bool = True
    sliced: bool = False
    device: str = "cpu"  # cuda: a GPU that isn't there, which all processes share
    zeros: bool = True  # whether some rows have the weight 0
    worlds: tuple[int, ...] = SOME

    def numbers(self, every: bool) -> tuple[int, ...]:
        """Numbers of processes: for each commit more than there are shards only where most depends on them."""
        return self.worlds if every else SOME if self.worlds == EVERY else FEW


def dense() -> Network:
    scaler = StandardScaler(normal(6, seed=3).abs() + 0.5, normal(6, seed=4), True, True)
    pca = PCA(0.5 * normal(6, 3, seed=5), torch.ones(3, dtype=F64))
    return network((scaler, ["x"], "s"), (pca, ["s"], "c"), (glr(3), ["c"], "p"))


def sparse() -> Network:
    scaler = StandardScaler(normal(900, seed=3).abs() + 0.5, normal(900, seed=4), True, False)
    return network((scaler, ["x"], "s"), (logistic(900), ["s"], "p"))


AUGMENTED = (
    Recipe(1e-2, 1e-3),
    Recipe(1e-2, 1e-3, noise=0.3),
    Recipe(1e-2, 1e-3, mask=0.2, ema=0.9),
    Recipe(1e-2, 0.0, mixup=0.4),
    Recipe(0.3, 1e-2, optimizer="lbfgs"),
)
CASES = {
    # A batch has fewer rows than there may be processes.
    "noise, masks and mixtures": Case(dense, 6, AUGMENTED, {"batchSize": 8, "schedule": "cosine"}, worlds=EVERY),
    "sparse rows with noise": Case(
        sparse,
        900,
        (Recipe(1e-2, 1e-3, noise=0.3), Recipe(3e-3, 0.0, mask=0.3)),
        {"batchSize": 16},
        stored=4,
        classes=True,
        inMemory=False,
        worlds=EVERY,
    ),
    "sparse rows": Case(sparse, 900, (Recipe(1e-2, 1e-3),), {"batchSize": 8}, stored=4, classes=True),
    "from files": Case(dense, 6, AUGMENTED[:2], {"batchSize": 32, "gradientClip": 0.5}, inMemory=False),
    "on a GPU": Case(dense, 6, AUGMENTED[:4], {"batchSize": 8}, device="cuda"),
    "ranks and a slice": Case(
        lambda: network((logistic(6), ["x"], "p")),
        6,
        AUGMENTED[:4],
        {"batchSize": 32, "loss": "auc", "guardCols": ("who",), "penalties": {"parityGap": {"who": 0.5}}},
        classes=True,
        sliced=True,
    ),
    # All end after the first of many epochs, by the clock of one.
    "an end by the clock": Case(dense, 6, AUGMENTED[:1], {"batchSize": 32, "maxEpochs": 99, "maxSeconds": 1e-9}),
    "trees": Case(
        lambda: network((trees(GBTRegression, 5), ["x"], "p")),
        TREE_WIDTH,
        (Recipe(3e-2, 1e-3), Recipe(1e-2, 1e-3, noise=0.2), Recipe(0.3, 1e-2, "newton")),
        {"batchSize": 24},
    ),
}


def write_cache(folder: Path, case: Case) -> None:
    """A cache of chance, as Spark would have written it."""
    random = np.random.default_rng(11)
    columns: list[dict[str, Any]] = [
        {"name": "c0", "column": "x", "kind": "sparse" if case.stored else "dense", "width": case.width},
        *({"name": n, "column": n, "kind": "scalar", "width": 1} for n in ("label", "weight")),
        {"name": "block", "column": "block", "kind": "scalar", "width": 1, "dtype": "int64"},
    ]
    if case.sliced:
        slices = {
            "name": "slice0",
            "column": "who",
            "kind": "scalar",
            "width": 1,
            "dtype": "int64",
            "values": ["a", "b"],
        }
        columns.append(slices)

    def piece(path: str, rows: int) -> dict[str, Any]:
        each = case.stored or case.width
        offsets = np.arange(0, rows * each + 1, each, dtype=np.int32)
        values = random.normal(size=rows * each)
        made: dict[str, Any] = {"c0": pa.ListArray.from_arrays(offsets, values)}
        if case.stored:
            chosen = [np.sort(random.choice(case.width, each, replace=False)) for _ in range(rows)]
            indices = pa.array(np.concatenate([[], *chosen]), pa.int32())
            made = {"c0_i": pa.ListArray.from_arrays(offsets, indices), "c0_v": made["c0"]}
        label = random.integers(0, 2, rows) if case.classes else random.poisson(2, rows)
        weights = [0.0 if case.zeros else 0.5, 1.0, 2.5]
        made |= {"label": label.astype(float), "weight": random.choice(weights, rows, p=[0.1, 0.6, 0.3])}
        made |= {"block": random.integers(0, 1 << 40, rows)}
        if case.sliced:
            made["slice0"] = random.integers(0, 2, rows)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(made), folder / path)
        data = (folder / path).read_bytes()
        return {"path": path, "rows": rows, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    splits = {
        name: [[piece(f"{name}/{i}-{j}.parquet", n) for j, n in enumerate(shard)] for i, shard in enumerate(shards)]
        for name, shards in (("train", TRAIN), ("validation", VALIDATION))
    }
    manifest = {"format": 1, "fingerprint": "f", "virtualShards": 8, "columns": columns, "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def assignment(case: Case, cache: Path) -> Assignment:
    net = case.make()
    given = {"maxEpochs": 2, "device": case.device, **case.options}
    options = Options.of(given)
    support = torch.full((case.width,), case.support if case.stored else 99)
    stats = {("x", -1): FeatureStats(torch.zeros(case.width, dtype=F64), torch.ones(case.width, dtype=F64), support)}
    columns = {("x", -1): "c0"}
    _, metric = resolve_objectives(options, net, LABELS)
    with Stream(cache, backend="arrow") as stream:
        original = score(net, Data(stream, columns), "validation", metric)
    widths = dict.fromkeys(("x", "s"), case.width) | {"c": 3}
    return Assignment(
        net,
        cache,
        "arrow",
        case.inMemory,
        columns,
        LABELS,
        original,
        Start(natural_units(net, widths, options), {}, stats, case.recipes),
        options,
        metric.name,
        None,
    )


def train(a: Assignment, team: Team) -> dict[str, Any]:
    training = a.training()
    with Stream(a.cache, backend=a.backend, inMemory=a.inMemory, seed=a.options.seed) as stream:
        work(a, training, stream, team, lambda training: None)
    assert training.candidates is not None
    history = [[h["trainLoss"], h["validationMetric"]] for h in training.history]
    return {
        "u": home(training.candidates.u),
        "history": torch.tensor(history, dtype=F64),
        "gains": torch.stack(training.gains),
    }


def with_gpu() -> None:
    """Register the GPU that isn't there: in a forked process, as autograd has threads for it, which don't survive a fork."""
    from tests.support import fake_gpu

    gpu = Place(torch.device(fake_gpu.NAME, 0))
    choice.place = lambda kind, *others: CPU if kind == "cpu" else gpu  # type: ignore[assignment]


def process(rank: int, folder: Path, assignments: dict[str, Assignment], every: bool) -> None:
    torch.set_num_threads(1)
    with_gpu()
    for world in (w for w in (EVERY if every else SOME) if w > rank):
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/meeting-{world}",
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=120),
        )
        for name, a in assignments.items():
            if world not in CASES[name].numbers(every):
                continue
            found = train(a, Team(rank, world))
            if rank == 0:
                torch.save(found, folder / f"{name}-{world}.pt")
        dist.barrier()
        dist.destroy_process_group()


def main(folder: Path, every: bool) -> None:
    torch.set_num_threads(1)
    torch.optim.LBFGS([torch.zeros(1)])  # imports a thousand modules, here instead of in each process
    assignments = {}
    for name, case in CASES.items():
        write_cache(folder / name, case)
        assignments[name] = assignment(case, folder / name)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=process, args=(rank, folder, assignments, every)) for rank in range(max(EVERY))]
    for p in processes:
        p.start()
    for p in processes:
        p.join()
    sys.exit(max(abs(p.exitcode or 0) for p in processes))


if __name__ == "__main__":
    main(Path(sys.argv[1]), "every" in sys.argv[2:])
