"""LinearSVC, a linear classifier without probabilities."""

from typing import Any

import torch
from torch import Tensor

from sparkdiff.stages.base import register, tensor
from sparkdiff.stages.linear import LinearMargin


@register("pyspark.ml.classification.LinearSVCModel")
class LinearSVC(LinearMargin):
    """rawPrediction = [-m, m] with m = x @ coefficients + intercept; prediction = m > threshold, on the margin itself.

    Source: org.apache.spark.ml.classification.LinearSVCModel.
    """

    weights = ("coefficients", "intercept")
    SHOWN = ("rawPredictionCol", "predictionCol")
    label_cols = ("predictionCol",)
    classes = 2
    probable = False
    fitted_loss = "hinge"

    def __init__(
        self, coefficients: Tensor, intercept: Tensor, fit_intercept: bool, *, threshold: float, shown: tuple[str, ...]
    ):
        super().__init__(coefficients, intercept, fit_intercept)
        self.threshold, self.shown = threshold, shown

    @classmethod
    def from_spark(cls, stage: Any) -> "LinearSVC":
        return cls(
            tensor(stage.coefficients),
            tensor(stage.intercept),
            stage.getFitIntercept(),
            threshold=stage.getThreshold(),
            shown=cls.shown_by(stage),
        )

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return self.only_shown(torch.stack([-margin, margin], 1), self.decision(margin))

    def decision(self, margin: Tensor) -> Tensor:
        return (margin > self.threshold).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin - self.threshold

    def boundary(self, margin: Tensor) -> Tensor:
        return self.decision_margin(margin).abs() / margin.abs().clamp_min(1)
