"""The common part of all predictors: a margin (such as the linear predictor before the link, or scores of the classes),
from which the loss and Spark's output columns are computed.
"""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.base import LabelStats, StageModule, columns_of, tensor
from sparkdiff.tensors.rows import Rows, on_gpu


class Predictor(StageModule):
    """A stage that a loss can be attached to: inputs -> margin -> output columns of Spark."""

    classes: int = 0
    """Number of classes; 0 for a regression."""
    ranks: bool = False
    """Whether a regression's means can serve as scores that rank rows of label 1 above those of label 0."""
    labelled: bool = True
    """Whether the stage was fitted to a label. A stage without a label has a loss of its own, `cost`."""
    SHOWN: ClassVar[tuple[str, ...]] = ("predictionCol",)
    """The Params that name the output columns."""
    shown: tuple[str, ...]
    """The Params of SHOWN that name a column; a Param with an empty name shows no column."""

    @classmethod
    def outputs(cls, stage: Any) -> tuple[str, ...]:
        return columns_of(stage, cls.SHOWN)

    @classmethod
    def shown_by(cls, stage: Any) -> tuple[str, ...]:
        """The value of `shown` for a fitted stage."""
        return tuple(c for c in cls.SHOWN if columns_of(stage, (c,)))

    def only_shown(self, *columns: Tensor) -> tuple[Tensor, ...]:
        """The given columns, one for each Param of SHOWN, without those that the stage does not show."""
        every = dict(zip(self.SHOWN, columns, strict=True))
        return tuple(every[c] for c in self.shown)

    @classmethod
    def loss_inputs(cls, stage: Any) -> tuple[str, ...]:
        """Columns that the loss reads but the prediction does not. If a loss is computed, `margin` gets them after the
        inputs.
        """
        return ()

    def margin(self, *columns: Rows) -> Tensor:
        """Input of losses: (n,), or (n, k) for k classes in softmax form. Takes `nulls=` if forward does."""
        raise NotImplementedError

    def explain_nan(self, *columns: Rows) -> str | None:
        """Reason why the outputs of these rows are NaN although no input is; None if the stage knows no reason."""
        return None

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        """Output columns of a margin, in the order of `outputs(stage)`."""
        raise NotImplementedError

    def forward(self, *columns: Rows) -> tuple[Tensor, ...]:
        return self.columns(self.margin(*columns))

    decides_only: bool = False
    """Whether the margin gives only the predicted class and no probability, because the threshold trains, too."""
    fitted_loss: str
    """Name of the loss that the stage was fitted with, if this loss has no parameters."""

    def own_loss(self) -> tuple[str, dict[str, float]]:
        """Name of the loss that the stage was fitted with, and the parameters of this loss."""
        return self.fitted_loss, {}

    def own_rows(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Loss of each row, (n,), unweighted, for a predictor whose own loss exists for no other predictor."""
        raise NotImplementedError

    def cost(self, margin: Tensor) -> Tensor:
        """Own loss of each row, (n,), of a predictor without a label."""
        raise NotImplementedError

    def loss_unit(self) -> float:
        """Typical size of a large difference of `cost`; dividing by it makes training independent of the features'
        units.
        """
        return 1.0

    def mean(self, margin: Tensor) -> Tensor:
        """Predicted mean of a regression, (n,), which is Spark's prediction."""
        raise NotImplementedError

    @property
    def margins(self) -> int:
        """Number of entries in the margin of a row; 0 if it is a scalar."""
        return self.classes if self.margin_link == "softmax" else 0

    @property
    def wide(self) -> bool:
        """True if a row's margin is a vector."""
        return self.margins > 0

    probable: bool = True
    """Whether the margin of a classifier gives probabilities."""

    def class_scores(self, margin: Tensor) -> Tensor:
        """Scores of the classes: (n,), larger for class 1 of two; or (n, k), which two classes may have, too."""
        return margin

    margin_link: str = ""
    """The link between the margin and Spark's output: `identity` or `log` of the mean, `logit` of the probability (of
    class 1), `softmax` if the probabilities are the margin's softmax, "" for anything else.
    """

    falling_link: str = ""
    """Name of the link if the mean does not increase with the margin; else empty."""
    binomial: bool = False
    """Whether a regression's mean is a probability."""

    def decision(self, margin: Tensor) -> Tensor:
        """Class that Spark predicts, (n,), for a classifier."""
        raise NotImplementedError

    def decision_margin(self, margin: Tensor) -> Tensor:
        """The margin, shifted by the thresholds so that its sign (or its largest entry) gives the predicted class;
        shaped like `class_scores`.
        """
        raise NotImplementedError

    positive_mean: bool = False
    """Whether `mean` is positive by construction."""

    def boundary(self, margin: Tensor) -> Tensor | None:
        """Distance of each row's margin from the nearest margin with another predicted class, (n,), relative to the
        margin's size; None for a regression.
        """
        return None

    def margin_unit(self, y: LabelStats) -> float:
        """Typical scale of the margin: its change if the label changes by one standard deviation; 1 for a log-ratio."""
        return 1.0


class LeastSquares(Predictor):
    """A regression whose margin is the prediction, fitted by least squares."""

    margin_link = "identity"
    fitted_loss = "squared"

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return (margin,)

    def mean(self, margin: Tensor) -> Tensor:
        return margin

    def margin_unit(self, y: LabelStats) -> float:
        return y.std or 1.0


class ProbabilisticClassifier(Predictor):
    """A classifier with a margin (n,), the log-odds of class 1, or (n, k), whose softmax gives the probabilities.

    Source: org.apache.spark.ml.classification.ProbabilisticClassificationModel.transform.
    """

    SHOWN: ClassVar[tuple[str, ...]] = ("rawPredictionCol", "probabilityCol", "predictionCol")
    label_cols: ClassVar[tuple[str, ...]] = ("predictionCol",)
    fitted_loss = "logLoss"
    cuts: Tensor | None = None
    """The Param `thresholds`, (k,)."""

    @classmethod
    def settings(cls, stage: Any) -> dict[str, Any]:
        """The values of `shown` and `thresholds` for a stage.

        Raises:
            InputError: it is fitted, and its thresholds, if set, are not one for each class.
        """
        thresholds = tensor(stage.getOrDefault("thresholds")) if stage.isDefined("thresholds") else None
        if thresholds is not None and len(thresholds) != (classes := getattr(stage, "numClasses", len(thresholds))):
            raise InputError(
                f"{stage.uid}: thresholds has {len(thresholds)} numbers, and the model has {classes} classes: set one for each "
                "class, or clear the Param (model.clear(model.thresholds))"
            )
        return {"shown": cls.shown_by(stage), "thresholds": thresholds}

    def decides_by(self) -> Tensor:
        """Thresholds of the classes, (k,), that sum to 1: the class with the largest quotient of probability and threshold
        is predicted.
        """
        return F.normalize(
            torch.ones(self.classes, dtype=torch.float64) if self.cuts is None else self.cuts, p=1, dim=0
        )

    def threshold_params(self, cuts: Tensor) -> dict[str, Any]:
        """The Params that make the stage decide by these thresholds (k,), which sum to 1."""
        return {"thresholds": cuts.tolist()}

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        """rawPrediction and probability, (n, k) each."""
        raise NotImplementedError

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return self.only_shown(*self.with_label(*self.raw_and_probability(margin)))

    def with_label(self, raw: Tensor, probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return raw, probability, self.label(raw, probability).to(raw.dtype)

    def label(self, raw: Tensor, probability: Tensor) -> Tensor:  # (n, k), (n, k) -> (n,)
        """Class of each row, computed from the first output column that the stage shows (with thresholds from the
        probabilities), as in Spark: the columns differ in rounding.
        """
        if self.cuts is not None:  # like ProbabilisticClassificationModel.probability2prediction: NaN never wins
            scores = probability / self.cuts.to(probability)
            return torch.where(scores.isnan(), -math.inf, scores).argmax(1)
        only = "probabilityCol" in self.shown and "rawPredictionCol" not in self.shown
        return first_largest(probability if only else raw)

    def decision(self, margin: Tensor) -> Tensor:
        return self.label(*self.raw_and_probability(margin)).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        if self.cuts is None:
            return margin
        logs = torch.log(self.cuts.to(margin))
        return margin - (logs if self.wide else logs[1] - logs[0])

    def boundary(self, margin: Tensor) -> Tensor:
        if not self.wide:
            return self.decision_margin(margin).abs() / margin.abs().clamp_min(1)
        return lead(margin if self.cuts is None else torch.softmax(margin, 1) / self.cuts)


def first_largest(scores: Tensor) -> Tensor:
    """First index of the largest score per row, (n, k) -> (n,) int64, like Vector.argmax: NaN wins only in first
    place.
    """
    found = torch.where(scores.isnan(), -math.inf, scores).argmax(1)
    return torch.where(scores[:, 0].isnan(), 0, found)


def lead(scores: Tensor) -> Tensor:
    """Distance of the largest score from the second largest, relative to max(1, abs(largest)), (n, k) -> (n,)."""
    top = scores.topk(2, 1).values
    return (top[:, 0] - top[:, 1]) / top[:, 0].abs().clamp_min(1)


def logit(threshold: float) -> float:
    return -math.inf if threshold == 0 else math.inf if threshold == 1 else math.log(threshold / (1 - threshold))


def softmax(margin: Tensor) -> Tensor:
    """Softmax like Spark's Utils.softmax: a row with +inf gets 1 at its first +inf, and elsewhere 0 for a finite entry
    and NaN for any other.
    """
    probability = torch.softmax(margin, 1)
    infinite = margin.isposinf()
    if not on_gpu(margin) and not bool(infinite.any()):
        return probability
    first = F.one_hot(infinite.long().argmax(1), margin.shape[1]).to(torch.bool)
    return torch.where(infinite.any(1, keepdim=True), torch.where(first, 1.0, margin * 0.0), probability)
