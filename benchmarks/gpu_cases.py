"""The cases of gpu.py: networks of stages, made without Spark, and caches of rows of chance as Spark would have written them."""

import hashlib
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import candidates
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network, fixed_versions
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.linear import LogisticRegression
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.scaling import StandardScaler
from sparkdiff.training.parameters import NaturalUnits
from sparkdiff.training.recipes import Recipe

SHARDS, PIECE_BYTES, SAMPLE, THREADS = 8, 64 << 20, 20_000, 8
HELD_OUT = 0.2
INPUT: Version = ("c-1", -1)
"""The column that the first stage of a `chain` reads."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Case:
    """A network on so many rows of so many columns.

    Attributes:
        make: the network, given some rows (those of sparse cases have no columns).
        label: of rows (n, d), or of sparse ones the sum of their signed entries (n,).
        stored: entries that a sparse row holds; None of dense rows.
        search: whether 64 candidates are to take not much longer than one.
        table: whether rows are to go through the GPU much faster than through the CPU.
    """

    name: str
    rows: int
    width: int
    batchSize: int
    candidates: tuple[int, ...]
    make: Callable[[Tensor, int], Network]
    label: Callable[[Array, np.random.Generator], Array]
    stored: int | None = None
    classes: int = 0
    search: bool = False
    table: bool = False

    @property
    def data(self) -> str:
        """The name of the rows, which cases share that differ only in how they train."""
        return f"{self.label.__name__}-{self.rows}-{self.width}"

    def small(self) -> "Case":
        """The same on little data."""
        return replace(
            self,
            rows=800,
            width=min(self.width, 3000 if self.stored else 12),
            batchSize=min(self.batchSize, 256),
            candidates=self.candidates[:2],
        )

    @property
    def text(self) -> str:
        entries = f", about {len(strata(self.width, self.stored)) - 1} entries a row" if self.stored else ""
        return f"{self.rows:,} × {self.width:,}{entries}, batches of {self.batchSize:,}"


def generalized(x: Tensor, _width: int) -> Network:
    return candidates.pipeline(x, candidates.poisson(x)[0])


def of_classes(x: Tensor, _width: int) -> Network:
    return candidates.pipeline(x, candidates.softmax(x)[0])


def perceptron(x: Tensor, width: int) -> Network:
    random = torch.Generator().manual_seed(0)
    layers = (width, 256, 2) if width > 100 else (width, 8, 2)
    size = sum((a + 1) * b for a, b in itertools.pairwise(layers))
    weights = 0.1 * torch.randn(size, generator=random, dtype=torch.float64)
    head = MultilayerPerceptron(weights, layers, shown=MultilayerPerceptron.SHOWN, thresholds=None)
    return candidates.chain(StandardScaler(x.std(0), x.mean(0), True, True), head)


def of_text(_x: Tensor, width: int) -> Network:
    head = LogisticRegression(
        torch.zeros(1, width, dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        True,
        num_classes=2,
        thresholds=None,
        threshold=0.5,
        bounds={},
        shown=LogisticRegression.SHOWN,
        uid="lr",
    )
    return candidates.chain(head)


def counts(x: Array, random: np.random.Generator) -> Array:
    return random.poisson(np.exp(1 + 0.3 * x[:, 0] - 0.2 * x[:, 1])).astype(float)


def tenths(x: Array, random: np.random.Generator) -> Array:
    return (x[:, :10] + random.normal(size=(len(x), 10))).argmax(1).astype(float)


def halves(x: Array, random: np.random.Generator) -> Array:
    return (x[:, 0] * x[:, 1] + x[:, 2] + random.normal(size=len(x)) > 0).astype(float)


def signs(sums: Array, random: np.random.Generator) -> Array:
    return (sums + random.normal(size=len(sums)) > 0).astype(float)


SEARCH = (1, 4, 64)
CASES = {
    case.name: case
    for case in (
        Case("small", 5_000, 60, 128, SEARCH, generalized, counts, search=True),
        Case("wide", 1_000_000, 500, 128, SEARCH, generalized, counts, search=True, table=True),
        Case("wide, large batches", 1_000_000, 500, 8192, SEARCH, generalized, counts, search=True, table=True),
        Case("softmax", 200_000, 60, 128, SEARCH, of_classes, tenths, classes=10),
        Case("text", 100_000, 1 << 18, 128, (1, 4), of_text, signs, stored=60, classes=2),
        Case("perceptron", 200_000, 500, 128, (1, 4), perceptron, halves, classes=2),
        Case("perceptron, large batches", 200_000, 500, 8192, (1, 4), perceptron, halves, classes=2),
    )
}


def strata(width: int, stored: int) -> Array:
    """Bounds of groups of columns: a row has an entry in one column of each. The first groups are narrow, so that their columns
    are frequent words, the last ones wide.
    """
    return np.unique(np.geomspace(1, width + 1, stored + 1).astype(np.int64)) - 1


def write_cache(folder: Path, case: Case) -> None:
    """A cache of rows, the same whenever it is written."""
    column = {"name": "c0", "column": INPUT[0], "kind": "sparse" if case.stored else "dense", "width": case.width}
    columns: list[dict[str, Any]] = [column]
    columns += [{"name": n, "column": n, "kind": "scalar", "width": 1} for n in ("label", "weight")]
    columns += [{"name": "block", "column": "block", "kind": "scalar", "width": 1, "dtype": "int64"}]
    held = round(case.rows * HELD_OUT)
    pieces = [
        (split, shard, j, n)
        for split, rows in (("train", case.rows - held), ("validation", held))
        for shard in range(SHARDS)
        for j, n in enumerate(sizes(case, rows // SHARDS + (shard < rows % SHARDS)))
    ]
    with ThreadPoolExecutor(THREADS) as pool:
        written = list(pool.map(lambda p: write_piece(folder, case, *p), pieces))
    splits: dict[str, list[list[Any]]] = {s: [[] for _ in range(SHARDS)] for s in ("train", "validation")}
    for (split, shard, _, _), piece in zip(pieces, written, strict=True):
        splits[split][shard].append(piece)
    manifest = {"format": 1, "fingerprint": case.data, "virtualShards": SHARDS, "columns": columns, "splits": splits}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def sizes(case: Case, rows: int) -> list[int]:
    """The rows of a shard's pieces."""
    most = max(1, PIECE_BYTES // (16 * case.stored if case.stored else 8 * case.width))
    number = -(-rows // most)
    return [rows // number + (j < rows % number) for j in range(number)]


def write_piece(folder: Path, case: Case, split: str, shard: int, number: int, rows: int) -> dict[str, Any]:
    random = np.random.default_rng([split == "train", shard, number])
    if case.stored:
        columns, values = entries(case, rows, random)
        offsets = np.arange(0, columns.size + 1, columns.shape[1], dtype=np.int32)
        lists = [pa.array(columns.astype(np.int32).ravel()), pa.array(values.ravel())]
        made = {n: pa.ListArray.from_arrays(offsets, a) for n, a in zip(("c0_i", "c0_v"), lists, strict=True)}
        label = case.label((values * (1 - 2 * (columns % 2))).sum(1), random)
    else:
        x = random.standard_normal((rows, case.width))
        offsets = np.arange(0, x.size + 1, case.width, dtype=np.int32)
        made = {"c0": pa.ListArray.from_arrays(offsets, pa.array(x.ravel()))}
        label = case.label(x, random)
    made |= {"label": label, "weight": np.ones(rows), "block": random.integers(0, 1 << 40, rows)}
    path = f"{split}/{shard}-{number}.parquet"
    (folder / split).mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(made), folder / path, compression="NONE", use_dictionary=False, write_statistics=False)
    with (folder / path).open("rb", buffering=0) as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return {"path": path, "rows": rows, "bytes": (folder / path).stat().st_size, "sha256": digest.hexdigest()}


def entries(case: Case, rows: int, random: np.random.Generator) -> tuple[Array, Array]:
    """The columns and values of some sparse rows, (n, e) each."""
    assert case.stored
    bounds = strata(case.width, case.stored)
    columns = bounds[:-1] + (random.random((rows, len(bounds) - 1)) * np.diff(bounds)).astype(np.int64)
    return columns, 1 + np.abs(random.standard_normal(columns.shape))


@dataclass(frozen=True)
class Start:
    """What the trainings of a case start from."""

    network: Network
    stats: dict[Version, FeatureStats]
    label: LabelStats
    options: Options
    units: NaturalUnits


def start(case: Case, epochs: int) -> Start:
    """The network and its units; the inputs have mean 0 and standard deviation 1, or about the one of words."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    x = torch.from_numpy(random.standard_normal((min(case.rows, SAMPLE), 0 if case.stored else case.width)))
    network = case.make(x, case.width)
    options = Options.of({"maxEpochs": epochs, "patience": epochs + 1, "batchSize": case.batchSize})
    train = case.rows * (1 - HELD_OUT)
    found = FeatureStats(*_moments(case.width, torch.ones(case.width)), torch.full((case.width,), int(train)))
    if case.stored:
        bounds = torch.from_numpy(strata(case.width, case.stored))
        share = (1.0 / bounds.diff()).repeat_interleave(bounds.diff())  # of the rows that have an entry in a column
        found = FeatureStats(*_moments(case.width, (2.6 * share).sqrt()), (train * share).long())
    narrow = FeatureStats(*_moments(candidates.COMPONENTS, torch.ones(10)), torch.full((candidates.COMPONENTS,), 99))
    inputs = {i: found if i < 2 else narrow for i in network.positions}  # behind a PCA there are few
    classes = torch.full((case.classes,), int(train)) if case.classes else torch.empty(0)
    label = LabelStats(1.0, 1.0, 0.0, 9.0, classes)
    units, _ = NaturalUnits.of(network, inputs, label, options)
    return Start(network, dict.fromkeys(fixed_versions(network), found), label, options, units)


def _moments(width: int, std: Tensor) -> tuple[Tensor, Tensor]:
    return torch.zeros(width, dtype=torch.float64), std.double()


def recipes(number: int) -> tuple[Recipe, ...]:
    """So many candidates, of step sizes that a search would try."""
    rates = np.geomspace(3e-4, 1e-2, number) if number > 1 else [1e-3]
    return tuple(Recipe(float(rate), 1e-3) for rate in rates)
