"""Optimizers of the candidates' vectors: first-order steps, one per batch, and steps along the gradient of all rows.

First-order steps call torch's fused kernel without torch's bookkeeping, which for a step this small takes several times
as long as the kernel: torch.optim.adam.adam, which calls the same kernel, takes four times as long.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.tensors.light_torch import LBFGS
from sparkdiff.training.parameters import NaturalUnits
from sparkdiff.training.recipes import Recipe, by_newton
from sparkdiff.training.updates import DenseUpdates

DECAY = 1e-2  # of torch.optim.AdamW
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.Adam


class FirstOrderSteps:
    """Steps of `adam`, `adamw` (with torch's defaults) or `sgd` on u (K, p) along a gradient.

    Args:
        rate: (K, p) or broadcastable, factor of each entry's step; None for 1.
    """

    def __init__(self, kind: str, u: Tensor, rate: Tensor | None):
        self.kind, self.rate = kind, rate
        self.mean, self.square = torch.zeros_like(u), torch.zeros_like(u)
        self.steps = torch.tensor(
            0.0, dtype=torch.float32, device=u.device
        )  # float32 because torch's kernels read that, whatever the default is

    def step(
        self,
        u: Tensor,
        gradient: Tensor,
        learningRate: float | Tensor,
        moments: tuple[Tensor, Tensor],
        rate: Tensor | None,
    ) -> None:
        """Take a step of some entries or all, in place; `u`, `moments` and `rate` hold these entries only.

        Args:
            learningRate: on a GPU a tensor () there, which a graph of the step reads each time it runs.
        """
        before = None if rate is None else u.clone()
        if self.kind == "sgd":
            if isinstance(learningRate, Tensor):
                u.sub_(learningRate * gradient)
            else:
                u.add_(gradient, alpha=-learningRate)
            self.steps += 1
        else:
            if self.kind == "adamw":
                u.mul_(1 - learningRate * DECAY)
            self.steps += 1
            # CUDA's kernel takes float32 tensors only: take a step of 1, and then the share of it.
            start = u.clone() if isinstance(learningRate, Tensor) else None
            torch._fused_adam_(
                [u],
                [gradient],
                [moments[0]],
                [moments[1]],
                [],
                [self.steps],
                amsgrad=False,
                maximize=False,
                lr=learningRate if start is None else 1.0,
                beta1=BETA1,
                beta2=BETA2,
                eps=EPSILON,
                weight_decay=0.0,
            )
            if start is not None:
                torch.lerp(start, u, learningRate, out=u)
        if before is not None and rate is not None:
            # Outside the kernel, so that it scales the step whatever the kernel does to the gradient.
            torch.lerp(before, u, rate, out=u)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps.copy_(state["steps"])


class EpochSteps:
    """L-BFGS and Newton: one step at the end of an epoch, along the gradient of all its rows.

    Args:
        like: (p,) on the device of the candidates.

    Attributes:
        candidates: indices of the candidates that take such steps.
        gradient, curvature: sums over the epoch so far, (K, p), and (C, p) for the C candidates that take Newton steps.
    """

    def __init__(self, recipes: Sequence[Recipe], like: Tensor):
        size = len(like)
        self.recipes, self.newton = recipes, by_newton(recipes)
        self.lbfgs = {
            k: LBFGS([like.new_zeros(size)], r.learningRate, max_iter=1)
            for k, r in enumerate(recipes)
            if r.optimizer == "lbfgs"
        }
        self.candidates = [*self.lbfgs, *self.newton]
        self.gradient = like.new_zeros(len(recipes) if self.candidates else 0, size)
        self.curvature = like.new_zeros(len(self.newton), size)

    def add(self, updates: DenseUpdates) -> None:
        """Add a batch's sums to those of the epoch."""
        if self.candidates:
            updates.add_gradient(self.gradient)
        if self.newton:
            self.curvature += updates.matrix.curvature

    def step(self, u: Tensor, start: Tensor, units: NaturalUnits, anchor: Tensor, factor: float) -> None:
        """Take the steps on u (K, p), in place; the sums times `factor` are means."""
        if not self.candidates:
            return
        flat, gradient = units.parameters(start, u, torch.empty_like(u)), torch.empty_like(u)
        units.by_u(start, u, flat, self.gradient, gradient)
        gradient *= factor
        for k, optimizer in self.lbfgs.items():
            own = optimizer.param_groups[0]["params"][0]
            own.copy_(u[k])
            own.grad = gradient[k] + self.recipes[k].regAnchor * own
            optimizer.step(lambda: 0.0)  # type: ignore[arg-type, return-value]
            u[k] = own
        if self.newton:
            curvature = self.curvature * units.unit**2 * factor
            anchor = anchor[self.newton]
            step = (gradient[self.newton] + anchor * u[self.newton]) / (curvature + anchor)
            rates = u.new_tensor([self.recipes[k].learningRate for k in self.newton])[:, None]
            u[self.newton] -= torch.where(curvature > 0, rates * step, 0.0)
        self.gradient.zero_()
        self.curvature.zero_()

    def state(self) -> dict[str, Any]:
        return {  # with the names that the files use
            "whole": self.gradient,
            "bent": self.curvature,
            "slow": {k: optimizer.state_dict() for k, optimizer in self.lbfgs.items()},
        }

    def load(self, state: Mapping[str, Any]) -> None:
        if self.candidates:
            self.gradient.copy_(state["whole"])
            self.curvature.copy_(state["bent"])
        for k, optimizer in self.lbfgs.items():
            optimizer.load_state_dict(state["slow"][k])
