"""Decision trees, random forests and gradient-boosted trees, for regression and classification, with Spark's hard
splits.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Self

from sparkdiff.errors import InputError
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.stages.affine import Affine, AffineForm, NotAffineError, Parameters
from sparkdiff.stages.base import LabelStats, register
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import LeastSquares, ProbabilisticClassifier, first_largest, lead

FLOOR = 1e-15
"""Smallest probability in a loss, like MulticlassClassificationEvaluator's eps."""

# Regression -----------------------------------------------------------------------------------------------------------


class RegressionTrees(Affine, Trees, LeastSquares):
    """Trees whose leaves are numbers."""

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        # A loss does not use the leaves, but expects a column at each place.
        return self.only_shown(margin, *[torch.full_like(margin, torch.nan)] * (len(self.SHOWN) - 1))

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        prediction = (self.margin_from_sums(total),) if "predictionCol" in self.shown else ()
        return (*prediction, *self.more(leaves))

    def more(self, leaves: Tensor | None) -> tuple[Tensor, ...]:
        return () if leaves is None or "leafCol" not in self.shown else (self.leaf_column(leaves),)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        """Affine form in which the inputs are indicators of the leaves: as long as rows do not change leaves, the
        margin is a weighted sum of these.
        """
        if not self.routes_fixed or (self.classes and slope.numel()):
            raise NotAffineError(self.uid)
        share = self.share_of(p)[..., self.tree]  # (L,) or (K, L)
        table = (p["leaves"] * share)[..., None]  # (K, L, 1)
        slopes = table if not slope.numel() else table * slope  # (K, L, m)

        def back(gradients: list[Tensor], _constant: Tensor, room: Parameters) -> Tensor | None:
            [gradient] = gradients
            own = (gradient * slope).sum(2) if slope.numel() else gradient[:, :, 0]
            if "leaves" in room:
                room["leaves"].add_(own * share)
            if "treeWeights" in room:
                per_tree = room["treeWeights"].new_zeros(len(own), self.nodes.trees)
                per_tree.index_add_(1, self.tree, own * p["leaves"])
                room["treeWeights"].add_(per_tree * self.factor)
            return (gradient * table).sum(1, keepdim=True) if slope.numel() else None

        return AffineForm([slopes], 0.0 if slope.numel() else table.new_zeros(1, 1, 1), back)

    def share_of(self, p: Parameters) -> Tensor:
        """Factor with which each tree's leaf enters the margin, for these parameters, (T,) or (K, T)."""
        return p["treeWeights"] * self.factor if "treeWeights" in p else self.share()


@register("pyspark.ml.regression.GBTRegressionModel")
class GBTRegression(RegressionTrees):
    """prediction = sum over trees of treeWeight * leaf."""

    boosted = True

    def own_loss(self) -> tuple[str, dict[str, float]]:
        return self.fitted, {}

    fitted = "squared"

    @classmethod
    def from_spark(cls, stage: Any) -> Self:
        out = super().from_spark(stage)
        out.fitted = stage.getOrDefault("lossType").lower()
        return out


@register("pyspark.ml.regression.RandomForestRegressionModel")
class RandomForestRegression(RegressionTrees):
    """prediction = mean over trees of the leaf; a forest has no tree weights to write."""

    def margin_from_sums(self, total: Tensor) -> Tensor:
        return total / self.nodes.trees  # after the sum, like Spark: 1 / T isn't exact

    def share_of(self, p: Parameters) -> Tensor:
        return self.share() / self.nodes.trees

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        return self.nodes.trees * self.margin_unit(y)


@register("pyspark.ml.regression.DecisionTreeRegressionModel")
class DecisionTreeRegression(RegressionTrees):
    """prediction = leaf; varianceCol shows the variance of the rows that the tree was fitted on, which training does
    not update.
    """

    SHOWN = ("predictionCol", "varianceCol", "leafCol")
    single = True

    def more(self, leaves: Tensor | None) -> tuple[Tensor, ...]:
        if leaves is None:
            return ()
        variance = (self.variances()[leaves[:, 0].long()],) if "varianceCol" in self.shown else ()
        return (*variance, *super().more(leaves))

    def variances(self) -> Tensor:
        """Variance of each leaf (L,), like org.apache.spark.mllib.tree.impurity.Variance.calculate."""
        stats = torch.from_numpy(self.nodes.impurityStats[self.nodes.leaf])
        count, total, square = stats.to(self.leaves.device, non_blocking=True).T
        return torch.where(count == 0, 0.0, (square - total * total / count) / count)


# Classification -------------------------------------------------------------------------------------------------------


class ClassifyingTrees(ProbabilisticClassifier, Trees):
    """The common part of trees for classes."""

    SHOWN = (*ProbabilisticClassifier.SHOWN, "leafCol")
    label_cols = ("predictionCol", "leafCol")

    @classmethod
    def from_spark(cls, stage: Any) -> Self:
        out = super().from_spark(stage)
        out.classes, out.cuts = int(stage.numClasses), cls.settings(stage)["thresholds"]
        return out

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """rawPrediction and probability, (n, k) each, from the sums over all trees."""
        raise NotImplementedError

    def shows(self, total: Tensor, leaves: Tensor | None) -> tuple[Tensor, ...]:
        raw, probability = self.scores(total)
        return self.only_shown(*self.with_label(raw, probability), raw if leaves is None else self.leaf_column(leaves))

    def label(self, raw: Tensor, probability: Tensor) -> Tensor:
        if self.single and {"rawPredictionCol", "probabilityCol"}.isdisjoint(self.shown):
            return first_largest(raw)
        return super().label(raw, probability)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        raw, probability = self.raw_and_probability(margin)
        # A loss does not use the leaves, but expects a column at each place.
        return self.only_shown(*self.with_label(raw, probability), torch.full_like(raw[:, 0], torch.nan))


@register("pyspark.ml.classification.GBTClassificationModel")
class GBTClassification(ClassifyingTrees, RegressionTrees):
    """m = sum over trees of treeWeight * leaf; rawPrediction = [-m, m], probability of class 1 = sigmoid(2 m).

    Source: org.apache.spark.ml.classification.GBTClassificationModel, org.apache.spark.mllib.tree.loss.LogLoss.
    """

    boosted = True
    factor = 2.0  # the margin is the log-odds, 2 m
    margin_link = "logit"

    def margin_unit(self, y: LabelStats) -> float:
        return 1.0

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return self.raw_and_probability(total)

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        m, zero = margin / 2, 1 / (1 + torch.exp(margin))
        return torch.stack([-m, m], 1), torch.stack([zero, 1 - zero], 1)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin if self.cuts is None else margin - torch.log(self.cuts[1] / self.cuts[0])


class VotingTrees(ClassifyingTrees):
    """Trees whose leaves are the weights of the classes, (L, k) impurityStats.

    The margin is the logarithm of the probabilities, at least log(1e-15).
    """

    LEAF = "impurityStats"
    margin_link = "softmax"

    def margin_from_sums(self, total: Tensor) -> Tensor:
        return _SafeLog.apply(normalised(total))

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        probability = torch.softmax(margin, 1)
        return probability * (1 if self.single else self.nodes.trees), probability

    def scores(self, total: Tensor) -> tuple[Tensor, Tensor]:
        return total, normalised(total)

    def boundary(self, margin: Tensor) -> Tensor:
        score = torch.softmax(margin, 1)
        return lead(score if self.cuts is None else score / self.cuts)

    def leaf_unit(self, y: LabelStats) -> Tensor | float:
        # Relative to the leaf's total, so that its probabilities move; a class's share varies by about a third.
        size = self.leaves.detach().sum(1, keepdim=True).clamp_min(1e-300)
        return size * self.nodes.trees / 3

    @torch.no_grad()
    def project_(self) -> None:
        """Move weights to >= 0, and the sum of each leaf back to its fitted value.

        Only the shares of the classes within a leaf affect a loss, so the sum would drift, and near 0 a step could
        change its sign.
        """
        self.leaves.clamp_(min=0)
        fitted, total = self.fitted_leaves(), self.leaves.sum(1, keepdim=True)
        size = fitted.sum(1, keepdim=True)
        kept = (total == size) | (total == 0) | (size == 0)  # bit for bit
        self.leaves.copy_(torch.where(kept, self.leaves, self.leaves / total * size))
        # Spark refuses rows without any weight: such a leaf starts again from Spark's fitted weights.
        nothing = self.leaves.sum(1, keepdim=True) == 0
        self.leaves.copy_(torch.where(nothing, fitted, self.leaves))

    _fitted: Tensor | None = None

    def fitted_leaves(self) -> Tensor:
        """Weights that Spark fitted, (L, k), on the device of the leaves."""
        if self._fitted is None or self._fitted.device != self.leaves.device:
            fitted = torch.from_numpy(self.nodes.impurityStats[self.nodes.leaf])
            self._fitted = fitted.to(self.leaves.device, non_blocking=True)
        return self._fitted

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        if bool((self.leaves < 0).any()):
            worst = self.leaves[self.leaves < 0][0].item()
            raise InputError(f"{uid}: leaves must hold class weights >= 0, but an entry is {worst!r}")
        nothing = (self.leaves.sum(1) == 0) & (self.fitted_leaves().sum(1) > 0)
        if bool(nothing.any()):
            raise InputError(
                f"{uid}: leaf {int(nothing.nonzero()[0])} has weight 0 for every class, and Spark fails on "
                "rows without class weights; call project_() before writing back"
            )

    def written_nodes(self) -> Nodes:
        nodes = super().written_nodes()
        # A single tree without columns of scores predicts from this field.
        moved = nodes.leaf & (nodes.impurityStats != self.nodes.impurityStats).any(1)
        prediction = np.where(moved, nodes.impurityStats.argmax(1), nodes.prediction)
        return nodes.replace(prediction=prediction.astype(np.float64))


@register("pyspark.ml.classification.RandomForestClassificationModel")
class RandomForestClassification(VotingTrees):
    """rawPrediction = sum over trees of the leaf's class weights divided by their sum; probability = rawPrediction
    divided by its sum.
    """

    def table(self) -> Tensor:
        return normalised(self.leaves)


@register("pyspark.ml.classification.DecisionTreeClassificationModel")
class DecisionTreeClassification(VotingTrees):
    """rawPrediction = the leaf's class weights; probability = rawPrediction divided by its sum."""

    single = True

    def table(self) -> Tensor:
        return self.leaves


def normalised(weights: Tensor) -> Tensor:
    """Weights (n, k) divided by the sum of their row; a row with the sum 0 stays unchanged."""
    total = weights.sum(1, keepdim=True)
    return weights / torch.where(total == 0, 1.0, total)


class _SafeLog(torch.autograd.Function):
    """log(max(p, 1e-15)), whose derivative is 1 / max(p, 0.001): a class that no leaf has still gets a gradient."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.save_for_backward(p)
        return p.clamp_min(FLOOR).log()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        [p] = ctx.saved_tensors
        return gradient / p.clamp_min(1e-3)
