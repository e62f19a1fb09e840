"""How soon does `improve` find the best pipeline in the learned order of arms? A replay of the runs of benchmarks/arms.py.

Leave one data set out: the order for the pipelines of a set is learned from those of all other sets. A replay runs the first
steps of all arms in an order, then their second steps, and so on, and counts core-seconds until it has 95% of the best gain
that the guard kept of any arm (gains are relative, and count up to 50%). Pipelines for which no arm has a kept gain are left
out: there is nothing to find. Against it: the fixed order, the cheap arms first, and what no order can beat, the cheapest arm
that finds the best, alone. Starts no Spark.

Fails where the learned order needs more than half of the fixed one's core-seconds. --priors writes the improvements that
sparkdiff ships, from which orders start; without --folder, these are replayed, which have whole arms only, no steps.

    python benchmarks/arm_order.py --folder runs/arms
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, read_lines, surroundings, write

from sparkdiff.history.run_forecasts import MOST
from sparkdiff.improvement.arm_order import ENOUGH, PRIORS, ArmForecaster, ArmResult, PastImprovement
from sparkdiff.improvement.improvement_options import ARMS

WANTED = 0.5
"""Share of the fixed order's core-seconds."""
BUDGETS = (2, 5, 10, 20, 40)
"""Core-seconds for each pipeline at which the gain found so far is told."""


@dataclasses.dataclass(frozen=True)
class Improvement:
    """A pipeline of the collection.

    Attributes:
        steps: by arm, (core-seconds, the gain kept so far) of each step.
    """

    set: str
    cell: str
    facts: dict[str, float]
    steps: dict[str, list[tuple[float, float]]]

    @property
    def known(self) -> PastImprovement:
        arms = {a: ArmResult(max(g for _, g in s), sum(c for c, _ in s)) for a, s in self.steps.items()}
        return PastImprovement(self.facts, arms)

    @property
    def best(self) -> float:
        return self.known.best

    def path(self, order: Sequence[str]) -> list[tuple[float, float]]:
        """(core-seconds, gain) after each step, round by round in this order."""
        spent, gain, out = 0.0, 0.0, [(0.0, 0.0)]
        for number in range(max(map(len, self.steps.values()))):
            for arm in order:
                if number < len(self.steps[arm]):
                    seconds, kept = self.steps[arm][number]
                    spent, gain = spent + seconds, max(gain, kept)
                    out.append((spent, gain))
        return out

    def until_found(self, order: Sequence[str]) -> float:
        return next(spent for spent, gain in self.path(order) if gain >= ENOUGH * self.best)

    def least(self) -> float:
        """Core-seconds of the cheapest arm that finds the best, alone."""
        paths = [[*np.cumsum([c for c, _ in s])] for s in self.steps.values()]
        each = zip(paths, self.steps.values(), strict=True)
        return min(t for path, s in each for t, (_, g) in zip(path, s, strict=True) if g >= ENOUGH * self.best)


def improvements(path: Path) -> list[Improvement]:
    out = []
    for run in read_lines(path):
        if "arms" in run:
            steps = {
                a: [(s["seconds"], _counted(s.get("kept", 0.0))) for s in steps] for a, steps in run["arms"].items()
            }
            out.append(Improvement(run["set"], run["cell"], run["facts"], steps))
    return out


def _counted(gain: float) -> float:
    return min(max(gain, 0.0), MOST)


def shipped() -> list[Improvement]:
    """The improvements that sparkdiff ships: each arm as one step."""
    found = json.loads(PRIORS.read_text(encoding="utf-8"))["runs"]
    return [
        Improvement(r["set"], r["cell"], r["facts"], {a: [(t, g)] for a, (g, t) in r["arms"].items()}) for r in found
    ]


def ship(runs: Sequence[Improvement], path: Path) -> None:
    """Write the improvements that sparkdiff ships, a line each."""
    lines = []
    for r in runs:
        arms = {a: [_short(found.gain), _short(found.seconds)] for a, found in r.known.arms.items()}
        facts = {k: _short(v) for k, v in r.facts.items()}
        lines.append(json.dumps({"set": r.set, "cell": r.cell, "arms": arms, "facts": facts}))
    about = {"madeBy": "benchmarks/arms.py and benchmarks/arm_order.py --priors", "date": surroundings()["date"]}
    path.write_text(f'{json.dumps(about)[:-1]}, "runs": [\n' + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


def _short(value: float) -> float:
    return float(f"{value:.4g}")


def learned(runs: Sequence[Improvement]) -> list[list[str]]:
    """The order for each pipeline, by a model of those of all other sets."""
    out: dict[int, list[str]] = {}
    for left in dict.fromkeys(r.set for r in runs):
        forecaster = ArmForecaster([r.known for r in runs if r.set != left])
        for i, r in enumerate(runs):
            if r.set == left:
                out[i] = [f.arm for f in forecaster(r.facts, [a for a in ARMS if a in r.steps])]
    return [out[i] for i in range(len(runs))]


def told(runs: Sequence[Improvement]) -> dict[str, float]:
    """Print the figures, and return them."""
    orders, gained = learned(runs), [i for i, r in enumerate(runs) if r.best > 0]
    fixed = [[a for a in ARMS if a in r.steps] for r in runs]
    ways = {"fixed order": fixed, "learned order": orders}
    whole = {name: np.array([runs[i].until_found(way[i]) for i in gained]) for name, way in ways.items()}
    whole["the cheapest arm that finds it, alone"] = np.array([runs[i].least() for i in gained])
    base, rows = whole["fixed order"], list[list[str]]()
    best = sum(runs[i].best for i in gained)
    for name, seconds in whole.items():
        median = float(np.exp(np.median(np.log(seconds / base))))
        row = [name, f"{seconds.sum():,.0f}", f"{seconds.sum() / base.sum():.2f}", f"{median:.2f}"]
        if name in ways:
            paths = [runs[i].path(ways[name][i]) for i in gained]
            row += [f"{sum(max(g for t, g in p if t <= b) for p in paths) / best:.0%}" for b in BUDGETS]
        rows.append([*row, *[""] * (4 + len(BUDGETS) - len(row))])
    sets, everything = len({r.set for r in runs}), sum(s for i in gained for a in runs[i].steps.values() for s, _ in a)
    print(f"{len(runs)} pipelines of {sets} sets, {len(gained)} with a kept gain", end="; ")
    print(f"all arms of these to their ends: {everything:,.0f} core-seconds")
    head = ["until 95% of the best kept gain", "core-seconds", "of the fixed order's", "median ratio"]
    print(markdown([*head, *(f"gain after {b} s each" for b in BUDGETS)], rows))
    finds = {a: sum(runs[i].known.is_near_best(a) for i in gained if a in runs[i].steps) for a in ARMS}
    print(f"found it: {', '.join(f'{a} {n}' for a, n in finds.items())}")
    share = float(whole["learned order"].sum() / base.sum())
    return {"learned order, share of core-seconds": share, "pipelines": float(len(runs))}


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="of benchmarks/arms.py; without it, what sparkdiff ships")
    options.add_argument("--priors", type=Path, nargs="?", const=PRIORS, help="where to write what sparkdiff ships")
    given = parse(options)
    runs = improvements(given.folder / "arms.jsonl") if given.folder else shipped()
    if given.priors:
        ship(runs, given.priors)
    figures = told(runs)
    found: list[Any] = [dataclasses.asdict(r) for r in runs]
    write(given, found, figures)
    share = figures["learned order, share of core-seconds"]
    missed = [f"{share:.0%} of the fixed order's core-seconds"] if share > WANTED else []
    print(f"\nwanted is at most {WANTED:.0%}: {'missed' if missed else 'reached'}")
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
