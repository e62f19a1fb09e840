"""AFTSurvivalRegression: times to an event, some of them censored."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import AffineForm, Parameters
from sparkdiff.stages.base import LabelStats, columns_of, parameter, register, tensor
from sparkdiff.stages.linear import LinearMargin
from sparkdiff.tensors.rows import Rows, known_any


@register("pyspark.ml.regression.AFTSurvivalRegressionModel")
class AFTSurvivalRegression(LinearMargin):
    """prediction = exp(eta) with eta = x @ coefficients + intercept; quantile at q = exp(eta) * (-log(1 - q))^scale.

    The margin is (n, 3): eta, log(scale), and censorCol. Only the loss reads censorCol: 1 if the event was observed at
    the time in the label, 0 if it had not happened until then.

    Source: org.apache.spark.ml.regression.AFTSurvivalRegressionModel, and AFTAggregator for the loss.
    """

    weights = ("coefficients", "intercept", "scale")
    positive = frozenset({"scale"})
    SHOWN = ("predictionCol", "quantilesCol")
    margins = 3
    positive_mean = True
    fitted_loss = "weibull"

    def __init__(
        self,
        coefficients: Tensor,
        intercept: Tensor,
        scale: Tensor,
        fit_intercept: bool,
        *,
        quantiles: Tensor,
        shown: tuple[str, ...],
        uid: str,
        censor: str,
    ):
        super().__init__(coefficients, intercept, fit_intercept)
        self.scale = parameter(scale)  # ()
        self.quantiles, self.shown, self.uid, self.censor = quantiles, shown, uid, censor  # (q,) probabilities

    @classmethod
    def from_spark(cls, stage: Any) -> "AFTSurvivalRegression":
        return cls(
            tensor(stage.coefficients),
            tensor(stage.intercept),
            tensor(stage.scale),
            stage.getFitIntercept(),
            quantiles=tensor(stage.getQuantileProbabilities()),
            uid=stage.uid,
            censor=stage.getCensorCol(),
            shown=cls.shown_by(stage),
        )

    @classmethod
    def loss_inputs(cls, stage: Any) -> tuple[str, ...]:
        return columns_of(stage, ("censorCol",))

    def margin(self, x: Rows, censor: Tensor | None = None) -> Tensor:  # type: ignore[override]  # (n, 3)
        eta = super().margin(x)
        if censor is None:
            censor = torch.ones_like(eta)
        elif known_any((censor != 0) & (censor != 1)):
            wrong = censor[(censor != 0) & (censor != 1)][0].item()
            raise InputError(
                f"{self.uid}: censorCol={self.censor!r} holds {wrong!r}, but must be 1 if the event was "
                "observed and 0 if it was not observed yet"
            )
        return torch.stack([eta, torch.log(self.scale).expand_as(eta), censor], 1)

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        none = p["coefficients"].new_zeros(())
        slopes = torch.nn.functional.pad(p["coefficients"][..., None], (0, 2))
        censor = torch.nn.functional.pad(none.new_ones(1, 1, 1), (2, 0))
        constant = torch.stack(torch.broadcast_tensors(p["intercept"], torch.log(p["scale"]), none), -1)[..., None, :]

        def back(gradients: list[Tensor], constants: Tensor, room: Parameters) -> None:
            self.add_gradients(gradients, constants, room)
            if "scale" in room:
                room["scale"].add_(constants[:, 0, 1] / p["scale"])

        return AffineForm([slopes, *([censor] if len(widths) > 1 else [])], constant, back)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        time = torch.exp(margin[:, 0])
        exponents = torch.log(-torch.log1p(-self.quantiles.to(margin))) * torch.exp(margin[:, 1:2])
        return self.only_shown(time, time[:, None] * torch.exp(exponents))

    def mean(self, margin: Tensor) -> Tensor:
        return torch.exp(margin[:, 0])

    def own_rows(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Minus the log-likelihood of a Weibull distribution with right censoring, like AFTAggregator."""
        eta, log_scale, censor = margin[:, 0], margin[:, 1], margin[:, 2].detach()
        residual = (torch.log(label) - eta) * torch.exp(-log_scale)
        return censor * (log_scale - residual) + torch.exp(residual)

    def margin_unit(self, y: LabelStats) -> float:
        return float(self.scale.detach())
