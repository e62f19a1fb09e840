"""A soft choice between alternatives, trained with the penalties on held-out rows, then hardened to one per place, and
improved.

The columns of all alternatives of a place enter a linear model together; columns of alternative a are multiplied by
softmax(gates)_a. Each column has its own weight. A gate is equivalent to dividing the penalty of the unscaled columns
by the square of softmax(gates)_a, so derivatives with respect to gates follow from those with respect to penalties.
Source: Liu, Simonyan, Yang, "DARTS: Differentiable architecture search" (2019).

A mixture may rely on an alternative that is poor alone. So the gates' choice is only the start of a search that fits
models with one alternative per place: it takes the best alternative at one place after another, until no place changes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.tensors.light_torch import dot
from sparkdiff.tuning.hypergradients.penalties import Point, best_single, towards
from sparkdiff.tuning.hypergradients.weights import LinearModel

STEPS, RATE = 30, 0.2


@dataclass(frozen=True)
class ChosenAlternatives:
    """The result of a soft choice.

    Attributes:
        positions: index of the chosen alternative, for each place.
        gates: for each place the share of each alternative; the search for `positions` started from the alternatives
            with the largest shares.
        losses: the mixture's loss on held-out rows at each step.
    """

    positions: tuple[int, ...]
    gates: tuple[Tensor, ...]
    losses: tuple[float, ...]


def choose_alternatives(
    model: LinearModel,
    places: Sequence[Sequence[Sequence[int]]],
    grid: Sequence[float],
    steps: int = STEPS,
    fits: Sequence[float] = (),
) -> ChosenAlternatives | None:
    """The alternative that training prefers at each place; None if no penalty of the grid has a solution.

    Args:
        model: a linear model with the columns of all alternatives.
        places: for each place and each alternative the alternative's groups of columns; empty if it is no stage. Groups
            that belong to no place are always used, each with its own penalty; all groups of a place share a penalty.
        grid: penalties to try for all columns together; training starts from the best one.
        fits: penalties to try for each model with one alternative per place, which is judged at its best one. Empty:
            those of the grid.
    """
    single = best_single(model, grid)
    if single is None:
        return None
    owner = {g: (p, a) for p, place in enumerate(places) for a, some in enumerate(place) for g in some}
    fixed = [g for g in range(model.groups) if g not in owner]
    penalty_of = torch.tensor(
        [owner[g][0] if g in owner else len(places) + fixed.index(g) for g in range(model.groups)]
    )
    penalties = torch.full((len(places) + len(fixed),), float(single.logs[0]), dtype=torch.float64, requires_grad=True)
    gates = [torch.zeros(len(place), dtype=torch.float64, requires_grad=True) for place in places]

    def logs() -> Tensor:
        shares = [torch.log_softmax(gate, 0) for gate in gates]
        zero = penalties.new_zeros(())
        own = [shares[owner[g][0]][owner[g][1]] if g in owner else zero for g in range(model.groups)]
        return penalties[penalty_of] - 2 * torch.stack(own)

    optimizer = torch.optim.Adam([penalties, *gates], lr=RATE, betas=(0.9, 0.99))
    now: Point | None = towards(model, single, logs().detach())
    losses = []
    for _ in range(steps):
        if now is None:
            break
        losses.append(now.loss)
        optimizer.zero_grad()
        dot(logs(), now.gradient).backward()
        optimizer.step()
        now = towards(model, now, logs().detach())
    shares = tuple(gate.detach().softmax(0) for gate in gates)
    hardened = tuple(int(s.argmax()) for s in shares)
    return ChosenAlternatives(improve_positions(model, places, hardened, grid, fits), shares, tuple(losses))


def improve_positions(
    model: LinearModel,
    places: Sequence[Sequence[Sequence[int]]],
    start: tuple[int, ...],
    grid: Sequence[float],
    fits: Sequence[float] = (),
) -> tuple[int, ...]:
    """The positions (one alternative per place) from which no change at one place lowers the loss on held-out rows.

    Each model is judged at its best penalty: the best of `fits`, or of the grid if `fits` has none with a solution.
    """
    known: dict[tuple[int, ...], float] = {}

    def loss(positions: tuple[int, ...]) -> float:
        if positions not in known:
            left_out = {
                g
                for place, p in zip(places, positions, strict=True)
                for a, gs in enumerate(place)
                for g in gs
                if a != p
            }
            own = model.without(left_out)
            found = None
            if own is not None:
                found = best_single(own, fits) if fits else None
                found = best_single(own, grid) if found is None else found
            known[positions] = found.loss if found is not None else math.inf
        return known[positions]

    now, turned = start, True
    while turned:
        turned = False
        for i, place in enumerate(places):
            others = [(*now[:i], a, *now[i + 1 :]) for a in range(len(place))]
            best = min(others, key=lambda o: (loss(o), o != now))
            turned, now = turned or best != now, best
    return now
