"""Linear predictors: LinearRegression, GeneralizedLinearRegression, LogisticRegression."""

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.jvm.coefficients import stored_of, with_coefficients
from sparkdiff.stages.affine import AffineForm, MatrixProduct, Parameters
from sparkdiff.stages.base import FeatureStats, LabelStats, columns_of, parameter, register, tensor
from sparkdiff.stages.constraints import Odds
from sparkdiff.stages.predictor import LeastSquares, Predictor, ProbabilisticClassifier, logit, softmax
from sparkdiff.tensors.rows import Rows, SparseRows, on_gpu, product

LARGEST = sys.float_info.max
EPSILON = 1e-16  # GeneralizedLinearRegression.epsilon


def without(x: Rows, which: Tensor) -> Rows:
    """Rows with 0 in place of every entry, also of NaN and infinity, in the columns of the mask `which` (d,) bool."""
    if isinstance(x, SparseRows):
        return x.with_values(torch.where(which[x.indices], 0.0, x.values))
    return torch.where(which, 0.0, x)


def unstored_of(stage: Any) -> Tensor | None:
    """Mask (k, d) of the coefficients that a fitted stage doesn't store; None if it stores all."""
    stored = torch.from_numpy(stored_of(stage))
    return None if bool(stored.all()) else ~stored


def with_stored(module: MatrixProduct, stage: Any, matrix: Any, intercepts: Any) -> Any:
    """A new fitted stage with these coefficients (k, d), without those that stay unstored, and intercepts (k,)."""
    skipped = module.unstored_mask()
    return with_coefficients(stage, matrix, intercepts, None if skipped is None else ~skipped.cpu().numpy())


def coefficient_units(x: FeatureStats, unit: float) -> Tensor:
    """Unit of each coefficient: with one unit more, the margin changes by `unit` if the column changes by one standard
    deviation (by 1 if the column is constant).

    For sparse rows the root mean square of the nonzero entries takes the place of the standard deviation. For a rare
    word the standard deviation is perhaps a hundredth of an entry, so the unit would be a hundred times too large for
    rows with the word.
    """
    spread = x.std if x.entry is None else x.entry
    return unit / torch.where(spread > 0, spread, 1.0)


class LinearMargin(MatrixProduct, Predictor):
    """The common part of predictors whose margin is x @ coefficients + intercept, plus further inputs (an offset)."""

    feature_axis = {"coefficients": 0}

    def __init__(self, coefficients: Tensor, intercept: Tensor, fit_intercept: bool):
        super().__init__()
        self.coefficients = parameter(coefficients)  # (d,)
        self.intercept = parameter(intercept, fit_intercept)  # ()

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column
        out, skipped = product(x, self.coefficients) + self.intercept, self.unstored_mask()
        if skipped is None or not (on_gpu(out) or bool((~out.isfinite()).any())):
            return out
        return product(without(x, skipped[0]), self.coefficients) + self.intercept

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        more = [p["coefficients"].new_ones(1, 1) for _ in widths[1:]]
        constant = p["intercept"][..., None, None]
        return AffineForm([p["coefficients"][..., None], *more], constant, self.add_gradients)

    @staticmethod
    def add_gradients(gradients: list[Tensor], constant: Tensor, room: Parameters) -> None:
        """Add the gradients of coefficients and intercept, for `AffineForm.back`."""
        if "coefficients" in room:
            room["coefficients"].add_(gradients[0][:, :, 0])
        if "intercept" in room:
            room["intercept"].add_(constant[:, 0, 0])

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        unit = self.margin_unit(y)
        return {"coefficients": coefficient_units(x, unit), "intercept": torch.tensor(unit, dtype=torch.float64)}


@register("pyspark.ml.regression.LinearRegressionModel")
class LinearRegression(LinearMargin, LeastSquares):
    """prediction = x @ coefficients + intercept. A Huber model's `scale` is written back as it was fitted.

    As in LogisticRegression, coefficients of 0 that Spark does not store stay unstored as long as they are 0.
    """

    weights = ("coefficients", "intercept", "scale")

    def __init__(
        self,
        coefficients: Tensor,
        intercept: Tensor,
        scale: float,
        fit_intercept: bool,
        epsilon: float | None,
        unstored: Tensor | None = None,
    ):
        super().__init__(coefficients, intercept, fit_intercept)
        self.scale, self.epsilon = scale, epsilon
        self.register_buffer("unstored", unstored, persistent=False)  # None or (1, d) bool

    @classmethod
    def from_spark(cls, stage: Any) -> "LinearRegression":
        epsilon = stage.getEpsilon() if stage.getLoss() == "huber" else None
        weights = tensor(stage.coefficients), tensor(stage.intercept), stage.scale
        return cls(*weights, stage.getFitIntercept(), epsilon, unstored_of(stage))

    def to_spark(self, stage: Any) -> Any:
        return with_stored(self, stage, self.weight("coefficients")[None], np.array([self.weight("intercept")]))

    def own_loss(self) -> tuple[str, dict[str, float]]:
        # At a given scale, Spark's Huber loss (Owen's concomitant-scale form) is Huber's with delta = epsilon * scale.
        return ("squared", {}) if self.epsilon is None else ("huber", {"delta": self.epsilon * self.scale})


def power(eta: Tensor, exponent: float) -> Tensor:
    return torch.pow(eta, eta.new_full((), exponent))  # a plain 0.5 is a square root in torch: NaN for -inf


LINKS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[float], float]]] = {
    # link: (margin -> mean, derivative of the link at a mean); NaN for links whose margin has the unit 1 (log-ratios)
    "identity": (lambda eta: eta, lambda _mu: 1.0),
    "log": (torch.exp, lambda _mu: math.nan),
    "logit": (torch.sigmoid, lambda _mu: math.nan),
    "probit": (torch.special.ndtr, lambda _mu: math.nan),
    "cloglog": (lambda eta: 1 - torch.exp(-torch.exp(eta)), lambda _mu: math.nan),
    "inverse": (lambda eta: 1 / eta, lambda mu: 1 / mu**2),
    "sqrt": (lambda eta: eta * eta, lambda mu: 0.5 / math.sqrt(mu)),
}
RISING = ("identity", "log", "logit", "probit", "cloglog")
"""Links whose mean increases with the margin."""
CANONICAL = {"gaussian": "identity", "binomial": "logit", "poisson": "log", "gamma": "inverse"}


@register("pyspark.ml.regression.GeneralizedLinearRegressionModel")
class GeneralizedLinearRegression(LinearMargin):
    """prediction = project(unlink(x @ coefficients + intercept + offset)), with Spark's projection of the mean.

    Source: org.apache.spark.ml.regression.GeneralizedLinearRegression (Family.project, Link.unlink).
    """

    weights = ("coefficients", "intercept")
    SHOWN = ("predictionCol", "linkPredictionCol")

    def __init__(
        self,
        coefficients: Tensor,
        intercept: Tensor,
        fit_intercept: bool,
        *,
        family: str,
        link: str,
        link_power: float,
        variance_power: float,
        shows_link: bool,
        shows_mean: bool = True,
    ):
        super().__init__(coefficients, intercept, fit_intercept)
        self.family, self.link, self.link_power = family, link, link_power
        self.variance_power, self.shows_link, self.shows_mean = variance_power, shows_link, shows_mean
        self.positive_mean = (family != "gaussian" and link in ("log", "sqrt", "inverse", "power")) or link == "log"

    @classmethod
    def from_spark(cls, stage: Any) -> "GeneralizedLinearRegression":
        family, link, link_power, variance_power = stage.getFamily().lower(), "", math.nan, math.nan
        if family == "tweedie":
            variance_power = stage.getVariancePower()
            link_power = stage.getLinkPower() if stage.isDefined("linkPower") else 1 - variance_power
            # Spark names the special cases (Family.fromParams, Link.fromParams).
            link = {0.0: "log", 1.0: "identity", -1.0: "inverse", 0.5: "sqrt"}.get(link_power, "power")
            family = {0.0: "gaussian", 1.0: "poisson", 2.0: "gamma"}.get(variance_power, "tweedie")
        else:
            link = stage.getLink().lower() if stage.isDefined("link") else CANONICAL[family]
        return cls(
            tensor(stage.coefficients),
            tensor(stage.intercept),
            stage.getFitIntercept(),
            family=family,
            link=link,
            link_power=link_power,
            variance_power=variance_power,
            shows_link=bool(columns_of(stage, ("linkPredictionCol",))),
            shows_mean=bool(columns_of(stage, ("predictionCol",))),
        )

    @classmethod
    def inputs(cls, stage: Any) -> tuple[str, ...]:
        return columns_of(stage, ("featuresCol", "offsetCol"))

    def margin(self, x: Rows, offset: Tensor | None = None) -> Tensor:  # type: ignore[override]
        eta = super().margin(x)
        return eta if offset is None else eta + offset

    @property
    def margin_link(self) -> str:  # type: ignore[override]
        if self.link in ("log", "logit"):
            return self.link if (self.link == "logit") == self.binomial else ""
        return "identity" if (self.family, self.link) == ("gaussian", "identity") else ""

    @property
    def falling_link(self) -> str:  # type: ignore[override]
        return "" if self.link in RISING else self.link

    @property
    def binomial(self) -> bool:  # type: ignore[override]
        return self.family == "binomial"

    def mean(self, margin: Tensor) -> Tensor:
        unlink = LINKS[self.link][0] if self.link != "power" else lambda eta: power(eta, 1 / self.link_power)
        mu = unlink(margin)
        largest = min(LARGEST, torch.finfo(mu.dtype).max)
        if self.family == "gaussian":
            return mu.clamp(-largest, largest)
        return mu.clamp(EPSILON, 1 - EPSILON) if self.family == "binomial" else mu.clamp(EPSILON, largest)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return (*((self.mean(margin),) if self.shows_mean else ()), *((margin,) if self.shows_link else ()))

    def own_loss(self) -> tuple[str, dict[str, float]]:
        if self.family == "tweedie":
            return "tweedie", {"power": self.variance_power}
        return {"gaussian": "squared", "binomial": "logLoss"}.get(self.family, self.family), {}

    def margin_unit(self, y: LabelStats) -> float:
        if self.link == "power":
            slope = abs(self.link_power) * y.mean ** (self.link_power - 1) if y.mean > 0 else math.nan
        else:
            slope = LINKS[self.link][1](y.mean) if y.mean > 0 or self.link == "identity" else math.nan
        unit = y.std * slope
        return unit if math.isfinite(unit) and unit > 0 else 1.0


@register("pyspark.ml.classification.LogisticRegressionModel")
class LogisticRegression(MatrixProduct, ProbabilisticClassifier):
    """A classifier with one row of coefficients (rawPrediction = [-m, m], the probability is a sigmoid), or with
    several rows, also for two classes (the probability is a softmax).

    The shape of the matrix decides between the two, not the number of classes.

    With one row, `threshold` trains on request, only by the loss of decisions, `cost`. The margin is then m minus the
    change of the threshold's log-odds, so that comparing it with the original threshold gives the same class as
    comparing m with the new one. Spark's columns other than the prediction are computed from m.

    An L1 penalty leaves coefficients of 0 that Spark does not store, and never multiplies, not even by NaN or
    infinity. They stay unstored in training and in Spark as long as they are 0.
    """

    weights = ("coefficientMatrix", "interceptVector", "numClasses", "isMultinomial")
    weight_params = ("threshold",)
    optional = frozenset({"threshold"})
    domains = {"threshold": Odds()}
    feature_axis = {"coefficientMatrix": 1}
    threshold: Tensor

    def __init__(
        self,
        coefficientMatrix: Tensor,
        interceptVector: Tensor,
        fit_intercept: bool,
        *,
        num_classes: int,
        thresholds: Tensor | None,
        threshold: float,
        bounds: dict[str, Tensor],
        shown: tuple[str, ...],
        uid: str,
        movable: bool = True,
        unstored: Tensor | None = None,
    ):
        super().__init__()
        self.coefficientMatrix = parameter(coefficientMatrix)  # (1, d) or (k, d)
        self.interceptVector = parameter(interceptVector, fit_intercept)  # (1,) or (k,)
        self.numClasses, self.isMultinomial = num_classes, len(coefficientMatrix) > 1
        self.cuts, self.shown, self.uid, self.bounds = thresholds, shown, uid, bounds
        self.decides_at = threshold  # threshold with which losses and metrics compare the margin, as log-odds
        self.register_buffer("threshold", torch.tensor(threshold, dtype=torch.float64))  # ()
        self.register_buffer("unstored", unstored, persistent=False)  # None or like coefficientMatrix, bool
        self.movable = movable and not self.isMultinomial and 0 < threshold < 1
        self.classes = max(num_classes, 2)

    @classmethod
    def from_spark(cls, stage: Any) -> "LogisticRegression":
        matrix, bounds = tensor(stage.coefficientMatrix), {}
        for side in ("lower", "upper"):
            for param, weight in (("Coefficients", "coefficientMatrix"), ("Intercepts", "interceptVector")):
                name = f"{side}BoundsOn{param}"
                if stage.hasParam(name) and stage.isDefined(name) and stage.getOrDefault(name) is not None:
                    bounds[f"{side} {weight}"] = tensor(stage.getOrDefault(name))
        return cls(
            matrix,
            tensor(stage.interceptVector),
            stage.getFitIntercept(),
            num_classes=stage.numClasses,
            **(cls.settings(stage) | ({} if len(matrix) > 1 else {"thresholds": None})),
            threshold=binary_threshold(stage) if len(matrix) == 1 else 0.5,
            bounds=bounds,
            uid=stage.uid,
            movable=not stage.isSet("thresholds"),
            unstored=unstored_of(stage),
        )

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # (n,) or (n, k)
        out = self.scores(x)
        return out - self.log_odds_change(self.threshold) if self.unfrozen else out

    def scores(self, x: Rows) -> Tensor:
        """Linear predictor without the shift for a moved threshold, from which Spark's columns are computed; (n,) or
        (n, k).
        """
        weight, intercept = self.coefficientMatrix, self.interceptVector
        out = product(x, weight.T) + intercept if self.isMultinomial else product(x, weight[0]) + intercept[0]
        skipped = self.unstored_mask()
        if skipped is None or not (on_gpu(out) or bool((~out.isfinite()).any())):
            return out
        each = torch.stack([product(without(x, s), w) for s, w in zip(skipped, weight, strict=True)], 1) + intercept
        return each if self.isMultinomial else each[:, 0]

    @property
    def unfrozen(self) -> bool:
        """True if the threshold may have moved."""
        return "threshold" in self._parameters

    @property
    def decides_only(self) -> bool:  # type: ignore[override]
        return self.unfrozen and self.threshold.requires_grad

    def log_odds_change(self, threshold: Tensor) -> Tensor:
        """Change of thresholds' log-odds from the original ones; 0 at the start."""
        return torch.logit(threshold) - torch.logit(threshold.new_full((), self.decides_at))

    def forward(self, x: Rows) -> tuple[Tensor, ...]:  # type: ignore[override]
        return super().columns(self.scores(x))

    @property
    def margin_link(self) -> str:  # type: ignore[override]
        return "softmax" if self.isMultinomial else "logit"

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> None:
            if "coefficientMatrix" in room:
                room["coefficientMatrix"].add_(gradients[0].mT)
            if "interceptVector" in room:
                room["interceptVector"].add_(constant[:, 0])
            if "threshold" in room:
                t = p["threshold"]
                room["threshold"].sub_(constant[:, 0, 0] / (t * (1 - t)))

        constant = p["interceptVector"][..., None, :]
        if "threshold" in p:
            constant = constant - self.log_odds_change(p["threshold"])[..., None, None]
        return AffineForm([p["coefficientMatrix"].mT], constant, back)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return super().columns(margin + self.log_odds_change(self.threshold) if self.unfrozen else margin)

    def decides_by(self) -> Tensor:
        return super().decides_by() if self.isMultinomial else tensor([1 - self.decides_at, self.decides_at])

    def threshold_params(self, cuts: Tensor) -> dict[str, Any]:
        return super().threshold_params(cuts) if self.isMultinomial else {"threshold": float(cuts[1])}

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        if self.isMultinomial:
            return margin, softmax(margin)
        zero = 1 / (1 + torch.exp(margin))  # in Spark's order of operations: p[1] = 1 - p[0]
        return torch.stack([-margin, margin], 1), torch.stack([zero, 1 - zero], 1)

    def decision(self, margin: Tensor) -> Tensor:
        return self.label(*self.raw_and_probability(margin), self.decides_at).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return super().decision_margin(margin) if self.isMultinomial else margin - logit(self.decides_at)

    def label(self, raw: Tensor, probability: Tensor, threshold: Tensor | float | None = None) -> Tensor:
        """Class of each row, computed from the first output column that the stage shows, as in Spark: the columns
        differ in rounding and in the treatment of NaN.
        """
        if self.isMultinomial:
            return super().label(raw, probability)
        if threshold is None:  # without waiting for a GPU
            threshold = self.threshold.detach() if on_gpu(raw) else self.weight("threshold")
        if "rawPredictionCol" in self.shown:
            return raw[:, 1] > (torch.logit(threshold) if isinstance(threshold, Tensor) else logit(threshold))
        return (probability[:, 1] if "probabilityCol" in self.shown else 1 / (1 + torch.exp(raw[:, 0]))) > threshold

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"coefficientMatrix": coefficient_units(x, 1.0).expand_as(self.coefficientMatrix)}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        out = super().supported(x, y)
        if self.isMultinomial:
            seen = y.supported_classes(self.classes)
            out |= {"coefficientMatrix": out["coefficientMatrix"] & seen[:, None], "interceptVector": seen}
        return out

    def on_request(self) -> dict[str, Tensor]:
        return super().on_request() if self.movable else {}

    def why_frozen(self) -> dict[str, str]:
        if self.isMultinomial:
            why = "each class has its own row of coefficients, and only these train: leave it out, and set loss='cost'"
        elif self.movable:
            return {"thresholds": "for two classes they are equivalent to one number, threshold: unfreeze that instead"}
        elif 0 < self.decides_at < 1:
            why = (
                f"thresholds is set: clear it with setThreshold({self.decides_at!r}) on the model, then "
                "unfreeze threshold"
            )
        else:
            why = f"at {self.decides_at!r} all rows get the same class: set a threshold between 0 and 1 on the model"
        return {"threshold": why, "thresholds": why}

    def to_spark(self, stage: Any) -> Any:
        new = with_stored(self, stage, self.weight("coefficientMatrix"), self.weight("interceptVector"))
        return jvm.with_params(new, {"threshold": self.weight("threshold")}) if self.unfrozen else new

    def has_bounds(self) -> bool:
        return bool(self.bounds)

    @torch.no_grad()
    def project_(self) -> None:
        for name, bound in self.bounds.items():
            side, weight = name.split()
            p = getattr(self, weight)
            p.copy_(torch.maximum(p, bound.view_as(p)) if side == "lower" else torch.minimum(p, bound.view_as(p)))

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        if not 0 <= self.threshold <= 1:
            raise InputError(f"{uid}: threshold must be from 0 to 1, but is {self.threshold.item()!r}")
        for name, bound in self.bounds.items():
            side, weight = name.split()
            p, bound = getattr(self, weight), bound.view_as(getattr(self, weight))
            wrong = p < bound if side == "lower" else p > bound
            if bool(wrong.any()):
                value, limit = p[wrong][0].item(), bound[wrong][0].item()
                raise InputError(f"{uid}: {weight} has an entry of {value!r}, outside its {side} bound {limit!r}")


def binary_threshold(stage: Any) -> float:
    """Threshold of a model with one margin, computed as in Spark's Scala code: pyspark's `getThreshold` can divide by
    zero.
    """
    if stage.isSet("thresholds"):
        zero, one = stage.getOrDefault("thresholds")
        threshold = 1 / (1 + zero / one) if one else 0.0
        given = stage.getOrDefault("threshold") if stage.isSet("threshold") else threshold
        if abs(given - threshold) > 1e-5:  # Spark refuses it too
            raise InputError(
                f"{stage.uid}: thresholds={[zero, one]} are equivalent to the threshold {threshold!r}, but "
                f"threshold is set to {given!r}; clear one of the two"
            )
        return threshold
    return float(stage.getOrDefault("threshold"))
