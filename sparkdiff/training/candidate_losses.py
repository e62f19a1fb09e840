"""Losses of several candidates on some rows, and their derivatives by the margins."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from sparkdiff.objectives.objective import Batch as BatchLoss, Objective, Rows as RowLosses
from sparkdiff.tensors.team import Team
from sparkdiff.training.augmentation import Target


def row_losses(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> tuple[Tensor, Tensor]:
    """Sums (k,) of w * loss, and their gradient by the margins (k, n) or (k, n, classes)."""
    if objective.rows is None:
        return margin.new_zeros(len(margin)), torch.zeros_like(margin)
    if objective.exact is None:
        return _by_autograd(objective.rows, margin, targets, elementwise=objective.elementwise)
    loss, gradient = _weighted(*objective.exact(margin, targets[0][0]), targets[0][1])
    for label, weight in targets[1:]:
        more, slope = _weighted(*objective.exact(margin, label), weight)
        loss, gradient = loss + more, gradient + slope
    return loss, gradient


def _weighted(loss: Tensor, slope: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    return loss @ weight, slope.mul_(weight if slope.ndim == 2 else weight[:, None])


def _by_autograd(
    rows: RowLosses, margin: Tensor, targets: Sequence[Target], *, elementwise: bool
) -> tuple[Tensor, Tensor]:
    margin, count = margin.requires_grad_(), len(margin)
    total = margin.new_zeros(count)
    for label, weight in targets:
        if elementwise:
            loss = rows(margin.flatten(0, 1), label.repeat(count), weight.repeat(count)).view(count, -1)
        else:
            loss = torch.stack([rows(m, label, weight) for m in margin])
        total = total + loss @ weight
    [gradient] = torch.autograd.grad(total.sum(), [margin])
    return total.detach(), gradient


def second_derivative(objective: Objective, margin: Tensor, targets: Sequence[Target]) -> Tensor:
    """w * the second derivative of the loss by the margin (n,), 0 where it has none (absolute, quantile)."""
    rows = objective.rows
    if rows is None:
        return torch.zeros_like(margin)
    with torch.enable_grad():
        margin = margin.clone().requires_grad_()
        total = torch.stack([rows(margin, label, weight) @ weight for label, weight in targets]).sum()
        [first] = torch.autograd.grad(total, [margin], create_graph=True)
        if not first.requires_grad:
            return torch.zeros_like(margin)
        [second] = torch.autograd.grad(first.sum(), [margin], allow_unused=True)
    return torch.zeros_like(margin) if second is None else second.detach()


def batch_losses(
    batch: BatchLoss, margin: Tensor, targets: Sequence[Target], groups: Mapping[str, Tensor], team: Team
) -> tuple[Tensor, Tensor]:
    """W * loss of the rows of all processes, this one's share of it (k,), and its gradient by this one's margins."""
    whole = team.gather(margin.transpose(0, 1)).transpose(0, 1).contiguous().requires_grad_()
    first = int(team.gather(torch.tensor([margin.shape[1]], device=margin.device))[: team.rank].sum())
    codes = {name: team.gather(code) for name, code in groups.items()}
    total = margin.new_zeros(len(margin))
    for label, weight in targets:
        y, w = team.gather(label), team.gather(weight)
        if bool((w > 0).any()):
            total = total + w.sum() * torch.stack([batch(m, y, w, codes) for m in whole])
    gradient = torch.zeros_like(margin)
    if total.requires_grad:
        [found] = torch.autograd.grad(total.sum(), [whole])
        gradient = found[:, first : first + margin.shape[1]]
    return total.detach() / team.world, gradient
