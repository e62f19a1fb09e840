"""The weights of a linear model as a function of its group penalties: solved, and followed as the penalties change."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from sparkdiff.tuning.solvers import classification, least_squares, solve
from sparkdiff.tuning.solvers.families import FAMILIES, LINKS, Family, LinkFunction
from sparkdiff.tuning.solvers.problem import Chunk, Chunks, Moments, RowTable, Setting, Solution, moments, table


class Response:
    """Loss of a linear model, for autograd. Margins are (n, sets), labels (n,), weights (n, 1)."""

    sets: int = 1
    """Number of sets of coefficients: the number of classes for a multinomial model, else 1."""

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """The derivative of the fitted loss with respect to the margin, times the weight: (n, sets)."""
        raise NotImplementedError

    def mass(self, margin: Tensor, weight: Tensor) -> Tensor:
        """The number by which the sum of slopes is divided, (1,): the sum of the weights, unless a subclass says otherwise."""
        return weight.sum(0)

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        """The loss of each row: (n, 1)."""
        raise NotImplementedError


class SquaresResponse(Response):
    """The response of a linear regression: its loss is the squared error."""

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return (margin - label[:, None]) * weight

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return (margin - label[:, None]).square()


class BinomialResponse(Response):
    """The response of a logistic regression with two classes: its loss is the log-loss."""

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return (margin.sigmoid() - label[:, None]) * weight

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return functional.softplus(margin) - label[:, None] * margin


class MultinomialResponse(Response):
    """The response of a logistic regression with several classes: its loss is the log-loss."""

    def __init__(self, sets: int):
        self.sets = sets

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        true = functional.one_hot(label.long(), self.sets).to(margin.dtype)
        return (margin.softmax(1) - true) * weight

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return -margin.log_softmax(1).gather(1, label.long()[:, None])


@dataclass(frozen=True)
class GeneralizedResponse(Response):
    """The response of a generalized linear regression: its loss is half the deviance of a family. Spark's iterations end
    where the sum of the slopes, divided by the sum of the *working* weights, and the penalty's slope add up to zero.
    """

    family: Family
    link: LinkFunction

    def mean(self, margin: Tensor) -> Tensor:
        return self.link.mean(margin).clamp(*self.family.bounds)

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        mean = self.mean(margin)
        return (mean - label[:, None]) / (self.link.derivative(mean) * self.family.variance(mean)) * weight

    def mass(self, margin: Tensor, weight: Tensor) -> Tensor:
        mean = self.mean(margin)
        return (weight / (self.link.derivative(mean).square() * self.family.variance(mean))).sum(0)

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return self.family.half_deviance(self.mean(margin), label[:, None])


def response_of(kind: str, setting: Setting, classes: int) -> Response:
    """The response of Spark's estimator `kind` (the name of its class) with this setting."""
    if kind == "LinearRegression":
        return SquaresResponse()
    if kind == "LogisticRegression":
        sets = setting.sets(classes)
        return MultinomialResponse(sets) if sets > 1 else BinomialResponse()
    link = setting.link or FAMILIES[setting.family].links[0]
    if (setting.family, link) == ("gaussian", "identity"):
        return SquaresResponse()
    return GeneralizedResponse(FAMILIES[setting.family], LINKS[link])


@dataclass(frozen=True)
class LinearModel:
    """A linear model on rows, some of which are held out. Weights are (sets, width), in units of the table's columns,
    with the intercept last.

    Attributes:
        setting: the model's Params; `regParam` is replaced where all groups get one common penalty.
        z, label, offset: the rows.
        own, held: (n, 1), a row's weight: in `own` 0 for a row that is held out, in `held` 0 for the other rows.
        unit: (sets, width), the factor of ½·θ² in the penalty at regParam 1.
        free: (width,), 1, or 0 for a weight that stays zero.
        group: (d,), the group of each column.
    """

    kind: str
    setting: Setting
    chunks: Chunks
    classes: int
    response: Response
    table: RowTable
    found: Moments
    z: Tensor
    label: Tensor
    offset: Tensor
    own: Tensor
    held: Tensor
    unit: Tensor
    free: Tensor
    group: Tensor

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1

    def ridge(self, logs: Tensor) -> Tensor:
        """The factors of ½·θ² at these logarithms of the groups' penalties: (sets, width)."""
        each = logs.exp()[self.group]
        return self.unit * torch.cat([each, each.new_zeros(int(self.table.intercept))])

    def scale_of_columns(self, logs: Tensor, regParam: float) -> Tensor:
        """Factors for the columns, (d,), with which one common penalty has the effect of the group penalties.

        Spark's fit of the columns times these factors, with `regParam` and without standardization, returns the weights
        divided by the factors.
        """
        d = len(self.group)
        plain = replace(self.setting, standardization=False)
        one = units(self.kind, plain, self.found, self.table, self.response, self.label, self.own) * regParam
        factor = (one / self.ridge(logs)[0, :d]).sqrt()
        return torch.where((self.free[:d] > 0) & factor.isfinite(), factor, 1.0)

    def margin(self, weights: Tensor) -> Tensor:
        return self.z @ weights.T + self.offset[:, None]

    def slope(self, weights: Tensor, ridge: Tensor) -> Tensor:
        """The slope of fitted loss plus penalties in the weights, zero at the solution: (sets, width)."""
        margin = self.margin(weights)
        mean = self.response.slope(margin, self.label, self.own).T @ self.z / self.response.mass(margin, self.own)
        return torch.where(self.free > 0, mean + ridge * weights, weights)

    def size(self, weights: Tensor) -> Tensor:
        """The size that `slope` would have if no two rows pulled in opposite directions: (1,)."""
        margin = self.margin(weights)
        slope = self.response.slope(margin, self.label, self.own)
        return slope.abs().sum() / self.response.mass(margin, self.own)

    def loss(self, weights: Tensor) -> Tensor:
        """The weighted mean loss of the held-out rows: ()."""
        losses = self.response.loss(self.margin(weights), self.label)
        return torch.where(self.held > 0, losses * self.held, 0.0).sum() / self.held.sum()

    def jacobian(self, weights: Tensor, ridge: Tensor) -> Tensor:
        """The Jacobian of `slope` with respect to the weights: (sets · width, sets · width)."""
        margin = self.margin(weights).detach().requires_grad_()
        mass = self.response.mass(margin, self.own)
        blocks = (
            self._of_one_set(margin, mass) if self.response.sets == 1 else self._of_sets(margin.detach(), mass.detach())
        )
        free = self.free.expand_as(weights).flatten()
        whole = blocks + torch.diag(ridge.flatten())
        whole = whole * free[:, None] * free + torch.diag(1 - free)
        if self.response.sets > 1:  # adding one number to all classes' weights of a column changes no probability
            same = torch.eye(weights.shape[1]).to(whole).repeat(self.response.sets, self.response.sets)
            whole = whole + same * free[:, None] * free
        return whole

    def _of_one_set(self, margin: Tensor, mass: Tensor) -> Tensor:
        slope = self.response.slope(margin, self.label, self.own)
        (curve,) = torch.autograd.grad(slope.sum(), margin, retain_graph=True)
        block = (self.z * curve).T @ self.z / mass.detach()
        if mass.requires_grad:  # the mass depends on the weights
            (shift,) = torch.autograd.grad(mass.sum(), margin)
            pull = self.z.T @ slope[:, 0].detach()
            block = block - torch.outer(pull, self.z.T @ shift[:, 0]) / mass.detach().square()
        return block

    def _of_sets(self, margin: Tensor, mass: Tensor) -> Tensor:
        p, sets, width = margin.softmax(1), self.response.sets, self.z.shape[1]
        h = self.z.new_empty(sets, width, sets, width)
        for k in range(sets):
            for m in range(k, sets):
                curve = p[:, k] * (float(k == m) - p[:, m]) * self.own[:, 0] / mass
                h[k, :, m] = h[m, :, k] = (self.z * curve[:, None]).T @ self.z
        return h.reshape(sets * width, sets * width)

    def at_once(self, penalties: Sequence[float]) -> list[Solution]:
        """Spark's models with one penalty for all columns, one for each of these penalties."""
        settings = [replace(self.setting, regParam=penalty) for penalty in penalties]
        return [solution for [solution] in solve(self.kind, self.chunks, settings, 1, self.classes)]

    def without(self, groups: Collection[int]) -> "LinearModel | None":
        """The model without the columns of these groups, and with all other columns in one group; None if it can't be
        solved.
        """
        kept = torch.tensor([int(g) not in groups for g in self.group])

        def chunks() -> Iterator[Chunk]:
            for chunk in self.chunks():
                yield replace(chunk, x=chunk.x[:, kept])

        group = torch.zeros(int(kept.sum()), dtype=torch.long)
        return linear_model(self.kind, chunks, self.setting, group, self.classes) if len(group) else None

    def weights_of(self, solution: Solution) -> Tensor:
        """The weights of a model, in units of the table."""
        matrix = solution.coefficients.reshape(self.response.sets, -1)
        if not self.table.intercept:
            return matrix * self.table.scale
        shift = solution.intercept.reshape(self.response.sets) + matrix @ self.table.centre
        return torch.cat([matrix * self.table.scale, shift[:, None]], 1)


def linear_model(kind: str, chunks: Chunks, setting: Setting, group: Tensor, classes: int = 0) -> LinearModel | None:
    """A model with one penalty for each group of columns, fitted without the rows of fold 0; None if the rows cannot be
    used.

    Args:
        kind: the name of Spark's estimator.
        group: (d,), the group of each column; groups are numbered from 0.
        classes: number of classes of a LogisticRegression.
    """
    found = moments(chunks, 1, classes)
    if not found.usable or (classes and not bool((found.classes > 0).all())):
        return None
    # Rows stay in memory, as they are read at each step.
    rows = table(chunks, 1, found, intercept=setting.fitIntercept, memory=2**62)
    (block,) = rows.blocks()
    fold = torch.cat([chunk.fold for chunk in chunks()])
    weight = torch.cat([chunk.weight for chunk in chunks()])
    held = weight[:, None] * (fold[:, None] == 0)
    response = response_of(kind, setting, classes)
    label = block.label - block.offset if isinstance(response, SquaresResponse) else block.label
    offset = torch.zeros_like(label) if isinstance(response, SquaresResponse) else block.offset
    unit = torch.zeros(response.sets, rows.width, dtype=torch.float64)
    unit[:, : len(rows.scale)] = units(kind, setting, found, rows, response, label, block.own)
    free = torch.ones(rows.width, dtype=torch.float64)
    free[: len(rows.scale)] = (~found.constant[0]).to(free.dtype)
    return LinearModel(
        kind,
        setting,
        chunks,
        classes,
        response,
        rows,
        found,
        block.z,
        label,
        offset,
        block.own,
        held,
        unit,
        free,
        group,
    )


def units(
    kind: str, setting: Setting, found: Moments, rows: RowTable, response: Response, label: Tensor, own: Tensor
) -> Tensor:
    """The factor of ½·θ² in the penalty of each column at regParam 1: (d,)."""
    unbiased = found.bessel_correction
    if kind == "LogisticRegression":
        one = replace(setting, regParam=1.0, elasticNetParam=0.0)
        return classification.penalties(rows, found, [(one, 0)], 1).ridge[0, : len(rows.scale)]
    plain = 1 / rows.scale.square()
    if not isinstance(response, SquaresResponse):
        return plain
    normal = kind == "GeneralizedLinearRegression"  # gaussian with identity: like LinearRegression's normal equations
    if normal or least_squares.normal(setting, len(rows.scale)):
        unbiased = torch.ones_like(unbiased)
    mean = (own * label[:, None]).sum(0) / own.sum(0)
    variance = (own * (label[:, None] - mean).square()).sum(0) / own.sum(0) * unbiased
    standard = normal or setting.standardization
    return (rows.variance[0] * unbiased if standard else plain) / variance.sqrt()
