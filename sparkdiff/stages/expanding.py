"""Stages that multiply features: PolynomialExpansion."""

import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from sparkdiff.stages.base import StageModule, register
from sparkdiff.tensors.rows import NEVER, ORDINARY, Rows, SparseRows, offsets_of, without_zeros

CPU = torch.device("cpu")


@register("pyspark.ml.feature.PolynomialExpansion")
class PolynomialExpansion(StageModule):
    """All monomials of degree 1 to `degree`, in Spark's order: a, a^2, b, ab, b^2 for (a, b). Sparse stays sparse.

    A monomial is multiplied from its last feature to its first, and a product that has become 0 stays 0: b * a is 0 for
    b = 0 and a = inf, but NaN for b = inf and a = 0. Entries that a sparse row does not store are ignored.

    Source: org.apache.spark.ml.feature.PolynomialExpansion.expandDense and expandSparse.
    """

    expands = True
    tells_zeros = ORDINARY

    def __init__(self, degree: int):
        super().__init__()
        self.degree = degree

    @classmethod
    def from_spark(cls, stage: Any) -> "PolynomialExpansion":
        return cls(int(stage.getDegree()))

    def forward(self, x: Rows) -> Rows:  # (n, d) -> (n, C(d + degree, degree) - 1)
        out = self.sparse_products(x) if isinstance(x, SparseRows) else self.dense_products(x)
        return without_zeros(out, x) if self.exact_beyond < NEVER else out

    def dense_products(self, x: Tensor) -> Tensor:
        levels, place = monomials(x.shape[1], self.degree, x.device)
        products = [x.new_ones(len(x), 1)]
        for shorter, feature in levels:
            products.append(times(products[-1][:, shorter], x[:, feature]))
        return torch.cat(products[1:], 1)[:, place]

    def sparse_products(self, x: SparseRows) -> SparseRows:
        # For each product: the row's first entry, and the last entry that may be its next factor.
        begin, last = x.offsets[:-1], x.offsets[1:] - 1
        of, product = torch.arange(len(x), device=x.device), x.values.new_ones(len(x))
        place = torch.full_like(of, -1)
        found = []
        for level in range(self.degree):
            number = last - begin[of] + 1
            longer = torch.repeat_interleave(torch.arange(len(number), device=x.device), number)
            entry = begin[of][longer] + torch.arange(len(longer), device=x.device) - (number.cumsum(0) - number)[longer]
            of, last = of[longer], entry
            product = times(product[longer], x.values[entry])
            place = place[longer] + monomial_offsets(x.width, self.degree - level, x.device)[x.indices[entry]]
            kept = product != 0
            of, last, product, place = of[kept], last[kept], product[kept], place[kept]
            found.append((of, place, product))
        row, place, product = (torch.cat(parts) for parts in zip(*found, strict=True))
        width = math.comb(x.width + self.degree, self.degree) - 1
        order = torch.argsort(row * width + place)
        offsets = offsets_of(torch.bincount(row, minlength=len(x)))
        return SparseRows(place[order], product[order], offsets, width)


def times(product: Tensor, factor: Tensor) -> Tensor:
    """Elementwise product * factor, but 0 where `product` is 0, also for a factor that is infinite or NaN. The
    derivative is that of a product wherever the factor is finite.
    """
    return torch.where((product == 0) & ~factor.isfinite(), 0.0, product * factor)


@cache
def monomial_offsets(width: int, degree: int, device: torch.device = CPU) -> Tensor:
    """Number of monomials up to this degree, the constant 1 included, of the features before each feature; (width,)."""
    return torch.tensor([math.comb(j + degree, degree) for j in range(width)], dtype=torch.int64, device=device)


@cache
def monomials(width: int, degree: int, device: torch.device = CPU) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
    """Steps that build the monomials degree by degree, by multiplication, and the monomials' places in the output.

    Returns:
        for each degree and each of its monomials: the number of the monomial of one degree less, and the feature that
            multiplies it, which is not later than any feature of that monomial; and for each place of the output, the
            number of its monomial, counted degree by degree.
    """
    if device != CPU:
        levels, place = monomials(width, degree)
        return [(shorter.to(device), last.to(device)) for shorter, last in levels], place.to(device)
    last, place = torch.tensor([width - 1]), torch.tensor([-1])
    levels, places = [], []
    for level in range(degree):
        number = last + 1
        shorter = torch.repeat_interleave(torch.arange(len(last)), number)
        last = torch.arange(len(shorter)) - (number.cumsum(0) - number)[shorter]
        place = place[shorter] + monomial_offsets(width, degree - level)[last]
        levels.append((shorter, last))
        places.append(place)
    return levels, torch.argsort(torch.cat(places)) if places else torch.empty(0, dtype=torch.int64)
