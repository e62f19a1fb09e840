"""Values far from all other values of their column, such as a number that stands for a missing value."""

from collections.abc import Mapping

import torch
from torch import Tensor

from sparkdiff.tensors.rows import Rows, SparseRows

FAR, NEXT = 30.0, 5.0  # an isolated outlier: multiples of the others' root mean square, and of the next value
FARTHEST = 1000.0  # an outlier whatever its neighbours are: a multiple of the others' root mean square


class Spread:
    """The value farthest from the usual value, and the spread of the other values, for each slot of a column on one
    split.

    A slot is an entry of a vector column, or a scalar column.

    The mean square distance of the other values excludes every occurrence of the farthest value, so that a sentinel
    value does not enlarge the spread with which it is compared.

    Args:
        usual: (w,) the usual value of each slot, such as its median.
    """

    def __init__(self, usual: Tensor) -> None:
        self.usual = usual  # (w,)
        self.far, self.next, self.square = (torch.zeros_like(usual) for _ in range(3))
        self.count, self.others = (torch.zeros(len(usual), dtype=torch.int32) for _ in range(2))
        self.above = torch.zeros(
            len(usual), dtype=torch.bool
        )  # whether the farthest value is larger than the usual one

    def add(self, x: Rows) -> None:
        """Add a batch (n, w). Non-finite values count as the usual value, because where they matter, the loss rejects
        them.
        """
        at: Tensor | slice = slice(None)  # slots with values to add
        if isinstance(x, SparseRows):
            at, x = x.compact()
            usual, w, i = self.usual[at], x.width, x.indices
            away = (x.values - usual[i]).abs().nan_to_num(0.0, 0.0)
            zeros = torch.zeros(w, dtype=away.dtype)
            far = zeros.scatter_reduce(0, i, away, "amax")
            top = away == far[i]
            rest = torch.where(top, 0.0, away)
            count = torch.bincount(i[top], minlength=w)
            above = torch.zeros(w, dtype=torch.bool).index_put((i[top],), x.values[top] > usual[i[top]])
            following = zeros.scatter_reduce(0, i, rest, "amax")
            square, others = zeros.index_add(0, i, rest.square()), torch.bincount(i[rest > 0], minlength=w)
        else:
            away = (x - self.usual).abs().nan_to_num(0.0, 0.0)
            far, row = away.max(0)
            top = away == far
            rest = away.masked_fill(top, 0.0)
            count, above = top.sum(0), x.gather(0, row[None])[0] > self.usual
            following, square, others = rest.amax(0), rest.square().sum(0), (rest > 0).sum(0)
        before, counted, count, others = self.far[at], self.count[at], count.int(), others.int()
        equal, farther = far == before, far > before
        beaten = torch.where(farther, before, far).masked_fill(equal, 0.0)
        number = torch.where(farther, counted, count).masked_fill(beaten == 0, 0)
        self.square[at] += square + number * beaten.square()
        self.others[at] += others + number
        self.next[at] = torch.maximum(torch.maximum(self.next[at], following), beaten)
        self.count[at] = torch.where(equal, counted + count, torch.where(farther, count, counted))
        self.above[at] = torch.where(farther, above, self.above[at])
        self.far[at] = torch.maximum(before, far)

    def farthest(self, slot: int) -> float:
        """The farthest value of a slot."""
        return float(self.usual[slot] + (self.far[slot] if self.above[slot] else -self.far[slot]))

    def support(self) -> Tensor:
        """Number of rows that differ from the usual value, (w,)."""
        return self.others + torch.where(self.far > 0, self.count, 0)


def farness(split: str, spreads: Mapping[str, Spread]) -> Tensor:
    """Ratio of two distances from the usual value: of a split's farthest value, and of the other values, (w,); 0 if not
    extreme.

    The distance of the other values is the root mean square over the other training rows that differ from the usual
    value. If there are fewer than five such rows (rare levels, constant columns), that distance is taken to be at least
    1 and at least the absolute usual value.
    """
    own, base = spreads[split], spreads.get("train", spreads[split])
    # If the training rows' farthest value is nearer than this split's, it is one of the other values, too.
    nearer = (base.far < own.far) & (base.far > 0)
    square = base.square + torch.where(nearer, base.count * base.far.square(), 0.0)
    others = base.others + torch.where(nearer, base.count, 0)
    scale = (square / others.clamp_min(1)).sqrt()
    scale = torch.where(others >= 5, scale, torch.maximum(scale, own.usual.abs().clamp_min(1.0)))
    following = torch.zeros_like(scale)
    for s in spreads.values():
        following = torch.maximum(
            following, torch.where(s.far < own.far, s.far, torch.where(s.next < own.far, s.next, 0.0))
        )
    z = own.far / scale
    return torch.where((z > FARTHEST) | ((z > FAR) & (own.far > NEXT * following)), z, 0.0)
