"""Clusters: KMeans and GaussianMixture, whose own loss needs no label."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.jvm import mllib
from sparkdiff.stages.base import SUPPORT, FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.stages.constraints import Constraint, Covariance, Probabilities, UnitNorm
from sparkdiff.stages.predictor import Predictor, first_largest, lead
from sparkdiff.tensors.rows import Rows, SparseRows, known_any

EPSILON = 2.0**-52  # org.apache.spark.ml.impl.Utils.EPSILON
VAGUE = 1e-8
"""Relative difference above which an eigenvalue counts as a result of rounding, if it is computed for two orders of the
features.
"""


def squares(x: Rows) -> Tensor:
    """Sum of the squared entries of each row, (n, d) -> (n,)."""
    if isinstance(x, SparseRows):
        return x.with_values(x.values**2).matmul(x.values.new_ones(x.width, 1))[:, 0]
    return (x * x).sum(1)


class Clusters(Predictor):
    """The common part of models with k clusters: classes without a label."""

    labelled = False
    label_cols = ("predictionCol",)

    def __init__(self, clusters: int, uid: str, shown: tuple[str, ...]):
        super().__init__()
        self.classes, self.uid, self.shown = clusters, uid, shown

    @property
    def margins(self) -> int:
        return self.classes

    def training_sums(self, x: Rows) -> dict[str, Tensor]:  # type: ignore[override]
        return {"rows": torch.bincount(self.decision(self.margin(x)).long(), minlength=self.classes)}


@register("pyspark.ml.clustering.KMeansModel")
class KMeans(Clusters):
    """The index of the nearest centre: of several at equal distance the first, and NaN counts as infinitely far.

    Source: org.apache.spark.mllib.clustering.DistanceMeasure. The margin (n, k) holds the squared Euclidean distances
    or, for the cosine measure, 1 - cosine. The loss of a row is its smallest entry; KMeansSummary.trainingCost is the
    sum of these over the rows.
    """

    weights = ("clusterCenters",)
    feature_axis = {"clusterCenters": 1}
    differentiable = False
    fitted_loss = "inertia"

    def __init__(self, clusterCenters: Tensor, cosine: bool, uid: str, shown: tuple[str, ...]):
        super().__init__(len(clusterCenters), uid, shown)
        self.clusterCenters = parameter(clusterCenters)  # (k, d)
        self.cosine = cosine

    @classmethod
    def from_spark(cls, stage: Any) -> "KMeans":
        cosine = stage.getOrDefault("distanceMeasure") == "cosine"
        return cls(tensor(np.stack(stage.clusterCenters())), cosine, stage.uid, cls.shown_by(stage))

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # (n, d) -> (n, k)
        centers, square = self.clusterCenters, squares(x)
        if known_any(square.isnan()):  # Spark: "Both norms should be greater or equal to 0.0"
            raise InputError(
                f"{self.uid}: the features of a row hold NaN or null, so the row has no distance; impute or drop it"
            )
        if self.cosine:
            if known_any(~(square > 0)):
                raise InputError(
                    f"{self.uid}: the features of a row are all 0, so the row has no cosine distance; drop such rows"
                )
            return 1 - x.matmul(centers.T) / centers.norm(dim=1) / square.sqrt()[:, None]
        if isinstance(x, SparseRows):
            return (square[:, None] + squares(centers) - 2 * x.matmul(centers.T)).clamp_min(0)
        # Not with matrix products, which would leave few correct digits for rows far from 0 and close to a centre.
        return torch.cdist(x, centers, compute_mode="donot_use_mm_for_euclid_dist").square()

    def decision(self, margin: Tensor) -> Tensor:
        return torch.where(margin.isnan(), math.inf, margin).argmin(1).to(margin.dtype)

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        return self.only_shown(self.decision(margin))

    def decision_margin(self, margin: Tensor) -> Tensor:
        return -margin

    def cost(self, margin: Tensor) -> Tensor:
        return margin.amin(1)

    def loss_unit(self) -> float:
        """Variance of the centres: how far the clusters are apart. 1 if it is 0, and for the cosine measure."""
        spread = float(self.clusterCenters.detach().var(0, correction=0).sum())
        return 1.0 if self.cosine or not spread > 0 else spread

    def boundary(self, margin: Tensor) -> Tensor:
        if self.classes == 1:
            return torch.full_like(margin[:, 0], math.inf)
        least, which = torch.where(margin.isnan(), math.inf, margin).topk(2, 1, largest=False)
        # Spark's distances are differences of squared norms where these are large, and have their rounding errors.
        norms = squares(self.clusterCenters)[which].amax(1)
        size = 1 if self.cosine else (3 * norms + 2 * least[:, 0]).clamp_min(1)
        return (least[:, 1] - least[:, 0]).nan_to_num(math.inf) / size

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        size = ((x.mean**2 + x.std**2).sum().sqrt()).clamp_min(1e-300) if self.cosine else 1.0
        return {"clusterCenters": (x.std / size).expand_as(self.clusterCenters)}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        rows = x.sums["rows"] >= SUPPORT
        return {"clusterCenters": super().supported(x, y)["clusterCenters"] & rows[:, None]}

    def constraints(self) -> dict[str, Constraint]:
        return {"clusterCenters": UnitNorm()} if self.cosine else {}

    def check_domain(self, uid: str) -> None:
        if not self.cosine:
            return
        norm = self.clusterCenters.detach().norm(dim=1)
        wrong = (norm - 1).abs() > 1e-6
        if bool(wrong.any()):
            raise InputError(
                f"{uid}: clusterCenters must have norm 1 for the cosine distance, but one has {norm[wrong][0].item()!r}; "
                "divide it by its norm before writing back"
            )

    def to_spark(self, stage: Any) -> Any:
        return mllib.k_means(stage, self.weight("clusterCenters"))


def tolerance(eigenvalues: Tensor) -> Tensor:
    """Largest eigenvalue that Spark treats as 0, (..., d) -> (..., 1)."""
    return torch.finfo(eigenvalues.dtype).eps * eigenvalues.amax(-1, keepdim=True) * eigenvalues.shape[-1]


def spectrum(covariance: Tensor) -> Tensor:
    """Eigenvalues (d,) of a covariance (d, d), ascending; 0 for those that Spark treats as 0."""
    values = torch.linalg.eigvalsh(covariance)
    return torch.where(values > tolerance(values), values, 0.0)


@register("pyspark.ml.clustering.GaussianMixtureModel")
class GaussianMixture(Clusters):
    """probability = epsilon + weight * density, divided by their sum; the density uses the pseudo-inverse of the
    covariance.

    Sources: org.apache.spark.ml.clustering.GaussianMixtureModel.computeProbabilities and
    org.apache.spark.ml.stat.distribution.MultivariateGaussian. The margin holds log(weight * density), (n, k); the
    loss is -log of the sum; GaussianMixtureSummary.logLikelihood is the negative total of the losses.
    """

    weights = ("mixture", "mus", "sigmas")
    feature_axis = {"mus": 1}
    domains = {"mixture": Probabilities(), "sigmas": Covariance()}
    SHOWN = ("predictionCol", "probabilityCol")
    fitted_loss = "logLikelihood"
    refusals = ("a covariance that is not finite, or whose density depends on rounding",)

    def __init__(self, mixture: Tensor, mus: Tensor, sigmas: Tensor, uid: str, shown: tuple[str, ...]):
        super().__init__(len(mixture), uid, shown)
        self.mixture = parameter(mixture)  # (k,)
        self.mus = parameter(mus)  # (k, d)
        self.sigmas = parameter(sigmas)  # (k, d, d)

    @classmethod
    def refuses(cls, stage: Any) -> str | None:
        """Reason why the model must stay in Spark; None if there is none. If features nearly depend linearly on one
        another, Spark's own density depends on the order of the features, so such a model is refused.
        """
        for number, gaussian in enumerate(stage.gaussians):
            covariance = tensor(gaussian.cov)
            if not bool(covariance.isfinite().all()):
                return f"the covariance of its cluster {number} holds infinite values or NaN"
            one, other = spectrum(covariance), spectrum(covariance.flip(0, 1))
            if bool(((one - other).abs() > VAGUE * torch.maximum(one, other)).any()):
                return (
                    f"rounding decides the density of its cluster {number}, whose features nearly depend on one another: the "
                    f"least of their variances, along the eigenvectors, is {one[one > 0].min() / one.max():.1e} of the largest"
                )
        return None

    @classmethod
    def from_spark(cls, stage: Any) -> "GaussianMixture":
        gaussians = stage.gaussians
        return cls(
            tensor(stage.weights),
            torch.stack([tensor(g.mean) for g in gaussians]),
            torch.stack([tensor(g.cov) for g in gaussians]),
            stage.uid,
            cls.shown_by(stage),
        )

    def roots(self) -> tuple[Tensor, Tensor]:
        """Root R (k, d, d) of each covariance's pseudo-inverse R'R, and the constant (k,) of the log-density; without
        gradient.
        """
        values, vectors = torch.linalg.eigh(self.sigmas.detach())
        kept = values > tolerance(values)
        roots = torch.where(kept, (1 / torch.where(kept, values, 1.0)).sqrt(), 0.0)[:, :, None] * vectors.mT
        logarithms = torch.where(kept, torch.where(kept, values, 1.0).log(), 0.0).sum(1)
        return roots, -0.5 * (values.shape[1] * math.log(2 * math.pi) + logarithms)

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # (n, d) -> (n, k)
        roots, constant = self.roots()
        k, d = self.mus.shape
        scaled = x.matmul(roots.reshape(k * d, d).T).view(-1, k, d)
        off = (roots @ self.mus[:, :, None])[:, :, 0] - scaled  # (n, k, d)
        logarithm = constant - 0.5 * (off * off).sum(2)
        if torch.is_grad_enabled() and self.sigmas.requires_grad:
            # Derivative with respect to the covariance S, as a term of value 0: with z = inverse S (x - mu) it is
            # (z z' - inverse S) / 2.
            change, inverse = self.sigmas - self.sigmas.detach(), roots.mT @ roots
            z = (off.detach()[:, :, None] @ roots)[:, :, 0]
            logarithm = (
                logarithm + 0.5 * ((z[:, :, None] @ change)[:, :, 0] * z).sum(2) - 0.5 * (inverse * change).sum((1, 2))
            )
        return self.mixture.log() + logarithm

    def densities(self, margin: Tensor) -> Tensor:
        return EPSILON + margin.exp()

    def columns(self, margin: Tensor) -> tuple[Tensor, ...]:
        densities = self.densities(margin)
        probability = densities / densities.sum(1, keepdim=True)
        return self.only_shown(first_largest(probability).to(margin.dtype), probability)

    def decision(self, margin: Tensor) -> Tensor:
        return first_largest(self.densities(margin)).to(margin.dtype)

    def decision_margin(self, margin: Tensor) -> Tensor:
        return margin

    def cost(self, margin: Tensor) -> Tensor:
        floor = margin.new_full((), self.classes * EPSILON).log()
        return -torch.logaddexp(margin.clamp_min(-1e6).logsumexp(1), floor)  # no NaN from a weight of 0

    def loss_unit(self) -> float:
        return float(self.mus.shape[1])

    def boundary(self, margin: Tensor) -> Tensor:
        if self.classes == 1:
            return torch.full_like(margin[:, 0], math.inf)
        densities = self.densities(margin)
        return lead(densities / densities.sum(1, keepdim=True))

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"mus": self.sigmas.detach().diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()}

    def supported(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        rows = x.sums["rows"] >= SUPPORT
        return {
            "mixture": rows,
            "mus": super().supported(x, y)["mus"] & rows[:, None],
            "sigmas": rows[:, None, None].expand_as(self.sigmas),
        }

    def check_domain(self, uid: str) -> None:
        shares, sigmas = self.mixture.detach(), self.sigmas.detach()
        if not bool((shares >= 0).all()) or abs(float(shares.sum()) - 1) > 1e-6:
            raise InputError(
                f"{uid}: mixture must hold shares >= 0 with sum 1, but is {shares.tolist()!r}; divide it by its sum"
            )
        least = torch.linalg.eigvalsh(sigmas)[:, 0]
        if not torch.allclose(sigmas, sigmas.mT, rtol=1e-9, atol=0) or bool(
            (least < -1e-9 * sigmas.abs().amax((1, 2))).any()
        ):
            raise InputError(
                f"{uid}: sigmas must be symmetric without negative eigenvalues, but one isn't symmetric or has the eigenvalue "
                f"{least.min().item()!r}"
            )

    def to_spark(self, stage: Any) -> Any:
        return mllib.gaussian_mixture(stage, *(self.weight(name) for name in self.weights))
