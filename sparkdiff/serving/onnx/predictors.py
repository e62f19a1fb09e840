"""Translated predictors as nodes of an ONNX graph, written in the terms of their torch modules; those of trees are in `trees`."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from sparkdiff.serving.onnx.graph import GraphWriter, NotExportableError, Value, as_array
from sparkdiff.serving.onnx.stages import WRITERS, Nulls, ascending, class_of, first_largest, output_columns, writes
from sparkdiff.serving.onnx.trees import votes_for_one
from sparkdiff.stages.bayes import Bernoulli, Complement, Gaussian, Multinomial
from sparkdiff.stages.clustering import EPSILON, GaussianMixture, KMeans
from sparkdiff.stages.factorization_machine import FMClassification, FMRegression
from sparkdiff.stages.isotonic import IsotonicRegression
from sparkdiff.stages.linear import (
    EPSILON as LEAST_MEAN,
    LARGEST,
    GeneralizedLinearRegression,
    LinearRegression,
    LogisticRegression,
)
from sparkdiff.stages.one_vs_rest import OneVsRest
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.predictor import Predictor, logit
from sparkdiff.stages.recommendation import ALS, INTEGERS
from sparkdiff.stages.support_vector import LinearSVC
from sparkdiff.stages.survival import AFTSurvivalRegression
from sparkdiff.stages.trees import ClassifyingTrees
from sparkdiff.tensors.rows import sum_in_order

# What predictors share -------------------------------------------------------------------------------------------------


def softmax(g: GraphWriter, margin: Value) -> Value:
    """Softmax like Spark's Utils.softmax.

    A row with +inf is 1 at the first +inf and 0 elsewhere, but NaN at its other nonfinite entries.
    """
    probability = plain_softmax(g, margin)
    infinite = margin.equals(math.inf)
    first = infinite.double().first_largest().equals(np.arange(margin.width, dtype=np.float64))
    return g.where(infinite.any(), g.where(first, 1.0, margin * 0.0), probability)


def plain_softmax(g: GraphWriter, margin: Value) -> Value:
    return g.node("Softmax", [margin], margin.width, axis=1)


def linear(x: Value, coefficients: Any, intercept: Any) -> Value:
    """x @ coefficients + intercept: coefficients (d,) give (n, 1), (k, d) give (n, k)."""
    weights = as_array(coefficients)
    return x.matmul(weights[:, None] if weights.ndim == 1 else weights.T) + intercept


def logistic_margin(g: GraphWriter, m: LogisticRegression, x: Value) -> Value:
    """Margin, (n, 1), or (n, k) for k rows of coefficients. Coefficients that Spark doesn't store multiply nothing."""
    return stored_linear(g, x, m.coefficientMatrix, m.interceptVector, m.unstored_mask())


def stored_linear(g: GraphWriter, x: Value, coefficients: Any, intercept: Any, skipped: Any) -> Value:
    """Values like those of `linear`, where the coefficients in the mask `skipped`, (k, d) or None, multiply nothing."""
    if skipped is None or not bool(skipped.any()):
        return linear(x, coefficients, intercept)
    each = [linear(g.where(s, 0.0, x), w, 0.0) for s, w in zip(skipped.numpy(), coefficients, strict=True)]
    return g.beside(each) + as_array(intercept)


def squared_distances(g: GraphWriter, x: Value, centers: Any, weights: Any = None) -> Value:
    """Squared distances of rows (n, d) to centers (k, d): (n, k). With `weights` (k, d), each term (x - center)^2 is
    divided by its weight, and the terms are added from left to right.
    """
    held = as_array(centers)
    wide = g.node("Unsqueeze", [x, g.whole([1])], x.width)
    off = wide - held
    if weights is None or not x.width:
        return g.node("ReduceSum", [off * off, g.whole([2])], len(held), keepdims=0)
    sums = g.node("CumSum", [off * off / weights, g.constant(np.int64(2))], len(held))
    return g.node("Gather", [sums, g.constant(np.int64(x.width - 1))], len(held), axis=2)


# Linear ----------------------------------------------------------------------------------------------------------------


@writes(LinearRegression)
def regression(g: GraphWriter, m: LinearRegression, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return (stored_linear(g, xs[0], m.coefficients[None], m.intercept, m.unstored_mask()).number(),)


@writes(GeneralizedLinearRegression)
def generalized_linear(
    g: GraphWriter, m: GeneralizedLinearRegression, xs: Sequence[Value], _nulls: Nulls
) -> tuple[Value, ...]:
    eta = linear(xs[0], m.coefficients, m.intercept)
    eta = eta + xs[1] if len(xs) > 1 else eta
    return (*((mean(g, m, eta).number(),) if m.shows_mean else ()), *((eta.number(),) if m.shows_link else ()))


def mean(g: GraphWriter, m: GeneralizedLinearRegression, eta: Value) -> Value:
    mu = inverse_link(m, eta)
    low = -LARGEST if m.family == "gaussian" else LEAST_MEAN
    high = 1 - LEAST_MEAN if m.family == "binomial" else LARGEST
    return g.where(mu < low, low, g.where(mu > high, high, mu))


def inverse_link(m: GeneralizedLinearRegression, eta: Value) -> Value:
    if m.link == "probit":
        raise NotExportableError("link='probit' can't be exported, because onnxruntime has no operator Erf for float64")
    if m.link == "power":
        return eta.power(1 / m.link_power)
    if m.link == "logit":
        return 1.0 / ((-eta).exp() + 1.0)
    if m.link == "cloglog":
        return 1.0 - (-(eta.exp())).exp()
    return {"identity": lambda: eta, "log": eta.exp, "inverse": lambda: 1.0 / eta, "sqrt": lambda: eta * eta}[m.link]()


@writes(LogisticRegression)
def logistic(g: GraphWriter, m: LogisticRegression, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    margin = logistic_margin(g, m, xs[0])
    if m.isMultinomial:
        probability = softmax(g, margin)
        return output_columns(m, margin, probability, class_of(g, m, margin, probability))
    zero = 1.0 / (margin.exp() + 1.0)
    raw, probability = g.beside([-margin, margin]), g.beside([zero, 1.0 - zero])
    threshold = m.weight("threshold")
    if "rawPredictionCol" in m.shown:
        positive = margin > logit(threshold)
    elif "probabilityCol" in m.shown:
        positive = 1.0 - zero > threshold
    else:
        positive = 1.0 / ((-margin).exp() + 1.0) > threshold
    return output_columns(m, raw, probability, positive.double())


@writes(LinearSVC)
def support_vectors(g: GraphWriter, m: LinearSVC, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    margin = linear(xs[0], m.coefficients, m.intercept)
    return output_columns(m, g.beside([-margin, margin]), (margin > m.threshold).double())


@writes(AFTSurvivalRegression)
def survival(_g: GraphWriter, m: AFTSurvivalRegression, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    time = linear(xs[0], m.coefficients, m.intercept).exp()
    exponents = torch.log(-torch.log1p(-m.quantiles)) * torch.exp(torch.log(m.scale.detach()))
    return output_columns(m, time, time * torch.exp(exponents))


@writes(MultilayerPerceptron)
def perceptron(g: GraphWriter, m: MultilayerPerceptron, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x] = xs
    for i in range(m.depth):
        raw = linear(x, *m.layer(i))
        x = 1.0 / ((-raw).exp() + 1.0)
    probability = plain_softmax(g, raw)
    label = first_largest(g, probability) if m.bare else class_of(g, m, raw, probability)
    return output_columns(m, raw, probability, label)


# Counting, clusters and curves -------------------------------------------------------------------------------------------


@writes(Multinomial, Complement, Bernoulli, Gaussian)
def naive_bayes(g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x] = xs
    if not isinstance(m, Gaussian):
        good = x.equals(0.0) | x.equals(1.0) if isinstance(m, Bernoulli) else x >= 0.0
        g.refuse(~good, f"{m.uid}: an entry of {m.column!r} that is not {m.rule}")
    raw = bayes_margin(g, m, x)
    probability = softmax(g, raw)
    return output_columns(m, raw, probability, class_of(g, m, raw, probability))


def bayes_margin(g: GraphWriter, m: Any, x: Value) -> Value:
    theta, pi = m.theta.detach(), m.pi.detach()
    if isinstance(m, Gaussian):
        logs = sum_in_order(torch.log(m.sigma.detach()))
        return -((squared_distances(g, x, theta, as_array(m.sigma)) + logs) / 2.0) + pi
    if isinstance(m, Bernoulli):
        absent = torch.log1p(-torch.exp(theta))
        return linear(x, theta - absent, pi + absent.sum(1))
    if isinstance(m, Multinomial):
        return linear(x, theta, pi)
    scores = x.matmul(theta.T)
    top = scores.max()
    return scores - ((scores - top).exp().sum().log() + top)


@writes(KMeans)
def nearest(g: GraphWriter, m: KMeans, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x], centers = xs, m.clusterCenters.detach()
    square = (x * x).sum()
    g.refuse(square.isnan(), f"{m.uid}: NaN or null in the features")
    if m.cosine:
        g.refuse(~(square > 0.0), f"{m.uid}: features that are all 0, which have no cosine distance")
        distance = 1.0 - x.matmul(centers.T) / centers.norm(dim=1) / square.sqrt()
    else:
        distance = squared_distances(g, x, centers)
    label = (-g.where(distance.isnan(), math.inf, distance)).first_largest()
    return output_columns(m, label)


@writes(GaussianMixture)
def mixture(g: GraphWriter, m: GaussianMixture, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x], (roots, constant), (k, d) = xs, m.roots(), m.mus.shape
    scaled = x.matmul(roots.reshape(k * d, d).T)
    cube = g.node("Reshape", [scaled, g.whole([-1, k, d])], d)
    off = cube - (roots @ m.mus.detach()[:, :, None])[:, :, 0]
    squares = g.node("ReduceSum", [off * off, g.whole([2])], k, keepdims=0)
    densities = (squares * -0.5 + constant + m.mixture.detach().log()).exp() + EPSILON
    probability = densities / densities.sum()
    return output_columns(m, first_largest(g, probability), probability)


@writes(IsotonicRegression)
def isotonic(g: GraphWriter, m: IsotonicRegression, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    if not xs[0].scalar and m.index >= xs[0].width:
        raise NotExportableError(f"it reads entry {m.index} of vectors of {xs[0].width} entries")
    x = xs[0] if xs[0].scalar else xs[0].column(m.index)
    b, y, last = m.boundaries, m.predictions.detach(), len(m.boundaries) - 1
    # index of the first boundary that isn't below x; NaN is above all
    below = ascending(g, x, b) & ~same_as(x, b)
    at = g.where(x.isnan(), float(last + 1), below.double().sum())
    above = g.where(at > float(last), float(last), at)
    before = g.where(at < 1.0, 0.0, at - 1.0)
    here, left = above.gather_from(b, 1), before.gather_from(b, 1)
    on = same_as(x, b).any()
    inside = (at > 0.0) & (at <= float(last))
    between = inside & ~on
    width, step = g.where(between, here - left, 1.0), g.where(between, x - left, 0.0)
    low, high = before.gather_from(y, 1), above.gather_from(y, 1)
    end = g.where(at.equals(0.0), float(y[0]), float(y[last]))
    curve = g.where(inside, low + (high - low) * step / width, end)
    found = g.where(on, above.gather_from(y[m.met], 1), curve)
    [null] = nulls
    return ((found if null is None else g.where(null, math.nan, found)).number(),)


def same_as(x: Value, bounds: torch.Tensor) -> Value:
    """Flags of the bounds (m,) that equal x (n, 1) bit for bit: 0.0 isn't -0.0."""
    same, zero = x.equals(bounds), bounds == 0
    if not bool(zero.any()):
        return same
    negative = bounds.signbit().numpy()
    minus = x.is_negative_zero()
    return same & (minus & negative | ~minus & ~negative | ~zero.numpy())


# Products and combinations -----------------------------------------------------------------------------------------------


def fm_margin(g: GraphWriter, m: Any, x: Value) -> Value:
    """Margin of a factorization machine, factor by factor in Spark's order of operations.

    The order matters because the margin is a small difference of large squares.
    """
    out = x.matmul(m.linear.detach()[:, None]) + m.intercept
    last = x.width - 1
    for factor in m.factors.detach().T if x.width else ():
        products = x * factor
        # Spark skips entries of 0, although a factor may not be finite.
        entries = products if bool(factor.isfinite().all()) else g.where(x.equals(0.0), 0.0, products)
        total, squares = entries.running_sum().column(last), (entries * entries).running_sum().column(last)
        out = out + (total * total - squares) * 0.5
    return out


@writes(FMRegression)
def fm_regression(g: GraphWriter, m: FMRegression, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return (fm_margin(g, m, xs[0]).number(),)


@writes(FMClassification)
def fm_classification(g: GraphWriter, m: FMClassification, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    margin = fm_margin(g, m, xs[0])
    one = 1.0 / ((-margin).exp() + 1.0)
    raw, probability = g.beside([-margin, margin]), g.beside([1.0 - one, one])
    return output_columns(m, raw, probability, class_of(g, m, raw, probability))


@writes(ALS)
def recommendation(g: GraphWriter, m: ALS, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    """Write the prediction: the products of factors are summed in float32 from first to last, as in Spark; NaN for an
    unknown id.
    """
    terms, unknown = [], []
    for x, ids, factors, name in zip(xs, (m.users, m.items), (m.userFactors, m.itemFactors), m.names, strict=True):
        whole = x.equals(x.floor()) & (x >= INTEGERS[0]) & (x <= INTEGERS[1])
        g.refuse(~whole, f"{m.uid}: an id in {name!r} that is no whole number in the range of integers")
        place = x.lookup(ids.double(), torch.arange(len(ids)).double(), -1.0)
        unknown.append(place < 0.0)
        terms.append(g.where(place < 0.0, 0.0, place).gather_from(as_array(factors).astype(np.float32), m.rank))
    product = (terms[0] * terms[1]).running_sum().column(m.rank - 1).double()
    return (g.where(unknown[0] | unknown[1], math.nan, product).number(),)


@writes(OneVsRest)
def one_vs_rest(g: GraphWriter, m: OneVsRest, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    models: list[Any] = list(m.models)
    raw = g.beside([score_of_one(g, model, xs[0]) for model in models])
    if not m.by_array:
        return output_columns(m, raw, first_largest(g, raw))
    known = g.where(raw.isnan(), -math.inf, raw)
    return output_columns(m, raw, g.where(known.max() > -math.inf, known.first_largest(), -1.0))


def score_of_one(g: GraphWriter, model: Predictor, x: Value) -> Value:
    """rawPrediction of class 1 from a binary classifier in a OneVsRest, (n, 1)."""
    if isinstance(model, ClassifyingTrees):
        return votes_for_one(g, model, x)
    if isinstance(model, LogisticRegression):
        raw = logistic_margin(g, model, x)
        return raw.column(1) if model.isMultinomial else raw
    if isinstance(model, LinearSVC):
        return linear(x, model.coefficients, model.intercept)
    if isinstance(model, FMClassification):
        return fm_margin(g, model, x)
    if isinstance(model, (Multinomial, Complement, Bernoulli, Gaussian)):
        showing: Any = copy.copy(model)
        showing.shown = model.SHOWN  # its scores among them
        raw, *_ = WRITERS[type(model)](g, showing, [x], [None])
        return raw.column(1)
    raise NotExportableError(f"its models are {type(model).__name__}, whose scores it has no form for")
