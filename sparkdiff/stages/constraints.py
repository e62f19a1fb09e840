"""Maps from unconstrained values ("moves") to parameters inside their domain, so that every optimizer step gives a
valid Spark stage.
"""

import torch
from torch import Tensor

from sparkdiff.tensors.light_torch import dot
from sparkdiff.tensors.rows import running_sum


class Constraint:
    """A map from moves u, on which optimizers and the penalty `regAnchor` act, to parameters; u = 0 gives the start
    value bit for bit.

    A subclass defines `value`, and `gradient` if it has a closed form. Instances hold only settings and can be
    pickled.
    """

    elementwise: bool = False
    """Whether each parameter depends only on its own move."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        """Parameters of these moves: (*shape), (K, *shape) -> (K, *shape)."""
        raise NotImplementedError

    def gradient(self, start: Tensor, move: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        """Gradient with respect to the moves, given `gradient` with respect to the parameters; all (K, *shape)."""
        with torch.enable_grad():
            free = move.detach().requires_grad_()
            [out] = torch.autograd.grad(dot(self.value(start, free), gradient), [free])
        return out

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        """Moves that lead from the start to these parameters, (*shape), (*shape) -> (*shape); for reports."""
        return value - start


class PositiveValues(Constraint):
    """start * exp(move): positive values stay positive, zeros stay zero."""

    elementwise = True

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        return start * torch.exp(move)

    def gradient(self, start: Tensor, move: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        return gradient * value

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        return torch.where(start > 0, torch.log(value / start), 0.0)


class Odds(Constraint):
    """Probabilities between 0 and 1 whose log-odds move freely."""

    elementwise = True

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        grown = start * torch.exp(move)
        return grown / (1 - start + grown)

    def gradient(self, start: Tensor, move: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        return gradient * value * (1 - value)

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        return torch.logit(value) - torch.logit(start)


class Float32Values(Constraint):
    """start + move, rounded to float32."""

    elementwise = True

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        return (start + move).float().to(start.dtype)

    def gradient(self, start: Tensor, move: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        return gradient


class OrderedValues(Constraint):
    """Entries that ascend along the last axis: the first finite one moves freely; for each further one, the step from
    its predecessor is multiplied by exp(move).

    Equal neighbours stay equal; infinite entries at the ends stay where they are.
    """

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        finite = start.isfinite()
        step, inner = self._steps(start)
        grown = torch.where(inner, step * torch.expm1(move), torch.where(finite, move, 0.0))
        return torch.where(finite, start + running_sum(grown), start)

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        (before, inner), (after, _) = self._steps(start), self._steps(value)
        ratio = torch.where(before > 0, after / torch.where(before > 0, before, 1.0), 1.0)
        return torch.where(inner, torch.log(ratio), torch.where(start.isfinite(), value - start, 0.0))

    @staticmethod
    def _steps(x: Tensor) -> tuple[Tensor, Tensor]:
        """Difference of each entry to its predecessor, 0 if the entry or its predecessor is infinite or missing; and a
        mask, True if both are finite.
        """
        finite = x.isfinite()
        known = torch.where(finite, x, 0.0)
        inner = finite & torch.cat([torch.zeros_like(finite[..., :1]), finite[..., :-1]], -1)
        return torch.where(inner, torch.cat([known[..., :1], known.diff(dim=-1)], -1), 0.0), inner


class UnitNorm(Constraint):
    """Rows keep their Euclidean norm along the last axis and change only their direction."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        norm = start.norm(dim=-1, keepdim=True)
        turned = start + move
        # As a difference of two results of the same rounding, so that u = 0 is exactly the start.
        return start + (self._to_length(turned, norm) - self._to_length(start, norm))

    @staticmethod
    def _to_length(x: Tensor, length: Tensor) -> Tensor:
        norm = x.norm(dim=-1, keepdim=True)
        return x * (length / torch.where(norm > 0, norm, 1.0))


class LogProbabilities(Constraint):
    """Logarithms of shares. The sum of the shares along the last axis does not change (in a fitted model it is 1); a
    share of 0 stays 0.
    """

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        free = move - (torch.logsumexp(start + move, -1, True) - torch.logsumexp(start, -1, True))
        return torch.where(start.isfinite(), start + free, start)

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        return torch.where(start.isfinite(), value - start, 0.0)


class Probabilities(Constraint):
    """Shares > 0 whose total along the last axis does not change; a share of 0 stays 0."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        total = start.sum(-1, keepdim=True)
        return start * torch.exp(move - torch.log((start * torch.exp(move)).sum(-1, keepdim=True) / total))

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        return torch.where(start > 0, torch.log(value / start), 0.0)


class Covariance(Constraint):
    """Positive definite matrices (..., d, d) = L L': a move replaces the Cholesky root L by L T, where T has the moves
    below its diagonal and exp(move) on it.

    T is lower triangular: the moves above the diagonal do nothing. A matrix without a root (a singular one) does not
    change.
    """

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        root, found = self._root(start)
        turned = root @ (move.tril(-1) + torch.diag_embed(move.diagonal(dim1=-2, dim2=-1).exp()))
        change = turned @ turned.mT - root @ root.mT
        return torch.where(found, start + (change + change.mT) / 2, start)

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        (before, found), (after, still) = self._root(start), self._root(value)
        turn = torch.linalg.solve_triangular(before, after, upper=False)
        logarithms = torch.diag_embed(turn.diagonal(dim1=-2, dim2=-1).log())
        return torch.where(found & still, turn.tril(-1) + logarithms, 0.0)

    @staticmethod
    def _root(x: Tensor) -> tuple[Tensor, Tensor]:
        """Lower Cholesky root of each matrix, or the identity if it has none; and whether it has one, (..., 1, 1)."""
        root, failed = torch.linalg.cholesky_ex(x)
        found = (failed == 0)[..., None, None]
        return torch.where(found, root, torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)), found
