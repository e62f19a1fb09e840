"""Candidates that train together: against a loop written with torch alone, against one another, and across a break."""

import copy
import dataclasses
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.losses import OWN, resolve
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network, routed_versions
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.bayes import Bernoulli, Multinomial
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.formula import AttributeRewriting
from sparkdiff.stages.projection import DCT, PCA
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sparkdiff.stages.selecting import Selection, VectorSizeHint
from sparkdiff.stages.trees import (
    DecisionTreeRegression,
    GBTClassification,
    GBTRegression,
    RandomForestClassification,
    RandomForestRegression,
)
from sparkdiff.stages.weighing import IDF, ElementwiseProduct
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.tensors.team import ALONE
from sparkdiff.training.affine import affine_network
from sparkdiff.training.augmentation import Draw
from sparkdiff.training.candidates import Candidates
from sparkdiff.training.monotone import MonotonePenalty
from sparkdiff.training.parameters import parameter_vector
from sparkdiff.training.recipes import Recipe, recipes_for
from sparkdiff.training.training_run import _agrees
from sparkdiff.training.updates import DenseUpdates
from tests.support.random_trees import WIDTH, rows
from tests.support.small_networks import (
    F64,
    bayes,
    glr,
    least_squares,
    logistic,
    natural_units,
    network,
    normal,
    one_vs_rest,
    support_vector,
    survival,
    trees,
)

N, STEPS = 24, 12
LABELS = LabelStats(1.0, 2.0, 0.0, 9.0, torch.tensor([9, 9, 9]))
NOWHERE = Draw((), (), {})
RECIPES = [Recipe(1e-2, 1e-3), Recipe(1e-1, 1e-2), Recipe(1e-2, 0.0)]


def scaler(width: int, constant: bool = False) -> StandardScaler:
    std = normal(width, seed=3).abs() + 0.5
    if constant:
        std[1] = 0
    return StandardScaler(std, normal(width, seed=4), True, True)


def pca(width: int, k: int) -> PCA:
    return PCA(0.5 * normal(width, k, seed=5), torch.ones(k, dtype=F64))


def sparse(x: Tensor) -> SparseRows:
    x = torch.where(x.abs() > 0.8, x, 0.0)
    rows, indices = x.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(rows, minlength=len(x)).cumsum(0)])
    return SparseRows(indices, x[rows, indices], offsets, x.shape[1])


def labels(net: Network, n: int = N) -> Tensor:
    y = normal(n, seed=7).abs() * 2 + 0.1
    return (y * 7 % net.head.classes).floor() if net.head.classes else y


def cases() -> dict[str, tuple[Network, dict[str, Any], dict[str, int]]]:
    x = normal(N, 5)
    low, high = x.amin(0), x.amax(0)
    return {
        "scaler, PCA, Poisson": (
            network((scaler(5), ["x"], "s"), (pca(5, 3), ["s"], "c"), (glr(3), ["c"], "p")),
            {"x": x},
            {"x": 5, "s": 5, "c": 3, "p": 1},
        ),
        "a constant column, softmax": (
            network((scaler(5, constant=True), ["x"], "s"), (logistic(5, 3), ["s"], "p")),
            {"x": x},
            {"x": 5, "s": 5, "p": 1},
        ),
        "ranges, squared": (
            network((MinMaxScaler(low, high, -1.0, 2.0), ["x"], "s"), (least_squares(5), ["s"], "p")),
            {"x": x},
            {"x": 5, "s": 5, "p": 1},
        ),
        "two branches and a scalar, sigmoid": (
            network(
                (scaler(5), ["x"], "s"),
                (pca(5, 2), ["s"], "c"),
                (VectorAssembler("a", ("c", "n", "x"), True), ["c", "n", "x"], "f"),
                (logistic(8), ["f"], "p"),
            ),
            {"x": x, "n": normal(N, seed=8)},
            {"x": 5, "s": 5, "c": 2, "n": 1, "f": 8, "p": 1},
        ),
        "sparse rows, gamma, offset": (
            network(
                (StandardScaler(normal(5, seed=3).abs() + 0.5, normal(5), True, False), ["x"], "s"),
                (glr(5, "gamma"), ["s", "o"], "p"),
            ),
            {"x": sparse(x), "o": normal(N, seed=9) / 3},
            {"x": 5, "s": 5, "o": 1, "p": 1},
        ),
        "sparse rows, softmax": (network((logistic(5, 3), ["x"], "p")), {"x": sparse(x)}, {"x": 5, "p": 1}),
        "robust, maximum, weights, waves": (
            network(
                (RobustScaler(normal(5, seed=3).abs() + 0.5, normal(5), True, True), ["x"], "s"),
                (DCT(False), ["s"], "t"),
                (MaxAbsScaler(normal(5, seed=4).abs() + 0.5), ["t"], "u"),
                (Selection("selector", [3, 0, 4]), ["u"], "v"),
                (DCT(True), ["v"], "w"),
                (VectorSizeHint("h", 3, True), ["w"], "w"),
                (AttributeRewriting(), ["w"], "w"),
                (ElementwiseProduct(normal(3, seed=6)), ["w"], "z"),
                (glr(3), ["z"], "p"),
            ),
            {"x": x},
            {"x": 5, "s": 5, "t": 5, "u": 5, "v": 3, "w": 3, "z": 3, "p": 1},
        ),
        "sparse rows, weights of words": (
            network(
                (RobustScaler(normal(5, seed=3).abs() + 0.5, normal(5), True, False), ["x"], "r"),
                (MaxAbsScaler(torch.tensor([1.0, 0.0, 2.0, 0.3, 5.0], dtype=F64)), ["r"], "m"),
                (IDF(normal(5, seed=5).abs()), ["m"], "s"),
                (logistic(5, 3), ["s"], "p"),
            ),
            {"x": sparse(x)},
            {"x": 5, "r": 5, "m": 5, "s": 5, "p": 1},
        ),
        "words": (
            network(
                (Word2Vec(tuple("abcde"), normal(5, 3).float().double()), ["x", "n"], "v"), (logistic(3), ["v"], "p")
            ),
            {"x": sparse(x), "n": normal(N, seed=8).abs().ceil()},
            {"x": 5, "n": 1, "v": 3, "p": 1},
        ),
        "support vectors": (
            network((scaler(5), ["x"], "s"), (support_vector(5), ["s"], "p")),
            {"x": x},
            {"x": 5, "s": 5, "p": 1},
        ),
        "survival": (
            network((scaler(5), ["x"], "s"), (survival(5), ["s"], "p")),
            {"x": x, "censor": (normal(N, seed=4) > 0).double()},
            {"x": 5, "s": 5, "censor": 1, "p": 1},
        ),
        "one against the rest": (
            network((scaler(5), ["x"], "s"), (one_vs_rest(5), ["s"], "p")),
            {"x": x},
            {"x": 5, "s": 5, "p": 1},
        ),
        "multinomial": (network((bayes(Multinomial, 5), ["x"], "p")), {"x": x.abs()}, {"x": 5, "p": 1}),
        "sparse rows, bernoulli": (
            network((bayes(Bernoulli, 5), ["x"], "p")),
            {"x": sparse((x > 0).double())},
            {"x": 5, "p": 1},
        ),
        "threshold": (network((scaler(5), ["x"], "s"), (deciding(5), ["s"], "p")), {"x": x}, {"x": 5, "s": 5, "p": 1}),
        "bounds": (
            network(
                (scaler(5), ["x"], "s"),
                (logistic(5, bounds={"upper coefficientMatrix": torch.full((1, 5), 0.31, dtype=F64)}), ["s"], "p"),
            ),
            {"x": x},
            {"x": 5, "s": 5, "p": 1},
        ),
    }


def deciding(width: int) -> Any:
    """With a threshold that trains."""
    out = logistic(width)
    out.unfreeze("threshold")
    return out


def with_weights(module: GBTRegression | GBTClassification) -> Any:
    module.treeWeights.requires_grad_()
    return module


def cases_of_trees() -> dict[str, tuple[Network, dict[str, Any], dict[str, int]]]:
    x, widths = {"x": torch.from_numpy(rows(N))}, {"x": WIDTH, "t": 1, "f": 2 + WIDTH, "p": 1}
    finite = {"x": x["x"].nan_to_num(0.0, 1.0, -1.0).clamp(-3, 3)}

    def stacked(head: Any) -> Network:
        """Two ensembles and what they look at in front of a linear predictor."""
        return network(
            (trees(GBTRegression, 1), ["x"], "t"),
            (trees(RandomForestRegression, 2), ["x"], "u"),
            (VectorAssembler("a", ("t", "x", "u"), True), ["t", "x", "u"], "f"),
            (head, ["f"], "p"),
        )

    return {
        "GBT, squared": (network((trees(GBTRegression, 1), ["x"], "p")), x, widths),
        "GBT with its weights": (network((with_weights(trees(GBTRegression, 2)), ["x"], "p")), x, widths),
        "forest, squared": (network((trees(RandomForestRegression, 3), ["x"], "p")), x, widths),
        "one tree": (network((trees(DecisionTreeRegression, 12), ["x"], "p")), x, widths),
        "GBT, logistic": (
            network((with_weights(trees(GBTClassification, 4, "probabilityCol")), ["x"], "p")),
            x,
            widths,
        ),
        "trees, linear": (stacked(least_squares(2 + WIDTH)), finite, widths | {"u": 1}),
        "trees, Poisson": (stacked(glr(2 + WIDTH)), finite, widths | {"u": 1}),
        "sparse rows, GBT": (
            network((trees(GBTRegression, 1), ["x"], "p")),
            {"x": sparse(normal(N, WIDTH))},
            widths,
        ),
    }


CASES = cases() | cases_of_trees()
CLASSES = (
    network((trees(RandomForestClassification, 1, "probabilityCol"), ["x"], "p")),
    {"x": torch.from_numpy(rows(N))},
    {"x": WIDTH, "p": 1},
)
"""A network that isn't affine in what trains."""


def objective_of(net: Network, loss: Any = "auto", **params: float) -> Objective:
    if net.head.decides_only:
        return resolve("cost", {"costs": [[0.0, 1.0], [2.0, 0.0]]}, net.head, ("prediction",), LABELS)
    return resolve(loss, params, net.head, ("prediction",), LABELS)


class Run:
    """Candidates on the rows of a case, step by step."""

    def __init__(self, name: str, recipes: list[Recipe], *, folds: bool = True, loss: Any = "auto", **options: Any):
        self.net, self.values, widths = copy.deepcopy(CASES.get(name, CLASSES))
        self.options = Options.of(options)
        versions = {(c, -1): w for c, w in widths.items()} | {
            (leaf.outputs[0], i): widths[leaf.outputs[0]] for i, leaf in enumerate(self.net.graph.vertices)
        }
        self.routed = routed_versions(self.net) if folds else []
        versions |= {v: len(self.net.trees()[v[1]].leaves) for v in self.routed}
        affine = affine_network(self.net, versions) if folds else None
        assert (affine is not None) == folds
        self.units = natural_units(self.net, widths, self.options)
        self.team = Candidates(recipes, self.options, DenseUpdates(self.net, recipes, self.units, affine))
        self.y, self.weight = labels(self.net), normal(N, seed=10).abs()
        self.objective = objective_of(self.net, loss)

    def add(self, rows: slice = slice(None), draw: Draw = NOWHERE) -> None:
        def part(x: Any) -> Any:
            return x.take(torch.arange(N)[rows]) if isinstance(x, SparseRows) else x[rows]

        values = {(c, -1): part(x) for c, x in self.values.items()}
        self.net.route(values, self.routed)
        self.team.add(values, (self.y[rows], self.weight[rows]), self.objective, draw)

    def steps(self, number: int = STEPS, first: int = 0, **step: float) -> Tensor:
        for k in range(first, first + number):
            self.team.updates.matrix.sums.zero_()
            self.add(slice(k % 3 * 8, k % 3 * 8 + 8))
            self.team.step(self.objective.scale, **step)
        return self.team.updates.matrix.flat.clone()


@pytest.mark.parametrize("name", CASES)
def test_folded_candidates_go_where_single_networks_go(name: str) -> None:
    one, other = Run(name, RECIPES), Run(name, RECIPES, folds=False)
    one.add()
    other.add()
    torch.testing.assert_close(one.team.updates.matrix.sums, other.team.updates.matrix.sums, rtol=1e-10, atol=1e-12)
    assert (one.team.updates.matrix.gradient != 0).sum() > 3 * 3  # it is a gradient
    torch.testing.assert_close(one.steps(), other.steps(), rtol=1e-9, atol=1e-9)
    assert not torch.equal(one.team.updates.matrix.flat[0], one.team.updates.matrix.flat[1])


@pytest.mark.parametrize("loss", ["squared", "absolute", "poisson"])
def test_a_loss_without_closed_form_folds_too(loss: str) -> None:
    one, other = Run("ranges, squared", RECIPES, loss=loss), Run("ranges, squared", RECIPES, folds=False, loss=loss)
    torch.testing.assert_close(one.steps(), other.steps(), rtol=1e-9, atol=1e-9)


def test_a_callable_sees_one_candidate_at_a_time() -> None:
    seen = []

    def loss(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        seen.append(len(label))
        return (outputs["prediction"] - label) ** 2

    one = Run("ranges, squared", RECIPES, loss=loss)
    named = Run("ranges, squared", RECIPES, loss="squared")
    one.objective = dataclasses.replace(one.objective, scale=named.objective.scale)
    torch.testing.assert_close(one.steps(3), named.steps(3), rtol=1e-9, atol=1e-12)
    assert set(seen) == {0, 8}  # none: whether it is a loss of rows is asked without any


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("loss", ["auto", "gamma", "poisson"])
def test_closed_forms_are_what_autograd_finds(name: str, loss: str) -> None:
    net = CASES[name][0]
    if loss != "auto" and (net.head.classes or net.head.own_loss()[0] in OWN):
        return
    objective = objective_of(net, loss)
    exact = objective.exact
    if exact is None:
        assert loss != "auto" or objective.name in (*OWN, "cost")
        return
    assert objective.rows is not None
    margin = (3 * normal(2, 500, *([3] if net.head.wide else []), seed=11)).requires_grad_()
    y = labels(net, 500)
    loss_rows, slope = exact(margin.detach(), y)
    expected = torch.stack([objective.rows(m, y, torch.ones_like(y)) for m in margin])
    expected.sum().backward()
    torch.testing.assert_close(loss_rows, expected.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(slope, margin.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_each_candidate_is_what_a_loop_in_plain_torch_gives(optimizer: str, clip: float | None) -> None:
    slow = 0.01 if optimizer == "sgd" else 1.0  # its steps are as long as the gradient
    recipes = [dataclasses.replace(r, optimizer=optimizer, learningRate=slow * r.learningRate) for r in RECIPES]
    given = {"optimizer": optimizer, "learningRates": {"stage1": 3e-3}} | ({"gradientClip": clip} if clip else {})
    run = Run("scaler, PCA, Poisson", recipes, **given)
    found = run.steps()
    unit, [(part, _)] = run.units.unit, run.units.constrained
    positive = torch.zeros(len(unit), dtype=torch.bool)
    positive[part.first : part.last] = True
    own = torch.ones_like(unit)
    own[10:25] = 3.0  # the PCA's rate over the common one, 1e-3
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[optimizer]
    for k, recipe in enumerate(recipes):
        net = run.net.clone()
        start, u = parameter_vector(run.net), torch.zeros(len(unit), dtype=F64, requires_grad=True)
        pieces = [u[i : i + 1] for i in range(len(unit))]  # a rate per entry, as groups of torch's optimizer
        parts = [torch.zeros(1, dtype=F64, requires_grad=True) for _ in pieces]
        reference = make(
            [{"params": [p], "lr": recipe.learningRate * float(r)} for p, r in zip(parts, own, strict=True)]
        )
        for step in range(STEPS):
            rows = slice(step % 3 * 8, step % 3 * 8 + 8)
            u = torch.cat(parts)
            p = torch.where(positive, start * torch.exp(unit * u), start + unit * u)
            named, first = {}, 0
            for name, old in net.named_parameters():
                named[name] = p[first : first + old.numel()].view_as(old)
                first += old.numel()
            x = run.values["x"][rows]
            s = (x - named["stages.0.mean"]) / named["stages.0.std"]
            margin = s @ named["stages.1.pc"] @ named["stages.2.coefficients"] + named["stages.2.intercept"]
            y, w = run.y[rows], run.weight[rows]
            loss = (w * (margin.exp() - y * margin)).sum() / w.sum()
            gradients = [
                g + recipe.regAnchor * q.detach() for g, q in zip(torch.autograd.grad(loss, parts), parts, strict=True)
            ]
            norm = torch.cat(gradients).norm()
            for q, g in zip(parts, gradients, strict=True):
                q.grad = g * min(1.0, clip / float(norm)) if clip else g
            reference.step()
        with torch.no_grad():
            u = torch.cat(parts)
            expected = torch.where(positive, start * torch.exp(unit * u), start + unit * u)
        torch.testing.assert_close(found[k], expected, rtol=1e-8, atol=1e-10)


def test_the_average_over_steps_is_what_is_measured() -> None:
    run = Run("ranges, squared", [Recipe(1e-2, 1e-3, ema=0.9), Recipe(1e-2, 1e-3)])
    average = torch.zeros_like(run.team.u[0])
    for k in range(5):
        run.steps(1, first=k)
        average = 0.9 * average + 0.1 * run.team.u[0]
    torch.testing.assert_close(run.team.average[0], average, rtol=1e-12, atol=1e-15)
    assert torch.equal(run.team.average[1], run.team.u[1])
    torch.testing.assert_close(run.team.u[0], run.team.u[1])  # it steers nothing


def test_lbfgs_finds_the_anchored_least_squares_solution() -> None:
    anchor = 1e-2
    run = Run("ranges, squared", [Recipe(1.0, anchor, "lbfgs"), Recipe(1e-2, 1e-3)], freeze=())
    for _ in range(150):
        run.steps(3)
        run.team.end_epoch(run.objective.scale)
    w = run.weight

    def value(flat: Tensor) -> Tensor:
        u = (flat - run.team.updates.start) / run.units.unit
        low, high, c, b = flat[:5], flat[5:10], flat[10:15], flat[15]
        x = (run.values["x"] - low) * (3.0 / (high - low)) - 1.0
        loss = run.objective.scale * (w * (x @ c + b - run.y) ** 2).sum() / w.sum()
        return loss + anchor / 2 * (u**2).sum()

    flat = run.team.updates.matrix.flat[0].clone().requires_grad_()
    [gradient] = torch.autograd.grad(value(flat), flat)
    assert float((gradient * run.units.unit).norm()) < 1e-4  # torch stops where a step would change 1e-9
    assert float(value(flat.detach())) < float(value(run.team.updates.start)) - 0.01


@pytest.mark.parametrize("name", ["bounds", "GBT, logistic"])
def test_a_break_changes_nothing(name: str) -> None:
    recipes = [*RECIPES, Recipe(1.0, 1e-2, "lbfgs"), Recipe(1e-2, 1e-3, ema=0.9)]
    recipes += [Recipe(0.3, 1e-2, "newton")] if "GBT" in name else []
    whole, first, second = (Run(name, recipes) for _ in range(3))
    expected = whole.steps()
    whole.team.end_epoch(1.0)
    first.steps(5)
    second.team.load(copy.deepcopy(first.team.state()))
    assert torch.equal(second.steps(STEPS - 5, first=5), expected)
    second.team.end_epoch(1.0)
    assert torch.equal(second.team.updates.matrix.flat, whole.team.updates.matrix.flat)
    assert torch.equal(second.team.average, whole.team.average)


def test_who_stays_goes_on_as_if_the_others_were_there() -> None:
    recipes = [*RECIPES, Recipe(1.0, 1e-2, "lbfgs"), Recipe(1e-2, 1e-3, ema=0.9)]
    whole, part = Run("scaler, PCA, Poisson", recipes), Run("scaler, PCA, Poisson", recipes)
    part.steps(5)
    part.team = part.team.subset([1, 3, 4])
    part.steps(4, first=5)
    part.team.end_epoch(1.0)
    whole.steps(9)
    whole.team.end_epoch(1.0)
    torch.testing.assert_close(
        part.team.updates.matrix.flat, whole.team.updates.matrix.flat[[1, 3, 4]], rtol=1e-11, atol=1e-13
    )
    torch.testing.assert_close(part.team.average, whole.team.average[[1, 3, 4]], rtol=1e-11, atol=1e-13)


def test_two_first_order_optimizers_are_refused() -> None:
    with pytest.raises(InputError, match="share one first-order optimizer, not adam, sgd"):
        Run("scaler, PCA, Poisson", [Recipe(1e-2, 0.0), Recipe(1e-2, 0.0, "sgd"), Recipe(1.0, 0.0, "lbfgs")])


def test_one_that_diverges_leaves_the_others_alone() -> None:
    wild, tame = Run("scaler, PCA, Poisson", [Recipe(1e4, 0.0), *RECIPES]), Run("scaler, PCA, Poisson", RECIPES)
    torch.testing.assert_close(wild.steps()[1:], tame.steps(), rtol=1e-9, atol=1e-10)
    assert not wild.team.updates.matrix.losses[0].isfinite() or wild.team.updates.matrix.losses[0] > 1e6


def test_class_weights_of_leaves_stay_what_spark_can_use() -> None:
    run = Run("forest of classes", [Recipe(0.3, 0.0), Recipe(1e-3, 0.0)], folds=False)
    assert run.net.head.has_bounds()
    run.steps(1)
    small = run.team.updates.matrix.flat[1].view(-1, 3)
    assert not torch.equal(small.flatten(), run.team.updates.start)
    run.steps(20, first=1)
    leaves = run.team.updates.matrix.flat[0].view(-1, 3)
    assert not torch.equal(leaves.flatten(), run.team.updates.start)
    assert float(leaves.min()) == 0.0
    assert bool((leaves.sum(1) > 0)[run.team.updates.start.view(-1, 3).sum(1) > 0].all())
    torch.testing.assert_close(
        run.team.u * run.units.unit + run.team.updates.start, run.team.updates.matrix.flat
    )  # no debt is run up below 0


# ---- recipes


def test_the_three_recipes() -> None:
    def of(**given: Any) -> list[Recipe]:
        return recipes_for(Options.of(given), 5000)

    assert of(recipe="fast") == [Recipe(1e-2, 1e-1)]
    assert of()[1:] == [Recipe(3e-3, 1e-3), Recipe(1e-2, 1e-3), Recipe(1e-2, 1e-1)]
    assert of()[0] == Recipe(1e-3, 1e-3)  # the gentlest comes first
    thorough = of(recipe="thorough")
    assert thorough[:4] == of()
    assert any(r.noise for r in thorough)
    assert any(r.mask for r in thorough)
    assert any(r.mixup for r in thorough)
    assert any(r.ema for r in thorough)
    assert any(r.optimizer == "lbfgs" for r in thorough)
    assert not any(r.mixup for r in recipes_for(Options.of({"recipe": "thorough"}), 5000, mixes=False))
    assert of(learningRate=0.5, regAnchor=0.25, ema=0.9)[0] == Recipe(0.5, 0.25, ema=0.9)
    assert len(of(regAnchor=0)) == len(set(of(regAnchor=0)))  # no candidate twice
    for recipe in ("fast", "default", "thorough"):
        assert recipes_for(Options.of({"recipe": recipe}), 200) == [Recipe(1e-3, 1e-3)]


def test_fewer_rows_choose_among_fewer_candidates() -> None:
    """No row more or less changes much: one candidate at 200, all at 1,000, between by the logarithm."""

    def number(rows: int, recipe: str) -> int:
        return len(recipes_for(Options.of({"recipe": recipe}), rows))

    assert [number(rows, "default") for rows in (1, 200, 341, 342, 585, 999, 1000, 10**6)] == [1, 1, 1, 2, 3, 3, 4, 4]
    thorough = [number(rows, "thorough") for rows in range(150, 1100, 5)]
    assert thorough == sorted(thorough) and {b - a for a, b in itertools.pairwise(thorough)} == {0, 1}
    assert recipes_for(Options.of({"recipe": "fast"}), 999) == [Recipe(1e-3, 1e-3)]


def test_the_recipes_of_trees() -> None:
    def of(rows: int = 5000, **given: Any) -> list[Recipe]:
        return recipes_for(Options.of(given), rows, trees=50, newton=True)

    assert of() == [
        Recipe(1e-3, 1e-2),
        Recipe(3e-3, 1e-3),
        Recipe(1e-3, 1e-3, noise=0.05),
        Recipe(3e-3, 1e-3, noise=0.2),
    ]
    thorough = of(recipe="thorough")
    assert thorough[:4] == of()
    assert Recipe(1 / 50, 1e-2, "newton") in thorough  # a step of all trees at once is as long as one of each alone
    assert not any(r.optimizer == "newton" for r in recipes_for(Options.of({"recipe": "thorough"}), 5000, trees=50))
    assert of(recipe="fast") == [Recipe(3e-3, 1e-3)]
    for recipe in ("fast", "default", "thorough"):
        assert of(200, recipe=recipe) == [Recipe(1e-3, 1e-2)]


# ---- augmentation


def draw(shards: list[tuple[int, int]], stats: dict[Any, FeatureStats], step: int = 1) -> Draw:
    return Draw(shards, (0, 1, step), stats)


@pytest.mark.parametrize("name", ["scaler, PCA, Poisson", "sparse rows, softmax", "two branches and a scalar, sigmoid"])
def test_any_number_of_processes_draws_the_same(name: str) -> None:
    recipes = [Recipe(1e-2, 0, noise=0.3), Recipe(1e-2, 0), Recipe(1e-2, 0, mask=0.2, noise=0.1)]
    recipes += [] if "sparse" in name else [Recipe(1e-2, 0, mixup=0.4)]
    alone, one, two = (Run(name, recipes) for _ in range(3))
    stats = {}
    for c, x in alone.values.items():
        width = x.width if isinstance(x, SparseRows) else math.prod(x.shape[1:])
        stats[c, -1] = FeatureStats(torch.zeros(width, dtype=F64), torch.ones(width, dtype=F64), torch.ones(width))
    alone.add(draw=draw([(0, 6), (1, 6), (2, 6), (3, 6)], stats))
    one.add(slice(0, 12), draw([(0, 6), (1, 6)], stats))
    two.add(slice(12, 24), draw([(2, 6), (3, 6)], stats))
    torch.testing.assert_close(
        one.team.updates.matrix.sums + two.team.updates.matrix.sums,
        alone.team.updates.matrix.sums,
        rtol=1e-11,
        atol=1e-12,
    )
    again = Run(name, recipes)
    again.add(draw=draw([(0, 6), (1, 6), (2, 6), (3, 6)], stats, step=2))
    augmented = [k for k, r in enumerate(recipes) if r.augments]
    assert (again.team.updates.matrix.losses != alone.team.updates.matrix.losses)[
        augmented
    ].all()  # another step draws anew
    plain = Run(name, recipes[1:2])
    plain.add()
    torch.testing.assert_close(
        alone.team.updates.matrix.losses[1], plain.team.updates.matrix.losses[0], rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("name", ["GBT, squared", "GBT with its weights", "forest, squared", "GBT, logistic"])
@pytest.mark.parametrize("loss", ["auto", "quantile"])
def test_leaves_are_looked_up_for_all_candidates_at_once(name: str, loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bits that one look-up for each view of the rows gives."""
    loss = "focal" if "logistic" in name and loss != "auto" else loss
    recipes = [Recipe(1e-2, 1e-3), Recipe(1e-2, 0, noise=0.3), Recipe(3e-2, 0), Recipe(1e-2, 0, mask=0.2, mixup=0.4)]
    recipes += [Recipe(0.3, 1e-2, "newton")] if loss == "auto" else []
    together, apart = Run(name, recipes, loss=loss), Run(name, recipes, loss=loss)
    stats = FeatureStats(torch.zeros(WIDTH, dtype=F64), torch.ones(WIDTH, dtype=F64), torch.ones(WIDTH))
    at = draw([(0, 11), (1, 6)], {("x", -1): stats})
    together.add(slice(3, 20), at)
    assert together.team._reads_leaves()
    monkeypatch.setattr(Candidates, "_reads_leaves", lambda self: False)
    apart.add(slice(3, 20), at)
    assert (apart.team.updates.matrix.losses != 0).all()
    assert torch.equal(together.team.updates.matrix.sums, apart.team.updates.matrix.sums)


# ---- monotone slopes


def monotone_penalty(run: Run, wishes: dict[int, float]) -> MonotonePenalty:
    signs = torch.zeros(5, dtype=F64)
    for j, wish in wishes.items():
        signs[j] = math.copysign(1.0, wish)
    strengths = torch.tensor([abs(wishes.get(j, 0.0)) for j in range(5)], dtype=F64)
    return MonotonePenalty({("x", -1): signs}, {("x", -1): strengths})


def test_the_penalty_of_a_wrong_slope_is_added_to_the_loss() -> None:
    plain, run = Run("scaler, PCA, Poisson", RECIPES), Run("scaler, PCA, Poisson", RECIPES)
    penalty = monotone_penalty(run, {0: 3.0, 1: 3.0, 3: 0.5})
    run.team.monotone = penalty
    assert run.team.updates.affine is not None
    for r in (plain, run):
        r.steps(1)
    # what the step's gradient had in it, by autograd over the original's parameters
    p = {name: q.detach().clone().requires_grad_() for name, q in run.net.named_parameters()}
    slope = (p["stages.1.pc"] @ p["stages.2.coefficients"]) / p["stages.0.std"]
    sign, strength = penalty.signs["x", -1], penalty.weights["x", -1]
    wrong = (-sign * slope).clamp_min(0)
    assert 0 < int((wrong > 0).sum()) < 3
    (strength * wrong**2).sum().backward()
    expected = torch.cat([(torch.zeros_like(q) if q.grad is None else q.grad).flatten() for q in p.values()])
    found = (
        (run.team.updates.matrix.gradient - plain.team.updates.matrix.gradient)
        / run.team.updates.matrix.weight
        * run.objective.scale
    )
    torch.testing.assert_close(found, expected.expand(3, -1), rtol=1e-9, atol=1e-12)


def test_slopes_turn_to_the_wished_sign() -> None:
    recipes = [Recipe(3e-2, 0.0)]
    free, held = Run("scaler, PCA, Poisson", recipes), Run("scaler, PCA, Poisson", recipes)

    def slope(run: Run) -> Tensor:
        assert run.team.updates.affine is not None
        return run.team.updates.affine.slopes(run.team.updates.matrix.parameters, 1).of["x", -1][0, :, 0].clone()

    free.steps(200)
    against = {j: -1000.0 * float(v.sign()) for j, v in enumerate(slope(free))}
    held.team.monotone = monotone_penalty(held, against)
    held.steps(200)
    wrong = slope(held) * torch.tensor([against[j] for j in range(5)], dtype=F64).sign() < -0.01
    assert not bool(wrong.any())


# ---- what can't be affine


@pytest.mark.parametrize(("offset", "folds"), [(0.0, True), (1e12, False)])
def test_columns_far_from_zero_are_not_folded(offset: float, folds: bool) -> None:
    """Multiplied out, (x - 1e12) * slope has four digits left; the network itself has all."""
    x = normal(N, 5) + offset
    net = network((StandardScaler(x.std(0), x.mean(0), True, True), ["x"], "s"), (glr(5), ["s"], "p"))
    affine = affine_network(net, {("x", -1): 5, ("s", 0): 5, ("p", 1): 1})
    assert affine is not None
    data = SimpleNamespace(batches=lambda split: [(x,)], values=lambda batch: {("x", -1): batch}, team=ALONE)
    assert _agrees(affine, net, data) is folds  # type: ignore[arg-type]


@pytest.mark.parametrize("selects", [True, False])
def test_what_is_not_selected_may_be_nan(selects: bool) -> None:
    """A slope of 0 doesn't shut NaN out, so such rows are computed stage by stage."""
    x = normal(N, 5)
    x[3, 4] = math.nan
    picked = [0, 2] if selects else [0, 4]
    net = network(
        (scaler(5), ["x"], "s"),
        (Selection("selector", picked), ["s"], "u"),
        (glr(2), ["u"], "p"),
    )
    affine = affine_network(net, {("x", -1): 5, ("s", 0): 5, ("u", 1): 2, ("p", 2): 1})
    assert affine is not None
    data = SimpleNamespace(batches=lambda split: [(x,)], values=lambda batch: {("x", -1): batch}, team=ALONE)
    assert _agrees(affine, net, data) is not selects  # type: ignore[arg-type]
