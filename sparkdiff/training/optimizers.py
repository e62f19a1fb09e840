"""First-order optimizers for a matrix of candidates with a learning rate per entry; they use torch's own kernels.

torch.optim.Optimizer.step spends several times as long on hooks and groups as its fused kernel does on a step this small.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

DECAY = 1e-2  # of torch.optim.AdamW
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.Adam


class FirstOrder:
    """Steps of `adam`, `adamw` (with torch's defaults) or `sgd` on u (K, p) along a gradient.

    Args:
        rate: (K, p) or broadcastable, what each entry's step is multiplied by; None for 1.
    """

    def __init__(self, kind: str, u: Tensor, rate: Tensor | None):
        self.kind, self.rate = kind, rate
        self.mean, self.square = torch.zeros_like(u), torch.zeros_like(u)
        self.steps = torch.tensor(0.0)

    def step(
        self, u: Tensor, gradient: Tensor, learningRate: float, moments: tuple[Tensor, Tensor], rate: Tensor | None
    ) -> None:
        """A step of some entries or all, in place; `moments` and `rate` are theirs."""
        before = None if rate is None else u.clone()
        if self.kind == "sgd":
            u.add_(gradient, alpha=-learningRate)
            self.steps += 1
        else:
            if self.kind == "adamw":
                u.mul_(1 - learningRate * DECAY)
            adam(
                [u], [gradient], [moments[0]], [moments[1]], [], [self.steps], fused=True, amsgrad=False, maximize=False,
                lr=learningRate, beta1=BETA1, beta2=BETA2, eps=EPSILON, weight_decay=0.0,
            )  # fmt: skip
        if rate is not None:
            # Outside of the kernel, so that it is a rate whatever the kernel does to the gradient.
            assert before is not None
            torch.lerp(before, u, rate, out=u)

    def state(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "square": self.square, "steps": self.steps}

    def load(self, state: dict[str, Tensor]) -> None:
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.steps.copy_(state["steps"])
