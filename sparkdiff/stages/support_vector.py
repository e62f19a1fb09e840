"""LinearSVC, a linear classifier without probabilities."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.rows import Rows
from sparkdiff.stages.affine import AffineForm, MatrixProduct, Parameters
from sparkdiff.stages.base import parameter, register, tensor
from sparkdiff.stages.linear import coefficient_units, product, regression_margin
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.trainable import FeatureStats, LabelStats


@register("pyspark.ml.classification.LinearSVCModel")
class LinearSVC(MatrixProduct, Predictor):
    """rawPrediction = [-m, m] with m = x @ coefficients + intercept; prediction = m > threshold, of the margin itself.

    Source: org.apache.spark.ml.classification.LinearSVCModel.
    """

    weights = ("coefficients", "intercept")
    feature_axis = {"coefficients": 0}
    SHOWN = ("rawPredictionCol", "predictionCol")
    label_cols = ("predictionCol",)
    classes = 2
    probable = False

    def __init__(
        self, coefficients: Tensor, intercept: Tensor, fit_intercept: bool, *, threshold: float, shown: tuple[str, ...]
    ):
        super().__init__()
        self.coefficients = parameter(coefficients)  # (d,)
        self.intercept = parameter(intercept, fit_intercept)  # ()
        self.threshold, self.shown = threshold, shown

    @classmethod
    def from_spark(cls, stage: Any) -> "LinearSVC":
        return cls(
            tensor(stage.coefficients), tensor(stage.intercept), stage.getFitIntercept(), threshold=stage.getThreshold(),
            shown=cls.shown_by(stage),
        )  # fmt: skip

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column
        return product(x, self.coefficients) + self.intercept

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        return regression_margin(p)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return self.only_shown(torch.stack([-margin, margin], 1), self.decision(margin))

    def decision(self, margin: Tensor) -> Tensor:
        return (margin > self.threshold).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin - self.threshold

    def boundary(self, margin: Tensor) -> Tensor:
        return self.decision_margin(margin).abs() / margin.abs().clamp_min(1)

    def own_loss(self) -> tuple[str, dict[str, float]]:
        return "hinge", {}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"coefficients": coefficient_units(x, 1.0)}
