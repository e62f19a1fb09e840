"""Decision trees, random forests and gradient-boosted trees, for regression and classification, with Spark's own hard splits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import trees as spark
from sparkdiff.nodes import Nodes
from sparkdiff.sparse import SparseRows
from sparkdiff.stages.base import (
    SUPPORT,
    FeatureStats,
    LabelStats,
    NotAffineError,
    Parameters,
    Pulled,
    Rows,
    columns_of,
    parameter,
    register,
    tensor,
)
from sparkdiff.stages.gates import SHARPNESS, Gates, StraightThrough
from sparkdiff.stages.predictor import Predictor, first_largest
from sparkdiff.stages.routing import Router

MANY = 20
"""Trees above which each one's leaves move less, so that a step of all of them stays as large."""
STEADY = 0.3
"""A threshold's unit in standard deviations of its feature; with 3, those of bike sharing ran away from their leaves."""
EDGES = 1000
"""Rows on which parity is checked at the splits."""
FLOOR = 1e-15
"""Least probability in a loss, as MulticlassClassificationEvaluator's eps."""


class Trees(Predictor):
    """prediction = sum over trees of share * leaf, where a row goes left at a node if x[feature] <= threshold; NaN goes right.

    The leaves train. Thresholds and tree weights do on request: thresholds, and what stands in front of the trees, by
    straight-through estimation (stages/gates.py), always with hard splits forward.

    Source: org.apache.spark.ml.tree.{Node, ContinuousSplit, CategoricalSplit, TreeEnsembleModel}.
    """

    tree: Tensor
    first: Tensor
    feature: Tensor
    tau: Tensor
    label_cols: ClassVar[tuple[str, ...]] = ("leafCol",)
    routes = True
    optional = frozenset({"thresholds", "treeWeights"})
    LEAF: ClassVar[str] = "prediction"
    """The field of a node that a leaf's parameters are."""

    def __init__(self, nodes: Nodes, treeWeights: Tensor | None, shown: tuple[str, ...], uid: str):
        super().__init__()
        self.nodes, self.shown, self.uid = nodes, shown, uid
        self.leaves = parameter(tensor(getattr(nodes, self.LEAF)[nodes.leaf]))  # (L,), or (L, k) for k classes
        self.thresholds = parameter(self.fitted_thresholds(), False)  # (C,)
        if treeWeights is not None:
            self.treeWeights = parameter(treeWeights, False)  # (T,)
        number = np.repeat(np.arange(nodes.trees), np.diff(nodes.offsets))
        self.register_buffer("tree", torch.from_numpy(number[nodes.leaf]), persistent=False)  # (L,) each leaf's tree
        self.register_buffer("first", torch.searchsorted(self.tree, torch.arange(nodes.trees)), persistent=False)
        self.register_buffer("feature", torch.from_numpy(nodes.featureIndex[nodes.continuous]).long(), persistent=False)
        self.register_buffer("tau", _spreads(self.thresholds.detach(), self.feature), persistent=False)  # (C,)
        self.router = Router(nodes)
        self._gates: Gates | None = None
        self.values: dict[int, Tensor] = {}

    @classmethod
    def from_spark(cls, stage: Any) -> Trees:
        weights = tensor(stage.treeWeights) if type(stage).__name__.startswith("GBT") else None
        return cls(spark.read(stage), weights, tuple(c for c in cls.SHOWN if columns_of(stage, (c,))), stage.uid)

    SHOWN: ClassVar[tuple[str, ...]] = ("predictionCol", "leafCol")

    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        return columns_of(stage, cls.SHOWN)

    # Rows to leaves, leaves to outputs ------------------------------------------------------------------------------

    def trees_and_leaves(self) -> tuple[int, int]:
        return self.nodes.trees, len(self.leaves)

    def route(self, x: Rows) -> Tensor:  # type: ignore[override]
        return self.router.leaf(x, self.thresholds)

    def share(self) -> Tensor:
        """What each tree's leaf counts in the margin, (T,)."""
        raise NotImplementedError

    def table(self) -> Tensor:
        """What each leaf adds to the margin, (L,) or (L, k)."""
        return self.leaves * self.share()[self.tree]

    def combined(self, total: Tensor) -> Tensor:
        """The margin of the sums over all trees (n,) or (n, k) of the leaves' `table`."""
        return total

    def total(self, x: Rows) -> Tensor:
        table = self.table()
        if not (torch.is_grad_enabled() and (self.thresholds.requires_grad or _wants_gradient(x))):
            return self.gathered(self.route(x)) if table.requires_grad else self.router.total(x, self.thresholds, table)
        if self._gates is None:
            self._gates = Gates(self.nodes)
        rows = self._gates.read(x)
        wide = table if table.ndim == 2 else table[:, None]
        parts = []
        for part in rows.split(self._gates.rows_at_once(wide.shape[1])):
            goes = self._gates.goes(part, self.thresholds)
            parts.append(StraightThrough.apply(part, self.thresholds, wide, self.tau, goes, self._gates))
        total = torch.cat(parts) if parts else wide.new_zeros(0, wide.shape[1])
        return total if table.ndim == 2 else total[:, 0]

    def gathered(self, leaves: Tensor) -> Tensor:
        """(n, T) numbers of leaves -> the sums of their table's entries, (n,) or (n, k)."""
        table = self.table()
        return table.index_select(0, leaves.reshape(-1)).view(*leaves.shape, *table.shape[1:]).sum(1)

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]
        return self.combined(self.total(x))

    def routed_margin(self, leaves: Tensor) -> Tensor:
        return self.combined(self.gathered(leaves))

    def forward(self, x: Rows) -> tuple[Tensor, ...]:  # type: ignore[override]
        if torch.is_grad_enabled() and (self.thresholds.requires_grad or _wants_gradient(x)):
            return self.shows(self.total(x), self.route(x))
        if "leafCol" in self.shown or "varianceCol" in self.shown:
            return self.routed(self.route(x))
        return self.shows(self.total(x), None)

    def routed(self, leaves: Tensor) -> tuple[Tensor, ...]:
        return self.shows(self.gathered(leaves), leaves)

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        """The output columns, given the sums over all trees and, where they are shown, the leaves (n, T)."""
        raise NotImplementedError

    def leaf_column(self, leaves: Tensor) -> Tensor:
        """Numbers of leaves over all trees (n, T) -> within their tree; (n,) of a single tree's stage, else (n, T)."""
        own = (leaves - self.first).to(torch.float64)
        return own[:, 0] if self.single else own

    single: ClassVar[bool] = False
    """Whether the stage is one tree, not an ensemble."""

    # Training -------------------------------------------------------------------------------------------------------

    @property
    def routes_fixed(self) -> bool:
        return not self.thresholds.requires_grad

    def look(self, x: FeatureStats, values: Mapping[int, Tensor]) -> None:
        spread = x.std[self.feature]
        self.tau, self.values = torch.where(spread > 0, SHARPNESS * spread, self.tau), dict(values)

    def settles(self) -> bool:
        return not self.routes_fixed and bool(self.values)

    @torch.no_grad()
    def settle_(self) -> None:
        """Each threshold to the middle between the two values that it separates; where they are still the same two, back."""
        for feature, values in self.values.items():
            at = self.feature == feature
            now, was = self.thresholds[at], self.fitted_thresholds()[at]
            above, before = (torch.searchsorted(values, t, right=True) for t in (now, was))
            middle = (values[(above - 1).clamp_min(0)] + values[above.clamp_max(len(values) - 1)]) / 2
            outside = (above == 0) | (above == len(values))
            self.thresholds[at] = torch.where(above == before, was, torch.where(outside, now, middle))

    def fitted_thresholds(self) -> Tensor:
        return tensor(self.nodes.values[self.nodes.starts[self.nodes.continuous]])

    def edge_rows(self, row: Tensor) -> Tensor:
        """At most EDGES rows like `row` (1, d) with a feature on a threshold, or at a category or beside all of them."""
        nodes = self.nodes
        at = [*zip(nodes.featureIndex[nodes.continuous].tolist(), self.thresholds.tolist(), strict=True)]
        for j in np.flatnonzero(nodes.categorical):
            at += [
                (int(nodes.featureIndex[j]), float(v)) for v in (0, nodes.numCategories[j] - 1, nodes.numCategories[j])
            ]
        at = list(dict.fromkeys(at))
        at = at[:: -(-len(at) // EDGES) or 1]
        rows = row.repeat(len(at), 1)
        features, values = (
            torch.tensor([f for f, _ in at]).long(),
            torch.tensor([v for _, v in at], dtype=torch.float64),
        )
        rows[torch.arange(len(at)), features] = values
        return rows

    def nominal(self) -> Tensor:
        """Features (q,) that are categories, to which nothing can be added."""
        return torch.from_numpy(np.unique(self.nodes.featureIndex[self.nodes.categorical])).long()

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        """How far a leaf's share of the margin moves by one unit, broadcastable to `leaves`."""
        return self.margin_unit(y)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        share = self.share().detach().abs()
        own = torch.where(share > 0, 1 / share, 0.0)[self.tree] * min(1.0, MANY / self.nodes.trees)
        unit = own.view(-1, *[1] * (self.leaves.ndim - 1)) * self.leaf_unit(y)
        out = {"leaves": unit, "thresholds": STEADY * x.std[self.feature]}
        if hasattr(self, "treeWeights"):
            out["treeWeights"] = self.treeWeights.detach().abs().max().clamp_min(1e-300)
        return out

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        assert x.leaves is not None
        reached = (x.leaves >= SUPPORT).view(-1, *[1] * (self.leaves.ndim - 1)).expand_as(self.leaves)
        return {"leaves": reached, "thresholds": (x.support >= SUPPORT)[self.feature]}

    # Back to Spark --------------------------------------------------------------------------------------------------

    def written_nodes(self) -> Nodes:
        """The nodes with this module's thresholds and leaves."""
        nodes, values = self.nodes, self.nodes.values.copy()
        values[nodes.starts[nodes.continuous]] = self.weight("thresholds")
        held = getattr(nodes, self.LEAF).copy()
        held[nodes.leaf] = self.weight("leaves")
        return nodes.replace(values=values, **{self.LEAF: held})

    def to_spark(self, stage: Any) -> Any:
        weights = self.weight("treeWeights") if hasattr(self, "treeWeights") else None
        return spark.rebuild(stage, self.written_nodes(), weights)


def _wants_gradient(x: Rows) -> bool:
    return (x.values if isinstance(x, SparseRows) else x).requires_grad


def _spreads(thresholds: Tensor, feature: Tensor) -> Tensor:
    """tau of each threshold (C,) as long as nobody has looked at rows: by the spread of its feature's thresholds, or 1."""
    size = int(feature.max()) + 1 if len(feature) else 0
    count, total, square = (torch.zeros(size, dtype=torch.float64).index_add_(0, feature, v) for v in (
        torch.ones_like(thresholds), thresholds, thresholds**2))  # fmt: skip
    spread = (square / count - (total / count) ** 2).clamp_min(0).sqrt()[feature]
    return SHARPNESS * torch.where(spread > 0, spread, 1.0).nan_to_num(1.0, 1.0, 1.0)


# Regression -----------------------------------------------------------------------------------------------------------


class RegressionTrees(Trees):
    """Trees whose leaves are numbers."""

    @property
    def margin_link(self) -> str:
        return "identity"

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return (margin,) if "predictionCol" in self.shown else ()

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        return (*self.columns(self.combined(total)), *self.more(leaves))

    def more(self, leaves: Tensor | None) -> tuple[Tensor, ...]:
        return () if leaves is None or "leafCol" not in self.shown else (self.leaf_column(leaves),)

    def mean(self, margin: Tensor) -> Tensor:
        return margin

    def own_loss(self) -> tuple[str, dict[str, float]]:
        return "squared", {}

    def margin_unit(self, y: LabelStats) -> float:
        return y.std or 1.0

    def pull(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> Pulled:
        """By the leaves: the margin is affine in them, given where rows go."""
        if not self.routes_fixed or (self.classes and slope.numel()):
            raise NotAffineError(self.uid)
        share = self.share_of(p)[..., self.tree]  # (L,) or (K, L)
        table = (p["leaves"] * share)[..., None]  # (K, L, 1)
        slopes = table if not slope.numel() else table * slope  # (K, L, m)

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> Tensor | None:
            [gradient] = gradients
            own = (gradient * slope).sum(2) if slope.numel() else gradient[:, :, 0]
            if "leaves" in room:
                room["leaves"].add_(own * share)
            if "treeWeights" in room:
                per_tree = room["treeWeights"].new_zeros(len(own), self.nodes.trees)
                per_tree.index_add_(1, self.tree, own * p["leaves"])
                room["treeWeights"].add_(per_tree * self.factor)
            return (gradient * table).sum(1, keepdim=True) if slope.numel() else None

        return Pulled([slopes], 0.0 if slope.numel() else torch.zeros(1, 1, 1, dtype=torch.float64), back)

    factor: ClassVar[float] = 1.0
    """What a tree's weight is multiplied by in the margin."""

    def share_of(self, p: Parameters) -> Tensor:
        """`share` of these parameters, (T,) or (K, T)."""
        return p["treeWeights"] * self.factor if "treeWeights" in p else self.share()

    def share(self) -> Tensor:
        return self.treeWeights * self.factor


@register("pyspark.ml.regression.GBTRegressionModel")
class GBTRegression(RegressionTrees):
    """prediction = sum over trees of treeWeight * leaf."""

    def own_loss(self) -> tuple[str, dict[str, float]]:
        return self.fitted, {}

    fitted = "squared"

    @classmethod
    def from_spark(cls, stage: Any) -> Trees:
        out = super().from_spark(stage)
        assert isinstance(out, GBTRegression)
        out.fitted = stage.getOrDefault("lossType").lower()
        return out


@register("pyspark.ml.regression.RandomForestRegressionModel")
class RandomForestRegression(RegressionTrees):
    """prediction = mean over trees of the leaf; a forest has no tree weights to write."""

    def share(self) -> Tensor:
        return torch.full((self.nodes.trees,), 1.0, dtype=torch.float64)

    def combined(self, total: Tensor) -> Tensor:
        return total / self.nodes.trees  # after the sum, as Spark: 1 / T isn't exact

    def share_of(self, p: Parameters) -> Tensor:
        return self.share() / self.nodes.trees

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        return self.nodes.trees * self.margin_unit(y)


@register("pyspark.ml.regression.DecisionTreeRegressionModel")
class DecisionTreeRegression(RegressionTrees):
    """prediction = leaf; varianceCol shows the variance of the rows that the tree was fitted on, which training leaves stale."""

    SHOWN = ("predictionCol", "varianceCol", "leafCol")
    single = True

    def share(self) -> Tensor:
        return torch.ones(1, dtype=torch.float64)

    def more(self, leaves: Tensor | None) -> tuple[Tensor, ...]:
        if leaves is None:
            return ()
        variance = (self.variances()[leaves[:, 0].long()],) if "varianceCol" in self.shown else ()
        return (*variance, *super().more(leaves))

    def variances(self) -> Tensor:
        """(L,), as org.apache.spark.mllib.tree.impurity.Variance.calculate."""
        count, total, square = torch.from_numpy(self.nodes.impurityStats[self.nodes.leaf]).T
        return torch.where(count == 0, 0.0, (square - total * total / count) / count)


# Classification -------------------------------------------------------------------------------------------------------


class ClassifyingTrees(Trees):
    """What trees of classes have in common: the columns, and the class by `thresholds` or the largest score."""

    SHOWN = ("rawPredictionCol", "probabilityCol", "predictionCol", "leafCol")
    label_cols = ("predictionCol", "leafCol")
    cuts: Tensor | None = None
    """The Param `thresholds`, (k,)."""

    @classmethod
    def from_spark(cls, stage: Any) -> Trees:
        out = super().from_spark(stage)
        assert isinstance(out, ClassifyingTrees)
        out.classes = int(stage.numClasses)
        if stage.isDefined("thresholds"):
            out.cuts = tensor(stage.getOrDefault("thresholds"))
        return out

    def own_loss(self) -> tuple[str, dict[str, float]]:
        return "logLoss", {}

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """rawPrediction and probability, (n, k) each, of the sums over all trees."""
        raise NotImplementedError

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        raw, probability = self.scores(total)
        columns = dict(zip(self.SHOWN, (raw, probability, self.label(raw, probability).to(raw.dtype)), strict=False))
        if leaves is not None:
            columns["leafCol"] = self.leaf_column(leaves)
        return tuple(columns[c] for c in self.shown)

    def label(self, raw: Tensor, probability: Tensor) -> Tensor:  # (n, k), (n, k) -> (n,)
        """The class by the first column that Spark shows: they round differently."""
        if self.cuts is not None and not (
            self.single and {"rawPredictionCol", "probabilityCol"}.isdisjoint(self.shown)
        ):
            scores = probability / self.cuts
            return torch.where(scores.isnan(), -math.inf, scores).argmax(1)
        only = "probabilityCol" in self.shown and "rawPredictionCol" not in self.shown
        return first_largest(probability if only else raw)

    def decision(self, margin: Tensor) -> Tensor:
        return self.label(*self.of_margin(margin)).to(margin.dtype)

    def of_margin(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """rawPrediction and probability, (n, k) each."""
        raise NotImplementedError

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        raw, probability = self.of_margin(margin)
        columns = dict(zip(self.SHOWN, (raw, probability, self.label(raw, probability).to(raw.dtype)), strict=False))
        # A loss has nothing to do with leaves, but finds a column at each place.
        return tuple(columns.get(c, torch.full_like(raw[:, 0], torch.nan)) for c in self.shown)


@register("pyspark.ml.classification.GBTClassificationModel")
class GBTClassification(ClassifyingTrees, RegressionTrees):
    """m = sum over trees of treeWeight * leaf; rawPrediction = [-m, m], probability of class 1 = sigmoid(2 m).

    Source: org.apache.spark.ml.classification.GBTClassificationModel, org.apache.spark.mllib.tree.loss.LogLoss.
    """

    factor = 2.0  # the margin is the log-odds, 2 m

    @property
    def margin_link(self) -> str:
        return "logit"

    def margin_unit(self, y: LabelStats) -> float:
        return 1.0

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return self.of_margin(total)

    def of_margin(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        m, zero = margin / 2, 1 / (1 + torch.exp(margin))
        return torch.stack([-m, m], 1), torch.stack([zero, 1 - zero], 1)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin if self.cuts is None else margin - torch.log(self.cuts[1] / self.cuts[0])

    def boundary(self, margin: Tensor) -> Tensor:
        return self.decision_margin(margin).abs() / margin.abs().clamp_min(1)


class VotingTrees(ClassifyingTrees):
    """Trees whose leaves are the weights of the classes, (L, k) impurityStats.

    The margin is the logarithm of the probabilities, at least log(1e-15).
    """

    LEAF = "impurityStats"

    @property
    def margin_link(self) -> str:
        return "softmax"

    def share(self) -> Tensor:
        return torch.ones(self.nodes.trees, dtype=torch.float64)

    def combined(self, total: Tensor) -> Tensor:
        return _SafeLog.apply(normalised(total))

    def of_margin(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        probability = torch.softmax(margin, 1)
        return probability * (1 if self.single else self.nodes.trees), probability

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return total, normalised(total)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin if self.cuts is None else margin - torch.log(self.cuts)

    def boundary(self, margin: Tensor) -> Tensor:
        score = torch.softmax(margin, 1)
        top = (score if self.cuts is None else score / self.cuts).topk(2, 1).values
        return (top[:, 0] - top[:, 1]) / top[:, 0].abs().clamp_min(1)

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        # Of the leaf's own total, so that its probabilities move; a class's share varies by about a third.
        size = self.leaves.detach().sum(1, keepdim=True).clamp_min(1e-300)
        return size * self.nodes.trees / 3

    @torch.no_grad()
    def project_(self) -> None:
        """Weights >= 0, each leaf's adding up to what they did when it was fitted.

        Only their shares count in a loss, so that a leaf's total would drift, and near 0 a step would turn it over.
        """
        self.leaves.clamp_(min=0)
        fitted, total = self.fitted_leaves(), self.leaves.sum(1)
        size = fitted.sum(1)
        self.leaves.mul_(torch.where((total > 0) & (size > 0), size / total, 1.0)[:, None])
        # Spark refuses rows without any weight: such a leaf starts again from what Spark fitted.
        self.leaves[total == 0] = fitted[total == 0]

    def fitted_leaves(self) -> Tensor:
        return torch.from_numpy(self.nodes.impurityStats[self.nodes.leaf])

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        if bool((self.leaves < 0).any()):
            worst = self.leaves[self.leaves < 0][0].item()
            raise InputError(f"{uid}: leaves must hold weights >= 0 of the classes, but an entry is {worst!r}")
        nothing = (self.leaves.sum(1) == 0) & (self.fitted_leaves().sum(1) > 0)
        if bool(nothing.any()):
            raise InputError(
                f"{uid}: leaf {int(nothing.nonzero()[0])} has weight 0 for every class, and Spark fails on rows without any; "
                "call project_() before writing back"
            )

    def written_nodes(self) -> Nodes:
        nodes = super().written_nodes()
        # A single tree whose raw scores aren't shown predicts by this field.
        moved = nodes.leaf & (nodes.impurityStats != self.nodes.impurityStats).any(1)
        prediction = np.where(moved, nodes.impurityStats.argmax(1), nodes.prediction)
        return nodes.replace(prediction=prediction.astype(np.float64))


@register("pyspark.ml.classification.RandomForestClassificationModel")
class RandomForestClassification(VotingTrees):
    """rawPrediction = sum over trees of the leaf's class weights over their sum; probability = rawPrediction over its sum."""

    def table(self) -> Tensor:
        return normalised(self.leaves)


@register("pyspark.ml.classification.DecisionTreeClassificationModel")
class DecisionTreeClassification(VotingTrees):
    """rawPrediction = the leaf's class weights; probability = rawPrediction over its sum."""

    single = True

    def table(self) -> Tensor:
        return self.leaves


def normalised(weights: Tensor) -> Tensor:
    """(n, k) over its rows' sums; a row that sums to 0 stays."""
    total = weights.sum(1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


class _SafeLog(torch.autograd.Function):
    """log(max(p, 1e-15)), whose derivative is 1 / max(p, 0.001): a class that no leaf knows still gets a gradient."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return p.clamp_min(FLOOR).log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        [p] = ctx.saved_tensors
        return gradient / p.clamp_min(1e-3)
