"""What do four candidates cost next to one plain torch loop, and next to one candidate of our own?

A scaler, a PCA(10) and a regression in float64, batches of 128 rows from memory, with a validation pass after every epoch; and
the leaves of 20 and 100 boosted trees of depth 5, where two of the four candidates see noisy rows.
The plain loop is what one would write by hand: the stages as modules, `loss.backward()`, one fused Adam over their parameters.
The arms take turns in one process, on one thread; prints ratios of CPU time, writes JSON, and fails above the bounds.

    python benchmarks/candidates.py --out candidates.json
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from common import exit_code, markdown, parse, parser, write
from torch import Tensor

from sparkdiff.evaluation.scores import Tally
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.objectives.losses import resolve
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.pipeline.network import Network, fixed_versions, routed_versions
from sparkdiff.stages.base import FeatureStats, LabelStats, StageModule
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import StandardScaler
from sparkdiff.stages.trees import GBTRegression
from sparkdiff.training.affine import affine_network
from sparkdiff.training.augmentation import Draw
from sparkdiff.training.candidates import Candidates
from sparkdiff.training.parameters import NaturalUnits
from sparkdiff.training.recipes import recipes_for
from sparkdiff.training.updates import DenseUpdates

BATCH, ROWS, HELD, COMPONENTS, TREE_INPUTS, DEPTH = 128, 5120, 1280, 10, 20, 5
PLAIN, OWN = 1.0, 2.0
"""Bounds: four candidates over the plain loop, and over our own single candidate."""


def chain(*modules: StageModule) -> Network:
    """A network of stages in a row, from the column `c-1` on; without Spark's stages, so it can't be written back."""
    vertices = [
        Vertex(
            i,
            (i,),
            f"stage{i}",
            type(module).__name__,
            None,
            (f"c{i - 1}",),
            (f"c{i}",),
            module=module,
            reads=((f"c{i - 1}", i - 1),),
            parents=frozenset({i - 1} - {-1}),
            parametric=any(p.requires_grad for p in module.parameters()),
        )
        for i, module in enumerate(modules)
    ]
    return Network(Graph(str.lower, tuple(vertices), head_position=len(modules) - 1), range(len(modules)))


def pipeline(x: Tensor, head: StageModule) -> Network:
    mean, std = x.mean(0), x.std(0)
    _, _, v = torch.linalg.svd((x - mean) / std, full_matrices=False)
    return chain(StandardScaler(std, mean, True, True), PCA(v[:COMPONENTS].T.clone(), torch.ones(COMPONENTS)), head)


def poisson(x: Tensor) -> tuple[StageModule, Tensor]:
    rate = torch.exp(1 + 0.3 * x[:, 0] - 0.2 * x[:, 1])
    start = torch.zeros(COMPONENTS, dtype=torch.float64)
    head = GeneralizedLinearRegression(
        start,
        torch.tensor(1.0, dtype=torch.float64),
        True,
        family="poisson",
        link="log",
        link_power=float("nan"),
        variance_power=float("nan"),
        shows_link=False,
    )
    return head, torch.poisson(rate)


def squared(x: Tensor) -> tuple[StageModule, Tensor]:
    start = torch.zeros(COMPONENTS, dtype=torch.float64)
    head = LinearRegression(start, torch.tensor(0.0, dtype=torch.float64), 1.0, True, None)
    return head, x[:, 0] + torch.randn(len(x), dtype=torch.float64)


def softmax(x: Tensor) -> tuple[StageModule, Tensor]:
    matrix, intercept = torch.zeros(10, COMPONENTS, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    head = LogisticRegression(
        matrix,
        intercept,
        True,
        num_classes=10,
        thresholds=None,
        threshold=0.5,
        bounds={},
        shown=("predictionCol",),
        uid="lr",
    )
    return head, (x[:, :10] + torch.randn(len(x), 10, dtype=torch.float64)).argmax(1).double()


def boosted(number: int, x: Tensor) -> Network:
    """Complete trees of depth 5 with random splits."""
    random, level = np.random.default_rng(0), np.arange(1, 64)
    depth = np.log2(level).astype(int)
    inner = depth < DEPTH

    def preorder(j: int) -> list[int]:
        return [j] if j >= 32 else [j, *preorder(2 * j), *preorder(2 * j + 1)]

    order = np.array(preorder(1)) - 1
    place = order.argsort()
    left, right = (np.where(inner, place[np.minimum(2 * level + k, 63) - 1], -1)[order] for k in (0, 1))
    left, right, inner = (np.tile(v, number) for v in (left, right, inner[order]))
    size = len(inner)
    nodes = Nodes(
        offsets=np.arange(number + 1) * 63,
        prediction=random.normal(size=size),
        impurity=np.zeros(size),
        gain=np.ones(size),
        impurityStats=np.ones((size, 3)),
        rawCount=np.ones(size, np.int64),
        leftChild=left.astype(np.int32),
        rightChild=right.astype(np.int32),
        numCategories=np.full(size, -1, np.int32),
        featureIndex=np.where(inner, random.integers(0, x.shape[1], size), -1).astype(np.int32),
        values=random.normal(size=int(inner.sum())),
        ends=np.cumsum(inner),
    )
    return chain(GBTRegression(nodes, torch.full((number,), 0.1, dtype=torch.float64), ("predictionCol",), "gbt"))


class Own:
    """Epochs of our candidates on rows in memory."""

    def __init__(self, number: int, network: Network, x: Tensor, y: Tensor, objective: Objective):
        options = Options.of({})
        head = network.head
        trees, leaves = (head.nodes.trees, len(head.leaves)) if isinstance(head, Trees) else (0, 0)
        inputs = [x.shape[1]] if trees else [x.shape[1], x.shape[1], COMPONENTS]
        stats = {
            i: FeatureStats(torch.zeros(n), torch.ones(n), torch.full((n,), 99), torch.full((leaves,), 99))
            for i, n in enumerate(inputs)
        }
        classes = torch.full((10,), 99) if network.head.classes else torch.empty(0)
        units, _ = NaturalUnits.of(network, stats, LabelStats(1.0, 1.0, 0.0, 9.0, classes), options)
        [self.version] = fixed_versions(network)
        widths = {(f"c{i - 1}", i - 1): n for i, n in enumerate(inputs)} | dict.fromkeys(
            routed_versions(network), leaves
        )
        affine = affine_network(network, widths)
        assert affine is not None
        recipes = recipes_for(options, 10_000, trees=trees)[:number]
        self.team = Candidates(recipes, options, DenseUpdates(network, recipes, units, affine))
        self.x, self.y, self.objective = x, y, objective
        self.stats = {self.version: stats[0]}

    def values(self, x: Tensor) -> dict[Version, Tensor]:
        """With the leaves of a few thousand rows at once, as the stream prepares them."""
        values = {self.version: x}
        self.team.network.route(values, self.team.augmenter.routed)
        return values

    def epoch(self, order: Tensor) -> None:
        one = torch.ones(BATCH, dtype=torch.float64)
        draw = Draw([(0, BATCH)], (0,), self.stats)
        for rows in order.split(8 * BATCH):
            values, y = self.values(self.x.index_select(0, rows)), self.y.index_select(0, rows)
            for first in range(0, len(rows), BATCH):
                part = slice(first, first + BATCH)
                self.team.updates.matrix.sums.zero_()
                self.team.add({v: t[part] for v, t in values.items()}, (y[part], one), self.objective, draw)
                self.team.step(self.objective.scale)
        self.team.end_epoch(self.objective.scale)

    @torch.no_grad()
    def validate(self, x: Tensor, y: Tensor) -> None:
        team = self.team
        every = list(range(len(team.recipes)))
        slopes = team.updates.slopes()
        weight, block = torch.ones_like(y), torch.arange(len(y))
        for margin in team.updates.margins(every, slopes, self.values(x)):
            Tally(Metric(self.objective.name, rows=self.objective.rows), team.network.head).add(
                margin, y, weight, block
            )


class Plain:
    """The loop that one would write by hand."""

    def __init__(self, network: Network, x: Tensor, y: Tensor, objective: Objective):
        network = network.clone()
        self.stages, self.head = [network.module(i) for i in network.positions[:-1]], network.head
        self.optimizer = torch.optim.Adam(network.parameters(), 1e-3, fused=True)
        self.x, self.y, self.objective = x, y, objective

    def margin(self, x: Tensor) -> Tensor:
        for stage in self.stages:
            x = stage(x)
        return self.head.margin(x)

    def epoch(self, order: Tensor) -> None:
        one = torch.ones(BATCH, dtype=torch.float64)
        for rows in order.split(BATCH):
            self.optimizer.zero_grad()
            loss = self.objective.rows(
                self.margin(self.x.index_select(0, rows)), self.y.index_select(0, rows), one
            ).mean()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def validate(self, x: Tensor, y: Tensor) -> None:
        self.objective.rows(self.margin(x), y, torch.ones_like(y)).mean()


HEADS: dict[str, Callable[[Tensor], tuple[StageModule, Tensor]]] = {
    "poisson": poisson,
    "squared": squared,
    "softmax": softmax,
}


def measure(kind: str, width: int, repeats: int) -> dict[str, Any]:
    torch.manual_seed(0)
    x = torch.randn(ROWS + HELD, max(width, TREE_INPUTS), dtype=torch.float64)
    if kind == "leaves":
        network, y = boosted(width, x[:, :TREE_INPUTS]), x[:, 0] + torch.randn(len(x), dtype=torch.float64)
        x = x[:, :TREE_INPUTS].contiguous()
    else:
        head, y = HEADS[kind](x)
        network = pipeline(x, head)
    train, held = (x[:ROWS].clone(), y[:ROWS].clone()), (x[ROWS:].clone(), y[ROWS:].clone())
    objective = resolve(
        "auto", {}, network.head, ("prediction",), LabelStats(float(y.mean()), float(y.std()), 0, 9, torch.empty(0))
    )
    arms = {
        "plain": Plain(network, *train, objective),
        "one": Own(1, network, *train, objective),
        "four": Own(4, network, *train, objective),
    }
    times: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats + 1):
        order = torch.randperm(ROWS)
        for name, arm in arms.items():
            start = time.process_time()
            arm.epoch(order)
            arm.validate(*held)
            if repeat:  # the first one warms up
                times[name].append(time.process_time() - start)
    ratios = [f / p for f, p in zip(times["four"], times["plain"], strict=True)]
    own = [f / o for f, o in zip(times["four"], times["one"], strict=True)]
    return {
        "head": kind,
        "width": width,
        "overPlain": statistics.median(ratios),
        "overOne": statistics.median(own),
        "plainMicrosecondsPerStep": 1e6 * statistics.median(times["plain"]) / (ROWS // BATCH),
    }


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--repeats", type=int, default=30)
    p.add_argument("--widths", type=int, nargs="+", default=[60, 500])
    p.add_argument("--trees", type=int, nargs="+", default=[20, 100])
    given = parse(p, repeats=1, widths=[60], trees=[5])
    torch.set_num_threads(1)
    results = [measure(kind, width, given.repeats) for kind in HEADS for width in given.widths]
    results += [measure("leaves", trees, given.repeats) for trees in given.trees]
    head = ["head", "inputs, trees", "four candidates / plain loop", "four candidates / one"]
    print(
        markdown(head, [[r["head"], str(r["width"]), f"{r['overPlain']:.2f}", f"{r['overOne']:.2f}"] for r in results])
    )
    figures = {}
    for r in results:
        figures[f"{r['head']} of {r['width']}, four candidates / plain loop"] = r["overPlain"]
        figures[f"{r['head']} of {r['width']}, four candidates / one"] = r["overOne"]
    write(given, results, figures)
    return exit_code(given, any(r["overPlain"] > PLAIN or r["overOne"] > OWN for r in results))


if __name__ == "__main__":
    sys.exit(main())
