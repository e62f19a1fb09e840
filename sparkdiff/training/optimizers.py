"""First-order optimizers of a matrix of candidates with a rate per entry: torch's own kernels without its bookkeeping.

torch.optim.Optimizer.step spends several times as long on hooks and groups as its fused kernel does on a step this small.

Where a batch reaches few of the entries, the others have no gradient but the anchor's, regAnchor * u. They aren't touched at the
step: before the next one that reaches them they are brought to where those steps would have taken them (`Behind`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.optim.adam import adam

DECAY = 1e-2  # of torch.optim.AdamW
BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # of torch.optim.Adam
FADED = 400
"""Steps after which nothing is left of a first moment: 0.9^400 = 5e-19."""
SETTLED = 48
"""Steps after which a first moment is the last gradients': 0.9^48 = 0.006."""
TOGETHER = 1 << 14
"""Entries that catch up at a time: the two dozen temporaries of these stay in a processor's cache."""


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


class Behind:
    """How many steps each entry is behind, and what they would have done to it without a gradient but the anchor's.

    Of `sgd`, and of `adam` without an anchor, that is a product or a sum of powers, and exact but for Adam's epsilon (and AdamW's
    decay of what the first moment still adds). Adam with an anchor has no closed form. For the first 48 steps the pair of u and
    its first moment is taken through a linear recursion in closed form, with the step length at the second moment halfway; after
    them u decays at the rate of step length * regAnchor / sqrt(second moment), integrated by Simpson's rule. What is left is an
    error of up to a hundredth of a move.

    Args:
        size: entries p.
        ema: (K, 1) decay of the averages over steps, None where there are none.
    """

    def __init__(self, kind: str, size: int, anchor: Tensor, ema: Tensor | None):
        self.kind, self.anchor, self.ema = kind, anchor, ema
        self.since = torch.zeros(size, dtype=torch.int32)  # the step after which each was last up to date
        self.fades = (BETA1 / math.sqrt(BETA2)) ** torch.arange(FADED, 0, -1, dtype=torch.float64)
        self.epsilon = EPSILON  # in the scale of second moments that aren't corrected for their start
        self._keep(torch.zeros(3, 1, dtype=torch.float64))

    def _keep(self, tables: Tensor) -> None:
        """Take these sums of the steps so far, (3, steps + 1), and make room for more of them.

        The first of step i is the sum over the steps after it of what each of them adds to u for a first moment of 1, the others
        are sums up to it, of Adam's step lengths and of the learning rates.
        """
        self.now = tables.shape[1] - 1
        self.tables = torch.zeros(3, max(256, 2 * tables.shape[1]), dtype=torch.float64)
        self.tables[:, : tables.shape[1]] = tables
        self.momentum, self.moved, self.rates = self.tables
        steps = torch.arange(self.tables.shape[1], dtype=torch.float64)
        self.first, self.second, self.half = BETA1**steps, BETA2**steps, BETA2 ** (steps / 2)

    def stepped(self, learningRate: float, number: int) -> None:
        """Take note of a step, Adam's `number`-th."""
        n = self.now
        if n + 2 > self.tables.shape[1]:
            self._keep(self.tables[:, : n + 1])
        unbiased = math.sqrt(1 - BETA2**number)
        length = learningRate * unbiased / (1 - BETA1**number)
        self.epsilon = EPSILON * unbiased
        low = max(0, n + 1 - FADED)
        self.momentum[low : n + 1] += length * self.fades[FADED - (n + 1 - low) :]
        self.moved[n + 1] = self.moved[n] + length
        self.rates[n + 1] = self.rates[n] + learningRate
        self.now = n + 1

    def none(self) -> None:
        """All entries are up to date."""
        self.since.zero_()
        self.tables.zero_()
        self.now = 0

    def catch_up(
        self, u: Tensor, moments: tuple[Tensor, Tensor], since: Tensor, rate: Tensor | None, average: Tensor | None
    ) -> None:
        """Bring entries (K, q), which have been as they are since these steps (q,), up to date, in place."""
        matrices = [u, *moments] if average is None else [u, *moments, average]
        behind = (since < self.now).nonzero()[:, 0]  # those of the span before aren't, half of all
        for places in behind.split(max(1, TOGETHER // len(u))):
            now = [m.index_select(1, places) for m in matrices]
            own = None if rate is None else _at(rate, places)
            self._part(now[0], (now[1], now[2]), since.index_select(0, places), own, now[3] if len(now) > 3 else None)
            for matrix, part in zip(matrices, now, strict=True):
                matrix.index_copy_(1, places, part)

    def _part(
        self, u: Tensor, moments: tuple[Tensor, Tensor], since: Tensor, rate: Tensor | None, average: Tensor | None
    ) -> None:
        since = since.long()
        steps = self.now - since
        before = u.clone() if average is not None else u
        scale = torch.ones(1, 1, dtype=torch.float64) if rate is None else rate
        if self.kind != "adam":
            rates = (self.rates[self.now] - self.rates.index_select(0, since)) / steps.clamp_min(1) * scale
            decay = self.anchor if self.kind == "sgd" else DECAY
            u *= torch.exp(steps * torch.log1p(-rates * decay))
        if self.kind != "sgd":
            self._as_adam(u, *moments, since, steps, scale)
        if average is not None:
            assert self.ema is not None
            kept = self.ema**steps
            late = 1 - self.ema * (1 - kept) / (steps.clamp_min(1) * (1 - self.ema))  # as if u had moved evenly
            average.mul_(kept).add_(before * (1 - kept - late)).add_(u * late)

    def _as_adam(self, u: Tensor, mean: Tensor, square: Tensor, since: Tensor, steps: Tensor, scale: Tensor) -> None:
        anchor = self.anchor
        early = steps.clamp_max(SETTLED)
        turn = since + early
        at_turn, fade = self.moved.index_select(0, turn), self.first.index_select(0, early)
        # While the first moment fades, (u, mean) goes through the powers of [[1 - pull, -length * BETA1], [(1 - BETA1) * anchor,
        # BETA1]], whose determinant is BETA1: A^n = s(n) * A - BETA1 * s(n - 1), where s(n) is of its two eigenvalues.
        flat = (anchor * u).square_()
        middle = torch.addcmul(flat, square - flat, self.half.index_select(0, early)).sqrt_().add_(self.epsilon)
        length = (at_turn - self.moved.index_select(0, since)) / early.clamp_min(1) * scale / middle
        length = torch.minimum(length, 1 / ((1 - BETA1) * anchor))
        half = (1 + BETA1) / 2 - (0.5 * (1 - BETA1)) * anchor * length
        inner = half.square() - BETA1
        apart = inner.abs().sqrt_().clamp_min_(1e-7)  # half the eigenvalues' distance
        larger = half + apart
        power = torch.exp(early * torch.log(larger))
        now, before = (
            (power - fade / power) / (2 * apart),
            (power / larger - fade / BETA1 * larger / power) / (2 * apart),
        )
        if len(swings := (inner.view(-1) < 0).nonzero()[:, 0]):

            def there(x: Tensor) -> Tensor:
                return x.expand_as(u).reshape(-1).index_select(0, swings)

            angle, n = torch.atan2(there(apart), there(half)), there(early)
            size = there((fade / BETA1).sqrt()) / angle.sin()
            now.view(-1).index_copy_(0, swings, size * torch.sin(n * angle))
            before.view(-1).index_copy_(0, swings, size / math.sqrt(BETA1) * torch.sin((n - 1) * angle))
        kick = BETA1 * mean + (1 - BETA1) * anchor * u
        # Without an anchor the fading can be summed step by step.
        exact = self.momentum.index_select(0, since) * scale / (square.sqrt().add_(self.epsilon))
        exact -= length * (BETA1 / (1 - BETA1)) * (1 - fade)
        u.copy_(now * (u - length * kick) - BETA1 * before * u - exact * mean)
        mean.copy_(now * kick - BETA1 * before * mean)
        # Then it is the anchor's gradient, and u decays.
        flat = (anchor * u).square_()
        torch.addcmul(flat, square - flat, self.second.index_select(0, early), out=square)
        if len(places := (steps > SETTLED).nonzero()[:, 0]):
            every, late = (u, mean, square), (steps - early).index_select(0, places)
            u, mean, square, flat = (x.index_select(1, places) for x in (*every, flat))
            left = self.moved[self.now] - at_turn.index_select(0, places)
            own = square - flat
            slow = square.sqrt().add_(self.epsilon).reciprocal_()
            slow += 4 / torch.addcmul(flat, own, self.half.index_select(0, late)).sqrt_().add_(self.epsilon)
            torch.addcmul(flat, own, self.second.index_select(0, late), out=square)
            slow += 1 / square.sqrt().add_(self.epsilon)
            u *= torch.exp(slow * (anchor / -6) * (left * _at(scale, places)))
            flat = anchor * u
            torch.addcmul(flat, mean - flat, self.first.index_select(0, late), out=mean)
            for x, part in zip(every, (u, mean, square), strict=True):
                x.index_copy_(1, places, part)

    def state(self) -> dict[str, Any]:
        return {"since": self.since, "tables": self.tables[:, : self.now + 1], "epsilon": self.epsilon}

    def load(self, state: dict[str, Any]) -> None:
        self.since.copy_(state["since"])
        self._keep(state["tables"])
        self.epsilon = state["epsilon"]


def _at(rate: Tensor, places: Tensor) -> Tensor:
    """The rates (K, q) of these entries; one for all (K, 1) as it is."""
    return rate if rate.shape[1] == 1 else rate.index_select(1, places)
