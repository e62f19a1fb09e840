"""How often are other rows taken for those of the original, and how often is what it has seen shown?

Linear last stages: originals that were fitted on 200,000 other rows and on as many other rows as the table has (level: at most
1.3% by a test at 1%), and on 50, 75 and 100% of the table (power). Beside the test of the equations stands the distance of the
coefficients from a refit's by the model's own covariance, compared with a chi-square: `distance`.

With --trees: trees of scikit-learn, fitted on parts of the table and on other rows, and compared with a refit on the table and
the refits of five folds. Beside the test stands one that asks only if they are better than the folds' refits: `better`.

    python benchmarks/seen_rows.py --draws 400 --out seen_rows.json
"""

import functools
import math
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from common import exit_code, markdown, parse, parser, write
from numpy.typing import NDArray
from torch import Tensor

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.seen_rows import LEVEL, LinearRows, Penalty, RowCount, p_of_equations, p_of_losses
from sparkdiff.stages.linear import GeneralizedLinearRegression, LinearRegression, LogisticRegression

Array = NDArray[np.float64]
MANY = 200_000
OTHERS = 50
"""Tables that are compared with the same original of many rows."""
LEVELS = 8
"""As many times more tables meet this original alone."""
MOST = 0.013


@dataclass(frozen=True)
class Cell:
    """A family of linear models, a number of columns and rows, and what is odd about the rows."""

    family: str
    columns: int
    rows: int
    odd: str = ""
    ridge: float = 0.0
    lasso: float = 0.0

    @property
    def name(self) -> str:
        penalty = f", ridge {self.ridge:g}" * (self.ridge > 0) + f", lasso {self.lasso:g}" * (self.lasso > 0)
        return f"{self.family}, {self.columns} columns, {self.rows:,} rows{penalty}{', ' * bool(self.odd)}{self.odd}"


CELLS = [
    *(Cell("gaussian", p, n) for n in (1500, 7200) for p in (5, 10, 30, 60)),
    *(Cell("logistic", p, n) for n in (1500, 7200) for p in (5, 10, 30, 60)),
    *(Cell("poisson", p, 1500) for p in (5, 10, 30, 60)),
    *(Cell(f, p, 1500, odd) for f in ("gaussian", "logistic", "poisson") for p in (5, 30) for odd in ("curved mean",)),
    *(
        Cell("gaussian", p, 1500, odd)
        for p in (5, 30)
        for odd in ("less noise far out", "more noise far out", "heavy tails")
    ),
    *(Cell("logistic", p, 1500, "equal classes") for p in (5, 30)),
    *(Cell(f, p, 1500, ridge=0.3) for f in ("gaussian", "logistic", "poisson") for p in (5, 30)),
    *(Cell(f, p, 1500, lasso=0.05) for f in ("gaussian", "logistic") for p in (5, 30)),
]


def features(n: int, p: int, random: torch.Generator) -> Tensor:
    """Correlated normal columns; of every four one is skewed, and one a rare flag."""
    z = torch.randn(n, p, generator=random, dtype=torch.float64)
    x = z + 0.5 * z[:, :1]
    x[:, 2::4] = x[:, 2::4].mul(0.7).exp()
    x[:, 3::4] = (x[:, 3::4] > 1.5).double()
    return x


def drawn(cell: Cell, truth: Tensor, n: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows and labels."""
    if cell.odd == "equal classes":
        x, y = drawn(Cell(cell.family, cell.columns, cell.rows), truth, 3 * n, random)
        both = torch.cat([(y == k).nonzero()[: n // 2, 0] for k in (0, 1)])
        return x[both], y[both]
    x = features(n, cell.columns, random)
    z = x @ truth
    if cell.odd == "curved mean":
        z = z + 0.3 * (x[:, 0].square() - 1) + 0.3 * x[:, 0] * x[:, 1]
    if cell.family == "logistic":
        return x, (torch.rand(n, generator=random, dtype=torch.float64) < torch.sigmoid(z)).double()
    if cell.family == "poisson":
        return x, torch.poisson((0.4 * z).clamp_max(4).exp(), generator=random)
    e = torch.randn(n, generator=random, dtype=torch.float64)
    far = (x[:, :4].square().mean(1) + 0.1).sqrt()
    if cell.odd == "heavy tails":
        e = e / (torch.randn(n, 3, generator=random, dtype=torch.float64).square().mean(1)).sqrt()
    return x, z + e * {"less noise far out": 1 / far, "more noise far out": far}.get(cell.odd, torch.ones(n))


def fitted(cell: Cell, x: Tensor, y: Tensor) -> Tensor:
    """Coefficients and intercept that minimise the mean loss and Spark's penalty, with its standardization."""
    n, p = x.shape
    z = torch.cat([x, x.new_ones(n, 1)], 1)
    std = x.std(0, correction=0)
    spread = y.std(correction=0) if cell.family == "gaussian" else 1.0
    ridge = torch.cat([cell.ridge / spread * std.square(), std.new_zeros(1)])
    if cell.family == "poisson":
        ridge = torch.cat([std.new_full((p,), cell.ridge), std.new_zeros(1)])
    lasso = torch.cat([cell.lasso * std, std.new_zeros(1)])
    b = z.new_zeros(p + 1)
    if cell.family == "poisson":
        b[-1] = y.mean().log()
    for _ in range(200):
        eta = z @ b
        mean, w = {
            "gaussian": lambda eta: (eta, torch.ones_like(eta)),
            "logistic": lambda eta: ((m := torch.sigmoid(eta)), m * (1 - m)),
            "poisson": lambda eta: ((m := eta.exp()), m),
        }[cell.family](eta)
        total = w.mean() if cell.family == "poisson" else 1.0
        slope = z.T @ (mean - y) / n + ridge * total * b
        h = (z.T * w) @ z / n + torch.diag(ridge * total)
        new = b - torch.linalg.solve(h, slope) if not cell.lasso else quadratic(h, slope, b, lasso)
        moved, b = float((new - b).abs().max()), new
        if moved < 1e-11:
            return b
    raise RuntimeError(f"{cell.name}: a fit doesn't converge")


def quadratic(h: Tensor, slope: Tensor, start: Tensor, lasso: Tensor) -> Tensor:
    """The minimum of a quadratic function and an L1 penalty: by descent which coefficients are not 0, then exactly."""
    target, step = h @ start - slope, 1 / torch.linalg.eigvalsh(h)[-1]
    b, ahead, speed = start, start, 1.0
    for _ in range(600):  # Beck and Teboulle (2009)
        new = ahead - step * (h @ ahead - target)
        new = new.sign() * (new.abs() - step * lasso).clamp_min(0)
        faster = (1 + math.sqrt(1 + 4 * speed * speed)) / 2
        b, ahead, speed = new, new + (speed - 1) / faster * (new - b), faster
    at = (b != 0).nonzero()[:, 0]
    out = torch.zeros_like(b)
    out[at] = torch.linalg.solve(h[at][:, at], target[at] - lasso[at] * b[at].sign())
    return out


def head(cell: Cell, b: Tensor) -> Any:
    if cell.family == "gaussian":
        return LinearRegression(b[:-1], b[-1], 1.0, True, None)
    if cell.family == "logistic":
        return LogisticRegression(
            b[None, :-1],
            b[-1:],
            True,
            num_classes=2,
            thresholds=None,
            threshold=0.5,
            bounds={},
            shown=(),
            uid="original",
        )
    return GeneralizedLinearRegression(
        b[:-1],
        b[-1],
        True,
        family="poisson",
        link="log",
        link_power=math.nan,
        variance_power=math.nan,
        shows_link=False,
    )


def p_value(cell: Cell, b: Tensor, x: Tensor, y: Tensor) -> float:
    rows = LinearRows(x, x @ b[:-1] + b[-1], y, torch.ones_like(y))
    p = p_of_equations(head(cell, b), lambda: iter([rows]), Penalty(cell.ridge, cell.lasso, cell.family != "poisson"))
    return 1.0 if p is None else p  # a penalty may leave no coefficient


def distance(cell: Cell, b: Tensor, refit: Tensor, x: Tensor, y: Tensor) -> float:
    """The p-value by the refit's working weights and chi-square."""
    d, eta = x @ (b - refit)[:-1] + (b - refit)[-1], x @ refit[:-1] + refit[-1]
    m = {"gaussian": eta, "logistic": torch.sigmoid(eta), "poisson": eta.exp()}[cell.family]
    w = {"gaussian": torch.ones_like(m), "logistic": m * (1 - m), "poisson": m}[cell.family]
    if cell.family == "gaussian":
        w = w / ((y - m).square().sum() / (len(y) - len(b)))
    free = torch.tensor(float((refit != 0).sum()), dtype=torch.float64)
    return float(torch.special.gammainc(free / 2, (w * d.square()).sum() / 2))


KINDS = ("200,000 others", "as many others", "50% seen", "75% seen", "all seen")


def simulate(cell: Cell, draws: int) -> dict[str, Any]:
    """Shares of the draws in which an original of each kind is called seen."""
    hits, plain, more = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0), 0
    for draw in range(LEVELS * draws):
        random = torch.Generator().manual_seed(100_000 * cell.columns + draw)
        if draw % OTHERS == 0:
            truth = torch.randn(cell.columns, generator=random, dtype=torch.float64) / math.sqrt(cell.columns)
            many = fitted(cell, *drawn(cell, truth, MANY, random))
        x, y = drawn(cell, truth, cell.rows, random)
        if draw >= draws:
            more += p_value(cell, many, x, y) < LEVEL
            continue
        order = torch.randperm(cell.rows, generator=random)
        refit = fitted(cell, x, y)
        parts = {f"{s:.0%} seen": order[: int(s * cell.rows)] for s in (0.5, 0.75)}
        originals = {
            "200,000 others": many,
            "as many others": fitted(cell, *drawn(cell, truth, cell.rows, random)),
            "all seen": refit,
            **{kind: fitted(cell, x[at], y[at]) for kind, at in parts.items()},
        }
        for kind, b in originals.items():
            hits[kind] += p_value(cell, b, x, y) < LEVEL
            plain[kind] += distance(cell, b, refit, x, y) < LEVEL
    shares = {k: n / draws for k, n in hits.items()} | {KINDS[0]: (hits[KINDS[0]] + more) / (LEVELS * draws)}
    return {
        "cell": cell.name,
        **asdict(cell),
        "draws": draws,
        **shares,
        "distance": {k: n / draws for k, n in plain.items()},
    }


# Trees ----------------------------------------------------------------------------------------------------------------

FOLDS = 5
TREE_CELLS = [
    (mean, trees, rows)
    for rows in (1500,)
    for mean in ("bent", "heavy tails", "noise", "classes")
    for trees in ("tree", "shallow tree", "forest", "boosted", "shallow boosted")
]
TREE_KINDS = ("half as many others", "as many others as a refit", "as many others", "50% seen", "75% seen", "all seen")


def tree_rows(mean: str, n: int, random: np.random.Generator) -> tuple[Array, Array]:
    x = random.normal(size=(n, 10))
    z = np.zeros(n) if mean == "noise" else x[:, 0] + 0.5 * x[:, 1] * x[:, 2]
    if mean == "classes":
        return x, (random.random(n) < 1 / (1 + np.exp(-z))).astype(float)
    return x, z + (random.standard_t(3, size=n) if mean == "heavy tails" else random.normal(size=n))


def grown(mean: str, trees: str, x: Array, y: Array, seed: int) -> Any:
    """Trees of scikit-learn with settings that are usual in Spark."""
    from sklearn import ensemble, tree

    depth = 2 if trees.startswith("shallow") else 5
    kind = "Classifier" if mean == "classes" else "Regressor"
    if trees.endswith("boosted"):
        made = getattr(ensemble, f"GradientBoosting{kind}")(n_estimators=15, max_depth=depth, random_state=seed)
    elif trees == "forest":
        some = "sqrt" if mean == "classes" else 1 / 3
        made = getattr(ensemble, f"RandomForest{kind}")(20, max_depth=depth, max_features=some, random_state=seed)
    else:
        made = getattr(tree, f"DecisionTree{kind}")(max_depth=depth, random_state=seed)
    return made.fit(x, y)


def losses(model: Any, x: Array, y: Array) -> Array:
    if not hasattr(model, "predict_proba"):
        return np.asarray((model.predict(x) - y) ** 2)
    p = np.clip(model.predict_proba(x)[:, 1], 1e-3, 1 - 1e-3)
    return np.asarray(-y * np.log(p) - (1 - y) * np.log(1 - p))


def simulate_trees(mean: str, trees: str, n: int, draws: int) -> dict[str, Any]:
    """Shares of the draws in which an original of each kind is called seen; `better`: in which it is better than its refits by a
    test of the same level."""
    hits, better = dict.fromkeys(TREE_KINDS, 0), dict.fromkeys(TREE_KINDS, 0)
    for draw in range(draws):
        random = np.random.default_rng(draw)
        (x, y), fold, order = tree_rows(mean, n, random), random.permutation(n) % FOLDS, random.permutation(n)
        unseen = np.empty(n)
        for k in range(FOLDS):
            own = fold == k
            unseen[own] = losses(grown(mean, trees, x[~own], y[~own], draw), x[own], y[own])
        seen = losses(grown(mean, trees, x, y, draw), x, y)
        refitted = n - n // FOLDS
        others = {k: tree_rows(mean, m, random) for k, m in zip(TREE_KINDS, (refitted // 2, refitted, n), strict=False)}
        parts = {k: (x[order[:m]], y[order[:m]]) for k, m in zip(TREE_KINDS[3:], (n // 2, 3 * n // 4, n), strict=True)}
        for kind, (features, label) in (others | parts).items():
            original = losses(grown(mean, trees, features, label, draw + draws), x, y)
            sums = {k: torch.from_numpy(v) for k, v in {"original": original, "seen": seen, "unseen": unseen}.items()}
            ones = torch.ones(n, dtype=torch.float64)
            p = p_of_losses(RowCount(len(label)), refitted, **sums, weights=ones, squared=mean != "classes")
            hits[kind] += p is not None and p < LEVEL
            better[kind] += guard.decide((sums["unseen"] - sums["original"])[None], ones, level=LEVEL).accepted
    return {
        "cell": f"{trees}, {mean}, {n:,} rows",
        "draws": draws,
        **{k: c / draws for k, c in hits.items()},
        "better": {k: c / draws for k, c in better.items()},
    }


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--draws", type=int, default=400, help="tables of each cell")
    flags.add_argument("--trees", action="store_true", help="trees instead of linear stages")
    flags.add_argument("--cells", default="", metavar="TEXT", help="only cells whose name has this text")
    given = parse(flags, draws=1)
    torch.set_num_threads(1)
    runs: dict[str, Callable[[], dict[str, Any]]] = {}
    kinds, level = (TREE_KINDS, TREE_KINDS[:3]) if given.trees else (KINDS, KINDS[:2])
    if given.trees:
        runs = {f"{t}, {m}": functools.partial(simulate_trees, m, t, n, given.draws) for m, t, n in TREE_CELLS}
    else:
        runs = {cell.name: functools.partial(simulate, cell, given.draws) for cell in CELLS}
    found = []
    beside = "better" if given.trees else "distance"
    print(markdown(["cell", *kinds, f"by {beside}: {', '.join(level)}"], []), flush=True)
    for name, run in runs.items():
        if given.cells in name:
            found.append(one := run())
            cells = [f"{one[k]:.1%}" for k in kinds] + [", ".join(f"{one[beside][k]:.1%}" for k in level)]
            print(f"| {one['cell']} | {' | '.join(cells)} |", flush=True)
    # Two standard errors above the level that is promised.
    most = MOST + 2 * math.sqrt(MOST / given.draws)
    missed = [f"{one['cell']}: {one[k]:.1%} of {k} are called seen" for one in found for k in level if one[k] > most]
    print("\n".join(missed), f"{resource.getrusage(resource.RUSAGE_SELF).ru_utime:.0f} s of CPU")
    write(given, found, {f"{one['cell']}, {k}": one[k] for one in found for k in kinds})
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
