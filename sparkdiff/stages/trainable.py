"""What training asks of a stage: which entries train, in which units, and within which domain."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from sparkdiff.errors import InputError
from sparkdiff.stages.constraints import Constraint, Positive, Rounded
from sparkdiff.tensors.rows import Nulls, Rows

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
    sums: Mapping[str, Tensor] = field(default_factory=dict)  # of the stage's own `training_sums`


@dataclass(frozen=True)
class LabelStats:
    """What the labels of the training rows (of weight > 0) look like."""

    mean: float
    std: float
    low: float
    high: float
    classes: Tensor  # (k,) int64 rows per class, empty where labels are no small whole numbers

    def seen(self, classes: int) -> Tensor:
        """Which of so many classes enough rows bear, (classes,) bool."""
        return F.pad(self.classes, (0, classes - len(self.classes))) >= SUPPORT


def deviation(n: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """The standard deviation of numbers, by how many they are, their sum and their sum of squares; 1 where all are the same."""
    mean = total / n.clamp_min(1)
    found = (square / n.clamp_min(1) - mean * mean).clamp_min(0).sqrt()
    return torch.where(found > 0, found, 1.0)


class Trainable(nn.Module):
    """The defaults train every parameter freely, in steps of 1; a stage with parameters overrides what doesn't fit."""

    feature_axis: ClassVar[dict[str, int]] = {}
    """For each parameter with an entry per input feature: the axis that runs over the features."""
    positive: ClassVar[frozenset[str]] = frozenset()
    """Parameters that must stay > 0 where they count."""
    optional: ClassVar[frozenset[str]] = frozenset()
    """What trains only where the user asks for it: parameters, or buffers, which then become parameters. What Spark keeps in a
    Param of the stage is a buffer, so that the Param stays as it is where all parameters move and nobody asked."""
    float32: ClassVar[bool] = False
    """Whether Spark holds the weights in float32: so are the outputs at the network's border, and parity is to 1e-6 there and
    behind. Parameters are float64 tensors of what float32 can hold.
    """

    def on_request(self) -> dict[str, Tensor]:
        """What trains only where the user asks for it, by name; `optional` may name what this stage hasn't."""
        own = {**dict(self.named_buffers(recurse=False)), **dict(self.named_parameters())}
        return {name: value for name, value in own.items() if name in self.optional}

    def why_frozen(self) -> Mapping[str, str]:
        """By name, why settings that a user may ask for don't train on request, and what to do instead."""
        return {}

    def unfreeze(self, name: str) -> None:
        """Let something train that does so on request only."""
        if name in self._buffers:
            value = self.get_buffer(name)
            delattr(self, name)
            self.register_parameter(name, nn.Parameter(value))
        self.get_parameter(name).requires_grad_()

    def unfrozen_as(self, other: nn.Module) -> Self:
        """This module with the same parameters as another of the stage's class, of which some may have been unfrozen."""
        own = dict(self.named_parameters())
        for name, _ in other.named_parameters():
            if name not in own:
                self.unfreeze(name)
        return self

    def training_sums(self, *columns: Rows, nulls: Nulls | None = None) -> dict[str, Tensor]:
        """Sums over these rows that `units` and `supported` need beside FeatureStats. Takes what `forward` takes.

        The totals over all training rows come back as `FeatureStats.sums`.
        """
        return {}

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        """Take note of the stage's input before training.

        Args:
            values: of features that are compared with thresholds that train, the values (m,) that training rows have,
                ascending.
        """

    def entry_mask(self) -> dict[str, Tensor]:
        """For parameters of which some entries never count (std = 0): a mask, True where the entry counts."""
        return {}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Each trainable parameter's natural unit, given the stage's input and the labels; a missing one is 1."""
        return {}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Masks of the entries that enough training rows speak for; a missing one is all of them.

        Adam moves the coefficient of a one-hot level with one row at full step although its gradient is nearly 0.
        """
        out = {}
        for name, axis in self.feature_axis.items():
            shape = [1] * getattr(self, name).ndim
            shape[axis] = -1
            out[name] = (x.support >= SUPPORT).view(shape).expand_as(getattr(self, name))
        return out

    def constraints(self) -> dict[str, Constraint]:
        """How parameters that aren't free stay inside their domain while they train; a missing one is free: p0 + unit * u."""
        rounded = {name: Rounded() for name, _ in self.named_parameters()} if self.float32 else {}
        return {**rounded, **dict.fromkeys(self.positive, Positive())}

    def fitted_width(self) -> int:
        """How many features the stage was fitted on; 0 where no parameter tells."""
        return max((attrgetter(name)(self).shape[axis] for name, axis in self.feature_axis.items()), default=0)

    def has_bounds(self) -> bool:
        """Whether `project_` has anything to do."""
        return type(self).project_ is not Trainable.project_

    def project_(self) -> None:
        """Move the parameters back into their domain, in place, after an optimizer step."""

    def check_domain(self, uid: str) -> None:
        """Raise InputError where a parameter has left the domain in which Spark's stage is defined."""
        for name, p in self.named_parameters():
            if self.float32 and bool((p.isfinite() & ~p.float().isfinite()).any()):
                value = p[~p.float().isfinite()][0].item()
                raise InputError(
                    f"{uid}: {name} holds {value!r}, which is too large for Spark's float; clamp it before writing back"
                )
            counting = self.entry_mask().get(name, torch.ones_like(p, dtype=torch.bool))
            if name in self.positive and bool(((p <= 0) & counting).any()):
                worst = p[(p <= 0) & counting][0].item()
                raise InputError(
                    f"{uid}: {name} must stay > 0, but an entry is {worst!r}; clamp it before writing back"
                )
