"""Candidates of wide sparse rows: steps on the columns that a batch reaches, against steps on all of them."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from chains import F64, glr, least_squares, logistic, network, normal, scales
from torch import Tensor

from sparkdiff.objectives.losses import resolve
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.rows import Rows, SparseRows
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import MaxAbsScaler, StandardScaler
from sparkdiff.stages.selecting import VectorSlicer
from sparkdiff.stages.text import IDF
from sparkdiff.stages.weighing import ElementwiseProduct
from sparkdiff.training.active_columns import Reach, reach_of
from sparkdiff.training.affine import fold
from sparkdiff.training.augmentation import Target
from sparkdiff.training.candidates import Candidates, Draw
from sparkdiff.training.optimizers import Behind
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.units import flattened, load

ROWS, WIDTH, BATCH, TOGETHER = 120, 600, 8, 2
LABELS = LabelStats(1.0, 2.0, 0.0, 9.0, torch.tensor([99, 99, 99]))
RECIPES = [Recipe(1e-2, 1e-3), Recipe(3e-3, 1e-2), Recipe(1e-2, 0.0)]


def sparse(rows: int = ROWS, width: int = WIDTH, each: int = 6, seed: int = 0) -> SparseRows:
    """Rows with some entries each, most of them in the first columns, as words of a language have; the last 50 have none."""
    random = torch.Generator().manual_seed(seed)
    found = [((width - 50) * torch.rand(each, generator=random) ** 3).long().unique() for _ in range(rows)]
    offsets = torch.tensor([0, *map(len, found)]).cumsum(0)
    return SparseRows(torch.cat(found), normal(int(offsets[-1]), seed=seed + 1), offsets, width)


def scaler(width: int, constant: bool = False) -> StandardScaler:
    std = normal(width, seed=3).abs() + 0.5
    if constant:
        std[::7] = 0
    return StandardScaler(std, normal(width, seed=4), True, False)


def assembled(*inputs: str) -> VectorAssembler:
    return VectorAssembler("a", inputs, True)


CASES: dict[str, tuple[Network, dict[str, Rows], dict[str, int]]] = {
    "sigmoid": (network((logistic(WIDTH), ["x"], "p")), {"x": sparse()}, {"x": WIDTH, "p": 1}),
    "scaler, softmax": (
        network((scaler(WIDTH, constant=True), ["x"], "s"), (logistic(WIDTH, 3), ["s"], "p")),
        {"x": sparse()}, {"x": WIDTH, "s": WIDTH, "p": 1},
    ),
    "scaler, Poisson, offset": (
        network((scaler(WIDTH), ["x"], "s"), (glr(WIDTH), ["s", "o"], "p")),
        {"x": sparse(), "o": normal(ROWS, seed=9) / 3}, {"x": WIDTH, "s": WIDTH, "o": 1, "p": 1},
    ),
    "two texts and numbers": (
        network(
            (scaler(WIDTH), ["x"], "s"), (assembled("n", "s", "z"), ["n", "s", "z"], "f"),
            (least_squares(2 * WIDTH + 3), ["f"], "p"),
        ),
        {"x": sparse(), "n": normal(ROWS, 3, seed=8), "z": sparse(seed=5)},
        {"x": WIDTH, "s": WIDTH, "n": 3, "z": WIDTH, "f": 2 * WIDTH + 3, "p": 1},
    ),
    "IDF, weights, some columns, largest": (
        network(
            (IDF(normal(WIDTH, seed=3).abs()), ["x"], "i"), (ElementwiseProduct(normal(WIDTH, seed=4)), ["i"], "w"),
            (VectorSlicer("v", torch.randperm(WIDTH, generator=torch.Generator().manual_seed(6))[:500].tolist()), ["w"], "v"),
            (MaxAbsScaler(torch.where(torch.arange(500) % 9 == 0, 0.0, normal(500, seed=5).abs() + 0.5)), ["v"], "s"),
            (logistic(500), ["s"], "p"),
        ),
        {"x": sparse()}, {"x": WIDTH, "i": WIDTH, "w": WIDTH, "v": 500, "s": 500, "p": 1},
    ),
    "PCA": (
        network((PCA(0.5 * normal(WIDTH, 2, seed=5), torch.ones(2, dtype=F64)), ["x"], "c"), (least_squares(2), ["c"], "p")),
        {"x": sparse()}, {"x": WIDTH, "c": 2, "p": 1},
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def few_rows_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkdiff.training.active_columns.TOGETHER", TOGETHER * BATCH)


class Run:
    """Candidates on the rows of a case, on all columns or on those alone that a batch reaches."""

    def __init__(self, name: str, recipes: list[Recipe], *, reaches: bool = True, **options: Any):
        self.net, self.values, widths = copy.deepcopy(CASES[name])
        self.options = Options.of(options)
        versions = {(c, -1): w for c, w in widths.items()}
        versions |= {(leaf.outputs[0], i): widths[leaf.outputs[0]] for i, leaf in enumerate(self.net.graph.leaves)}
        folded = fold(self.net, versions)
        assert folded is not None
        self.scales = scales(self.net, widths, self.options)
        self.scales.unit[::11] = 0.0  # too few rows speak for these
        self.reach = self._reach(folded) if reaches else None
        self.team = Candidates(self.net, recipes, self.options, self.scales, folded, None, self.reach)
        y = normal(ROWS, seed=7).abs() * 2 + 0.1
        self.y = (y * 7 % self.net.head.classes).floor() if self.net.head.classes else y
        self.objective = resolve("auto", {}, self.net.head, ("prediction",), LABELS)
        self.places = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))

    def _reach(self, folded: Any) -> Reach:
        widths, stats = {}, {}
        for c, x in self.values.items():
            if isinstance(x, SparseRows):
                widths[c, -1] = x.width
                support = torch.bincount(x.indices, minlength=x.width)
                stats[c, -1] = FeatureStats(torch.zeros(x.width, dtype=F64), torch.ones(x.width, dtype=F64), support)
        self.stats = stats
        found = reach_of(self.net, folded, flattened(self.net), self.scales, widths, stats, ROWS, BATCH * TOGETHER)
        assert found is not None
        return found

    def rows(self, step: int) -> tuple[dict[Any, Rows], Target]:
        n = ROWS // BATCH
        at = self.places[step % n * BATCH : (step % n + 1) * BATCH]
        values = {(c, -1): x.take(at) if isinstance(x, SparseRows) else x[at] for c, x in self.values.items()}
        return values, (self.y[at], 1 + (at % 3).double())

    def steps(self, number: int, first: int = 0, *, draw: Draw | None = None) -> Run:
        for step in range(first, first + number):
            self.team.sums.zero_()
            values, (y, weight) = self.rows(step)
            if step % TOGETHER == 0 or step == first:
                start = step // TOGETHER * TOGETHER
                self.team.enter([self.rows(k)[0] for k in range(start, start + TOGETHER)])
            self.team.add(values, y, weight, self.objective, draw or Draw((), (), {}))
            self.team.step(self.objective.scale)
        return self

    def end(self) -> Tensor:
        """The natural units (K, p) at the epoch's end."""
        self.team.end_epoch(self.objective.scale)
        return self.all(self.team.u)

    def all(self, u: Tensor) -> Tensor:
        """The candidates' state at all entries (K, p)."""
        if self.reach is None:
            return u.clone()
        assert bool((u[:, -1] == 0).all())  # what stands for all that stay
        return torch.zeros(len(u), len(self.reach.whole), dtype=F64).index_copy_(1, self.reach.moving.long(), u[:, :-1])


def moved(name: str, recipes: list[Recipe], number: int = 45, **options: Any) -> tuple[Tensor, Tensor]:
    one = Run(name, recipes, **options).steps(number)
    other = Run(name, recipes, reaches=False, **options).steps(number)
    assert len(one.team.span.start) < 0.3 * len(other.team.span.start)
    return one.end(), other.end()


def close(found: Tensor, expected: Tensor, most: float, few: float) -> None:
    """Most of the moves (95 in 100) differ by so much of the largest one, and none by more than `few`.

    Adam divides small gradients by their own size, so that a difference in its epsilon can come back as one of a whole step.
    """
    apart = ((found - expected).abs() / expected.abs().amax(1, keepdim=True)).flatten()
    print(f"{float(apart.quantile(0.95)):.1e} in 95 of 100, {float(apart.max()):.1e} at most")
    assert float(apart.quantile(0.95)) <= most
    assert float(apart.max()) <= few


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_without_an_anchor_both_go_the_same_way(name: str, optimizer: str) -> None:
    recipes = [Recipe(1e-2, 0.0, optimizer), Recipe(1e-3, 0.0, optimizer)]
    found, expected = moved(name, recipes)
    assert (expected != 0).double().mean() > 0.1
    close(found, expected, 1e-4 if optimizer == "adam" else 1e-3, 1e-2)
    assert bool((found[:, expected[0] == 0] == 0).all())


@pytest.mark.parametrize("name", CASES)
def test_sgd_is_the_same_with_an_anchor_too(name: str) -> None:
    found, expected = moved(name, [Recipe(1e-2, 0.5, "sgd"), Recipe(1e-1, 1e-2, "sgd")])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_anchor_pulls_where_no_row_is(name: str) -> None:
    found, expected = moved(name, RECIPES)
    close(found, expected, 5e-3, 0.1)
    stays = Run(name, RECIPES)  # as if columns without a row stood still
    stays.team.behind.catch_up = lambda *given: None  # type: ignore[union-attr, method-assign]
    apart = (stays.steps(45).end() - expected).abs() / expected.abs().amax(1, keepdim=True)
    assert float(apart.flatten().quantile(0.95)) > 0.05


def test_a_stage_of_its_own_rate_and_a_schedule() -> None:
    recipes = [Recipe(1e-2, 0.0), Recipe(1e-3, 0.0)]
    runs = [Run("scaler, softmax", recipes, reaches=r, learningRates={"stage1": 3e-3}) for r in (True, False)]
    for run in runs:
        for step in range(40):
            run.team.sums.zero_()
            values, (y, weight) = run.rows(step)
            run.team.enter([values])
            run.team.add(values, y, weight, run.objective, Draw((), (), {}))
            run.team.step(run.objective.scale, 1 - step / 50)
    close(runs[0].end(), runs[1].end(), 1e-5, 1e-2)


def test_the_average_over_steps() -> None:
    recipes = [Recipe(1e-2, 0.0, ema=0.9), Recipe(1e-2, 0.0), Recipe(3e-3, 1e-2, "adam", ema=0.99)]
    one, other = (Run("sigmoid", recipes, reaches=r).steps(60) for r in (True, False))
    one.end(), other.end()
    apart = (one.all(one.team.average) - other.team.average).abs().amax(1) / other.team.average.abs().amax(1)
    assert float(apart.max()) < 0.05  # between two looks at it an entry is taken to move evenly
    assert torch.equal(one.team.average[1], one.team.u[1])


def test_an_epoch_s_whole_gradient() -> None:
    recipes = [Recipe(1.0, 1e-2, "lbfgs"), Recipe(1e-2, 0.0)]
    one, other = (Run("scaler, softmax", recipes, reaches=r) for r in (True, False))
    for epoch in range(3):
        found, expected = one.steps(15, 15 * epoch).end(), other.steps(15, 15 * epoch).end()
    close(found, expected, 1e-5, 1e-2)
    assert bool((found[0] != 0).any())


def test_noise_and_masks_are_drawn_as_on_all_columns() -> None:
    recipes = [Recipe(1e-2, 0.0, noise=0.3), Recipe(1e-2, 0.0), Recipe(1e-2, 0.0, mask=0.2)]
    one, other = (Run("two texts and numbers", recipes, reaches=r) for r in (True, False))
    stats = one.stats | {("n", -1): FeatureStats(torch.zeros(3), torch.ones(3, dtype=F64), torch.full((3,), 99))}
    draw = Draw([(0, 4), (1, 4)], (0, 1, 2), stats)
    close(one.steps(20, draw=draw).end(), other.steps(20, draw=draw).end(), 1e-5, 1e-2)


@pytest.mark.parametrize("recipes", [RECIPES, [Recipe(1e-2, 1e-3, ema=0.9), Recipe(1.0, 1e-2, "lbfgs")]])
def test_a_break_changes_nothing(recipes: list[Recipe]) -> None:
    whole, first, second = (Run("scaler, softmax", recipes) for _ in range(3))
    expected = whole.steps(20).end()
    state = copy.deepcopy(first.steps(11).team.state())
    second.team.load(state)
    assert torch.equal(second.steps(9, 11).end(), expected)
    assert torch.equal(second.team.average, whole.team.average)


def test_who_stays_goes_on_as_if_the_others_were_there() -> None:
    whole, part = Run("sigmoid", RECIPES), Run("sigmoid", RECIPES)
    for run in (whole, part):
        run.steps(10).end()
    part.team = part.team.kept([0, 2])
    torch.testing.assert_close(part.steps(10, 10).end(), whole.steps(10, 10).end()[[0, 2]], rtol=1e-12, atol=1e-15)


@dataclasses.dataclass(frozen=True)
class Half:
    """A team of two of which this process sees the other's columns and nothing else of it."""

    others: Tensor
    rank: int = 0
    world: int = 2

    def gather(self, tensor: Tensor) -> Tensor:
        return torch.cat([tensor, self.others])


def test_two_processes_add_up_to_one() -> None:
    alone = Run("scaler, softmax", RECIPES)
    values, (y, weight) = alone.rows(0)
    alone.team.enter([values])
    alone.team.add(values, y, weight, alone.objective, Draw((), (), {}))
    halves = []
    rows = values["x", -1]
    assert isinstance(rows, SparseRows)
    for own, other in ((slice(0, 5), slice(5, 8)), (slice(5, 8), slice(0, 5))):
        run, every = Run("scaler, softmax", RECIPES), torch.arange(8)
        others = rows.take(every[other]).indices.unique()
        team: Any = Half(others)
        here: dict[Any, Rows] = {("x", -1): rows.take(every[own])}
        run.team.enter([here], team)
        run.team.add(here, y[own], weight[own], run.objective, Draw((), (), {}), team=team)
        halves.append(run.team.sums)
    assert len(alone.team.sums) < 3 * 0.25 * len(flattened(alone.net))  # so few numbers are added up
    torch.testing.assert_close(halves[0] + halves[1], alone.team.sums, rtol=1e-11, atol=1e-12)


def test_what_is_measured_is_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("scaler, softmax", RECIPES).steps(20)
    run.end()
    margins = []

    class Batches:
        team = None

        def batches(self, split: str) -> list[Any]:
            return [(run.rows(k)[0], *run.rows(k)[1], torch.zeros(BATCH, dtype=torch.int64)) for k in range(3)]

        def values(self, batch: Any) -> Any:
            return dict(batch)

    class Seen:
        def __init__(self, *given: Any):
            margins.append([])
            self.own = margins[-1]

        def add(self, margin: Tensor, *rest: Any) -> None:
            self.own.append(margin)

        def score(self, team: Any) -> None:
            return None

    monkeypatch.setattr("sparkdiff.training.candidates.Tally", Seen)
    _, parameters = run.team.scores(Batches(), "validation", None)  # type: ignore[arg-type]
    for k in range(3):
        net = run.net.clone()
        load(net, parameters(k))
        for step, margin in enumerate(margins[k]):
            torch.testing.assert_close(margin, net.margin(dict(run.rows(step)[0])), rtol=1e-9, atol=1e-11)


def test_many_columns_a_batch_or_a_centred_one_train_all() -> None:
    run = Run("sigmoid", RECIPES)
    folded = run.team.folded
    assert folded is not None
    start, width = flattened(run.net), {("x", -1): WIDTH}
    often = {("x", -1): dataclasses.replace(run.stats["x", -1], support=torch.full((WIDTH,), 60))}
    assert reach_of(run.net, folded, start, run.scales, width, often, ROWS, BATCH * TOGETHER) is None
    centred = StandardScaler(torch.ones(WIDTH, dtype=F64), normal(WIDTH), True, True)
    net = network((centred, ["x"], "s"), (logistic(WIDTH), ["s"], "p"))
    folded = fold(net, {("x", -1): WIDTH, ("s", 0): WIDTH, ("p", 1): 1})
    assert folded is not None
    own = scales(net, {"x": WIDTH, "s": WIDTH}, run.options)
    assert reach_of(net, folded, flattened(net), own, width, run.stats, ROWS, BATCH * TOGETHER) is None


# ---- what a step does to entries that it doesn't touch


def adam(u: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, anchor: float, rate: float, number: int) -> None:
    gradient = gradient + anchor * u
    mean.mul_(0.9).add_(0.1 * gradient)
    square.mul_(0.999).add_(0.001 * gradient * gradient)
    u -= rate * (mean / (1 - 0.9**number)) / ((square / (1 - 0.999**number)).sqrt() + 1e-8)


@pytest.mark.parametrize("often", [0.5, 0.02, 0.002])
@pytest.mark.parametrize(("anchor", "rate"), [(0.0, 1e-2), (1e-3, 1e-3), (1e-3, 1e-2), (1e-1, 1e-2)])
def test_entries_are_brought_to_where_every_step_would_have_taken_them(
    often: float, anchor: float, rate: float
) -> None:
    """1,000 steps, of each of which an entry sees a share."""
    n, steps = 50, 1000
    random = torch.Generator().manual_seed(1)
    there = torch.rand(steps, n, generator=random) < often
    noise, aim = normal(steps, n, seed=2), 0.5 * normal(n, seed=3)
    every, some = torch.zeros(3, n, dtype=F64), torch.zeros(3, n, dtype=F64)
    behind = Behind("adam", n, torch.tensor([[anchor]], dtype=F64), None)
    for number in range(1, steps + 1):
        here = there[number - 1]
        adam(*every, torch.where(here, 0.1 * (every[0] - aim + noise[number - 1]), 0.0), anchor, rate, number)
        u, mean, square = (x[None, here] for x in some)
        if len(u[0]):
            behind.catch_up(u, (mean, square), behind.since[here], None, None)
            gradient = 0.1 * (u - aim[here] + noise[number - 1, here])
            adam(u, mean, square, gradient, anchor, rate, number)
            some[:, here] = torch.cat([u, mean, square])
        behind.stepped(rate, number)
        behind.since[here] = behind.now
    u, mean, square = (x[None].clone() for x in some)
    behind.catch_up(u, (mean, square), behind.since, None, None)
    apart, still = float((u[0] - every[0]).abs().max()), float((some[0] - every[0]).abs().max())
    print(f"{apart:.1e} (without the last steps {still:.1e}) of moves of {float(every[0].abs().max()):.1e}")
    assert apart <= (5e-5 if anchor == 0 else 1e-2)
    worst = float((square[0].sqrt() - every[2].sqrt()).abs().max() / every[2].sqrt().max())
    print(f"second moments' roots: {worst:.1e}")
    assert worst < 0.02 or anchor == 0.1  # pulled to 0 within a few steps, an entry leaves a trace that is only guessed
