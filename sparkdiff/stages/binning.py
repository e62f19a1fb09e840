"""Stages that compare numbers with thresholds: Binarizer, Bucketizer (also the result of QuantileDiscretizer)."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm import encoders as spark
from sparkdiff.stages.base import FeatureStats, LabelStats, StageModule, deviation, each_column, register, tensor
from sparkdiff.stages.constraints import Constraint, OrderedValues
from sparkdiff.tensors.rows import Nulls, Rows, SparseRows, dense, known_any, on_gpu

SHARPNESS = 0.3
"""Temperature tau of the soft step (see `StepFunction`), and also the unit of a threshold, in standard deviations of the
column that is compared with the threshold.
"""


class StepFunction(torch.autograd.Function):
    """The bin of each x (n,), which the caller passes as `found` (n,). The thresholds (m,) between the bins get a
    gradient, x gets none.

    The forward result is the bin; the derivative is that of the sum over the thresholds of sigmoid((x - threshold) /
    tau), so that a threshold learns the effect of moving a nearby row to its other side. Source: Bengio, Léonard and
    Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, x: Tensor, thresholds: Tensor, tau: Tensor) -> Tensor:
        ctx.save_for_backward(x, thresholds, tau)
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, thresholds, tau = ctx.saved_tensors
        soft = torch.sigmoid((x[:, None] - thresholds) / tau)
        slope = (soft * (1 - soft) / tau).nan_to_num(0.0, 0.0, 0.0)  # (n, m)
        return None, None, -(gradient @ slope), None


class ThresholdStage(StageModule):
    """The common part of Binarizer and Bucketizer: thresholds that train only on request and are written back as
    Params.

    The gradient ends here: earlier stages do not train through the index of a bin.
    """

    differentiable = False
    tau: Tensor

    def passes_gradient(self) -> bool:
        return any(p.requires_grad for p in self.parameters())

    def training_sums(self, *columns: Rows, nulls: Nulls | None = None) -> dict[str, Tensor]:
        """Number of finite values (of stored ones in sparse rows), their sum and the sum of their squares, per column."""
        parts = []
        for x in columns:
            known = x.values if isinstance(x, SparseRows) else x[x.isfinite()]
            parts.append(torch.stack([known.new_tensor(float(len(known))), known.sum(), (known * known).sum()]))
        return {"moments": torch.stack(parts)}  # (c, 3)

    def spread(self, x: FeatureStats) -> Tensor:
        """Standard deviation of each column, (c,); 1 for a constant one."""
        return deviation(*x.sums["moments"].unbind(1))

    def observe(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        if x.sums:
            self.tau = SHARPNESS * self.spread(x)


@register("pyspark.ml.feature.Binarizer")
class Binarizer(ThresholdStage):
    """1 where x > threshold, else 0; x is a number or an entry of a vector.

    NaN gives 0, but 1 in a vector with a threshold below 0, where Spark tests x <= threshold. Null stays null in Spark
    3.5, and gives 0 in later versions.

    Source: org.apache.spark.ml.feature.Binarizer.transform.
    """

    weight_params = ("threshold", "thresholds")
    storage = "compressed"  # of vectors
    optional = frozenset({"threshold", "thresholds"})

    def __init__(self, name: str, thresholds: Tensor, columns: int, keeps_null: bool = False):
        super().__init__()
        self.takes_nulls = self.writes_null = keeps_null
        self.register_buffer(name, thresholds)  # `threshold` () for all columns, or `thresholds` (c,)
        self.name, self.columns = name, columns
        self.register_buffer("tau", torch.ones(columns, dtype=torch.float64), persistent=False)  # (c,)

    @classmethod
    def from_spark(cls, stage: Any) -> "Binarizer":
        several = stage.isSet("inputCols") and stage.isSet("thresholds")
        name = "thresholds" if several else "threshold"
        columns = len(cls.inputs(stage))
        return cls(name, tensor(stage.getOrDefault(name)), columns, spark.binarizer_keeps_null(stage))

    @property
    def thresholds_of(self) -> Tensor:
        """Threshold of each column, (c,)."""
        return getattr(self, self.name).expand(self.columns)

    def forward(
        self, *columns: Rows, nulls: Nulls | None = None
    ) -> Rows | tuple[Rows, ...]:  # each (n,) or (n, d), and so out
        return each_column(self.binary, columns, nulls, self.thresholds_of.unbind(), self.tau.unbind())

    def binary(self, x: Rows, null: Tensor | None, threshold: Tensor, tau: Tensor) -> Rows:
        out = self.compared_with(x, threshold, tau)
        if null is None or isinstance(out, SparseRows) or out.ndim == 2:  # a vector that is null fails in Spark
            return out
        return torch.where(null, torch.nan, out)

    def compared_with(self, x: Rows, threshold: Tensor, tau: Tensor) -> Rows:
        if isinstance(x, SparseRows) and bool(threshold >= 0):
            return x.with_values(self.step(x.values, x.values > threshold, threshold, tau))
        x = dense(x)
        above = x > threshold
        if x.ndim == 2 and (on_gpu(x) or bool(threshold < 0)):
            above = torch.where(threshold < 0, ~(x <= threshold), above)
        return self.step(x.flatten(), above.flatten(), threshold, tau).view_as(x)

    def step(self, x: Tensor, above: Tensor, threshold: Tensor, tau: Tensor) -> Tensor:
        found = above.to(x.dtype)
        if not threshold.requires_grad:
            return found
        return StepFunction.apply(found, x.detach(), threshold[None], tau[None])

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        return tuple((t, math.nextafter(t, math.inf), math.nan) for t in self.thresholds_of.tolist())

    def critical_rows(self, row: Tensor) -> Tensor:
        [t] = self.thresholds_of.tolist()
        values = torch.tensor([t, math.nextafter(t, math.inf), 0.0], dtype=torch.float64)
        return values[:, None].expand(-1, row.shape[1])

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        unit = SHARPNESS * self.spread(x)
        return {self.name: unit if self.name == "thresholds" else unit.mean()}

    def to_spark(self, stage: Any) -> Any:
        value = self.weight(self.name)
        return jvm.with_params(stage, {self.name: value if isinstance(value, float) else value.tolist()})


class SortedSplits(OrderedValues):
    """Splits that increase along the last axis between fixed outer splits; infinite entries after the last are
    padding.
    """

    def __init__(self, outer: Tensor):
        self.outer = outer  # (*shape) bool

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        low, high = self._ends(start)
        # Built up from the first split, or down from the last one if only that is finite.
        upwards = self._stretched(start, super().value(start, torch.where(self.outer, 0.0, move)))
        mirrored = OrderedValues().value(-start.flip(-1), torch.where(self.outer, 0.0, -move).flip(-1))
        out = torch.where(low.isinf() & high.isfinite(), -mirrored.flip(-1), upwards)
        out = torch.where(self.outer | ~start.isfinite(), start, out)
        # Rounding can make two splits equal, which is invalid: then all splits keep their start values.
        ascend = (out[..., 1:] > out[..., :-1]) | out[..., 1:].isinf()
        return torch.where(ascend.all(-1, keepdim=True), out, start.expand_as(out))

    def _stretched(self, start: Tensor, x: Tensor) -> Tensor:
        """Splits `x`, rescaled so that the last split keeps its value if both outer splits are finite; else `x`."""
        both = torch.cat(self._ends(start), -1).isfinite().all(-1, keepdim=True)
        # No infinity may enter the branch that `where` drops: its gradient would be NaN.
        low, high = self._ends(torch.where(both, start.nan_to_num(0.0, 0.0, 0.0), 0.0))

        def to_length(x: Tensor) -> Tensor:
            x = torch.where(both & x.isfinite(), x, 0.0)
            first, last = self._ends(x)
            return (x - first) * ((high - low) / torch.where(last > first, last - first, 1.0))

        # As a difference of two results of the same rounding, so that a move of 0 gives exactly the start.
        return torch.where(both, start + (to_length(x) - to_length(start)), x)

    def _ends(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The outer entries, (..., 1) each."""
        last = self.outer.long().cumsum(-1).argmax(-1, keepdim=True)
        if on_gpu(x):  # deterministic kernels of scatter_add_, gather's derivative, wait for the GPU
            at_last = torch.arange(x.shape[-1], device=x.device) == last
            return x[..., :1], torch.where(at_last, x, 0.0).sum(-1, keepdim=True)
        return x[..., :1], x.gather(-1, last.expand(*x.shape[:-1], 1))


@register("pyspark.ml.feature.Bucketizer")
class Bucketizer(ThresholdStage):
    """The index of the bin [a, b) of a number; the last bin is [a, b]. Numbers outside are refused.

    NaN gives the number of bins with handleInvalid='keep' and is refused with 'error'; null stays null. -0.0 lies
    below 0.0.

    Source: org.apache.spark.ml.feature.Bucketizer.binarySearchForBuckets.
    """

    label_cols = ("outputCol", "outputCols")
    takes_nulls = True
    writes_null = True
    weights_in_metadata = True
    weight_params = ("splits", "splitsArray")
    optional = frozenset({"splits", "splitsArray"})

    def __init__(self, name: str, splits: list[Tensor], keep: bool, uid: str, names: tuple[str, ...]):
        super().__init__()
        padded = nn.utils.rnn.pad_sequence(splits, batch_first=True, padding_value=math.inf)
        # `splits` (m,) for one column, or `splitsArray` (c, m) with padding.
        self.register_buffer(name, padded[0] if name == "splits" else padded)
        self.name, self.sizes, self.keep, self.uid, self.names = name, [len(s) for s in splits], keep, uid, names
        place, sizes = torch.arange(padded.shape[1]), torch.tensor(self.sizes)[:, None]
        self.outer = ((place == 0) | (place == sizes - 1)).view_as(getattr(self, name))
        self.inner = ((place > 0) & (place < sizes - 1)).view_as(getattr(self, name))
        self.register_buffer("tau", torch.ones(len(splits), dtype=torch.float64), persistent=False)  # (c,)

    @classmethod
    def from_spark(cls, stage: Any) -> "Bucketizer":
        several = stage.isSet("inputCols")
        splits = stage.getSplitsArray() if several else [stage.getSplits()]
        name = "splitsArray" if several else "splits"
        return cls(name, [tensor(s) for s in splits], stage.getHandleInvalid() == "keep", stage.uid, cls.inputs(stage))

    def splits_of(self) -> list[Tensor]:
        """Splits of each column, (m,)."""
        own: Tensor = getattr(self, self.name)
        return [row[:size] for row, size in zip(own.view(-1, own.shape[-1]).unbind(), self.sizes, strict=True)]

    def forward(self, *columns: Tensor, nulls: Nulls | None = None) -> Tensor | tuple[Tensor, ...]:  # each (n,)
        return each_column(self.bin, columns, nulls, self.splits_of(), self.tau.unbind(), self.names)

    def bin(self, x: Tensor, null: Tensor | None, splits: Tensor, tau: Tensor, name: str) -> Tensor:
        empty = x.isnan()
        # Without `nulls`, NaN is taken for whichever of NaN and null the stage accepts.
        null = (torch.zeros_like(empty) if self.keep else empty) if null is None else null
        if not self.keep and known_any(empty & ~null):
            raise InputError(
                f"{self.uid}: column {name!r} holds NaN, which handleInvalid='error' refuses; impute the "
                "column, or set handleInvalid to 'keep'"
            )
        outside = (x < splits[0]) | (x > splits[-1]) | ((x == splits[0]) & (ordered_bits(x) < ordered_bits(splits[:1])))
        if known_any(outside & ~null):
            raise InputError(
                f"{self.uid}: column {name!r} holds {x[outside & ~null][0].item()!r}, outside the splits "
                f"{splits[0].item()!r} to {splits[-1].item()!r}; clean the column, or use -inf and inf as the "
                "outer splits"
            )
        place = torch.searchsorted(ordered_bits(splits.detach()), ordered_bits(x), right=True) - 1
        found = torch.where(x == splits[-1], len(splits) - 2, place).to(x.dtype)
        found = torch.where(null, torch.nan, torch.where(empty, float(len(splits) - 1), found))
        if not splits.requires_grad:
            return found
        return StepFunction.apply(found, x.detach(), splits[1:-1], tau)

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        out = []
        for splits in self.splits_of():
            inner = splits[1:-1]
            below = inner.nextafter(torch.full_like(inner, -math.inf))
            out.append(tuple(torch.cat([splits, below])[: 2 * len(splits)].tolist()))
        return tuple(out)

    def entry_mask(self) -> dict[str, Tensor]:
        return {self.name: self.inner}

    def constraints(self) -> dict[str, Constraint]:
        return {self.name: SortedSplits(self.outer)}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Units: SHARPNESS standard deviations of the column for an inner split with no finite split before it and an
        infinite last split; SHARPNESS for the others, which move by the logarithm of the distance to a neighbour.
        """
        own: Tensor = getattr(self, self.name).detach()
        free = self.inner & ~torch.cat([own[..., :1], own[..., :-1]], -1).isfinite()
        free = free & own.gather(-1, torch.tensor(self.sizes).view(*own.shape[:-1], 1) - 1).isinf()
        spread = self.spread(x).view(*own.shape[:-1], 1)
        return {self.name: SHARPNESS * torch.where(free, spread, 1.0)}

    def check_domain(self, uid: str) -> None:
        for splits in self.splits_of():
            if bool((splits.diff() <= 0).any()):
                j = int((splits.diff() <= 0).nonzero()[0])
                low, high = splits[j].item(), splits[j + 1].item()
                raise InputError(f"{uid}: {self.name} must increase, but {low!r} comes before {high!r}")

    def to_spark(self, stage: Any) -> Any:
        value = [s.tolist() for s in self.splits_of()]
        return jvm.with_params(stage, {self.name: value if self.name == "splitsArray" else value[0]})


def ordered_bits(x: Tensor) -> Tensor:
    """Integers in the order of Java's Double.compare, where -0.0 precedes 0.0; float64 -> int64, float32 -> int32."""
    bits = x.contiguous().view(torch.int64 if x.dtype == torch.float64 else torch.int32)
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
