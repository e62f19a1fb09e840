"""Hyper-parameters of a linear model by the slope of the loss on validation rows: what do they gain, and what do they cost?

Riders per hour of bike sharing by a Poisson regression; for each seed the rows are split 60/20/20. Needs no Spark; times are
seconds of CPU.

penalties: categories, pairs of categories, numbers by categories and pairs of numbers: 476 columns in 52 groups. The best of 15
single penalties and a penalty per group are chosen by the validation rows, and both are judged on the test rows, in half the mean
deviance. Fails where the 95% interval of the paired difference reaches 0.

choice: six places with two to four alternatives each (the hour as a number, as four parts of the day, as 24 levels, as those by
working day; ...), 432 pipelines. Gates trained on the mixture choose one alternative per place; exhaustive search fits all
pipelines at 6 penalties. Fails where the chosen pipeline is more than 0.5% worse on the validation rows than the best of all, in
the mean over the seeds, or takes more than a third of its time.

    OMP_NUM_THREADS=1 python benchmarks/hypergradients.py --out hypergradients.json
"""

import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from common import ROOT, exit_code, markdown, parse, parser, write
from torch import Tensor

from sparkdiff.tuning.hypergradients import LinearModel, choose_alternatives, linear_model
from sparkdiff.tuning.hypergradients.penalties import best_single, descend
from sparkdiff.tuning.solvers import Chunk, Setting

CATEGORIES = ("season", "mnth", "hr", "holiday", "weekday", "workingday", "weathersit")
NUMBERS = ("temp", "hum", "windspeed")
WIDE = {("mnth", "hr"), ("hr", "weekday"), ("mnth", "weekday")}
"""Pairs with hundreds of columns."""
STUDENT = {2: 12.71, 3: 4.303, 5: 2.776, 10: 2.262, 20: 2.093}
"""0.975 quantile of Student's t with one degree of freedom less than seeds."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A group is the columns of one thing; at a place one of several groups is taken, or none (-1)."""

    x: Tensor
    label: Tensor
    group: Tensor
    names: list[str]
    places: list[list[list[int]]] = dataclasses.field(default_factory=list)

    def only(self, positions: Sequence[int]) -> "Table":
        """With one alternative per place, and one group."""
        left_out = {
            g
            for place, p in zip(self.places, positions, strict=True)
            for a, gs in enumerate(place)
            for g in gs
            if a != p
        }
        kept = torch.tensor([int(g) not in left_out for g in self.group])
        return Table(self.x[:, kept], self.label, torch.zeros(int(kept.sum()), dtype=torch.long), [])


def hours(rows: int | None) -> pd.DataFrame:
    data = pd.read_csv(ROOT / "data" / "bikeshare.csv")
    return data if rows is None else data.sample(rows, random_state=0)


def of_parts(data: pd.DataFrame, parts: dict[str, Any], places: list[list[list[int]]] | None = None) -> Table:
    group = np.repeat(np.arange(len(parts)), [x.shape[1] for x in parts.values()])
    x = torch.from_numpy(np.concatenate([*parts.values()], 1))
    label = torch.from_numpy(data["bikers"].to_numpy(float))
    return Table(x, label, torch.from_numpy(group), [*parts], places or [])


def pairs(data: pd.DataFrame) -> Table:
    hot = {c: pd.get_dummies(data[c]).to_numpy(float)[:, :-1] for c in CATEGORIES}
    number = {c: data[[c]].to_numpy(float) for c in NUMBERS}
    parts = {**hot, **number}
    for one, other in itertools.combinations((*CATEGORIES, *NUMBERS), 2):
        if (one, other) not in WIDE:
            both = {**hot, **number}
            parts[f"{one} x {other}"] = (both[one][:, :, None] * both[other][:, None]).reshape(len(data), -1)
    parts = {name: x[:, np.ptp(x, 0) > 0] for name, x in parts.items()}
    parts = {name: x for name, x in parts.items() if x.shape[1]}
    return of_parts(data, parts)


def alternatives(data: pd.DataFrame) -> Table:
    def hot(values: Any) -> Any:
        return pd.get_dummies(values).to_numpy(float)[:, :-1]

    def number(name: str) -> Any:
        return data[[name]].to_numpy(float)

    def bins(name: str) -> Any:
        return hot(pd.qcut(data[name], 10, labels=False, duplicates="drop"))

    hour, day = hot(data.hr), number("workingday")
    given: dict[str, dict[str, Any]] = {
        "hour": {"number": number("hr"), "parts": hot(data.hr // 6), "levels": hour, "x": np.c_[hour, day, hour * day]},
        "month": {"levels": hot(data.mnth), "season": hot(data.season), "none": None},
        "day": {"weekday": hot(data.weekday), "workingday": day, "none": None},
        "temp": {"number": number("temp"), "square": np.c_[number("temp"), number("temp") ** 2], "bins": bins("temp")},
        "hum": {"number": number("hum"), "bins": bins("hum")},
        "weather": {"levels": hot(data.weathersit), "none": None},
    }
    parts, places = {"always": np.c_[number("windspeed"), number("holiday")]}, []
    for name, place in given.items():
        numbers = []
        for alternative, x in place.items():
            if x is not None:
                numbers.append([len(parts)])
                parts[f"{name} {alternative}"] = x
            else:
                numbers.append([])
        places.append(numbers)
    return of_parts(data, parts, places)


def model_of(data: Table, fold: Tensor) -> LinearModel:
    """Fitted on the rows of fold -1, judged on those of fold 0."""
    own = fold <= 0
    chunk = Chunk(data.x[own], data.label[own], torch.ones(int(own.sum()), dtype=torch.float64), None, fold[own])

    def chunks() -> Iterator[Chunk]:
        yield chunk

    setting = Setting(family="poisson")
    model = linear_model("GeneralizedLinearRegression", chunks, setting, data.group)
    assert model is not None
    return model


def loss(model: LinearModel, weights: Tensor, data: Table, rows: Tensor) -> float:
    z = (data.x[rows] - model.table.centre) / model.table.scale
    margin = z @ weights[:, :-1].T + weights[:, -1]
    return float(model.response.loss(margin, data.label[rows]).mean())


def split(data: Table, seed: int) -> Tensor:
    """-1 for training, 0 for validation, 1 for test."""
    place = torch.rand(len(data.label), generator=torch.Generator().manual_seed(seed))
    return torch.where(place < 0.6, -1, torch.where(place < 0.8, 0, 1))


def penalties(data: Table, seed: int, given: Any) -> dict[str, Any]:
    fold, start = split(data, seed), time.process_time()
    model = model_of(data, fold)
    single = best_single(model, np.logspace(-6, 0, given.singles).tolist())
    assert single is not None
    after_grid = time.process_time()
    best = descend(model, single, given.steps).best
    end = time.process_time()
    test = [loss(model, p.weights, data, fold == 1) for p in (single, best)]
    return {
        "seed": seed,
        "regParam": math.exp(float(single.logs[0])),
        "validation": [single.loss, best.loss],
        "test": test,
        "gridSeconds": after_grid - start,
        "stepsSeconds": end - after_grid,
    }


def one(data: Table, positions: Sequence[int], fold: Tensor, grid: list[float]) -> tuple[float, float]:
    """The losses on validation and test rows of one pipeline at its best penalty."""
    own = data.only(positions)
    model = model_of(own, fold)
    best = best_single(model, grid)
    return (best.loss, loss(model, best.weights, own, fold == 1)) if best else (math.inf, math.inf)


def choice(data: Table, seed: int, given: Any) -> dict[str, Any]:
    fold, start = split(data, seed), time.process_time()
    grid = np.logspace(-5, 0, 6).tolist()
    found = choose_alternatives(model_of(data, fold), data.places, grid, given.steps)
    assert found is not None
    soft = one(data, found.positions, fold, grid)
    middle = time.process_time()
    every = [*itertools.product(*(range(len(place)) for place in data.places))][:: given.every]
    all_of_them = {positions: one(data, positions, fold, grid) for positions in every}
    end = time.process_time()
    best = min(all_of_them, key=lambda p: all_of_them[p][0])
    return {
        "seed": seed,
        "chosen": found.positions,
        "best": best,
        "pipelines": len(every),
        "validation": [all_of_them[best][0], soft[0]],
        "test": [all_of_them[best][1], soft[1]],
        "gates": [gate.tolist() for gate in found.gates],
        "seconds": middle - start,
        "exhaustiveSeconds": end - middle,
    }


def told_penalties(results: list[dict[str, Any]]) -> tuple[bool, dict[str, float]]:
    cells = [
        [
            str(r["seed"]),
            f"{r['regParam']:.1e}",
            f"{r['validation'][0]:.3f}",
            f"{r['validation'][1]:.3f}",
            f"{r['test'][0]:.3f}",
            f"{r['test'][1]:.3f}",
            f"{r['test'][1] / r['test'][0] - 1:+.2%}",
            f"{r['gridSeconds']:.1f}",
            f"{r['stepsSeconds']:.1f}",
        ]
        for r in results
    ]
    head = ["seed", "best single penalty", "validation", "groups", "test", "groups", "change", "grid, s", "steps, s"]
    print(markdown(head, cells))
    change = np.array([r["test"][1] / r["test"][0] - 1 for r in results])
    half = STUDENT[len(results)] * change.std(ddof=1) / math.sqrt(len(change))
    ratio = sum(r["stepsSeconds"] for r in results) / sum(r["gridSeconds"] for r in results)
    print(
        f"\ntest: {change.mean():+.2%}, 95% interval {change.mean() - half:+.2%} to {change.mean() + half:+.2%}; "
        f"the steps take {ratio:.2f} times the CPU seconds of the grid that they start from\n"
    )
    figures = {"penalties, change on test, %": 100 * float(change.mean()), "penalties, steps / grid": ratio}
    return change.mean() + half >= 0, figures


def told_choice(results: list[dict[str, Any]]) -> tuple[bool, dict[str, float]]:
    cells = [
        [
            str(r["seed"]),
            "".join(map(str, r["best"])),
            "".join(map(str, r["chosen"])),
            *(f"{r[part][1] / r[part][0] - 1:+.2%}" for part in ("validation", "test")),
            f"{r['exhaustiveSeconds']:.0f}",
            f"{r['seconds']:.1f}",
        ]
        for r in results
    ]
    head = ["seed", "best of all", "chosen", "validation", "test", "exhaustive, s", "chosen, s"]
    print(markdown(head, cells))
    worse = float(np.mean([r["validation"][1] / r["validation"][0] - 1 for r in results]))
    share = sum(r["seconds"] for r in results) / sum(r["exhaustiveSeconds"] for r in results)
    print(
        f"\nchosen against the best of {results[0]['pipelines']} pipelines: {worse:+.2%} on validation rows, at {share:.3f} "
        "of the CPU seconds\n"
    )
    return worse > 0.005 or share > 1 / 3, {"choice, worse, %": 100 * worse, "choice, share of seconds": share}


CASES = {"penalties": (pairs, penalties, told_penalties), "choice": (alternatives, choice, told_choice)}


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--cases", nargs="+", choices=[*CASES], default=[*CASES], help="which questions")
    p.add_argument("--seeds", type=int, choices=[*STUDENT], default=10, help="how many splits; of choice 3 at most")
    p.add_argument("--first-seed", type=int, default=0, metavar="N", help="the first of these splits")
    p.add_argument("--rows", type=int, help="take so many rows only")
    p.add_argument("--singles", type=int, default=15, help="how many single penalties are tried")
    p.add_argument("--steps", type=int, default=40, help="of Adam")
    p.add_argument("--every", type=int, default=1, metavar="N", help="fit every Nth pipeline only")
    given = parse(p, seeds=2, rows=800, singles=4, steps=3, every=100)
    torch.set_num_threads(1)
    missed, figures, results = False, {}, {}
    for name in given.cases:
        make, measure, tell = CASES[name]
        data = make(hours(given.rows))
        print(f"{name}: {len(data.label):,} rows, {data.x.shape[1]} columns, {len(data.names)} groups\n", flush=True)
        seeds = given.seeds if name == "penalties" else min(given.seeds, 3)
        results[name] = [measure(data, seed, given) for seed in range(given.first_seed, given.first_seed + seeds)]
        wrong, found = tell(results[name])
        missed, figures = missed or wrong, {**figures, **found}
    write(given, results, figures)
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
