"""Is it worth choosing augmentation by the data? Learned and drawn policies against the fixed ones of `recipe=thorough`.

The shipped pipelines of bike sharing and digits, fitted in torch to MLlib's optimum on the training rows, all of them or a
quarter; for each seed the rows are split 60/20/20. One training holds all candidates of `thorough` and policies of noise,
masked entries, mixup, and categories that are exchanged for those of another row (which draws them by their frequency), each
with a strength of its own, at the learning rate and anchor of the fixed ones. Strengths are learned by the slope of the
validation loss (strengths.py), or drawn. An arm is a part of these candidates; validation rows choose its candidate and
epoch, and test rows judge. There is no guard, and the rule for fewer than 1,000 validation rows isn't applied: both would hide
differences. Needs no Spark; what --out holds isn't run again.

    OMP_NUM_THREADS=1 python benchmarks/augmentation.py --seeds 5 --drawn 0 --out augmentation.json
"""

import dataclasses
import functools
import math
import re
import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch
from candidates import chain
from common import ROOT, earlier, markdown, parse, parser, write
from strengths import Features, Policy, Search, Strengths, changed
from torch import Tensor

from sparkdiff.data.fingerprint import SHARDS
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.manifest import BatchColumn, CachedFile, Manifest
from sparkdiff.evaluation.scores import score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import LabelStats, StageModule
from sparkdiff.stages.linear import GeneralizedLinearRegression, LogisticRegression
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import StandardScaler
from sparkdiff.tensors.device import CPU
from sparkdiff.training import augmentation
from sparkdiff.training.loop import train
from sparkdiff.training.parameters import load
from sparkdiff.training.preparation import Start, resolve_objectives, start_of
from sparkdiff.training.recipes import FEW_ROWS, Recipe, recipes_for
from sparkdiff.training.training_run import Training

CATEGORIES = ("season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit")
NUMBERS = ("temp", "atemp", "hum", "windspeed")
COMPONENTS = 10
RANGES = {"noise": (0.02, 0.8), "mask": (0.01, 0.4), "mixup": (0.05, 1.0), "swap": (0.01, 0.4)}
"""Smallest and largest strength of what a policy does, drawn evenly by its logarithm."""
F64 = torch.float64
LEARNED = {
    "one step": {"grouped": False, "unrolled": 1},
    "ten steps": {"grouped": False, "unrolled": 10},
    "by group": {"grouped": True, "unrolled": 10},
}
"""How strengths are learned."""
SEARCHED = 30
"""Epochs of such a search at most."""


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of inputs (n, d) and labels (n,); the group of each input (d,), and the columns of each category."""

    x: Tensor
    y: Tensor
    group: Tensor
    categories: tuple[Tensor, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """A pipeline, and the share of its training rows that train."""

    name: str
    digits: bool = False
    pca: bool = True
    regParam: float = 0.0
    share: float = 1.0


WHOLE = (
    Case("hours, PCA(10)"),
    Case("hours, no PCA, regParam 1", pca=False, regParam=1.0),
    Case("hours, convex optimum", pca=False, regParam=1e-6),
)
CASES = (
    *(dataclasses.replace(c, name=f"{c.name}, a quarter of the rows", share=0.25) for c in WHOLE),
    Case("digits", digits=True),
    *WHOLE,
)


def hours() -> Table:
    """One-hot categories without their rarest level, and numbers."""
    rows = pd.read_csv(ROOT / "data" / "bikeshare.csv")
    parts, categories, first = [], [], 0
    for name in CATEGORIES:
        levels = rows[name].value_counts().index[:-1]
        parts.append((rows[name].to_numpy()[:, None] == levels.to_numpy()).astype(float))
        categories.append(torch.arange(first, first := first + len(levels)))
    x = np.hstack([*parts, rows[list(NUMBERS)].to_numpy(float)])
    group = np.repeat(np.arange(len(parts) + len(NUMBERS)), [*(p.shape[1] for p in parts), *(1 for _ in NUMBERS)])
    label = torch.tensor(rows["bikers"].to_numpy(float))
    return Table(torch.from_numpy(x), label, torch.from_numpy(group), tuple(categories))


def images() -> Table:
    rows = pd.read_csv(ROOT / "data" / "digits.csv")
    x = rows[[f"p{i}" for i in range(64)]].to_numpy(float)
    lines = torch.arange(64) // 8  # of the image
    return Table(torch.from_numpy(x), torch.tensor(rows["label"].to_numpy(float)), lines)


def split(table: Table, case: Case, seed: int) -> dict[str, Tensor]:
    """The numbers of the rows of each split."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(table.y)))
    first, second = int(0.6 * len(order)), int(0.8 * len(order))
    return {"train": order[: int(case.share * first)], "validation": order[first:second], "test": order[second:]}


def minimised(loss: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Where a convex loss is least."""
    at = start.clone().requires_grad_()
    solver = torch.optim.LBFGS([at], max_iter=2000, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = loss(at)
        value.backward()
        return value

    solver.step(closure)
    return at.detach()


def poisson(x: Tensor, y: Tensor, regParam: float) -> StageModule:
    """The optimum of MLlib's GeneralizedLinearRegression, whose least squares divide by the sum of their weights, the means."""

    def loss(at: Tensor) -> Tensor:
        eta = x @ at[1:] + at[0]
        return (eta.exp() - y * eta).mean() / y.mean() + regParam / 2 * at[1:].square().sum()

    start = torch.zeros(1 + x.shape[1], dtype=F64)
    start[0] = y.mean().log()
    at = minimised(loss, start)
    return GeneralizedLinearRegression(
        at[1:],
        at[0],
        True,
        family="poisson",
        link="log",
        link_power=math.nan,
        variance_power=math.nan,
        shows_link=False,
    )


def softmax(x: Tensor, y: Tensor) -> StageModule:
    def loss(at: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(x @ at[1:] + at[0], y.long())

    at = minimised(loss, torch.zeros(1 + x.shape[1], 10, dtype=F64))
    return LogisticRegression(
        at[1:].T.clone(),
        at[0],
        True,
        num_classes=10,
        thresholds=None,
        threshold=0.5,
        bounds={},
        shown=("predictionCol",),
        uid="softmax",
    )


def original(case: Case, x: Tensor, y: Tensor) -> Network:
    """The pipeline as fitted on these rows."""
    mean, std = x.mean(0), x.std(0)
    stages: list[StageModule] = [StandardScaler(std, mean, True, True)]
    seen = (x - mean) / torch.where(std > 0, std, 1.0)
    if case.pca:
        pc = torch.linalg.svd(seen, full_matrices=False)[2][:COMPONENTS].T.clone()
        stages.append(PCA(pc, torch.ones(COMPONENTS, dtype=F64)))
        seen = seen @ pc
    return chain(*stages, softmax(seen, y) if case.digits else poisson(seen, y, case.regParam))


def stream_of(table: Table, rows: Mapping[str, Tensor], seed: int) -> Stream:
    """The batches of a cache with these rows, in as many virtual shards."""
    columns = (
        BatchColumn("c0", "c-1", "dense", table.x.shape[1], F64),
        *(BatchColumn(n, n, "scalar", 1, F64) for n in ("label", "weight")),
        BatchColumn("block", "block", "scalar", 1, torch.int64),
    )
    held, pieces = {}, {}
    for name, own in rows.items():
        counts = [len(part) for part in own.tensor_split(SHARDS)]
        pieces[name] = tuple((CachedFile(f"{name}-{i}", n, 0, ""),) for i, n in enumerate(counts))
        held[name] = {
            "c0": table.x[own],
            "label": table.y[own],
            "weight": torch.ones(len(own), dtype=F64),
            "block": torch.arange(len(own)),
        }
    return Stream.of_tables(Manifest(ROOT, "", SHARDS, columns, pieces), held, seed=seed)  # type: ignore[arg-type]


def drawn(case: Case, seed: int, like: Recipe, number: int) -> list[Policy]:
    """Policies of noise or masks, or both, and each other means with even chance; categories only beside noise."""
    random = np.random.default_rng((seed, 1))
    kinds = [k for k in RANGES if k != "swap" or not case.digits]
    out = []
    for _ in range(number):
        strengths = {k: float(np.exp(random.uniform(*np.log(RANGES[k])))) for k in kinds}
        chosen = random.random(len(kinds)) < 0.5
        used = {k for k, c in zip(kinds, chosen, strict=True) if c} or {"noise"}
        if "swap" in used:
            used |= {"noise"}
        out.append(Policy(like.learningRate, like.regAnchor, **{k: strengths[k] for k in sorted(used)}))
    return out


def learned(
    network: Network,
    _case: Case,
    table: Table,
    rows: Mapping[str, Tensor],
    features: Features,
    start: Start,
    objective: Objective,
    like: Recipe,
    seed: int,
    epochs: int,
) -> dict[str, Policy]:
    """Policies by how their strengths were learned."""
    of = {name: (table.x[rows[name]], table.y[rows[name]]) for name in ("train", "validation")}
    make = functools.partial(Search, network, objective, start.units, features, of, seed=seed)
    epochs = min(epochs, SEARCHED)
    return {name: make(**how).strengths(epochs, like) for name, how in LEARNED.items()}


def with_policies(features: Features) -> Any:
    """Inside, a `Policy` exchanges categories, too, and may have strengths by group."""
    plain = augmentation.augment

    def augmented(recipe: Recipe, values: Any, target: Any, stats: Any, shards: Any, key: tuple[int, ...]) -> Any:
        if isinstance(recipe, Policy):
            [(version, x)] = values.items()
            noise, mask = recipe.noises or (recipe.noise,), recipe.masks or (recipe.mask,)
            of = features if len(noise) > 1 else dataclasses.replace(features, group=torch.zeros_like(features.group))
            numbers = (torch.tensor(s, dtype=F64) for s in (noise, mask, recipe.mixup, recipe.swap))
            values = {version: changed(x, of, Strengths(*numbers), np.random.default_rng((*key, SHARDS)))}
            recipe = dataclasses.replace(recipe, noise=0.0, mask=0.0)
        return plain(recipe, values, target, stats, shards, key)

    return mock.patch.object(augmentation, "augment", augmented)


def measure(case: Case, table: Table, seed: int, epochs: int, number: int) -> dict[str, Any]:
    """The gain of each candidate's best epoch on validation and on test rows, as shares of the original's loss."""
    began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    rows = split(table, case, seed)
    x, y = table.x[rows["train"]], table.y[rows["train"]]
    network = original(case, x, y)
    counts = y.long().bincount() if case.digits else torch.empty(0, dtype=torch.int64)
    label = LabelStats(float(y.mean()), float(y.std()), float(y.min()), float(y.max()), counts)
    options = Options.of({"recipe": "thorough", "seed": seed, "maxEpochs": epochs, "device": "cpu"})
    recipes: list[Recipe] = recipes_for(options, FEW_ROWS)
    like = next(r for r in recipes if r.augments)
    features = Features(x.mean(0), x.std(0), table.group, table.categories)
    with stream_of(table, rows, seed) as stream, with_policies(features):
        data = Data(stream, {("c-1", -1): "c0"})
        objective, metric = resolve_objectives(options, network, label)
        start = start_of(network, data, label, options, len(rows["validation"]), recipes)
        found = learned(network, case, table, rows, features, start, objective, like, seed, epochs)
        kinds = ["fixed" if r.augments else "plain" for r in recipes] + [*found] + ["drawn"] * number
        recipes += [*found.values(), *drawn(case, seed, like, number)]
        searched = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
        before = {name: score(network, data, name, metric) for name in ("validation", "test")}
        training = Training(network, recipes, options, start.units, before["validation"], start.stats)
        training.move(CPU)
        train(training, data, objective, metric)
        gains: dict[str, list[float]] = {"validation": [], "test": []}
        for standing in training.standings:
            now = network.clone()
            load(now, standing.flat)
            for name, each in gains.items():
                each.append(1 - score(now, data, name, metric).mean / before[name].mean)
    spent = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
    by_group = {name: {"noise": p.noises, "mask": p.masks} for name, p in found.items() if len(p.noises) > 1}
    return {
        "recipes": [*map(str, recipes)],
        "kinds": kinds,
        **gains,
        "original": before["test"].mean,
        "seconds": spent,
        "searched": searched,
        "byGroup": by_group,
    }


def arms(run: Mapping[str, Any]) -> dict[str, float]:
    """By arm the gain on test rows of the candidate that gains most on validation rows; last the best of all on test rows."""
    kinds = dict.fromkeys(run["kinds"])
    of = {kind: [k for k, found in enumerate(run["kinds"]) if found == kind] for kind in kinds}
    parts = {"without augmentation": of["plain"], "thorough": of["plain"] + of["fixed"]}
    parts |= {f"learned, {kind}": of["plain"] + of[kind] for kind in LEARNED}
    parts["thorough and all learned"] = parts["thorough"] + [k for kind in LEARNED for k in of[kind]]
    if "drawn" in of:
        parts[f"{len(of['drawn'])} drawn policies"] = of["plain"] + of["drawn"]
    out = {}
    for name, part in parts.items():
        best = max(part, key=lambda k: run["validation"][k])
        out[name] = run["test"][best] if run["validation"][best] > 0 else 0.0
    return out | {"the best of all, chosen on test rows": max(0.0, *run["test"])}


def report(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """Mean gain on test rows of each arm, in percent, and of each against `thorough` seed by seed."""
    lines = []
    for case, each in runs.items():
        found = [arms(run) for run in each.values()]
        cells = [case]
        for name in found[0]:
            gains = [100 * f[name] for f in found]
            apart = [100 * (f[name] - f["thorough"]) for f in found]
            won, lost = sum(a > 0 for a in apart), sum(a < 0 for a in apart)
            versus = f" ({statistics.fmean(apart):+.3f}; {won}–{len(apart) - won - lost}–{lost})"
            cells.append(f"{statistics.fmean(gains):.2f}" + ("" if name == "thorough" else versus))
        lines.append(cells)
    names = list(arms(next(iter(next(iter(runs.values())).values()))))
    return markdown(["% of the loss on test rows gained (against thorough; won–tied–lost)", *names], lines)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=5)
    p.add_argument("--cases", default="", help="only cases that match this regular expression")
    p.add_argument("--drawn", type=int, default=12, help="number of drawn policies")
    p.add_argument("--epochs", type=int, default=Options().maxEpochs)
    given = parse(p, seeds=1, epochs=1, drawn=2, cases="digits")
    torch.set_num_threads(1)
    runs: dict[str, dict[str, Any]] = earlier(given) or {}
    tables = {False: hours(), True: images()}
    for seed in range(given.seeds):
        for case in (c for c in CASES if re.search(given.cases, c.name)):
            known = runs.setdefault(case.name, {})
            if str(seed) in known:
                continue
            known[str(seed)] = measure(case, tables[case.digits], seed, given.epochs, given.drawn)
            told = ", ".join(f"{name} {gain:.4f}" for name, gain in arms(known[str(seed)]).items())
            print(f"{case.name}, seed {seed}: {told}; {known[str(seed)]['seconds']:.0f} s", file=sys.stderr, flush=True)
            write(given, runs, figures(runs))
    print(report(runs))
    write(given, runs, figures(runs))
    return 0


def figures(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Mean gain of each other arm over `thorough`, in shares of the original's loss on test rows."""
    out = {}
    for case, each in runs.items():
        found = [arms(run) for run in each.values()]
        for name in found[0] if found else ():
            if name != "thorough":
                out[f"{case}, {name} against thorough"] = statistics.fmean(f[name] - f["thorough"] for f in found)
    return out


if __name__ == "__main__":
    sys.exit(main())
