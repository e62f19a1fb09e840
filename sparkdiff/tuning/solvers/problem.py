"""What a solver of linear models is given, and what it gives back: rows, settings with Spark's names, models as Spark's."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Chunk:
    """Some rows. Chunks are read in order, perhaps several times."""

    x: Tensor
    """The features: (n, d) float64."""
    label: Tensor
    """(n,) float64"""
    weight: Tensor
    """(n,) float64"""
    offset: Tensor | None
    """(n,) float64, of GeneralizedLinearRegression only; None: zero."""
    fold: Tensor
    """(n,) int64: the fold that the row is held out of; -1 for a row that every fold trains on."""


Chunks = Callable[[], Iterator[Chunk]]


@dataclass(frozen=True)
class Setting:
    """What a fit depends on, with Spark's names and defaults."""

    regParam: float = 0.0
    elasticNetParam: float = 0.0
    fitIntercept: bool = True
    standardization: bool = True
    solver: str = "auto"
    """LinearRegression's: auto, normal or l-bfgs. They differ in the standard deviations that they divide by."""
    loss: str = "squaredError"
    """LinearRegression's."""
    family: str = "auto"
    """LogisticRegression's (auto, binomial, multinomial), or GeneralizedLinearRegression's."""
    link: str | None = None
    """GeneralizedLinearRegression's; None: the family's canonical one."""
    bounded: bool = False
    """Whether a LogisticRegression has bounds on its coefficients or intercepts."""


@dataclass(frozen=True)
class RowFacts:
    """What is known of the rows before any fit."""

    columns: int
    classes: int = 0
    """LogisticRegression's number of classes, as Spark counts them; 0 elsewhere."""


@dataclass(frozen=True)
class Solution:
    """The model of one setting, fitted on all rows but one fold's, on the scale of the features, as Spark's model holds it."""

    coefficients: Tensor
    """(d,), or (classes, d) of a multinomial model."""
    intercept: Tensor
    """(), or (classes,) of a multinomial model; zero without an intercept."""
    objective: float
    """What Spark minimises, penalties included, at this model. For GeneralizedLinearRegression, whose iterations minimise no
    fixed function (but for gaussian with identity), the largest residual of their fixed point."""
    converged: bool
    """False: not to be used, Spark has to fit this one."""
