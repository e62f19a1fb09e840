"""Formulas of losses and penalties on plain tensors, independent of predictors and options.

Two classes may be passed as one margin (n,), the log-odds of class 1, or in softmax form (n, k); k classes as (n, k).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.tensors.rows import on_gpu

TINY = 1e-300
KERNEL_WIDTH = 0.2  # of the kernel on confidences in `calibration_error`, as in Kumar et al. (2018)


def half_deviance(mu: Tensor, y: Tensor, power: float, floor: float | None = None) -> Tensor:
    """Half the unit deviance of the Tweedie family with variance mu^power; 1 is Poisson, 2 gamma. (n,), (n,) -> (n,)

    Below a mean of `floor` it continues as a parabola with the same value and slope, which is steep enough that the loss
    is never smallest at a mean < 0.
    """
    at = mu if floor is None else mu.clamp_min(floor)
    if power == 1:
        d = torch.special.xlogy(y, y) - torch.special.xlogy(y, at) - (y - at)
    elif power == 2:
        d = torch.log(at / y) + (y - at) / at
    else:
        left = y ** (2 - power) / ((1 - power) * (2 - power))
        d = left - y * at ** (1 - power) / (1 - power) + at ** (2 - power) / (2 - power)
    if floor is None:
        return d
    slope = (floor - y) * floor**-power
    curvature = torch.maximum(power * y * floor ** (-power - 1) + (1 - power) * floor**-power, slope.abs() / floor)
    below = (mu - floor).clamp_max(0)
    return d + slope * below + curvature / 2 * below**2


def pinball(prediction: Tensor, y: Tensor, tau: float) -> Tensor:
    """Quantile loss: tau * (y - prediction) for a label above the prediction, (1 - tau) * (prediction - y) for a label
    below it (Koenker & Bassett 1978). (n,), (n,) -> (n,)
    """
    miss = y - prediction
    return torch.maximum(tau * miss, (tau - 1) * miss)


def probabilities(margin: Tensor) -> Tensor:
    """Probabilities of the classes, (n,) -> (n, 2) or (n, k) -> (n, k). For one margin both are accurate: that of class 0
    doesn't become 0 for a large margin, as 1 - p would.
    """
    return torch.stack([torch.sigmoid(-margin), torch.sigmoid(margin)], 1) if margin.ndim == 1 else margin.softmax(1)


def log_loss(p: Tensor, y: Tensor) -> Tensor:
    """-y log p - (1 - y) log(1 - p) of a probability. (n,), (n,) -> (n,)"""
    return -torch.special.xlogy(y, p) - torch.special.xlogy(1 - y, 1 - p)


def hinge(margin: Tensor, y: Tensor) -> Tensor:
    """max(0, 1 - s * margin) with s = -1 for class 0 and 1 for class 1; for k classes max(0, 1 + the largest margin of
    another class - the margin of the label's class).

    Source: Cortes & Vapnik (1995); Crammer & Singer (2001). (n,) or (n, k), (n,) -> (n,)
    """
    if margin.ndim == 1:
        return (1 - (2 * y - 1) * margin).clamp_min(0)
    own = F.one_hot(y.long(), margin.shape[1]).bool()
    others = margin.masked_fill(own, -torch.inf).amax(1)
    return (1 + others - of_label(margin, y)).clamp_min(0)


def of_label(margin: Tensor, y: Tensor) -> Tensor:
    """The entry of each row in the column of its label's class. (n, k), (n,) -> (n,)"""
    if on_gpu(margin):  # deterministic kernels of scatter_add_, which is gather's derivative, wait for the GPU
        own = y[:, None] == torch.arange(margin.shape[1], dtype=y.dtype, device=y.device)
        return torch.where(own, margin, 0.0).sum(1)
    return margin.gather(1, y.long()[:, None])[:, 0]


def focal(margin: Tensor, y: Tensor, gamma: float) -> Tensor:
    """(1 - p)^gamma * -log p of the label's class (Lin et al. 2017). (n,) or (n, k), (n,) -> (n,)"""
    if margin.ndim == 1:
        own = (2 * y - 1) * margin
        log_p, log_rest = F.logsigmoid(own), F.logsigmoid(-own)
    else:
        label, total = F.one_hot(y.long(), margin.shape[1]).bool(), margin.logsumexp(1)
        log_p, log_rest = of_label(margin, y) - total, margin.masked_fill(label, -torch.inf).logsumexp(1) - total
    return -torch.exp(gamma * log_rest) * log_p


def brier(p: Tensor, y: Tensor) -> Tensor:
    """The Brier score (1950): (p - y)^2 of class 1 for two classes, the sum of (p_k - 1[y = k])^2 over k for several.

    Brier's original score also sums over the classes if there are two, which gives twice as much; this definition
    matches scikit-learn's brier_score_loss. (n,) of class 1 or (n, k), (n,) -> (n,)
    """
    if p.ndim == 1:
        return (p - y) ** 2
    came = F.one_hot(y.long(), p.shape[1])
    return ((p - came) ** 2).sum(1) / (2.0 if p.shape[1] == 2 else 1.0)


def mean_cost(score: Tensor, y: Tensor, costs: Tensor) -> Tensor:
    """Expected cost of a row: the costs in the label's row of `costs` (k, k), averaged with the probabilities that the
    score gives to the classes. (n,) or (n, k), (n,) -> (n,)
    """
    return (costs[y.long()] * probabilities(score)).sum(1)


def pairwise_logistic(score: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of log(1 + exp(-(score_i - score_j))) over all pairs of a row i of class 1 and a row j of class 0.

    Divided by log 2, it is a smooth upper bound of 1 - AUC, and its minimum also minimises 1 - AUC in the limit (it is
    consistent: Gao & Zhou 2015). 0 if a class is missing.
    (n,), (n,), (n,) -> (); needs memory for every pair, on a GPU also for pairs of the same class.
    """
    up, down = (y > 0.5) & (weight > 0), (y <= 0.5) & (weight > 0)
    if on_gpu(score):
        score = torch.where(up | down, score, 0.0)
        high, low = torch.where(up, weight, 0.0), torch.where(down, weight, 0.0)
        pairs = F.softplus(score[None, :] - score[:, None])
        return (high / high.sum().clamp_min(TINY)) @ pairs @ (low / low.sum().clamp_min(TINY))
    if not bool(up.any() & down.any()):
        return score.sum() * 0.0
    pairs = F.softplus(score[down][None, :] - score[up][:, None])
    high, low = weight[up], weight[down]
    return (high / high.sum()) @ pairs @ (low / low.sum())


def calibration_error(margin: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """MMCE (Kumar, Sarawagi & Jain 2018): root of sum_ij (c_i - r_i) (c_j - r_j) exp(-|r_i - r_j| / 0.2) w_i w_j / W^2.

    r is the probability of the most likely class (the confidence), and c is 1 if that class is the label, else 0. W is
    the sum of the weights w. For calibrated confidences its square is of the order of 1 / n.
    (n,) or (n, k), (n,), (n,) -> (); needs memory for every pair.
    """
    counted, total = weight > 0, weight.sum().clamp_min(TINY)
    if on_gpu(margin):
        margin = torch.where(counted if margin.ndim == 1 else counted[:, None], margin, 0.0)
        every = probabilities(margin)
        found = every.argmax(1)
        confidence, w = of_label(every, found), torch.where(counted, weight, 0.0) / total
    else:
        confidence, found = probabilities(margin[counted]).max(1)
        w, y = weight[counted] / total, y[counted]
    residual = w * ((found == y).to(confidence.dtype) - confidence)
    kernel = torch.exp(-(confidence[:, None] - confidence[None, :]).abs() / KERNEL_WIDTH)
    return (residual @ kernel @ residual).clamp_min(1e-30).sqrt()


def between_groups(prediction: Tensor, groups: Tensor, weight: Tensor) -> Tensor:
    """Sum of share_g * share_h * (gap between the groups' weighted means)^2 over all pairs of groups g, h; a group's
    share is its fraction of the total weight.

    It is computed as the variance between groups, which equals this sum. A second dimension of the prediction is summed
    over.
    (n,) or (n, c), (n,) int64, (n,) -> ()
    """
    columns, counted = prediction[:, None] if prediction.ndim == 1 else prediction, weight > 0
    if on_gpu(columns):  # as many groups as rows, most of them empty: avoids waiting for their number
        columns, w = torch.where(counted[:, None], columns, 0.0), torch.where(counted, weight, 0.0)
        ascending, order = groups.sort(stable=True)
        code = torch.zeros_like(groups).index_put((order,), F.pad(ascending.diff() != 0, (1, 0)).cumsum(0))
        number = len(groups)
    else:
        columns, w = columns[counted], weight[counted]
        found, code = groups[counted].unique(return_inverse=True)
        number = len(found)
    share = w.new_zeros(number).index_add(0, code, w)
    sums = columns.new_zeros(number, columns.shape[1]).index_add(0, code, columns * w[:, None])
    total = share.sum().clamp_min(TINY)
    gaps = sums / (share.clamp_min(TINY) if on_gpu(columns) else share)[:, None] - sums.sum(0) / total
    return (share[:, None] / total * gaps**2).sum()


def index(y: Tensor, classes: int) -> Tensor:
    """Labels as class indices (n,) int64. An invalid label, which only a row of weight 0 may have, becomes some
    class.
    """
    return y.nan_to_num().clamp(0, classes - 1).long()


def rank_score(scores: Tensor) -> Tensor:
    """The score (n,) by which rows of two classes are ranked: scores (n,) themselves or, for scores (n, 2), that of class 1
    minus that of class 0. For margins in softmax form this is the log-odds of class 1.
    """
    return scores if scores.ndim == 1 else scores[:, 1] - scores[:, 0]
