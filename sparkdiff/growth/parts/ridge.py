"""Newton's method with a ridge penalty, for crosses, shapes and effects of entities, whose effects are looked up by index.

Each Newton step is solved by conjugate gradients, which use the design matrix only in sums over rows. For a single one-hot block
with one margin and no links, the Hessian is diagonal and one iteration suffices. Source: Nocedal and Wright, "Numerical
Optimization", 2006, algorithm 7.1.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparkdiff.growth.criterion import LEAST, Criterion
from sparkdiff.growth.row_tensors import Split
from sparkdiff.tensors.light_torch import dot

STEPS = 10
"""Largest number of Newton steps."""
INNER = 30
"""Largest number of iterations of conjugate gradients."""
PRECISE = 1e-2
"""Relative residual at which conjugate gradients stop."""
LEAST_GAIN = 1e-6
"""Newton's method stops after a step that lowers the loss by no more than this share."""
APART = 100.0
"""Largest ratio between the ridge on a group of effects and the ridge on the group with the largest effects."""


class Design(Protocol):
    """A design matrix X (n, p), defined by its products. Effects are (p,), or (p, k) for k margins; rows are (n,), or (n, k)."""

    def margin(self, effects: Tensor) -> Tensor:
        """X @ effects, one value per row."""
        ...

    def sums(self, rows: Tensor) -> Tensor:
        """X.T @ rows, one value per effect."""
        ...

    def squares(self, rows: Tensor) -> Tensor:
        """(X * X).T @ rows, one value per effect."""
        ...


@dataclass(frozen=True)
class SparseDesign:
    """A sparse design matrix with m entries in each row, such as m one-hot blocks side by side.

    Attributes:
        index: (m, n) column index of each entry.
        width: p, the number of columns.
        value: (m, n) value of each entry; None if all values are 1.
    """

    index: Tensor
    width: int
    value: Tensor | None = None

    def margin(self, effects: Tensor) -> Tensor:
        found = effects[self.index]
        if self.value is not None:
            found = found * (self.value if effects.ndim == 1 else self.value[:, :, None])
        return found.sum(0)

    def sums(self, rows: Tensor) -> Tensor:
        return self._column_sums(rows, self.value)

    def squares(self, rows: Tensor) -> Tensor:
        return self._column_sums(rows, None if self.value is None else self.value.square())

    def _column_sums(self, rows: Tensor, value: Tensor | None) -> Tensor:
        each = rows.expand(len(self.index), *rows.shape)
        if value is not None:
            each = each * (value if rows.ndim == 1 else value[:, :, None])
        return rows.new_zeros(self.width, *rows.shape[1:]).index_add_(0, self.index.flatten(), each.flatten(0, 1))


@dataclass(frozen=True)
class Ridge:
    """Quadratic penalty: (sum of own * effect ** 2 + sum of links * (difference of neighbouring effects) ** 2) / 2.

    Attributes:
        own: (p,), positive.
        links: (p - 1,), link j is between effects j and j + 1; None without links.
    """

    own: Tensor
    links: Tensor | None = None

    def scaled(self, factor: Tensor) -> "Ridge":
        """The ridge, multiplied by one factor for each effect, (p,). Linked effects must have the same factor."""
        return Ridge(factor * self.own, None if self.links is None else factor[1:] * self.links)

    def times(self, effects: Tensor) -> Tensor:
        """Gradient of the penalty."""
        out = _times(effects, self.own)
        if self.links is not None:
            pull = _times(effects.diff(dim=0), self.links)
            out[1:] += pull
            out[:-1] -= pull
        return out

    def diagonal(self) -> Tensor:
        """Diagonal of the penalty's Hessian, (p,)."""
        out = self.own.clone()
        if self.links is not None:
            out[1:] += self.links
            out[:-1] += self.links
        return out


def beside(ridges: Sequence[Ridge]) -> Ridge:
    """Ridge for designs that are put side by side; it has no links between different designs."""
    links = []
    for r in ridges:
        links += [r.own.new_zeros(len(r.own) - 1) if r.links is None else r.links, r.own.new_zeros(1)]
    return Ridge(torch.cat([r.own for r in ridges]), torch.cat(links)[:-1])


def fit(design: Design, ridge: Ridge, effects: Tensor, split: Split, criterion: Criterion) -> Tensor:
    """Effects that minimise the weighted mean loss, at the split's margin plus X @ effects, plus the penalty.

    Args:
        effects: starting values.
    """
    share = torch.where(split.weight > 0, split.weight, 0.0) / split.weight.sum()

    def objective(e: Tensor) -> float:
        return float(criterion.loss(split.margin + design.margin(e), split) + (e * ridge.times(e)).sum() / 2)

    value = objective(effects)
    for _ in range(STEPS):
        slope, curve, bend = _derivatives(criterion, split.margin + design.margin(effects), split)
        gradient = design.sums(_times(slope, share)) + ridge.times(effects)
        own = design.squares(_times(curve, share))
        scale = own + (ridge.diagonal() if own.ndim == 1 else ridge.diagonal()[:, None])

        def hessian(v: Tensor, bend: Callable[[Tensor], Tensor] = bend) -> Tensor:
            return design.sums(_times(bend(design.margin(v)), share)) + ridge.times(v)

        step = _conjugate_gradients(hessian, -gradient, scale)
        slant = float((gradient * step).sum())
        size, new, reached = 1.0, effects, value
        while size > 1e-6:
            new = effects + size * step
            reached = objective(new)
            if reached <= value + 1e-4 * size * slant:
                break
            size /= 2
        else:
            break
        effects, gain, value = new, value - reached, reached
        if gain <= LEAST_GAIN * abs(value):
            break
    return effects


def mean_curvature(split: Split, criterion: Criterion) -> float:
    """Mean second derivative of a row's loss with respect to its margin; for k margins, averaged over the margins, too."""
    _, curve = criterion.slopes(split.margin, split)
    return float(split.mean(curve if curve.ndim == 1 else curve.mean(1)))


def apart(design: Design, groups: Sequence[int], split: Split, criterion: Criterion) -> Tensor:
    """Ratio between the ridge on each effect and the ridge on the group with the largest effects, (p,).

    The ridge on a group is the dispersion divided by the variance of the group's effects. The variance is estimated from moments
    of the slopes (first derivatives of the rows' losses) at the margin: for one effect, E[(sum of slopes)^2] = dispersion *
    curvature + variance * curvature^2.

    Args:
        groups: number of effects in each group; the effects of a group are consecutive.
    """
    slope, curve = criterion.slopes(split.margin, split)
    weight = torch.where(split.weight > 0, split.weight, 0.0)
    pull, bend = _times(slope, weight), _times(curve, weight)
    dispersion = pull.square().sum() / bend.sum()
    pulls, own = design.sums(pull), design.squares(bend)
    excess = (pulls.square() - dispersion * own).reshape(len(own), -1).sum(1)
    square = own.square().reshape(len(own), -1).sum(1)
    found = torch.stack([e.sum() / s.sum() for e, s in zip(excess.split(groups), square.split(groups), strict=True)])
    found = found.nan_to_num(0.0, 0.0, 0.0)
    largest = found.max()
    factor = (largest / found.clamp_min(float(largest) / APART)).nan_to_num(1.0) if largest > 0 else found * 0 + 1
    return factor.repeat_interleave(torch.tensor(groups))


def _derivatives(
    criterion: Criterion, margin: Tensor, split: Split
) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """First and second derivative of each row's loss, and a function that multiplies (n, [k]) by each row's Hessian."""
    slope, curve = criterion.slopes(margin, split)
    if margin.ndim == 1:
        return slope, curve, lambda v: curve * v
    with torch.enable_grad():
        m = margin.detach().clone().requires_grad_()
        [graph] = torch.autograd.grad(criterion.rows(m, split).sum(), m, create_graph=True)
    if not graph.requires_grad:  # a piecewise linear loss
        return slope, curve, lambda v: curve * v

    def bend(v: Tensor) -> Tensor:
        [found] = torch.autograd.grad(dot(graph, v), m, retain_graph=True)
        return found.nan_to_num(0.0) + LEAST * curve * v

    return slope, curve, bend


def _conjugate_gradients(product: Callable[[Tensor], Tensor], right: Tensor, scale: Tensor) -> Tensor:
    """Solve product(x) = right for x, preconditioned by `scale`. Stop at a direction in which the loss is concave."""
    x = torch.zeros_like(right)
    rest = right.clone()
    near = rest / scale
    way, before = near.clone(), float((rest * near).sum())
    first = before
    for _ in range(INNER):
        if before <= PRECISE**2 * first:
            break
        image = product(way)
        bent = float((way * image).sum())
        if bent <= 0:
            return x if bool(x.any()) else near
        x += before / bent * way
        rest -= before / bent * image
        near = rest / scale
        now = float((rest * near).sum())
        way, before = near + now / before * way, now
    return x


def _times(rows: Tensor, by: Tensor) -> Tensor:
    return rows * (by if rows.ndim == 1 else by[:, None])
