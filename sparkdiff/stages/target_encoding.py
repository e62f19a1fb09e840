"""Encoding of categories by label statistics: TargetEncoder."""

from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import encoders as spark
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, StageModule, parameter, register, tensor
from sparkdiff.tensors.rows import Nulls, known_any

UNSEEN, MISSING = 2147483647.0, -1.0
"""Numbers that stand in Spark's table in place of a category: for all unseen categories, and for null."""


@register("pyspark.ml.feature.TargetEncoderModel")
class TargetEncoder(StageModule):
    """A category's encoding w * own + (1 - w) * all, w = count / (count + smoothing); each column has its own table.

    `own` is the category's mean label and `all` the mean of all labels: the stats for a continuous target; for a
    binary one the stats (the number of labels 1) divided by the counts. With handleInvalid='keep' an unseen category
    gets `all`, and so does null if none was seen in fitting.

    Source: org.apache.spark.ml.feature.TargetEncoderModel.transform.
    """

    differentiable = False
    reads_categories = True
    takes_nulls = True
    weights_in_metadata = True
    count: Tensor
    overall: Tensor

    def __init__(
        self,
        columns: list[spark.Statistics],
        smoothing: float,
        *,
        binary: bool,
        keep: bool,
        uid: str,
        names: tuple[str, ...],
    ):
        super().__init__()
        self.stats = parameter(torch.cat([tensor(c.stats) for c in columns]))  # (L,), column by column
        self.register_buffer("count", torch.cat([tensor(c.counts) for c in columns]), persistent=False)  # (L,)
        self.smoothing, self.binary, self.keep, self.uid, self.names = smoothing, binary, keep, uid, names
        self.columns = columns
        self.tables, first = [], 0
        for c in columns:
            self.tables.append(CategoryTable(tensor(c.categories), first))
            first += len(c.categories)
        overall = [torch.full((len(c.categories),), t.unseen) for c, t in zip(columns, self.tables, strict=True)]
        self.register_buffer(
            "overall", torch.cat(overall), persistent=False
        )  # (L,) place of `all` in each entry's column

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        return (stage.getInputCol(),) if stage.isSet("inputCol") else tuple(stage.getInputCols())

    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        if stage.isSet("outputCol"):
            return (stage.getOutputCol(),)
        return tuple(
            stage.getOutputCols() if stage.isSet("outputCols") else (f"{c}_indexed" for c in cls.inputs(stage))
        )

    @classmethod
    def from_spark(cls, stage: Any) -> "TargetEncoder":
        return cls(
            spark.statistics(stage),
            stage.getSmoothing(),
            binary=stage.getTargetType() == "binary",
            keep=stage.getHandleInvalid() == "keep",
            uid=stage.uid,
            names=cls.inputs(stage),
        )

    def encodings(self) -> Tensor:
        """Encoding of each entry of the tables, (L,)."""
        own = self.stats / self.count if self.binary else self.stats
        weight = self.count / (self.count + self.smoothing)
        return weight * own + (1 - weight) * own[self.overall]

    def slots(self, columns: tuple[Tensor, ...], nulls: Nulls | None) -> list[Tensor]:
        """Entry of the table for each row's category, (n,) int64 per column."""
        flags = nulls or [None] * len(columns)
        return [self.slot(*each) for each in zip(columns, flags, self.tables, self.names, strict=True)]

    def slot(self, x: Tensor, null: Tensor | None, table: "CategoryTable", name: str) -> Tensor:
        if null is None:  # NaN is no category: if unseen ones are refused, it must be null
            null = torch.zeros_like(x, dtype=torch.bool) if self.keep else x.isnan()
        found, seen = table.find(x)
        missing = table.unseen if table.missing is None else table.missing
        found = torch.where(null, missing, found)
        refused = torch.where(null, table.missing is None, ~seen)
        if not self.keep and known_any(refused):
            value = "null" if bool(null[refused][0]) else repr(x[refused][0].item())
            raise InputError(
                f"{self.uid}: column {name!r} holds {value}, which was not in the data that it was fitted on; "
                "set handleInvalid to 'keep', or clean the column"
            )
        return found

    def forward(self, *columns: Tensor, nulls: Nulls | None = None) -> Tensor | tuple[Tensor, ...]:  # each (n,)
        encodings = self.encodings()
        out = tuple(encodings.index_select(0, slot) for slot in self.slots(columns, nulls))
        return out[0] if len(out) == 1 else out

    def critical_values(self) -> tuple[tuple[float, ...], ...]:
        return tuple((*t.known[:100].tolist(), *((-1.0, 0.5) if self.keep else ())) for t in self.tables)

    def training_sums(self, *columns: Tensor, nulls: Nulls | None = None) -> dict[str, Tensor]:  # type: ignore[override]
        """Number of rows that use each entry of the tables, (L,)."""
        return {"rows": torch.bincount(torch.cat(self.slots(columns, nulls)), minlength=len(self.stats))}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Units: an entry's encoding changes by one standard deviation of the column's encodings over the rows."""
        encodings, rows = self.encodings().detach(), x.sums["rows"]
        spread = torch.empty_like(encodings)
        for table in self.tables:
            part = slice(table.first, table.first + table.size)
            n = rows[part].sum().clamp_min(1)
            mean = (rows[part] * encodings[part]).sum() / n
            found = ((rows[part] * (encodings[part] - mean) ** 2).sum() / n).sqrt()
            spread[part] = torch.where(found > 0, found, 1.0)
        weight = self.count / (self.count + self.smoothing)
        weight[self.overall.unique()] = 1.0
        return {"stats": spread / weight * (self.count if self.binary else 1.0)}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        enough = x.sums["rows"] >= SUPPORT
        if self.smoothing > 0:  # then `all` is part of every encoding
            enough[self.overall.unique()] = True
        return {"stats": enough}

    def to_spark(self, stage: Any) -> Any:
        parts = self.stats.detach().split([t.size for t in self.tables])
        return spark.with_statistics(
            stage, [c._replace(stats=p.numpy().copy()) for c, p in zip(self.columns, parts, strict=True)]
        )


class CategoryTable:
    """The categories of one column; its entries begin at `first` in the concatenated tables of all columns."""

    def __init__(self, categories: Tensor, first: int):
        self.first, self.size = first, len(categories)
        place = first + torch.arange(len(categories))
        self.unseen = int(place[categories == UNSEEN])
        self.missing = int(place[categories == MISSING]) if bool((categories == MISSING).any()) else None
        seen = (categories != UNSEEN) & (categories != MISSING)
        self.known, order = categories[seen].sort()
        self.place = place[seen][order]

    def find(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Entry of each row (n,), which is the entry for unseen values if the value was not seen in fitting; and
        whether it was seen (n,).
        """
        if not len(self.known):
            return torch.full_like(x, self.unseen, dtype=torch.int64), torch.zeros_like(x, dtype=torch.bool)
        near = torch.searchsorted(self.known, x).clamp_max(len(self.known) - 1)
        seen = self.known[near] == x
        return torch.where(seen, self.place[near], self.unseen), seen
