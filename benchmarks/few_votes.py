"""Methods of LabelModel against the majority vote where rows or rules are few: when is a full model a bet?

Generated rows, two classes (40% and 60%), rules that are right on 75% of their votes and vote on half of the rows. Of each method
the difference from the majority vote, in points of the rows with votes that are labelled rightly (a tie counts as half), mean and
worst over the seeds, and in how many seeds it is worse by more than a point. Needs no Spark. Prints a table, writes JSON, fails
where the method that `auto` takes is worse than the majority vote on the mean.

    OMP_NUM_THREADS=1 python benchmarks/few_votes.py --seeds 40
"""

import sys
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, write

from sparkdiff.labeling.estimates import Floats, Ints, em, majority, precision, triplets
from sparkdiff.labeling.label_model import PAIRS

SIZES = ((300, 3), (300, 5), (1000, 3), (5000, 3), (20_000, 10))
"""Rows and rules."""
ACCURACY, COVERAGE, SHARE = 0.75, 0.5, 0.6
METHODS: dict[str, Any] = {
    "triplets": triplets,
    "em": lambda v, w: em(v, w, 2),
    "precision": lambda v, w: precision(v, w, 2),
}


def made(rows: int, rules: int, seed: int) -> tuple[Ints, Ints]:
    """Votes (rows, rules), -1 where a rule abstains, and the classes (rows,)."""
    random = np.random.default_rng(seed)
    truth = (random.random(rows) < SHARE).astype(np.int64)
    right, on = random.random((rows, rules)) < ACCURACY, random.random((rows, rules)) < COVERAGE
    return np.where(on, np.where(right, truth[:, None], 1 - truth[:, None]), -1), truth


def labelled(probability: Floats, truth: Ints) -> float:
    """The share of rows (n, 2) whose likeliest class is the true one."""
    best = probability == probability.max(1, keepdims=True)
    return float((best[np.arange(len(truth)), truth] / best.sum(1)).mean())


def measure(rows: int, rules: int, seed: int) -> dict[str, float]:
    """Points by which each method differs from the majority vote."""
    votes, truth = made(rows, rules, seed)
    patterns, at, counts = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    some, at = (votes >= 0).any(1), at.ravel()
    base = labelled(majority(votes, 2)[some], truth[some])
    found = {n: f(patterns, counts.astype(np.float64)).posterior(patterns)[at][some] for n, f in METHODS.items()}
    return {name: 100 * (labelled(p, truth[some]) - base) for name, p in found.items()}


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=40)
    given = parse(flags, seeds=2)
    results, lines, worse = list[dict[str, Any]](), list[list[str]](), list[str]()
    for rows, rules in SIZES:
        runs = [measure(rows, rules, seed) for seed in range(given.seeds)]
        told = {name: np.array([run[name] for run in runs]) for name in METHODS}
        results += [{"rows": rows, "rules": rules, "seed": s, **run} for s, run in enumerate(runs)]
        lines.append([f"{rows:,} x {rules}"])
        for d in told.values():
            lines[-1] += [f"{d.mean():+.1f}, {d.min():+.1f}", f"{(d < -1).sum()} of {len(d)}"]
        pairs = rows * rules * (rules - 1) / 2 * COVERAGE**2
        if told["em" if pairs >= PAIRS else "precision"].mean() < 0:
            worse.append(lines[-1][0])
    print(markdown(["rows x rules", *(c for n in METHODS for c in (f"{n}: mean, worst", "worse"))], lines))
    print(f"\nWhat `auto` takes is at least the majority vote: {'; '.join(worse) or 'kept'}")
    figures = {f"{line[0]}, {n}": float(line[1 + 2 * i].split(",")[0]) for line in lines for i, n in enumerate(METHODS)}
    write(given, results, figures)
    return exit_code(given, worse)


if __name__ == "__main__":
    sys.exit(main())
