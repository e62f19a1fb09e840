"""Recommenders: ALS, the product of a user's and an item's factors."""

import math
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import embeddings
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, columns_of, parameter, register
from sparkdiff.stages.predictor import LeastSquares
from sparkdiff.tensors.rows import known_any

INTEGERS = (-(2.0**31), 2.0**31 - 1)


class FloatProduct(torch.autograd.Function):
    """Products of rows of factors, (n, r), (n, r) -> (n,), summed like Spark: one after the other, in float32."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, items: Tensor) -> Tensor:
        ctx.save_for_backward(users, items)
        terms = (users.float() * items.float()).unbind(1)
        total = torch.zeros_like(terms[0])
        for term in terms:
            total = total + term
        return total.to(users.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        users, items = ctx.saved_tensors
        return gradient[:, None] * items, gradient[:, None] * users


@register("pyspark.ml.recommendation.ALSModel")
class ALS(LeastSquares):
    """prediction = the product of the user's and the item's factors, all in float32; NaN if the user or the item is
    unknown.

    The model does not store whether it was fitted to ratings or, with implicitPrefs, to preferences weighted by
    confidence. So its own loss is the squared error of the label column, weighted by weightCol.

    Source: org.apache.spark.ml.recommendation.ALSModel (transform, predict, checkIntegers).
    """

    weights = ("rank", "userFactors", "itemFactors")
    refusals = ("coldStartStrategy='drop'",)
    float32 = True
    reads_categories = True
    reads_identifiers = True
    ranks = True

    users: Tensor
    items: Tensor

    def __init__(self, users: embeddings.Table, items: embeddings.Table, uid: str, names: tuple[str, ...]):
        super().__init__()
        self.uid, self.names, self.rank = uid, names, users[1].shape[1]
        self.register_buffer("users", torch.from_numpy(users[0].copy()))  # (u,) int64, ascending
        self.register_buffer("items", torch.from_numpy(items[0].copy()))  # (i,)
        self.userFactors = parameter(torch.from_numpy(users[1]).double())  # (u, rank)
        self.itemFactors = parameter(torch.from_numpy(items[1]).double())  # (i, rank)

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        return columns_of(stage, ("userCol", "itemCol"))

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        if stage.getOrDefault("coldStartStrategy") == "drop":
            return "coldStartStrategy='drop' drops rows, and a torch module cannot drop rows; use 'nan'"
        return super().refuses(stage)

    @classmethod
    def from_spark(cls, stage: Any) -> "ALS":
        return cls(*embeddings.factor_tables(stage), stage.uid, cls.inputs(stage))

    def margin(self, user: Tensor, item: Tensor) -> Tensor:  # type: ignore[override]  # (n,), (n,) -> (n,)
        found = self.places(user, item)
        u, i = found["userFactors"], found["itemFactors"]
        product = FloatProduct.apply(self.userFactors[u.clamp_min(0)], self.itemFactors[i.clamp_min(0)])
        return torch.where((u >= 0) & (i >= 0), product, math.nan)

    def places(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        """Row of each table for each user and item, (n,), (n,) -> (n,) int64 each; -1 if the table has none."""
        return {
            "userFactors": self._places(self.users, user, self.names[0]),
            "itemFactors": self._places(self.items, item, self.names[1]),
        }

    def _places(self, known: Tensor, ids: Tensor, name: str) -> Tensor:
        """Position of each id in the table, -1 if missing, (m,), (n,) -> (n,) int64."""
        wrong = ~((ids == ids.round()) & (ids >= INTEGERS[0]) & (ids <= INTEGERS[1]))  # NaN too
        if known_any(wrong):
            raise InputError(
                f"{self.uid}: column {name!r} holds {ids[wrong][0].item()!r} (or null), but ids must be whole "
                "numbers in the range of integers; drop such rows"
            )
        whole = ids.long()
        place = torch.searchsorted(known, whole).clamp_max(len(known) - 1)
        return torch.where(known[place] == whole, place, -1)

    def training_sums(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
        found = self.places(user, item)
        return {n: torch.bincount(p[p >= 0], minlength=len(getattr(self, n))) for n, p in found.items()}

    def explain_nan(self, user: Tensor, item: Tensor) -> str | None:  # type: ignore[override]
        for (what, places), name, ids in zip(self.places(user, item).items(), self.names, (user, item), strict=True):
            if bool((places < 0).any()):
                return (
                    f"column {name!r} holds {int(ids[places < 0][0])}, which is not among the {what} of "
                    f"{self.uid}, so the prediction is NaN; drop such rows"
                )
        return None

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {
            name: torch.where((size := p.detach().square().mean().sqrt()) > 0, size, 1.0)
            for name, p in self.named_parameters()
        }

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {name: (x.sums[name] >= SUPPORT)[:, None].expand_as(p) for name, p in self.named_parameters()}

    def to_spark(self, stage: Any) -> Any:
        users, items = (self.weight(name).astype("float32") for name in ("userFactors", "itemFactors"))
        return embeddings.als(stage, (self.users.numpy(), users), (self.items.numpy(), items))
