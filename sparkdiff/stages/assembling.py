"""Stages that combine columns: VectorAssembler."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import FILL_GAPS, InputError
from sparkdiff.stages.affine import Affine, AffineForm, Parameters
from sparkdiff.stages.base import register
from sparkdiff.tensors.rows import Rows, SparseRows, known_any, offsets_of

FEW = 16
"""Largest number of rows for which the whole output is checked for NaN first, before the single columns."""


@register("pyspark.ml.feature.VectorAssembler")
class VectorAssembler(Affine):
    """A concatenation of columns in the declared order. A scalar becomes one column; the result is sparse if any input
    is sparse.

    With handleInvalid='error' a null or NaN scalar raises, as in Spark; with 'keep' it becomes NaN.
    """

    storage = "compressed"

    def __init__(self, uid: str, names: tuple[str, ...], keep: bool):
        super().__init__()
        self.uid, self.names, self.keep = uid, names, keep

    @classmethod
    def from_spark(cls, stage: Any) -> "VectorAssembler":
        return cls(stage.uid, cls.inputs(stage), stage.getHandleInvalid() == "keep")

    def forward(self, *columns: Rows) -> Rows:  # scalars (n,) and vectors (n, d_i) -> (n, sum of d_i)
        parts = [c[:, None] if isinstance(c, Tensor) and c.ndim == 1 else c for c in columns]
        strided = [p for p in parts if isinstance(p, Tensor)]
        out = torch.cat(strided, 1) if len(strided) == len(parts) else None
        # For a few rows, one check of the whole output takes less time than a check of each column.
        if not self.keep and (out is None or len(out) > FEW or known_any(out.isnan())):
            self.check(columns)
        return beside(parts) if out is None else out

    def check(self, columns: Sequence[Rows]) -> None:
        """Raise InputError if a scalar is null or NaN."""
        for name, column in zip(self.names, columns, strict=True):
            if isinstance(column, Tensor) and column.ndim == 1 and known_any(column.isnan()):
                raise InputError(
                    f"{self.uid}: column {name!r} holds null or NaN, which handleInvalid='error' refuses: {FILL_GAPS}"
                )

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        return AffineForm(
            list(slope.split(list(widths), -2)), 0.0, lambda gradients, _constant, _room: torch.cat(gradients, -2)
        )

    def narrowed(self, columns: Sequence[Tensor | None], widths: Sequence[int]) -> tuple[Affine, Tensor | None]:
        parts, first = [], 0
        device = next((c.device for c in columns if c is not None), None)
        for reached, width in zip(columns, widths, strict=True):
            parts.append(torch.arange(first, first + width, device=device) if reached is None else reached + first)
            first += width
        return self, torch.cat(parts)


def beside(parts: list[Rows]) -> SparseRows:
    """Sparse and dense blocks of n rows side by side, as sparse rows; zeros of dense blocks are not stored."""
    rows, indices, values, start = [], [], [], 0
    for part in parts:
        if isinstance(part, SparseRows):
            r, i, v, width = part.rows(), part.indices, part.values, part.width
        else:
            r, i = (part != 0).nonzero(as_tuple=True)  # NaN != 0, so NaN is stored
            v, width = part[r, i], part.shape[1]
        rows.append(r)
        indices.append(i + start)
        values.append(v)
        start += width
    row = torch.cat(rows)
    order = torch.argsort(row, stable=True)  # blocks come in column order, so a stable sort keeps indices ascending
    offsets = offsets_of(torch.bincount(row, minlength=len(parts[0])))
    return SparseRows(torch.cat(indices)[order], torch.cat(values)[order], offsets, start)
