"""Growth in rounds, as in AdaNet: in each round several parts are trained on top of the margin so far, and at most one joins.

Source: Cortes, Gonzalvo, Kuznetsov, Mohri and Yang, "AdaNet: Adaptive Structural Learning of Artificial Neural Networks", 2017:
the part with the smallest loss plus penalty joins. The penalty is the sum over all parts of (lambda * r_j + beta) * |w_j|, where
r_j bounds the part's complexity and w_j is its weight in the mixture. In AdaNet, w_j is fitted to training rows, so the penalty
depends on the scale of the part's output. Here w_j is the standard deviation of the part's output (its addition to the margin).
Also unlike in AdaNet, a simpler part joins in place of the best one if validation rows show no clear difference (`simplest`).
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sparkdiff.evaluation.scores import Score
from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.part import Item, ItemResult, Part
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.growth.serving_cost import ServingCostModel
from sparkdiff.report import share_of

Run = Callable[[int, Sequence[Item], Table, Tensor], list[ItemResult]]
"""(round, items, table, the original's block sums (B,)) -> result of each item, in the order of the items."""
LACKS = 0.01
"""Share of the best part's gain by which a simpler part's gain may be smaller and the simpler part still join in its place."""
ROUNDING = 1e-9
"""Smallest standard deviation of a part's output, in units of the margin (`Criterion.unit`). A part below it has only learned
rounding errors, such as those of a model that fits exactly."""
STEPS = 25
"""Largest number of Newton steps for the weights of the parts."""


@dataclasses.dataclass(frozen=True)
class Member:
    """A part that has joined.

    Attributes:
        weight: factor by which the part's output is multiplied.
        round: the round in which the part joined, counted from 1.
    """

    part: Part
    weight: float
    round: int


@dataclasses.dataclass(frozen=True)
class ItemReport:
    """Report of one item of a round.

    Attributes:
        gain: improvement of the metric on validation rows from the state before the round to the part's best epoch, as a share of
            the original's metric.
        objective: metric plus penalty, by which parts are compared; infinite if the part can't join.
        cost: serving cost of the part in microseconds per row, see `ServingCostModel.share`.
        seconds: CPU seconds of training.
        epoch: the part's best epoch, counted from 1; 0 if no epoch gained.
        why: the reason why the part did not join; empty for the part that joined.
    """

    round: int
    kind: str
    name: str
    gain: float
    objective: float
    parameters: int
    cost: float
    seconds: float
    epoch: int
    why: str


@dataclasses.dataclass(frozen=True)
class GrowthResult:
    """Result of the rounds.

    Attributes:
        table: the rows at the margin of the original and all members.
        stopped: the reason why the rounds ended.
        late: True if they ended because the time was over.
    """

    members: tuple[Member, ...]
    table: Table
    tried: tuple[ItemReport, ...]
    stopped: str
    late: bool = False


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits on the rounds and on the parts that may join.

    Attributes:
        serving: model of the serving cost of a pipeline with parts, with the limit on this cost.
    """

    settings: GrowthSettings
    serving: ServingCostModel
    seed: int


def grow(
    table: Table, criterion: Criterion, limits: Limits, run: Run, on_round: Callable[[Sequence[ItemReport]], None]
) -> GrowthResult:
    """Run rounds until no part gains enough, the time is over, or the limit on their number is reached.

    Args:
        table: the rows at the original's margin.
        run: trains the items of a round.
        on_round: called after each round with the reports of its items.
    """
    original = criterion.score(table.validation.margin, table.validation)
    state = GrowthResult((), table, (), "")
    for number in range(1, limits.settings.rounds + 1):
        items = parts.propose(limits.settings.parts, state.table, criterion, seed_of(limits.seed, number))
        if not items:
            return dataclasses.replace(state, stopped="there is nothing to propose for these columns")
        found = run(number, items, state.table, original.blocks)
        if all(f.is_late for f in found):
            when = f"after round {number - 1}" if number > 1 else "before the first part was trained"
            return dataclasses.replace(state, stopped=f"maxSeconds was over {when}", late=True)
        state, tried = _end_round(state, found, table, criterion, limits, number, original)
        on_round(tried)
        if late := sum(f.is_late for f in found):
            stopped = f"maxSeconds was over in round {number}, before {late} of its {len(found)} parts were trained"
            return dataclasses.replace(state, stopped=stopped, late=True)
        if all(t.why for t in tried):
            return dataclasses.replace(
                state, stopped=f"nothing that round {number} tried gains enough on the validation rows"
            )
    return dataclasses.replace(state, stopped=f"rounds={limits.settings.rounds}")


def seed_of(seed: int, number: int) -> int:
    """Seed of the items of round `number`."""
    return seed + 1000 * number


def _end_round(
    state: GrowthResult,
    found: Sequence[ItemResult],
    start: Table,
    criterion: Criterion,
    limits: Limits,
    number: int,
    original: Score,
) -> tuple[GrowthResult, list[ItemReport]]:
    """State after a round, and the reports of its items.

    Args:
        found: results of the items.
        start: the table at the original's margin.
    """
    before = criterion.score(state.table.validation.margin, state.table.validation)
    judged = [_judge_part(f, state, criterion, limits, before, original) for f in found]
    chosen = simplest(found, [objective for objective, _ in judged], before.mean)
    tried = [
        ItemReport(
            number,
            f.item.kind,
            f.item.name,
            share_of(before.mean - f.value, original.mean),
            objective,
            f.parameters,
            limits.serving.share(f.part) if f.part else 0.0,
            f.seconds,
            f.epoch,
            why or ("" if i == chosen else _not_chosen(objective, judged[chosen][0], found[chosen].item.name)),
        )
        for i, (f, (objective, why)) in enumerate(zip(found, judged, strict=True))
    ]
    joins = math.isfinite(judged[chosen][0])
    members, table = state.members, state.table
    if joins:
        members, table = _with(state, found[chosen], start, criterion, limits, number)
    return GrowthResult(members, table, (*state.tried, *tried), ""), tried


def _with(
    state: GrowthResult, found: ItemResult, start: Table, criterion: Criterion, limits: Limits, number: int
) -> tuple[tuple[Member, ...], Table]:
    """The members with the new one, and the table at their margin.

    The weights of all members are refitted on the training rows. If the metric on the validation rows is then worse than
    with the old weights and weight 1 for the new part, these are kept. This happens, for example, if trees fit the training
    rows perfectly: then these rows carry no information about the weight of a further part.
    """
    part = found.part
    assert part is not None
    more = (*state.members, Member(part, 1.0, number))
    members, table = fit_weights(more, start, criterion, limits)
    if criterion.score(table.validation.margin, table.validation).mean > found.value:
        train, validation = state.table.train, state.table.validation
        members, table = (
            more,
            state.table.at(train.margin + part.output(train), validation.margin + part.output(validation)),
        )
    return members, table


def simplest(found: Sequence[ItemResult], objectives: Sequence[float], before: float) -> int:
    """Index of the part with the fewest parameters among those about as good as the best, which has the smallest objective.

    A part is about as good if its gain differs from the best part's gain by at most one standard error, or lacks at most a
    hundredth of it (`LACKS`). So a curve of one column joins before curves of all columns if the other curves add little.

    Args:
        objectives: metric plus penalty of each part; infinite if it can't join.
        before: the metric before the round.

    Source: Breiman, Friedman, Olshen and Stone, "Classification and Regression Trees", 1984, the one-standard-error rule. Here
    the standard error is that of the difference between two parts' gains, from its sums over blocks of rows.
    """
    best = min(range(len(found)), key=lambda i: objectives[i])
    if not math.isfinite(objectives[best]):
        return best

    def near(i: int) -> bool:
        apart = _gains(found[best]) - _gains(found[i])
        lacks = found[i].value - found[best].value
        return float(apart.sum()) <= float(apart.norm()) or lacks <= LACKS * (before - found[best].value)

    close = [i for i, objective in enumerate(objectives) if math.isfinite(objective) and near(i)]
    return min(close, key=lambda i: (found[i].parameters, objectives[i]))


def _gains(found: ItemResult) -> Tensor:
    """Gain over the original after an item's best epoch, (B,): one sum per block of the guard (a group of validation rows)."""
    return found.gains[found.epoch - 1]


def _not_chosen(objective: float, best: float, name: str) -> str:
    if best <= objective:
        return f"{name} has less loss plus penalty"
    return f"{name} has fewer parameters, and as much gain within the error or a hundredth"


def _judge_part(
    found: ItemResult, state: GrowthResult, criterion: Criterion, limits: Limits, before: Score, original: Score
) -> tuple[float, str]:
    """Metric plus penalty of a part, and the reason why it can't join; the sum is infinite if there is such a reason.

    Args:
        before: the metric before the round.
    """
    if found.is_late:
        return math.inf, "maxSeconds was over"
    if found.part is None:
        diverged = not bool(found.gains[-1].isfinite().all())
        return math.inf, "it diverged" if diverged else "no epoch gains on the validation rows"
    train = state.table.train
    if spread(found.part.output(train), train) < ROUNDING * criterion.unit:
        return math.inf, "what it adds is no more than what rounding left"
    cost = limits.serving.cost([*(m.part for m in state.members), found.part])
    if cost > limits.serving.limit:
        return math.inf, f"serving would cost {cost:.3g} us per row, more than maxServingCost allows"
    validation = state.table.validation
    size = criterion.size(validation.margin, validation)
    objective = found.value + size * price(found.part, train, criterion, limits)
    if objective >= before.mean:
        return math.inf, "its gain is less than its penalty"
    gain = before.mean - found.value
    if gain <= limits.settings.maxLoss * abs(original.mean):
        return math.inf, f"its gain is no more than maxLoss={limits.settings.maxLoss:g} of the original's metric"
    if gain <= _error(_gains(found) - (original.blocks - before.blocks), before.weights):
        return math.inf, "its gain is no larger than its standard error"
    return objective, ""


def _error(gains: Tensor, weights: Tensor) -> float:
    """Standard error of a weighted mean gain, from its block sums.

    Args:
        gains: (B,) sum of weight * gain in each block.
        weights: (B,) sum of the weights in each block.
    """
    mean = gains.sum() / weights.sum()
    return float((gains - mean * weights).norm() / weights.sum())


def price(part: Part, train: Split, criterion: Criterion, limits: Limits) -> float:
    """Penalty on a part relative to the scale of the loss: (lambda * r + beta) * w.

    Here lambda is the option `complexity`, w is the standard deviation of the part's output in units of the margin, r =
    sqrt(log(1 + parameters) / rows), and beta = 0.1 * lambda / sqrt(rows).
    """
    rate = limits.settings.complexity * (
        math.sqrt(math.log1p(part.parameters) / len(train)) + 0.1 / math.sqrt(len(train))
    )
    return rate * spread(part.output(train), train) / criterion.unit


def spread(output: Tensor, split: Split) -> float:
    """Standard deviation of a part's output over the rows; for several margins, the square root of their mean variance."""
    centred = output - split.mean(output)
    return math.sqrt(float(split.mean(centred.square()).mean()))


def fit_weights(
    members: Sequence[Member], start: Table, criterion: Criterion, limits: Limits
) -> tuple[tuple[Member, ...], Table]:
    """The members, with weights that minimise loss plus penalty on the training rows; and the table at their margin.

    The weights are fitted by proximal Newton steps from the current weights; no weight becomes negative.

    Args:
        start: the table at the original's margin.
    """
    train, validation = start.train, start.validation
    outputs = torch.stack([m.part.output(train) for m in members])  # (J, n) or (J, n, k)
    size = criterion.loss_size(train.margin, train)
    prices = torch.tensor([size * price(m.part, train, criterion, limits) for m in members], dtype=torch.float64)
    weights = torch.tensor([m.weight for m in members], dtype=torch.float64)

    def margin(w: Tensor) -> Tensor:
        return train.margin + torch.tensordot(w, outputs, dims=1)

    def objective(w: Tensor) -> float:
        return float(criterion.loss(margin(w), train) + (prices * w).sum())

    value = objective(weights)
    share = train.weight / train.weight.sum()
    each = (len(members), -1)
    for _ in range(STEPS):
        slope, curve = criterion.slopes(margin(weights), train)
        row = share if slope.ndim == 1 else share[:, None]
        gradient = (outputs * (slope * row)).reshape(each).sum(1) + prices
        hessian = (outputs * (curve * row)).reshape(each) @ outputs.reshape(each).T
        step = _nonnegative(hessian, gradient, weights)
        size = 1.0
        while size > 1e-6 and not objective(weights + size * step) < value:
            size /= 2
        if size <= 1e-6:
            break
        weights = weights + size * step
        was, value = value, objective(weights)
        if was - value < 1e-10 * abs(was):
            break
    new = tuple(dataclasses.replace(m, weight=float(w)) for m, w in zip(members, weights, strict=True))
    added = sum((m.weight * m.part.output(validation) for m in new), torch.zeros_like(validation.margin))
    return new, start.at(margin(weights), validation.margin + added)


def _nonnegative(hessian: Tensor, gradient: Tensor, weights: Tensor) -> Tensor:
    """Step that minimises the quadratic model without making any weight negative, found by coordinate descent."""
    damped = hessian + 1e-9 * hessian.diagonal().mean() * torch.eye(len(weights), dtype=weights.dtype)
    step = torch.zeros_like(weights)
    for _ in range(100):
        was = step.clone()
        for j in range(len(weights)):
            pull = gradient[j] + damped[j] @ step - damped[j, j] * step[j]
            step[j] = torch.clamp_min(-pull / damped[j, j], -float(weights[j]))
        if float((step - was).abs().max()) < 1e-10:
            break
    return step
