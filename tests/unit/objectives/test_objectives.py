"""Losses of classes, ranks and batches, sums of losses, class weights and penalties, against references. No Spark session."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.formulas import between_groups, calibration_error, focal, hinge, mean_cost, pairwise_logistic
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.objectives.losses import CLASSIFICATION, resolve
from sparkdiff.objectives.objective import Objective, with_penalties
from sparkdiff.stages.linear import LogisticRegression
from sparkdiff.stages.predictor import Predictor
from tests.support.small_heads import COLUMNS, COSTS, glr, linear, logistic, stats, tensor

Array = NDArray[np.float64]
RANDOM = np.random.default_rng(3)
EXTREME = [-1e3, -30.0, 0.0, 1e-9, 30.0, 1e3]


def objective(loss: Any, head: Predictor, y: Any = (0.0, 1.0, 1.0, 1.0), **params: Any) -> Objective:
    return resolve(loss, params, head, COLUMNS if head.classes else ("prediction",), stats(y))


def rows(loss: Any, head: Predictor, margin: Tensor, y: Tensor, **params: Any) -> Array:
    found = objective(loss, head, y.numpy(), **params)
    assert found.rows is not None
    return found.rows(margin, y, torch.ones_like(y)).numpy()


def batch(found: Objective, margin: Tensor, y: Tensor, w: Tensor | None = None, **groups: Tensor) -> Tensor:
    assert found.batch is not None
    return found.batch(margin, y, torch.ones_like(y) if w is None else w, groups)


def softmax(margin: Array) -> Array:
    e = np.exp(margin - margin.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


BINARY = (tensor(RANDOM.normal(size=60) * 2), tensor(RANDOM.integers(0, 2, 60)))
FOUR = (tensor(RANDOM.normal(size=(60, 4)) * 2), tensor(RANDOM.integers(0, 4, 60)))


# Formulas against references ------------------------------------------------------------------------------------------


def test_hinge_is_scikit_learns() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    m, y = BINARY
    assert rows("hinge", logistic(), m, y).mean() == pytest.approx(metrics.hinge_loss(y, m, labels=[0, 1]), rel=1e-12)
    m, y = FOUR
    reference = metrics.hinge_loss(y, m, labels=range(4))
    assert rows("hinge", logistic(4, 4), m, y).mean() == pytest.approx(reference, rel=1e-12)
    np.testing.assert_array_equal(
        rows("hinge", logistic(), tensor([1e3, 1e3, 0.0]), tensor([1.0, 0.0, 1.0])), [0, 1001, 1]
    )
    ties = tensor([[2.0, 2.0, 2.0]])  # the margin is 0 where another class is as high
    np.testing.assert_array_equal(rows("hinge", logistic(3, 3), ties, tensor([1.0])), [1])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_definition(gamma: float) -> None:
    m, y = BINARY
    p = 1 / (1 + np.exp(-m.numpy()))
    p = np.where(y.numpy() == 1, p, 1 - p)
    np.testing.assert_allclose(
        rows("focal", logistic(), m, y, gamma=gamma), -((1 - p) ** gamma) * np.log(p), rtol=1e-10
    )
    m, y = FOUR
    p = softmax(m.numpy())[np.arange(60), y.long().numpy()]
    found = rows("focal", logistic(4, 4), m, y, gamma=gamma)
    np.testing.assert_allclose(found, -((1 - p) ** gamma) * np.log(p), rtol=1e-9, atol=1e-15)
    if gamma == 2.0:
        np.testing.assert_array_equal(rows("focal", logistic(4, 4), m, y), found)  # Lin et al.'s default
    if gamma == 0.0:
        np.testing.assert_allclose(found, rows("logLoss", logistic(4, 4), m, y), rtol=1e-12)


COSTS3 = [[0.0, 1.0, 9.0], [2.0, 0.0, 1.0], [7.0, 3.0, 0.25]]


def test_cost_is_the_mean_under_the_probabilities() -> None:
    m, y = BINARY
    p = 1 / (1 + np.exp(-m.numpy()))
    expected = np.where(y.numpy() == 0, p * 1.0, (1 - p) * 5.0 + p * 0.5)
    np.testing.assert_allclose(rows("cost", logistic(), m, y, costs=COSTS), expected, rtol=1e-12)
    m, y = tensor(RANDOM.normal(size=(40, 3))), tensor(RANDOM.integers(0, 3, 40))
    expected = (np.array(COSTS3)[y.long().numpy()] * softmax(m.numpy())).sum(1)
    np.testing.assert_allclose(rows("cost", logistic(3, 3), m, y, costs=COSTS3), expected, rtol=1e-12)
    assert objective("cost", logistic(), costs=COSTS).scale == 1 / 4.5


@pytest.mark.parametrize("head", [logistic(threshold=0.2), logistic(2, 2, thresholds=[0.8, 0.3]), logistic()])
def test_cost_tends_to_that_of_decisions_at_any_threshold(head: LogisticRegression) -> None:
    """However close to the boundary a row is, sharpened it costs what Spark's decision does."""
    shape = (400, 2) if head.isMultinomial else (400,)
    m, y = tensor(RANDOM.normal(size=shape)), tensor(RANDOM.integers(0, 2, 400))
    decided = head.columns(m)[-1].long().numpy()
    assert 20 < decided.sum() < 380
    moved = head.decision_margin(m)
    sharp = mean_cost(1e6 * moved, y, tensor(COSTS)).numpy()
    np.testing.assert_allclose(sharp, np.array(COSTS)[y.long().numpy(), decided], atol=1e-9)
    np.testing.assert_allclose(rows("cost", head, m, y, costs=COSTS), mean_cost(moved, y, tensor(COSTS)))


def pairwise(score: Array, y: Array, w: Array) -> float:
    pairs = [(i, j) for i in np.flatnonzero(y == 1) for j in np.flatnonzero(y == 0)]
    return float(
        sum(w[i] * w[j] * np.logaddexp(0, score[j] - score[i]) for i, j in pairs) / sum(w[i] * w[j] for i, j in pairs)
    )


def mmce(margin: Array, y: Array, w: Array) -> float:
    p = softmax(margin if margin.ndim == 2 else np.stack([np.zeros(len(margin)), margin], 1))
    r, c = p.max(1), p.argmax(1) == y
    total = sum(
        w[i] * w[j] * (c[i] - r[i]) * (c[j] - r[j]) * np.exp(-abs(r[i] - r[j]) / 0.2)
        for i in range(len(y))
        for j in range(len(y))
    )
    return float(np.sqrt(total / w.sum() ** 2))


W = RANDOM.integers(0, 4, 60).astype(np.float64)  # zeros too


@pytest.mark.parametrize(
    ("name", "head", "data", "reference"),
    [
        ("auc", logistic(), BINARY, pairwise),
        ("auc", logistic(2, 2), (torch.stack([-BINARY[0], 2 * BINARY[0]], 1), BINARY[1]), None),
        ("mmce", logistic(), BINARY, mmce),
        ("mmce", logistic(4, 4), FOUR, mmce),
    ],
)
def test_batch_losses_are_sums_over_pairs(
    name: str, head: Predictor, data: tuple[Tensor, Tensor], reference: Callable[..., float] | None
) -> None:
    (m, y), found = data, objective(name, head)
    if reference is None:  # a softmax of two ranks by its log-odds
        assert float(batch(found, m, y)) == pytest.approx(pairwise((m[:, 1] - m[:, 0]).numpy(), y.numpy(), np.ones(60)))
        return
    assert float(batch(found, m, y)) == pytest.approx(reference(m.numpy(), y.numpy(), np.ones(60)), rel=1e-12)
    assert float(batch(found, m, y, tensor(W))) == pytest.approx(reference(m.numpy(), y.numpy(), W), rel=1e-12)
    repeated = torch.arange(60).repeat_interleave(torch.tensor(W).long())  # a weight is as many rows
    assert float(batch(found, m[repeated], y[repeated])) == pytest.approx(float(batch(found, m, y, tensor(W))))
    assert found.rows is None


def test_a_batch_without_pairs_costs_nothing_and_pushes_nowhere() -> None:
    for y in ([1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 1.0]):
        m = tensor([0.3, -2.0, 1.0]).requires_grad_()
        loss = pairwise_logistic(m, tensor(y), tensor([0.0, 1.0, 1.0]))
        loss.backward()
        assert loss.item() == 0
        assert m.grad is not None
        assert m.grad.tolist() == [0, 0, 0]


def test_mmce_is_small_only_where_confidences_are_right() -> None:
    random = np.random.default_rng(0)
    m = random.normal(size=3000) * 1.5
    y = tensor(random.random(3000) < 1 / (1 + np.exp(-m)))
    right, sure = (float(calibration_error(tensor(f * m), y, torch.ones_like(y))) for f in (1.0, 4.0))
    assert right < 0.03 < 0.1 < sure


@pytest.mark.parametrize("columns", [(), (3,)])
def test_the_variance_between_groups_is_the_sum_of_squared_gaps(columns: tuple[int, ...]) -> None:
    p, w, g = RANDOM.random((60, *columns)), W, RANDOM.integers(-1, 3, 60)  # codes needn't be 0, 1, ...
    means = {k: np.average(p[g == k], axis=0, weights=w[g == k]) for k in np.unique(g)}
    share = {k: w[g == k].sum() / w.sum() for k in means}
    expected = sum(share[a] * share[b] * ((means[a] - means[b]) ** 2).sum() for a, b in combinations(means, 2))
    found = between_groups(tensor(p), torch.tensor(g), tensor(w))
    assert float(found) == pytest.approx(expected, rel=1e-12)
    assert float(between_groups(tensor(p), torch.zeros(60, dtype=torch.int64), tensor(w))) == pytest.approx(
        0, abs=1e-30
    )


# Gradients ------------------------------------------------------------------------------------------------------------

M, M3 = tensor(RANDOM.normal(size=12)), tensor(RANDOM.normal(size=(12, 3)))
Y, Y3, G = tensor(RANDOM.integers(0, 2, 12)), tensor(RANDOM.integers(0, 3, 12)), torch.tensor(RANDOM.integers(0, 3, 12))
V = tensor(RANDOM.random(12) + 0.5)


@pytest.mark.parametrize(
    ("function", "margin"),
    [
        (lambda m: hinge(m, Y), M),
        (lambda m: hinge(m, Y3), M3),
        (lambda m: focal(m, Y, 2.0), M),
        (lambda m: focal(m, Y3, 0.5), M3),
        (lambda m: mean_cost(m, Y, tensor(COSTS)), M),
        (lambda m: mean_cost(m, Y3, tensor(COSTS3)), M3),
        (lambda m: pairwise_logistic(m, Y, V), M),
        (lambda m: calibration_error(m, Y, V), M),
        (lambda m: calibration_error(m, Y3, V), M3),
        (lambda m: between_groups(m, G, V), M3),
        (lambda m: between_groups(m, G, V), M),
    ],
)
def test_gradients(function: Callable[[Tensor], Tensor], margin: Tensor) -> None:
    assert torch.autograd.gradcheck(function, (margin.clone().requires_grad_(),))


@pytest.mark.parametrize("name", ["hinge", "focal", "cost", "auc", "mmce"])
@pytest.mark.parametrize("head", [logistic(), logistic(2, 2)])
def test_extreme_margins_have_finite_losses_and_gradients(name: str, head: LogisticRegression) -> None:
    params = {"costs": COSTS} if name == "cost" else {"gamma": 0.5} if name == "focal" else {}
    found = objective(name, head, **params)
    flat = tensor(EXTREME * 2)
    m = (torch.stack([torch.zeros_like(flat), flat], 1) if head.isMultinomial else flat).requires_grad_()
    y = tensor([0.0] * 6 + [1.0] * 6)
    loss = found.rows(m, y, torch.ones_like(y)).sum() if found.rows else batch(found, m, y)
    loss.backward()
    assert m.grad is not None
    assert bool(loss.isfinite())
    assert bool(m.grad.isfinite().all())
    assert float(loss.detach()) > 0


@pytest.mark.parametrize("name", CLASSIFICATION)
@pytest.mark.parametrize("head", [logistic(), logistic(2, 2)])
def test_a_row_of_weight_0_may_hold_anything(name: str, head: LogisticRegression) -> None:
    found = objective(name, head, **({"costs": COSTS} if name == "cost" else {}))
    m, y, w = M[:4], tensor([0.0, 1.0, 1.0, 0.0]), tensor([1.0, 2.0, 1.0, 1.0])

    def shape(m: Tensor) -> Tensor:
        return torch.stack([-m, m], 1) if head.isMultinomial else m

    for label in (np.nan, 7.0, -1.0):
        more = torch.cat([y, tensor([label])]), torch.cat([w, tensor([0.0])])
        one = torch.cat([m, tensor([0.3])])
        if found.batch:
            a, b = batch(found, shape(m), y, w), batch(found, shape(one), *more)
        else:
            assert found.rows is not None
            a, b = found.rows(shape(m), y, w), found.rows(shape(one), *more)[:4]
        np.testing.assert_array_equal(a, b)


# Sums, scales, parameters ---------------------------------------------------------------------------------------------


def test_a_sum_counts_each_loss_in_its_own_scale() -> None:
    y, m = tensor([1.0, 5.0, 9.0, 2.0]), tensor([2.0, 2.0, 8.0, 2.5])
    found = objective({"squared": 2.0, "absolute": 0.5}, linear(), y.numpy())
    assert found.rows is not None
    miss, std = (y - m).numpy(), y.numpy().std()
    np.testing.assert_allclose(found.rows(m, y, y), 2 * miss**2 / std**2 + 0.5 * np.abs(miss) / std, rtol=1e-12)
    assert (found.name, found.scale, found.batch) == ("2 squared + 0.5 absolute", 1.0, None)
    larger = objective({"squared": 2.0, "absolute": 0.5}, linear(), 1000 * y.numpy())
    assert larger.rows is not None
    np.testing.assert_allclose(larger.rows(1000 * m, 1000 * y, y), found.rows(m, y, y), rtol=1e-12)


def test_a_sum_of_rows_and_batches() -> None:
    found = objective({"auto": 1.0, "mmce": 2.0, "auc": 0.5}, logistic())
    assert found.rows is not None
    assert found.name == "1 logLoss + 2 mmce + 0.5 auc"
    np.testing.assert_allclose(found.rows(M, Y, V), rows("logLoss", logistic(), M, Y))
    expected = 2 * calibration_error(M, Y, V) + 0.5 * pairwise_logistic(M, Y, V)
    assert float(batch(found, M, Y, V)) == pytest.approx(float(expected))
    assert not found.calibrated
    assert objective({"logLoss": 1.0, "mmce": 2.0}, logistic()).calibrated


def test_a_sum_passes_each_parameter_to_the_loss_that_knows_it() -> None:
    y, m = tensor([1.0, 5.0, 9.0]), tensor([2.0, 2.0, 8.0])
    found = objective({"quantile": 1.0, "huber": 1.0}, linear(), y.numpy(), tau=0.9, delta=2.0)
    assert found.rows is not None
    std = y.numpy().std()
    one = rows("quantile", linear(), m, y, tau=0.9) / std + rows("huber", linear(), m, y, delta=2.0) / std**2
    np.testing.assert_allclose(found.rows(m, y, y), one)
    mixed = objective({"poisson": 1.0, "gamma": 1.0, "squared": 1.0}, linear(), (1.0, 3.0))
    assert (mixed.floor, mixed.power) == (pytest.approx(2e-3), 2.0)
    with pytest.raises(InputError, match=r"holds 0.0, but 1 poisson \+ .* needs labels > 0"):
        check_label(mixed, linear(), stats([0.0, 1.0]), "y")


def test_class_weights_multiply_the_rows() -> None:
    m, y = FOUR
    plain = rows("logLoss", logistic(4, 4), m, y)
    given = [1.0, 0.0, 2.5, 3.0]
    found = rows("logLoss", logistic(4, 4), m, y, classWeights=given)
    np.testing.assert_allclose(found, plain * np.array(given)[y.long().numpy()])
    utils = pytest.importorskip("sklearn.utils.class_weight")
    balanced = utils.compute_class_weight("balanced", classes=np.arange(4), y=y.numpy())
    found = rows("focal", logistic(4, 4), m, y, classWeights="balanced")
    np.testing.assert_allclose(found, rows("focal", logistic(4, 4), m, y) * balanced[y.long().numpy()])
    weighted = objective({"logLoss": 1.0, "hinge": 1.0, "auc": 1.0}, logistic(), classWeights=[1.0, 3.0])
    assert weighted.rows is not None
    both = rows("logLoss", logistic(), M, Y) + rows("hinge", logistic(), M, Y)
    np.testing.assert_allclose(weighted.rows(M, Y, V), both * (1 + 2 * Y.numpy()))
    assert float(batch(weighted, M, Y, V)) == pytest.approx(float(pairwise_logistic(M, Y, V)))
    assert objective("logLoss", logistic(), classWeights=[2.0, 2.0]).calibrated
    assert not objective("logLoss", logistic(), classWeights=[1.0, 2.0]).calibrated


def test_which_losses_keep_probabilities_calibrated() -> None:
    params: dict[str, dict[str, Any]] = {"cost": {"costs": COSTS}}
    kept = {n for n in CLASSIFICATION if objective(n, logistic(), **params.get(n, {})).calibrated}
    assert kept == {"logLoss", "mmce"}


BIG = logistic(3, 3)
SQUARE = "needs costs, a list of 3 rows .* of 3 numbers >= 0"


@pytest.mark.parametrize(
    ("loss", "params", "head", "sentence"),
    [
        (
            "hinge",
            {},
            linear(),
            "loss='hinge' needs classes, which LinearRegression doesn't predict; use one of squared",
        ),
        ("cost", {"costs": COSTS}, glr("poisson", "log"), "needs classes, which GeneralizedLinearRegression"),
        ("focal", {}, glr("binomial", "logit"), "would change the meaning of its probabilities; use 'logLoss'"),
        ("mmce", {}, glr("binomial", "probit"), "use 'logLoss'"),
        ({"squared": 1.0, "auc": 1.0}, {}, linear(), "loss='auc' needs classes"),
        ({"logLoss": 1.0, "squared": 1.0}, {}, logistic(), "loss='squared' on LogisticRegression would change the"),
        ({"auto": 1.0, "logLoss": 1.0}, {}, logistic(), "names 'logLoss' twice: 'auto' is the same loss"),
        ("auc", {}, BIG, "loss='auc' ranks two classes, but LogisticRegression predicts 3"),
        ("focal", {"gamma": -1.0}, BIG, "loss='focal' needs lossParams={'gamma': >= 0}. Got -1.0"),
        ("focal", {"gamma": [1.0]}, BIG, r"Got \[1.0\]"),
        ("cost", {}, BIG, f"{SQUARE}.*Got None"),
        ("cost", {"costs": COSTS}, BIG, f"{SQUARE}.*Got "),
        ("cost", {"costs": [[0.0, 1.0, 2.0], [1.0, 0.0]]}, BIG, SQUARE),
        ("cost", {"costs": 3.0}, BIG, f"{SQUARE}.*Got 3.0"),
        ("cost", {"costs": [[0.0, -2.0], [1.0, 0.0]]}, logistic(), "Got -2.0 among them; add a constant"),
        ("cost", {"costs": [[1.0, 1.0], [5.0, 5.0]]}, logistic(), "learns nothing from costs"),
        (
            "cost",
            {"costs": COSTS},
            logistic(threshold=0.0),
            "threshold of 0 or 1, because all rows get the same decision",
        ),
        ("cost", {"costs": COSTS}, logistic(2, 2, thresholds=[0.0, 1.0]), "because all rows get the same decision"),
        ("logLoss", {"classWeights": [1.0]}, logistic(), r"list of 2 numbers >= 0, one per class index. Got \[1.0\]"),
        ("logLoss", {"classWeights": 2.0}, logistic(), "Got 2.0 instead"),
        ("logLoss", {"classWeights": [1.0, -1.0]}, logistic(), r"Got \[1.0, -1.0\] instead"),
        ("logLoss", {"classWeights": [0.0, 0.0]}, logistic(), "are 0, so no row would count"),
        ("logLoss", {"classWeights": "balanced"}, BIG, "has no weight for class 2, because no training row has"),
        (
            "logLoss",
            {"gamma": 1.0},
            logistic(),
            r"\['gamma'\] are unknown to the loss 'logLoss'; it takes \['classWeights'\]",
        ),
        ("squared", {"classWeights": [1.0, 1.0]}, linear(), r"\['classWeights'\] are unknown"),
        ("auto", {"classWeights": "balanced"}, glr("binomial", "logit"), r"\['classWeights'\] are unknown"),
        (
            {"logLoss": 1.0, "mmce": 1.0},
            {"tau": 0.5},
            logistic(),
            r"\['tau'\] are unknown to the loss 'logLoss' \+ 'mmce'",
        ),
    ],
)
def test_wrong_losses_are_refused(loss: Any, params: dict[str, Any], head: Predictor, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        objective(loss, head, **params)


# Callables of a batch -------------------------------------------------------------------------------------------------


def spread(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (weight * (outputs["prediction"] - label) ** 2).sum() / weight.sum()


def worst(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - label).abs().max()  # of no rows there is none


def fickle(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    loss = (outputs["prediction"] - label) ** 2
    return loss if len(label) else loss.sum()


def strange(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    raise KeyError("probability")


def test_a_callable_of_the_whole_batch() -> None:
    m, y = tensor([1.0, 4.0, 2.0]), tensor([1.0, 1.0, 4.0])
    found = objective(spread, linear())
    assert found.rows is None
    assert float(batch(found, m, y, tensor([1.0, 2.0, 1.0]))) == pytest.approx((18 + 4) / 4)
    assert float(batch(objective(worst, linear()), m, y)) == 3.0
    with pytest.raises(InputError, match=r"fickle returned shape \(3,\), but \(\) before"):
        batch(objective(fickle, linear()), m, y)
    with pytest.raises(KeyError):  # it shows where it would without the question
        rows(strange, linear(), m, y)


# Penalties ------------------------------------------------------------------------------------------------------------


def test_a_parity_gap_is_added_in_natural_units() -> None:
    gap = {"parityGap": {"sex": 3.0}}
    found = with_penalties(objective("logLoss", logistic()), gap, logistic(), stats(), ["sex", "age"])
    assert float(batch(found, M, Y, V, sex=G)) == pytest.approx(3 * float(between_groups(torch.sigmoid(M), G, V)))
    assert found.rows is not None
    found = with_penalties(objective("logLoss", logistic(3, 3)), gap, logistic(3, 3), stats(), ["sex"])
    assert float(batch(found, M3, Y3, V, sex=G)) == pytest.approx(3 * float(between_groups(M3.softmax(1), G, V)))
    found = with_penalties(objective("auto", glr("binomial", "logit")), gap, glr("binomial", "logit"), stats(), ["sex"])
    assert float(batch(found, M, Y, V, sex=G)) == pytest.approx(3 * float(between_groups(torch.sigmoid(M), G, V)))
    for name in ("squared", "absolute"):
        for unit in (1.0, 1000.0):
            y = stats(unit * np.array([1.0, 3.0, 4.0]))
            plain = resolve(name, {}, linear(), ("prediction",), y)
            found = with_penalties(plain, {"parityGap": {"sex": 3.0, "age": 1.0}}, linear(), y, ["sex", "age"])
            expected = 3 * between_groups(unit * M / y.std, G, V) + between_groups(unit * M / y.std, 1 - G, V)
            value = batch(found, unit * M, Y, V, sex=G, age=1 - G) * found.scale  # as training counts it
            assert float(value) == pytest.approx(float(expected))


def test_a_penalty_leaves_a_batch_loss_in_place() -> None:
    found = with_penalties(objective("auc", logistic()), {"parityGap": {"sex": 2.0}}, logistic(), stats(), ["sex"])
    expected = pairwise_logistic(M, Y, V) + 2 * between_groups(torch.sigmoid(M), G, V)
    assert float(batch(found, M, Y, V, sex=G)) == pytest.approx(float(expected))


def test_no_penalty_is_no_change() -> None:
    plain = objective("logLoss", logistic())
    assert with_penalties(plain, {}, logistic(), stats(), []) is plain


def test_a_parity_gap_of_a_column_that_is_not_kept() -> None:
    with pytest.raises(
        InputError, match=r"parityGap names \['sex'\], but only the columns of guardCols are kept, \['age'\]"
    ):
        with_penalties(objective("logLoss", logistic()), {"parityGap": {"sex": 1.0}}, logistic(), stats(), ["age"])
