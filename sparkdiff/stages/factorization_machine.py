"""FMRegressor and FMClassifier: linear terms and products of all pairs of features, of low rank."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.stages.linear import coefficient_units
from sparkdiff.stages.predictor import LeastSquares, Predictor, ProbabilisticClassifier
from sparkdiff.tensors.rows import Rows, SparseRows, on_gpu, product, squared, sum_in_order


class FactorizationMachine(Predictor):
    """intercept + x @ linear + sum over i < j of <factors_i, factors_j> x_i x_j.

    Source: org.apache.spark.ml.regression.FactorizationMachines.getRawPrediction.
    """

    weights = ("intercept", "linear", "factors")
    feature_axis = {"linear": 0, "factors": 0}
    intercept: Tensor
    linear: Tensor
    factors: Tensor

    @classmethod
    def from_spark(cls, stage: Any) -> Self:
        out = cls()
        out.intercept = parameter(tensor(stage.intercept), stage.getFitIntercept())  # ()
        out.linear = parameter(tensor(stage.linear), stage.getFitLinear())  # (d,)
        out.factors = parameter(tensor(stage.factors))  # (d, f)
        return out

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # (n, d) -> (n,)
        out = self.intercept + product(x, self.linear)
        if torch.is_grad_enabled() or on_gpu(out):  # a GPU sums in its own order anyway
            total, squares = product(x, self.factors), product(squared(x), self.factors * self.factors)
            return out + 0.5 * (total * total - squares).sum(1)
        # The difference of two large squares depends on each rounding, so this follows Spark's order, factor by factor.
        for factor in self.factors.T:
            if isinstance(x, SparseRows):
                entries, none = _products(x.values, factor[x.indices]), x.values.new_zeros(len(x))
                total, squares = (none.index_add(0, x.rows(), part) for part in (entries, entries * entries))
            else:
                entries = _products(x, factor)
                total, squares = sum_in_order(entries), sum_in_order(entries * entries)
            out = out + 0.5 * (total * total - squares)
        return out

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        """Units: for a linear coefficient as in other linear stages. A factor's unit changes the products of its feature
        with the other features, at their usual values, by at most about one unit of the margin.
        """
        unit, one = self.margin_unit(y), coefficient_units(x, 1.0)
        usual = (self.factors.detach() * torch.where(x.std > 0, x.std, 0.0)[:, None]).norm(dim=0)  # (f,)
        size = torch.sqrt(torch.tensor(unit, dtype=torch.float64))
        scale = torch.where(usual > 0, torch.minimum(unit / usual, size), size)
        return {
            "linear": unit * one,
            "intercept": torch.tensor(unit, dtype=torch.float64),
            "factors": one[:, None] * scale,
        }


def _products(x: Tensor, factor: Tensor) -> Tensor:
    """x * factor, but 0 where x is 0: Spark skips these entries, although a factor may not be finite."""
    return x * factor if bool(factor.isfinite().all()) else torch.where(x == 0, 0.0, x * factor)


@register("pyspark.ml.regression.FMRegressionModel")
class FMRegression(FactorizationMachine, LeastSquares):
    """prediction = the combination of linear terms and products."""


@register("pyspark.ml.classification.FMClassificationModel")
class FMClassification(FactorizationMachine, ProbabilisticClassifier):
    """rawPrediction = [-m, m], probability of class 1 = sigmoid(m)."""

    classes = 2
    margin_link = "logit"

    @classmethod
    def from_spark(cls, stage: Any) -> Self:
        out = super().from_spark(stage)
        out.shown, out.cuts = cls.settings(stage).values()
        return out

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        one = 1 / (1 + torch.exp(-margin))  # in Spark's order of operations: p[0] = 1 - p[1]
        return torch.stack([-margin, margin], 1), torch.stack([1 - one, one], 1)
