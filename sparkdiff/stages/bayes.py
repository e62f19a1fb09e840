"""NaiveBayes of four types: multinomial, complement, bernoulli and gaussian."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import Affine, AffineForm, MatrixProduct, Parameters
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.stages.constraints import Constraint, LogProbabilities
from sparkdiff.stages.linear import coefficient_units
from sparkdiff.stages.predictor import ProbabilisticClassifier, softmax
from sparkdiff.tensors.rows import Rows, SparseRows, dense, known_any, product, rows_at, sum_in_order

ENTRIES = 1 << 22
"""Largest number of entries of a block of sparse rows that is made dense (32 MiB of doubles)."""
DRIFT = 1e-6
"""Largest logarithm of a probability that is accepted; rounding may make it exceed 0."""


class NaiveBayes(ProbabilisticClassifier):
    """rawPrediction (n, k) as the model type defines it, probability = its softmax. Spark fits it by counting; here it
    is trained on the conditional probability of the label given the features.

    `pi` (k,) are logarithms of the classes' probabilities.

    Source: org.apache.spark.ml.classification.NaiveBayesModel.
    """

    weights = ("pi", "theta", "sigma")
    refusals = ("only one class", "infinite theta (smoothing=0)")
    feature_axis = {"theta": 1}
    domains = {"pi": LogProbabilities()}
    margin_link = "softmax"

    def __init__(
        self,
        pi: Tensor,
        theta: Tensor,
        sigma: Tensor,
        *,
        shown: tuple[str, ...],
        thresholds: Tensor | None,
        uid: str,
        column: str,
    ):
        super().__init__()
        self.classes, self.shown, self.cuts = len(pi), shown, thresholds
        self.pi = parameter(pi, not isinstance(self, Complement))  # (k,)
        self.theta = parameter(theta)  # (k, d)
        if isinstance(self, Gaussian):
            self.sigma = parameter(sigma)  # (k, d)
        else:
            self.register_buffer("sigma", sigma, persistent=False)  # (0, 0)
        self.uid, self.column = uid, column

    @classmethod
    def from_spark(cls, stage: Any) -> "NaiveBayes":
        kind = KINDS[stage.getModelType()]
        sigma = tensor(stage.sigma).view(len(stage.pi), -1) if kind is Gaussian else torch.empty(0, 0).double()
        return kind(
            tensor(stage.pi),
            tensor(stage.theta),
            sigma,
            uid=stage.uid,
            column=stage.getFeaturesCol(),
            **cls.settings(stage),
        )

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        kind = KINDS[stage.getModelType()]
        if len(stage.pi) < 2:
            return "it has only one class, so there is nothing to predict"
        if kind is not Gaussian and not bool(tensor(stage.theta).isfinite().all()):
            return (
                "theta holds infinite values (smoothing=0): Spark computes NaN for the zeros of a dense vector "
                "and skips those of a sparse vector; fit it with smoothing > 0"
            )
        return None

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        return margin, softmax(margin)

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        seen = y.supported_classes(self.classes)
        both = seen[:, None] & (x.support >= SUPPORT)
        return {"pi": seen, "theta": both, "sigma": both}

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"theta": coefficient_units(x, 1.0).expand_as(self.theta)}

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        for name, constraint in self.constraints().items():
            if isinstance(constraint, LogProbabilities):
                own: Tensor = getattr(self, name).detach()
                minus = isinstance(constraint, NegativeLogProbabilities)
                logarithms = -own if minus else own
                if not bool((logarithms <= DRIFT).all()):
                    raise InputError(
                        f"{uid}: {name} must hold {'minus ' * minus}logarithms of probabilities, but an entry is "
                        f"{own.flatten()[int(logarithms.argmax())].item()!r}; subtract their logsumexp along the last axis "
                        "before writing back"
                    )


class DiscreteNaiveBayes(NaiveBayes):
    """The model types for which Spark refuses features outside a domain.

    Training an earlier stage could move features out of the domain, so no gradient flows to the inputs.
    """

    differentiable = False
    rule = "0 or more"

    def good(self, entries: Tensor) -> Tensor:
        return entries >= 0

    def check(self, x: Rows) -> None:
        """Raise InputError if an entry is outside the domain, as Spark does."""
        entries = x.values if isinstance(x, SparseRows) else x
        good = self.good(entries)
        if known_any(~good):
            raise InputError(
                f"{self.uid}: column {self.column!r} holds {entries[~good][0].item()!r}, but must hold "
                f"{self.rule}; scale or binarize the column first"
            )


class Multinomial(MatrixProduct, DiscreteNaiveBayes):
    """rawPrediction = pi + x @ theta.T; theta holds logarithms of the features' probabilities in each class."""

    domains = {"pi": LogProbabilities(), "theta": LogProbabilities()}

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, k)
        self.check(x)
        return product(x, self.theta.T) + self.pi

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> None:
            if "theta" in room:
                room["theta"].add_(gradients[0].mT)
            if "pi" in room:
                room["pi"].add_(constant[:, 0])

        return AffineForm([p["theta"].mT], p["pi"][..., None, :], back)


class NegativeLogProbabilities(LogProbabilities):
    """Minus the logarithms of shares."""

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        return -super().value(-start, -move)


class Complement(DiscreteNaiveBayes):
    """rawPrediction = log-softmax of x @ theta.T, independent of pi; theta holds minus the logarithms of the
    probabilities of the other classes.
    """

    domains = {"theta": NegativeLogProbabilities()}

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, k)
        self.check(x)
        scores = product(x, self.theta.T)
        top = scores.amax(1, keepdim=True)  # in Spark's order of operations, which makes NaN of an infinite score
        return scores - (torch.log(torch.exp(scores - top).sum(1, keepdim=True)) + top)


class LogOdds(Constraint):
    """Logarithms of independent probabilities, whose log-odds move freely; a probability of 0 or 1 does not change."""

    elementwise = True

    def value(self, start: Tensor, move: Tensor) -> Tensor:
        inner = start.isfinite() & (start < 0)
        known = torch.where(inner, start, -1.0)
        new = F.logsigmoid(known - torch.log(-torch.expm1(known)) + move)
        return torch.where(inner & (move != 0), new, start + torch.where(inner, new - new.detach(), 0.0))

    def move_between(self, start: Tensor, value: Tensor) -> Tensor:
        def odds(log: Tensor) -> Tensor:
            return log - torch.log(-torch.expm1(log))

        inner = start.isfinite() & (start < 0)
        return torch.where(inner, odds(value) - odds(start), 0.0)


class Bernoulli(Affine, DiscreteNaiveBayes):
    """rawPrediction = pi + sum of theta for entries x = 1, and of log(1 - exp(theta)) for entries x = 0."""

    rule = "0 or 1"
    domains = {"pi": LogProbabilities(), "theta": LogOdds()}

    def good(self, entries: Tensor) -> Tensor:
        return (entries == 0) | (entries == 1)

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, k)
        self.check(x)
        absent = torch.log1p(-torch.exp(self.theta))
        return product(x, (self.theta - absent).T) + (self.pi + absent.sum(1))

    def affine_form(self, p: Parameters, slope: Tensor, widths: Sequence[int]) -> AffineForm:
        odds = torch.exp(p["theta"])
        absent = torch.log1p(-odds)
        down = odds / (odds - 1)  # the derivative of `absent`

        def back(gradients: list[Tensor], constant: Tensor, room: Parameters) -> None:
            if "theta" in room:
                slopes = gradients[0].mT
                room["theta"].add_(slopes * (1 - down) + constant.mT * down)
            if "pi" in room:
                room["pi"].add_(constant[:, 0])

        return AffineForm([(p["theta"] - absent).mT], (p["pi"] + absent.sum(-1))[..., None, :], back)

    def check_domain(self, uid: str) -> None:
        super().check_domain(uid)
        if not bool((self.theta < 0).all()):
            worst = self.theta.max().item()
            raise InputError(
                f"{uid}: theta must hold logarithms of probabilities, < 0, but an entry is {worst!r}; clamp it before "
                "writing back"
            )


class Gaussian(NaiveBayes):
    """rawPrediction = pi - (sum of (x - theta)^2 / sigma + log(sigma)) / 2; theta holds means, sigma variances.

    A zero counts like any other value, so sparse rows are made dense, block by block. Terms are added in Spark's order:
    with a tiny variance the sums are so large that the probability depends on their last digits.
    """

    positive = frozenset({"sigma"})
    feature_axis = {"theta": 1, "sigma": 1}

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, k)
        logs = sum_in_order(torch.log(self.sigma))
        at_once = max(1, ENTRIES // max(1, self.theta.shape[1]))
        parts = [rows_at(x, rows) for rows in torch.arange(len(x), device=x.device).split(at_once)]
        squares = torch.cat([self._squares(dense(part)) for part in parts])
        return self.pi - (squares + logs) / 2

    def _squares(self, x: Tensor) -> Tensor:  # (n, d) -> (n, k)
        pairs = zip(self.theta, self.sigma, strict=True)
        return torch.stack([sum_in_order((x - mean) ** 2 / variance) for mean, variance in pairs], 1)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"theta": self.sigma.detach().clamp_min(0).sqrt()}


KINDS: dict[str, type[NaiveBayes]] = {
    "multinomial": Multinomial,
    "complement": Complement,
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
}
register("pyspark.ml.classification.NaiveBayesModel")(NaiveBayes)
