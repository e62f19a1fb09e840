"""Candidates of wide sparse rows: steps on the columns that a batch reaches, against steps on all of them."""

import copy
import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.objectives.losses import resolve
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.projection import PCA
from sparkdiff.stages.scaling import MaxAbsScaler, StandardScaler
from sparkdiff.stages.selecting import VectorSlicer
from sparkdiff.stages.weighing import IDF, ElementwiseProduct
from sparkdiff.tensors.rows import Rows, SparseRows
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.active_columns import ActiveColumns, choose_active_columns, group_size
from sparkdiff.training.affine import affine_network
from sparkdiff.training.augmentation import Draw, Target
from sparkdiff.training.candidates import Candidates
from sparkdiff.training.parameters import load, parameter_vector
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.updates import DenseUpdates, LazyUpdates
from tests.support.small_networks import F64, glr, least_squares, logistic, natural_units, network, normal

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
        {"x": sparse()},
        {"x": WIDTH, "s": WIDTH, "p": 1},
    ),
    "scaler, Poisson, offset": (
        network((scaler(WIDTH), ["x"], "s"), (glr(WIDTH), ["s", "o"], "p")),
        {"x": sparse(), "o": normal(ROWS, seed=9) / 3},
        {"x": WIDTH, "s": WIDTH, "o": 1, "p": 1},
    ),
    "two texts and numbers": (
        network(
            (scaler(WIDTH), ["x"], "s"),
            (assembled("n", "s", "z"), ["n", "s", "z"], "f"),
            (least_squares(2 * WIDTH + 3), ["f"], "p"),
        ),
        {"x": sparse(), "n": normal(ROWS, 3, seed=8), "z": sparse(seed=5)},
        {"x": WIDTH, "s": WIDTH, "n": 3, "z": WIDTH, "f": 2 * WIDTH + 3, "p": 1},
    ),
    "IDF, weights, some columns, largest": (
        network(
            (IDF(normal(WIDTH, seed=3).abs()), ["x"], "i"),
            (ElementwiseProduct(normal(WIDTH, seed=4)), ["i"], "w"),
            (
                VectorSlicer("v", torch.randperm(WIDTH, generator=torch.Generator().manual_seed(6))[:500].tolist()),
                ["w"],
                "v",
            ),
            (MaxAbsScaler(torch.where(torch.arange(500) % 9 == 0, 0.0, normal(500, seed=5).abs() + 0.5)), ["v"], "s"),
            (logistic(500), ["s"], "p"),
        ),
        {"x": sparse()},
        {"x": WIDTH, "i": WIDTH, "w": WIDTH, "v": 500, "s": 500, "p": 1},
    ),
    "PCA": (
        network(
            (PCA(0.5 * normal(WIDTH, 2, seed=5), torch.ones(2, dtype=F64)), ["x"], "c"), (least_squares(2), ["c"], "p")
        ),
        {"x": sparse()},
        {"x": WIDTH, "c": 2, "p": 1},
    ),
}


class Run:
    """Candidates on the rows of a case, on all columns or on those alone that a batch reaches."""

    def __init__(self, name: str, recipes: list[Recipe], *, reaches: bool = True, **options: Any):
        self.net, self.values, widths = copy.deepcopy(CASES[name])
        self.options = Options.of(options)
        versions = {(c, -1): w for c, w in widths.items()}
        versions |= {(leaf.outputs[0], i): widths[leaf.outputs[0]] for i, leaf in enumerate(self.net.graph.vertices)}
        affine = affine_network(self.net, versions)
        assert affine is not None
        self.units = natural_units(self.net, widths, self.options)
        self.units.unit[::11] = 0.0  # too few rows speak for these
        self.reach = self._reach(affine) if reaches else None
        dense = DenseUpdates(self.net, recipes, self.units, affine)
        updates = LazyUpdates(self.reach, recipes) if self.reach else dense
        self.team = Candidates(recipes, self.options, updates)
        y = normal(ROWS, seed=7).abs() * 2 + 0.1
        self.y = (y * 7 % self.net.head.classes).floor() if self.net.head.classes else y
        self.objective = resolve("auto", {}, self.net.head, ("prediction",), LABELS)
        self.places = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))

    def _reach(self, affine: Any) -> ActiveColumns:
        share, stats = {}, {}
        for c, x in self.values.items():
            if isinstance(x, SparseRows):
                support = torch.bincount(x.indices, minlength=x.width)
                share[c, -1] = support.double() / ROWS
                stats[c, -1] = FeatureStats(torch.zeros(x.width, dtype=F64), torch.ones(x.width, dtype=F64), support)
        self.stats, self.share = stats, share
        found = choose_active_columns(self.net, affine, self.units, share, BATCH * TOGETHER)
        assert found is not None
        return found

    def rows(self, step: int) -> tuple[dict[Any, Rows], Target]:
        n = ROWS // BATCH
        at = self.places[step % n * BATCH : (step % n + 1) * BATCH]
        values = {(c, -1): x.take(at) if isinstance(x, SparseRows) else x[at] for c, x in self.values.items()}
        return values, (self.y[at], 1 + (at % 3).double())

    def steps(self, number: int, first: int = 0, *, draw: Draw | None = None, factor: float = 1.0) -> "Run":
        for step in range(first, first + number):
            self.team.updates.matrix.sums.zero_()
            values, (y, weight) = self.rows(step)
            if step % TOGETHER == 0 or step == first:
                start = step // TOGETHER * TOGETHER
                self.team.enter([self.rows(k)[0] for k in range(start, start + TOGETHER)])
            self.team.add(values, (y, weight), self.objective, draw or Draw((), (), {}))
            self.team.step(self.objective.scale, factor)
        return self

    def waiting(self, other: "Run") -> Tensor:
        """The entries (p,) that the other run's steps don't change."""
        updates, reach = other.team.updates, other.reach
        assert isinstance(updates, LazyUpdates)
        assert reach is not None
        changed = torch.zeros(len(reach.whole), dtype=torch.bool)
        changed[reach.moving[updates.entries].long()] = True
        return ~changed

    def end(self) -> Tensor:
        """The natural units (K, p) at the epoch's end."""
        self.team.end_epoch(self.objective.scale)
        return self.all(self.team.u)

    def all(self, u: Tensor) -> Tensor:
        """The candidates' state at all entries (K, p)."""
        if self.reach is None:
            return u.clone()
        return torch.zeros(len(u), len(self.reach.whole), dtype=F64).index_copy_(1, self.reach.moving.long(), u)


def both(
    name: str, recipes: list[Recipe], number: int = 45, *, draw: Draw | None = None, slower: float = 1.0, **options: Any
) -> tuple[Run, Run]:
    """A run on the columns of each group of batches, and one on all columns that puts back what it has changed elsewhere."""
    one, other = (Run(name, recipes, reaches=r, **options) for r in (True, False))
    for first in range(0, number, TOGETHER):
        here, factor = min(TOGETHER, number - first), slower**first
        one.steps(here, first, draw=draw, factor=factor)
        matrices = list(other.team.vectors.values())
        before, waiting = [m.clone() for m in matrices], other.waiting(one)
        other.steps(here, first, draw=draw, factor=factor)
        for matrix, old in zip(matrices, before, strict=True):
            matrix[:, waiting] = old[:, waiting]
        other.team.updates.load(other.team.u)
    assert one.team.updates.matrix.flat.shape[1] < 0.3 * other.team.updates.matrix.flat.shape[1]
    return one, other


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_columns_in_a_batch_group_step_and_all_others_wait(name: str, optimizer: str) -> None:
    one, other = both(name, [dataclasses.replace(r, optimizer=optimizer) for r in RECIPES])
    found, expected = one.end(), other.end()
    assert (expected != 0).double().mean() > 0.1
    close(found, expected)
    assert bool((found[:, expected[0] == 0] == 0).all())
    assert one.team.optimizer is not None
    assert other.team.optimizer is not None
    for moment in ("mean", "square") if optimizer != "sgd" else ():
        close(one.all(getattr(one.team.optimizer, moment)), getattr(other.team.optimizer, moment))


def test_a_stage_of_its_own_rate_and_a_schedule() -> None:
    recipes = [Recipe(1e-2, 0.0), Recipe(1e-3, 0.0)]
    one, other = both("scaler, softmax", recipes, slower=0.97, learningRates={"stage1": 3e-3})
    close(one.end(), other.end())


def test_the_average_over_steps() -> None:
    recipes = [Recipe(1e-2, 0.0, ema=0.9), Recipe(1e-2, 0.0), Recipe(3e-3, 1e-2, "adam", ema=0.99)]
    one, other = both("sigmoid", recipes, 60)
    one.end(), other.end()
    close(one.all(one.team.average), other.team.average)
    assert torch.equal(one.team.average[1], one.team.u[1])


def test_an_epoch_s_whole_gradient() -> None:
    one, other = both("scaler, softmax", [Recipe(1.0, 1e-2, "lbfgs"), Recipe(1e-2, 0.0)], 15)
    found, expected = one.end(), other.end()
    close(found, expected)
    assert bool((found[0] != 0).any())


def test_noise_and_masks_are_drawn_as_on_all_columns() -> None:
    recipes = [Recipe(1e-2, 0.0, noise=0.3), Recipe(1e-2, 0.0), Recipe(1e-2, 0.0, mask=0.2)]
    stats = Run("two texts and numbers", recipes).stats
    stats |= {("n", -1): FeatureStats(torch.zeros(3), torch.ones(3, dtype=F64), torch.full((3,), 99))}
    one, other = both("two texts and numbers", recipes, 20, draw=Draw([(0, 4), (1, 4)], (0, 1, 2), stats))
    close(one.end(), other.end())


def test_a_candidate_goes_the_same_way_alone() -> None:
    """How many others train beside it decides nothing: not the batches of a group either."""
    every, alone = Run("sigmoid", RECIPES).steps(20).end(), Run("sigmoid", RECIPES[1:2]).steps(20).end()
    torch.testing.assert_close(every[1:2], alone, rtol=1e-12, atol=1e-15)
    assert (group_size(1024), group_size(128), group_size(10_000)) == (8, 8, 1)


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
    part.team = part.team.subset([0, 2])
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
    alone.team.add(values, (y, weight), alone.objective, Draw((), (), {}))
    halves = []
    rows = values["x", -1]
    assert isinstance(rows, SparseRows)
    for own, other in ((slice(0, 5), slice(5, 8)), (slice(5, 8), slice(0, 5))):
        run, every = Run("scaler, softmax", RECIPES), torch.arange(8)
        others = rows.take(every[other]).indices.unique()
        team: Any = Half(others)
        here: dict[Any, Rows] = {("x", -1): rows.take(every[own])}
        run.team.enter([here], team)
        run.team.add(here, (y[own], weight[own]), run.objective, Draw((), (), {}), team=team)
        halves.append(run.team.updates.matrix.sums)
    assert len(alone.team.updates.matrix.sums) < 3 * 0.25 * len(
        parameter_vector(alone.net)
    )  # so few numbers are added up
    torch.testing.assert_close(halves[0] + halves[1], alone.team.updates.matrix.sums, rtol=1e-11, atol=1e-12)


def test_what_is_measured_is_what_ships(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("scaler, softmax", RECIPES).steps(20)
    run.end()
    margins = []

    class Batches:
        team = ALONE

        def batches(self, split: str) -> list[Any]:
            return [(run.rows(k)[0], *run.rows(k)[1], torch.zeros(BATCH, dtype=torch.int64)) for k in range(3)]

        def values(self, batch: Any) -> Any:
            return dict(batch)

    class Seen:
        def __init__(self, metric: Any, head: Any, number: int):
            margins.extend([] for _ in range(number))

        def add_all(self, found: Tensor, *rest: Any) -> None:
            for own, margin in zip(margins, found, strict=True):
                own.append(margin)

        def scores(self, team: Any) -> list[Any]:
            return []

    monkeypatch.setattr("sparkdiff.training.candidates.Tallies", Seen)
    _, parameters = run.team.scores(Batches(), "validation", None)  # type: ignore[arg-type]
    for k in range(3):
        net = run.net.clone()
        load(net, parameters(k))
        for step, margin in enumerate(margins[k]):
            torch.testing.assert_close(margin, net.margin(dict(run.rows(step)[0])), rtol=1e-9, atol=1e-11)


def test_many_columns_a_batch_or_a_centred_one_train_all() -> None:
    run = Run("sigmoid", RECIPES)
    affine = run.team.updates.affine
    assert affine is not None
    often = {("x", -1): torch.full((WIDTH,), 0.5, dtype=F64)}
    assert choose_active_columns(run.net, affine, run.units, often, BATCH * TOGETHER) is None
    centred = StandardScaler(torch.ones(WIDTH, dtype=F64), normal(WIDTH), True, True)
    net = network((centred, ["x"], "s"), (logistic(WIDTH), ["s"], "p"))
    affine = affine_network(net, {("x", -1): WIDTH, ("s", 0): WIDTH, ("p", 1): 1})
    assert affine is not None
    own = natural_units(net, {"x": WIDTH, "s": WIDTH}, run.options)
    assert choose_active_columns(net, affine, own, run.share, BATCH * TOGETHER) is None
