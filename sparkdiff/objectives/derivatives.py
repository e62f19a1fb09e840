"""Losses with a closed-form derivative with respect to the margin (the number or vector per row from which a predictor's
loss is computed), for the most common predictors; autograd handles the others.

On the small tensors of a step, autograd's bookkeeping takes several times as long as the arithmetic.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.rows import on_gpu

Derivative = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(margin (K, n) or (K, n, k), label (n,)) -> loss (K, n) and its derivative with respect to the margin, shaped like
the margin; for K candidates.
"""


def derivative(name: str, power: float | None, head: Predictor) -> Derivative | None:
    """The closed form of a loss on a predictor, given the name of the loss and, for a deviance, the power of the mean
    in the variance; None if there is none.
    """
    link = head.margin_link
    if name == "squared" and link == "identity":
        return _squared_error
    if power is not None and link == "log":
        return {1.0: _poisson, 2.0: _gamma}.get(power)
    if name == "hinge" and head.classes == 2 and not head.wide:
        return _hinge
    if name == "logLoss":
        return {"logit": _sigmoid, "softmax": _softmax}.get(link)
    return None


def _squared_error(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    residual = margin - y
    return residual * residual, 2 * residual


# Half the unit deviances at the mean exp(margin). Spark also keeps the mean away from 0 and infinity, by constants that
# are far beyond any finite loss.


def _poisson(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    mean = margin.exp()
    return mean - y * margin + (torch.special.xlogy(y, y) - y), mean - y


def _gamma(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    ratio = y * torch.exp(-margin)
    return ratio - 1 + margin - y.log(), 1 - ratio


def _sigmoid(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return F.softplus(margin) - y * margin, torch.sigmoid(margin) - y


def _hinge(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    sign = 2 * y - 1
    loss = (1 - sign * margin).clamp_min(0)
    return loss, torch.where(sign * margin <= 1, -sign, 0.0)


def _softmax(margin: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    log = torch.log_softmax(margin, 2)
    if on_gpu(margin):  # where gather and scatter_add_ are faster on the CPU, see `formulas.of_label`
        own = y[:, None] == torch.arange(margin.shape[2], dtype=y.dtype, device=y.device)
        return -torch.where(own, log, 0.0).sum(2), log.exp() - own.to(log.dtype)
    index = y.long().expand(len(margin), -1)[:, :, None]
    loss = -log.gather(2, index)[:, :, 0]
    return loss, log.exp_().scatter_add_(2, index, torch.full_like(index, -1, dtype=log.dtype))
