"""LabelModel against the label model of the snorkel package, on generated votes: which labels more rows rightly?

Ten rules, 5,000 rows, two and three classes, and three kinds of rules: accurate to the same degree in all classes, to different
degrees, and voting more often in some classes than in others. Ours are `triplets` (two classes) and `em`; snorkel's learns 500
epochs, once with the true shares of the classes, which ours estimate. Also the majority vote, and for each the largest error of
an estimated accuracy. Needs no Spark. Prints a table, writes JSON, fails where the mean over the seeds is more than 1% below
that of snorkel.

    OMP_NUM_THREADS=1 python benchmarks/label_models.py --seeds 5 --out label_models.json
"""

import sys
from typing import Any

import numpy as np
from common import exit_code, markdown, parse, parser, write

from sparkdiff.labeling.estimates import Estimate, Floats, Ints, em, majority, triplets

RULES = 10
KINDS = ("plain", "by class", "coverage by class")
BEHIND = 0.01
OURS, TOLD = ("triplets", "em"), "snorkel, told the true shares"


def made(rows: int, k: int, kind: str, seed: int) -> tuple[Ints, Ints]:
    """Votes (rows, RULES), -1 where a rule abstains, and the classes (rows,)."""
    random = np.random.default_rng(seed)
    truth = random.choice(k, rows, p=[0.65, 0.35] if k == 2 else random.dirichlet(np.full(k, 8.0)))
    votes = np.full((rows, RULES), -1)
    for j in range(RULES):
        accuracy, coverage = random.uniform(*((0.55, 0.9) if k == 2 else (0.45, 0.85))), random.uniform(0.2, 0.8)
        own = (
            np.clip(accuracy + random.uniform(-0.15, 0.15, k), 0.3, 0.95)
            if kind == "by class"
            else np.full(k, accuracy)
        )
        there = random.uniform(0.1, 0.9, k) if kind == "coverage by class" else np.full(k, coverage)
        on, right = random.random(rows) < there[truth], random.random(rows) < own[truth]
        wrong = (truth + random.integers(1, k, rows)) % k
        votes[on, j] = np.where(right, truth, wrong)[on]
    return votes, truth


def snorkel(votes: Ints, k: int, seed: int, epochs: int, shares: list[float] | None) -> tuple[Floats, Floats]:
    """Probabilities (rows, k), and accuracies (RULES,); without the shares of the classes it takes them for equal."""
    from snorkel.labeling.model import LabelModel

    model = LabelModel(cardinality=k, verbose=False)
    model.fit(votes, class_balance=shares, n_epochs=epochs, seed=seed, progress_bar=False)
    return model.predict_proba(votes), model.get_weights()


def measure(rows: int, k: int, kind: str, seed: int, epochs: int) -> dict[str, Any]:
    votes, truth = made(rows, k, kind, seed)
    patterns, at, counts = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    weights, on = counts.astype(np.float64), votes >= 0
    fits: dict[str, Estimate] = {"em": em(patterns, weights, k)}
    if k == 2:
        fits["triplets"] = triplets(patterns, weights)
    found = {name: (fit.posterior(patterns)[at.ravel()], fit.accuracies) for name, fit in fits.items()}
    found["snorkel"] = snorkel(votes, k, seed, epochs, None)
    found[TOLD] = snorkel(votes, k, seed, epochs, (np.bincount(truth, minlength=k) / rows).tolist())
    known, some = np.array([(votes[on[:, j], j] == truth[on[:, j]]).mean() for j in range(RULES)]), on.any(1)
    right = {name: float((p.argmax(1) == truth)[some].mean()) for name, (p, _) in found.items()}
    right["majority"] = float(majority(votes, k)[some, truth[some]].mean())
    errors = {name: float(np.abs(accuracies - known).max()) for name, (_, accuracies) in found.items()}
    return {"classes": k, "rules": kind, "seed": seed, "right": right, "errors": errors}


def means(results: list[dict[str, Any]], what: str) -> dict[tuple[int, str], dict[str, float]]:
    """The mean over the seeds for each number of classes and kind of rules."""
    out = {}
    for key in dict.fromkeys((r["classes"], r["rules"]) for r in results):
        runs = [r[what] for r in results if (r["classes"], r["rules"]) == key]
        out[key] = {name: float(np.mean([r[name] for r in runs])) for name in runs[0]}
    return out


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--seeds", type=int, default=5)
    flags.add_argument("--rows", type=int, default=5_000)
    flags.add_argument("--epochs", type=int, default=500, help="epochs of snorkel's")
    given = parse(flags, seeds=1, rows=300, epochs=5)
    results = [
        measure(given.rows, k, kind, seed, given.epochs)
        for k in (2, 3)
        for kind in KINDS
        for seed in range(given.seeds)
    ]
    right, errors, lines, behind = means(results, "right"), means(results, "errors"), [], []
    for (k, kind), found in right.items():
        names = ("majority", *OURS, "snorkel", TOLD)
        shown = [f"{found[n]:.1%}" if n in found else "–" for n in names]
        lines.append([str(k), kind, *shown, *(f"{errors[k, kind][n]:.3f}" if n in found else "–" for n in names[1:])])
        behind += [
            f"{n}, {k} classes, {kind}"
            for n in OURS
            if n in found and found[n] < max(found["snorkel"], found[TOLD]) - BEHIND
        ]
    head = [
        "classes",
        "rules",
        "right: majority",
        *(f"right: {n}" for n in (*OURS, "snorkel", TOLD)),
        *(f"largest error of an accuracy: {n}" for n in (*OURS, "snorkel", TOLD)),
    ]
    print(markdown(head, lines))
    print(f"\nAt most {BEHIND:.0%} behind snorkel: {'; '.join(behind) or 'kept'}")
    write(given, results, {f"{k} classes, {kind}, {n}": v for (k, kind), of in right.items() for n, v in of.items()})
    return exit_code(given, behind)


if __name__ == "__main__":
    sys.exit(main())
