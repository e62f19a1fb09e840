"""What does one penalty per group of columns gain over one for all, and what does it cost?

Riders per hour of bike sharing by a Poisson regression on categories, pairs of categories, numbers by categories and pairs of
numbers: 476 columns in 52 groups. For each seed the rows are split 60/20/20; the best of 15 single penalties and the penalties
per group are chosen by the validation rows, and both are judged on the test rows, in half the mean deviance. Needs no Spark.
Prints a table with seconds of CPU, writes JSON, and fails where the 95% interval of the paired difference reaches 0.

    OMP_NUM_THREADS=1 python benchmarks/hypergradients.py --out hypergradients.json
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import ROOT, exit_code, markdown, parse, parser, write
from torch import Tensor

from sparkdiff.tuning.hypergradients import Linear, linear_model
from sparkdiff.tuning.hypergradients.penalties import adam, best_single
from sparkdiff.tuning.solvers import Chunk, Setting

CATEGORIES = ("season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit")
NUMBERS = ("temp", "hum", "windspeed")
WIDE = {("mnth", "hr"), ("hr", "weekday"), ("mnth", "weekday")}
"""Pairs with hundreds of columns."""
STUDENT = {2: 12.71, 3: 4.303, 5: 2.776, 10: 2.262, 20: 2.093}
"""0.975 quantile of Student's t with one degree of freedom less than seeds."""


@dataclasses.dataclass(frozen=True)
class Table:
    x: Tensor
    label: Tensor
    group: Tensor
    names: list[str]


def table(rows: int | None) -> Table:
    data = pd.read_csv(ROOT / "data" / "bikeshare.csv")
    data = data if rows is None else data.sample(rows, random_state=0)
    hot = {c: pd.get_dummies(data[c]).to_numpy(float)[:, :-1] for c in CATEGORIES}
    number = {c: data[[c]].to_numpy(float) for c in NUMBERS}
    parts = {**hot, **number}
    for one, other in itertools.combinations((*CATEGORIES, *NUMBERS), 2):
        if (one, other) not in WIDE:
            both = {**hot, **number}
            parts[f"{one} x {other}"] = (both[one][:, :, None] * both[other][:, None]).reshape(len(data), -1)
    parts = {name: x[:, np.ptp(x, 0) > 0] for name, x in parts.items()}
    parts = {name: x for name, x in parts.items() if x.shape[1]}
    group = np.repeat(np.arange(len(parts)), [x.shape[1] for x in parts.values()])
    x = torch.from_numpy(np.concatenate([*parts.values()], 1))
    return Table(x, torch.from_numpy(data["bikers"].to_numpy(float)), torch.from_numpy(group), [*parts])


def model_of(data: Table, fold: Tensor) -> Linear:
    """Fitted on the rows of fold -1, judged on those of fold 0."""
    own = fold <= 0
    chunk = Chunk(data.x[own], data.label[own], torch.ones(int(own.sum()), dtype=torch.float64), None, fold[own])

    def chunks() -> Iterator[Chunk]:
        yield chunk

    setting = Setting(family="poisson")
    model = linear_model("GeneralizedLinearRegression", chunks, setting, 1, data.group)
    assert model is not None
    return model


def loss(model: Linear, weights: Tensor, data: Table, rows: Tensor) -> float:
    solution = model.solutions(weights)[0]
    margin = data.x[rows] @ solution.coefficients + solution.intercept
    return float(model.response.loss(margin[:, None, None], data.label[rows]).mean())


def measure(data: Table, seed: int, singles: int, steps: int) -> dict[str, Any]:
    place = torch.rand(len(data.label), generator=torch.Generator().manual_seed(seed))
    fold = torch.where(place < 0.6, -1, torch.where(place < 0.8, 0, 1))
    start = time.process_time()
    model = model_of(data, fold)
    single = best_single(model, np.logspace(-6, 0, singles).tolist())
    assert single is not None
    after_grid = time.process_time()
    best = min([single, *adam(model, single, steps, 0.2)], key=lambda p: p.loss)
    end = time.process_time()
    test = [loss(model, p.weights, data, fold == 1) for p in (single, best)]
    return {
        "seed": seed, "regParam": math.exp(float(single.logs[0])), "validation": [single.loss, best.loss], "test": test,
        "gridSeconds": after_grid - start, "stepsSeconds": end - after_grid,
    }  # fmt: skip


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, choices=[*STUDENT], default=10, help="how many splits")
    p.add_argument("--rows", type=int, help="take so many rows only")
    p.add_argument("--singles", type=int, default=15, help="how many single penalties are tried")
    p.add_argument("--steps", type=int, default=40, help="of Adam")
    given = parse(p, seeds=2, rows=800, singles=4, steps=3)
    torch.set_num_threads(1)
    data = table(given.rows)
    print(f"{len(data.label):,} rows, {data.x.shape[1]} columns, {len(data.names)} groups\n")
    results = [measure(data, seed, given.singles, given.steps) for seed in range(given.seeds)]
    cells = [
        [str(r["seed"]), f"{r['regParam']:.1e}", f"{r['validation'][0]:.3f}", f"{r['validation'][1]:.3f}",
         f"{r['test'][0]:.3f}", f"{r['test'][1]:.3f}", f"{r['test'][1] / r['test'][0] - 1:+.2%}",
         f"{r['gridSeconds']:.1f}", f"{r['stepsSeconds']:.1f}"]
        for r in results
    ]  # fmt: skip
    head = ["seed", "best single penalty", "validation", "groups", "test", "groups", "change", "grid, s", "steps, s"]
    print(markdown(head, cells))
    change = np.array([r["test"][1] / r["test"][0] - 1 for r in results])
    half = STUDENT[given.seeds] * change.std(ddof=1) / math.sqrt(len(change))
    ratio = sum(r["stepsSeconds"] for r in results) / sum(r["gridSeconds"] for r in results)
    print(
        f"\ntest: {change.mean():+.2%}, 95% interval {change.mean() - half:+.2%} to {change.mean() + half:+.2%}; "
        f"the steps take {ratio:.2f} times the CPU seconds of the grid that they start from"
    )
    write(given, results, {"change on test, %": 100 * float(change.mean()), "steps / grid": ratio})
    return exit_code(given, change.mean() + half >= 0)


if __name__ == "__main__":
    sys.exit(main())
