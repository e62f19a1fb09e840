"""A step size for each group of parameters, by the slope of the validation loss through the unrolled steps of Adam."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Parameters = dict[str, Tensor]
Loss = Callable[[Parameters, int], Tensor]
"""Of these parameters on the rows of this step."""
BETAS, EPSILON = (0.9, 0.999), 1e-8
"""Of torch's Adam."""
OUTER_STEPS, OUTER_RATE = 20, 0.3


@dataclass(frozen=True)
class StepSizes:
    """
    Attributes:
        sizes: group -> step size.
        losses: on validation rows after the unrolled steps, for the step sizes of each round; the first one is of the start.
    """

    sizes: Mapping[str, float]
    losses: tuple[float, ...]


def step_sizes(
    parameters: Parameters,
    groups: Mapping[str, Sequence[str]],
    train: Loss,
    validation: Callable[[Parameters], Tensor],
    *,
    start: float = 1e-3,
    steps: int = 50,
    rounds: int = OUTER_STEPS,
) -> StepSizes:
    """Step sizes with which Adam makes the validation loss small within so many steps from these parameters.

    The steps of all rounds see the same rows, so that only the step sizes differ between rounds.

    Args:
        parameters: name -> where training starts; they stay as they are.
        groups: name -> names of its parameters; parameters of no group stay where they are.
        train: the loss that is trained on, differentiable twice.
        start: the step size of all groups at first.
    """
    logs = torch.full((len(groups),), math.log(start), dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logs], lr=OUTER_RATE, betas=(0.9, 0.99))
    best, losses = logs.detach().clone(), []
    for _ in range(rounds):
        loss, gradient = unrolled_adam(parameters, groups, logs.detach(), train, validation, steps)
        if not math.isfinite(loss) or not bool(gradient.isfinite().all()):
            break
        losses.append(loss)
        if loss == min(losses):
            best = logs.detach().clone()
        logs.grad = gradient
        optimizer.step()
    return StepSizes(dict(zip(groups, best.exp().tolist(), strict=True)), tuple(losses))


def unrolled_adam(
    parameters: Parameters,
    groups: Mapping[str, Sequence[str]],
    logs: Tensor,
    train: Loss,
    validation: Callable[[Parameters], Tensor],
    steps: int,
) -> tuple[float, Tensor]:
    """The validation loss after so many steps of Adam, and its derivative by the logarithms of the step sizes."""
    at = logs.detach().clone().requires_grad_()
    rates = at.exp()
    rate_of = {name: rates[i] for i, names in enumerate(groups.values()) for name in names}
    now = {name: p.detach().clone() for name, p in parameters.items()}
    for name in rate_of:
        now[name].requires_grad_()
    first = {name: torch.zeros_like(now[name]) for name in rate_of}
    second = {name: torch.zeros_like(now[name]) for name in rate_of}
    for step in range(steps):
        slopes = torch.autograd.grad(train(now, step), [now[name] for name in rate_of], create_graph=True)
        for (name, rate), slope in zip(rate_of.items(), slopes, strict=True):
            first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * slope
            second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * slope.square()
            mean = first[name] / (1 - BETAS[0] ** (step + 1))
            # The root has no derivative at 0, where a parameter hasn't moved: torch's Adam adds epsilon after it.
            spread = (second[name] / (1 - BETAS[1] ** (step + 1)) + EPSILON**2).sqrt()
            now[name] = now[name] - rate * mean / spread
    loss = validation(now)
    return float(loss.detach()), torch.autograd.grad(loss, at)[0]
