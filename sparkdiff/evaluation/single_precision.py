"""Check how much a network's predictions change if its rows and weights are rounded to float32."""

import torch

from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import InputError
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.parity import Parity, differences
from sparkdiff.tensors.device import copy_to, place
from sparkdiff.tensors.rows import Rows, SparseRows

MARGIN = "margin"
MOST = 1e-3
"""Largest relative difference of the margin for which a network may train in float32."""


@torch.no_grad()
def check(network: Network, data: Data) -> Parity:
    """Compare the head's margin in float32 with that in float64 on the validation rows.

    Raises:
        InputError: they differ by more than `MOST` (the message names the column that loses most). Or a stage can't
            compute in float32.
    """
    there = place("cpu", "float32")
    single = copy_to(network.without_spark(), there.device, there.dtype)
    absolute = relative = 0.0
    rows, culprit = 0, ""
    for batch, _, weight, _ in data.batches(VALIDATION):
        values = data.values(batch)
        exact = network.margin(dict(values))
        try:
            rounded = single.margin({v: there.rows(x) for v, x in values.items()}).to(exact.dtype)
        except RuntimeError as e:  # a stage of the user's may name a dtype
            raise InputError(
                f"the network can't compute with precision='float32' ({str(e).splitlines()[0]}): set precision='float64'"
            ) from e
        counts = weight > 0
        by, share = (x[counts] for x in differences(rounded, exact))
        rows += len(by)
        if not len(by):
            continue
        absolute = max(absolute, float(by.max()))
        if float(share.max()) > max(relative, MOST):
            culprit = _culprit({network.graph.name(v): values[v] for v in data.columns})
        relative = max(relative, float(share.max()))
    if relative > MOST:
        raise InputError(
            f"precision='float32' moves the outputs of {network.graph.head.uid} by {relative:.1e} of their size on validation "
            f"rows, more than {MOST:g}{culprit}: scale the columns before the pipeline, or set precision='float64'"
        )
    return Parity({MARGIN: absolute}, {MARGIN: relative}, 0, rows, True)


def _culprit(columns: dict[str, Rows]) -> str:
    """The column whose values rounding changes most, relative to its standard deviation, as a part of a sentence; empty
    if there is none.
    """
    worst, said = 0.0, ""
    for name, column in columns.items():
        x = column.values[:, None] if isinstance(column, SparseRows) else column.reshape(len(column), -1)
        if not x.is_floating_point() or not len(x):
            continue
        lost = torch.where(x.isfinite(), (x - x.to(torch.float32)).abs(), 0.0).amax(0)
        spread = torch.where(x.isfinite(), x, x.nanmean(0)).std(0, correction=0)
        share = torch.where(spread > 0, lost / spread, 0.0)
        if share.numel() and float(share.max()) > worst:
            worst, j = float(share.max()), int(share.argmax())
            entry = f"entry {j} of column" if isinstance(column, torch.Tensor) and column.ndim == 2 else "column"
            said = f" (rounding moves {entry} {name!r} by up to {worst:.2g} standard deviations)"
    return said
