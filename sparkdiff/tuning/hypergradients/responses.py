"""What a linear model's margins are held against, row by row: the slope that its weights make zero, and the loss that decides."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from sparkdiff.tuning.solvers.families import FAMILIES, LINKS, Family, LinkFunction
from sparkdiff.tuning.solvers.problem import Setting


class Response(Protocol):
    """Margins are (n, folds, sets), labels (n,), weights (n, folds). All are functions that autograd can follow."""

    @property
    def sets(self) -> int:
        """Rows of the matrix of coefficients."""

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        """Of the loss that is fitted, times the weight: (n, folds, sets)."""

    def mass(self, margin: Tensor, weight: Tensor) -> Tensor:
        """What the sum of the slopes is divided by: (folds,)."""

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        """Of each row: (n, folds)."""


class ByWeights:
    """The slopes' sum is divided by the sum of the weights."""

    def mass(self, margin: Tensor, weight: Tensor) -> Tensor:
        return weight.sum(0)


class SquaresResponse(ByWeights):
    """Squared error."""

    sets = 1

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return (margin - label[:, None, None]) * weight[:, :, None]

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return (margin[:, :, 0] - label[:, None]).square()


class Binomial(ByWeights):
    """Log-loss of two classes."""

    sets = 1

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        return (margin.sigmoid() - label[:, None, None]) * weight[:, :, None]

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        return functional.softplus(margin[:, :, 0]) - label[:, None] * margin[:, :, 0]


@dataclass(frozen=True)
class MultinomialResponse(ByWeights):
    """Log-loss of several classes."""

    sets: int

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        true = functional.one_hot(label.long(), self.sets).to(margin.dtype)
        return (margin.softmax(2) - true[:, None]) * weight[:, :, None]

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        own = label.long()[:, None, None].expand(-1, margin.shape[1], 1)
        return -margin.log_softmax(2).gather(2, own)[:, :, 0]


@dataclass(frozen=True)
class Generalized:
    """Half the deviance of a family. Spark's iterations end where slopes over *working* weights are balanced by the penalty."""

    name: str
    family: Family
    link: LinkFunction
    sets: int = 1

    def mean(self, margin: Tensor) -> Tensor:
        return self.link.mean(margin).clamp(*self.family.bounds)

    def slope(self, margin: Tensor, label: Tensor, weight: Tensor) -> Tensor:
        mean = self.mean(margin)
        return (
            (mean - label[:, None, None])
            / (self.link.derivative(mean) * self.family.variance(mean))
            * weight[:, :, None]
        )

    def mass(self, margin: Tensor, weight: Tensor) -> Tensor:
        mean = self.mean(margin)[:, :, 0]
        return (weight / (self.link.derivative(mean).square() * self.family.variance(mean))).sum(0)

    def loss(self, margin: Tensor, label: Tensor) -> Tensor:
        mean, y = self.mean(margin)[:, :, 0], label[:, None]
        match self.name:
            case "poisson":
                return torch.special.xlogy(y, y) - torch.special.xlogy(y, mean) - (y - mean)
            case "gamma":
                return (mean / y).log() + (y - mean) / mean
            case "binomial":
                entropy = torch.special.xlogy(y, y) + torch.special.xlogy(1 - y, 1 - y)
                return entropy - torch.special.xlogy(y, mean) - torch.special.xlogy(1 - y, 1 - mean)
        return 0.5 * (mean - y).square()


def response_of(kind: str, setting: Setting, classes: int) -> Response:
    """Of the estimator that Spark's class of this name is with this setting."""
    if kind == "LinearRegression":
        return SquaresResponse()
    if kind == "LogisticRegression":
        several = setting.family == "multinomial" or (setting.family == "auto" and classes > 2)
        return MultinomialResponse(classes) if several else Binomial()
    link = setting.link or FAMILIES[setting.family].links[0]
    if (setting.family, link) == ("gaussian", "identity"):
        return SquaresResponse()
    return Generalized(setting.family, FAMILIES[setting.family], LINKS[link])
