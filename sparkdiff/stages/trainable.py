"""What training asks of a stage: which entries train, in which units, and within which domain."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

Parameters = Mapping[str, Tensor]
SUPPORT = 5
"""Training rows that must differ from a feature's usual value, or bear a class, for the parameters about it to train."""


@dataclass(frozen=True)
class FeatureStats:
    """What a stage's input looks like over the training rows."""

    mean: Tensor  # (d,)
    std: Tensor  # (d,)
    support: Tensor  # (d,) int64: rows whose value differs from the column's usual one
    leaves: Tensor | None = None  # (L,) int64: rows that each leaf of a stage of trees holds
    entry: Tensor | None = None  # (d,) of sparse rows: root mean square of the entries that aren't 0
    sums: Parameters = field(default_factory=dict)  # of the stage's own `training_sums`


@dataclass(frozen=True)
class LabelStats:
    """What the labels of the training rows (of weight > 0) look like."""

    mean: float
    std: float
    low: float
    high: float
    classes: Tensor  # (k,) int64 rows per class, empty where labels are no small whole numbers
