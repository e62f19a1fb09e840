"""Translated stages that transform features, as nodes of an ONNX graph, written in the terms of their torch modules."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeVar

import numpy as np
import torch

from sparkdiff.serving.onnx.graph import GraphWriter, NotExportableError, Value
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.binning import Binarizer, Bucketizer
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.expanding import PolynomialExpansion, monomials
from sparkdiff.stages.formula import AttributeRewriting, ColumnPruning
from sparkdiff.stages.imputing import Imputer
from sparkdiff.stages.indexing import OneHotEncoder, VectorIndexer
from sparkdiff.stages.interaction import Interaction
from sparkdiff.stages.projection import DCT, PCA
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sparkdiff.stages.selecting import Selector, VectorSizeHint, VectorSlicer
from sparkdiff.stages.target_encoding import TargetEncoder
from sparkdiff.stages.weighing import IDF, ElementwiseProduct, Normalizer
from sparkdiff.tensors.rows import NEVER

Nulls = Sequence[Value | None]
"""Flags of the null rows per input, (n, 1) bool; None if no row is null, or if the module treats null as NaN."""
Writer = Callable[[GraphWriter, Any, Sequence[Value], Nulls], tuple[Value, ...]]
"""(graph, module, inputs, nulls) -> outputs, in the order of the module's outputs."""
WRITERS: dict[type[StageModule], Writer] = {}
"""Writers by the module's exact class: a subclass may compute something else."""
_Function = TypeVar("_Function", bound=Writer)


def writes(*modules: type[StageModule]) -> Callable[[_Function], _Function]:
    """Register a function as the writer of the ONNX nodes for these module classes."""

    def decorate(writer: _Function) -> _Function:
        WRITERS.update(dict.fromkeys(modules, writer))
        return writer

    return decorate


def output_columns(m: Any, *columns: Value) -> tuple[Value, ...]:
    """The columns that a predictor has an output column for, out of `columns`, which are in the order of `m.SHOWN`.

    rawPrediction, probability, quantiles and the leaves of several trees are vectors; the other columns are numbers.
    """
    out = []
    for name, column in zip(m.SHOWN, columns, strict=True):
        vector = name in ("rawPredictionCol", "probabilityCol", "quantilesCol") or (name == "leafCol" and not m.single)
        out += [column.vector() if vector else column.number()] if name in m.shown else []
    return tuple(out)


def first_largest(g: GraphWriter, scores: Value) -> Value:
    """First index of the largest score per row, (n, 1); a NaN counts as the largest only in the first column."""
    found = g.where(scores.isnan(), -math.inf, scores).first_largest()
    return g.where(scores.column(0).isnan(), 0.0, found)


def class_of(g: GraphWriter, m: Any, raw: Value, probability: Value) -> Value:
    """Predicted class, computed from the column that Spark would use, since the columns round differently.

    That is the probability if thresholds are set, or if it is an output and the raw scores are not; else the raw scores.
    """
    if m.cuts is not None:
        scores = probability / m.cuts
        return g.where(scores.isnan(), -math.inf, scores).first_largest()
    only = "probabilityCol" in m.shown and "rawPredictionCol" not in m.shown
    return first_largest(g, probability if only else raw)


# Columns side by side, chosen, or as they are ---------------------------------------------------------------------------


@writes(VectorAssembler)
def vector_assembler(g: GraphWriter, m: VectorAssembler, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    for name, x in zip(m.names, xs, strict=True):
        if not m.keep and x.scalar:
            g.refuse(x.isnan(), f"{m.uid}: null or NaN in {name!r}")
    return (g.beside(xs),)


@writes(Selector, VectorSlicer)
def selection(_g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x] = xs
    if len(m.indices) and int(m.indices.max()) >= x.width:
        raise NotExportableError(f"it selects entry {int(m.indices.max())} of vectors of {x.width} entries")
    return (x.columns(m.indices).without_zeros(x) if isinstance(m, VectorSlicer) else x.columns(m.indices),)


@writes(VectorSizeHint)
def size_hint(_g: GraphWriter, m: VectorSizeHint, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    if m.checks and xs[0].width != m.size:
        raise NotExportableError(f"its vectors have {xs[0].width} entries instead of size={m.size}")
    return (xs[0],)


@writes(AttributeRewriting)
def rewritten_attributes(_g: GraphWriter, _m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return (xs[0],)


@writes(ColumnPruning)
def nothing(_g: GraphWriter, _m: Any, _xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return ()


# Scaling and projecting -------------------------------------------------------------------------------------------------


@writes(StandardScaler, RobustScaler)
def scaling(_g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    divisor, shift = (getattr(m, name).detach() for name in m.weights)
    x = xs[0] - shift if m.shifts else xs[0]
    out = x * m.factor(divisor) if m.divides else x
    return (out if m.shifts else out.as_in(xs[0]),)


@writes(MaxAbsScaler)
def by_largest(_g: GraphWriter, m: MaxAbsScaler, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return ((xs[0] * m.factor(m.maxAbs.detach())).as_in(xs[0]),)


@writes(MinMaxScaler)
def into_range(g: GraphWriter, m: MinMaxScaler, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x], low, high = xs, m.originalMin.detach(), m.originalMax.detach()
    factor = (m.high - m.low) / torch.where(m.moves, high - low, 1.0)
    moved = (x - low) * factor + m.low
    constant = g.where(x.isnan(), x, (m.low + m.high) / 2)
    return (g.where(m.moves.numpy(), moved, constant),)


@writes(ElementwiseProduct, IDF)
def weighting(_g: GraphWriter, m: Any, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return ((xs[0] * getattr(m, m.weights[0])).as_in(xs[0]),)


@writes(Normalizer)
def normalizer(g: GraphWriter, m: Normalizer, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x] = xs
    size = x.abs()
    if math.isinf(m.p):
        total = g.where(size.isnan(), 0.0, size).max()
    else:
        total = (size if m.p == 1 else size * size if m.p == 2 else size.power(m.p)).sum()
    total = g.where(total.equals(0.0), 1.0, total)
    if math.isinf(m.p) or m.p == 1:
        return ((x / total).as_in(x),)
    return ((x / (total.sqrt() if m.p == 2 else total.power(1 / m.p))).as_in(x),)


@writes(PCA)
def pca(_g: GraphWriter, m: PCA, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    return (xs[0].matmul(m.pc),)


@writes(DCT)
def dct(g: GraphWriter, m: DCT, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x] = xs
    if not x.width:
        return (x,)
    g.refuse(x.abs() > m.largest, f"{m.uid}: an entry in {m.name!r} that is infinite or beyond {m.largest:g}")
    matrix = m(torch.eye(x.width, dtype=torch.float64))  # linear: its outputs for unit vectors
    return (x.matmul(matrix),)


@writes(Word2Vec)
def mean_vector(_g: GraphWriter, m: Word2Vec, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    shares, length = xs
    out = shares.matmul(m.vectors)
    stored = (length > 0.0) & (out.equals(out) | out.isnan()) if m.exact_beyond < NEVER else None
    return (dataclasses.replace(out, stored=stored),)


# Categories and bins ----------------------------------------------------------------------------------------------------


@writes(VectorIndexer)
def vector_indexer(g: GraphWriter, m: VectorIndexer, xs: Sequence[Value], _nulls: Nulls) -> tuple[Value, ...]:
    [x], first, parts, start = xs, m.first.tolist(), [], 0
    if x.width != m.size:
        raise NotExportableError(f"its input vectors have {x.width} entries, but it was fitted on vectors of {m.size}")
    if not m.size:
        return (x,)
    for j in [*m.nominal_features().tolist(), m.size]:
        parts += [x.columns(np.arange(start, j))] if j > start else []
        start = j + 1
        if j == m.size:
            break
        keys, values = m.values[first[j] : first[j + 1]], m.numbers[first[j] : first[j + 1]]
        found = x.column(j).lookup(keys, values, -1.0)
        unknown = found < 0.0
        if not m.keep:
            met = unknown if x.stored is None else unknown & x.stored.column(j)
            g.refuse(met, f"{m.uid}: a value of feature {j} that is not one of its categories")
        parts.append(g.where(unknown, float(m.unknown[j]), found))
    return (g.beside(parts).as_in(x),)


@writes(OneHotEncoder)
def one_hot(g: GraphWriter, m: OneHotEncoder, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    out = []
    for x, null, size, name in zip(xs, nulls, m.sizes, m.names, strict=True):
        valid = (x >= 0.0) & (x < float(size))
        if not m.keep:
            g.refuse(
                ~valid if null is None else ~valid & ~null, f"{m.uid}: an index in {name!r} outside 0 to {size - 1}"
            )
        if null is not None and name in m.refusing:
            g.refuse(null, f"{m.uid}: null in {name!r}, whose vector {m.refusing[name]} refuses")
        index = g.where(valid, x, float(size)).floor()
        width = size + m.keep - m.drop_last
        hot = index.equals(np.arange(width, dtype=np.float64)).double()
        out.append(hot if null is None else g.where(null, math.nan, hot))
    return tuple(out)


@writes(TargetEncoder)
def target_encoder(g: GraphWriter, m: TargetEncoder, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    encodings, out = m.encodings().detach(), []
    for x, null, table, name in zip(xs, nulls, m.tables, m.names, strict=True):
        place = x.lookup(table.known, table.place.double(), -1.0)
        unseen = place < 0.0
        refused = unseen if null is None else unseen & ~null
        place = g.where(unseen, float(table.unseen), place)
        if null is not None:
            place = g.where(null, float(table.unseen if table.missing is None else table.missing), place)
            refused = refused | null if table.missing is None else refused
        if not m.keep:
            g.refuse(refused, f"{m.uid}: a value of {name!r} that was not in the data that it was fitted on")
        out.append(place.gather_from(encodings, 1).number())
    return tuple(out)


@writes(Binarizer)
def binary(g: GraphWriter, m: Binarizer, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    out = []
    for x, null, threshold in zip(xs, nulls, m.thresholds_of.tolist(), strict=True):
        above = (~(x <= threshold) if not x.scalar and threshold < 0 else x > threshold).double()
        found = above if null is None or not x.scalar else g.where(null, math.nan, above)
        out.append(found.number() if x.scalar else found)
    return tuple(out)


@writes(Bucketizer)
def bucketizer(g: GraphWriter, m: Bucketizer, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    out = []
    for x, null, splits, name in zip(xs, nulls, m.splits_of(), m.names, strict=True):
        empty, low, high = x.isnan(), float(splits[0]), float(splits[-1])
        reached = ascending(g, x, splits)
        outside = (x < low) | (x > high) | (x.equals(low) & ~reached.column(0))
        wrong = outside if m.keep else outside | empty
        why = f"{m.uid}: a number in {name!r} that is NaN or outside the splits"
        g.refuse(wrong if null is None else wrong & ~null, why)
        place = reached.double().sum() - 1.0
        found = g.where(x.equals(high), float(len(splits) - 2), place)
        found = g.where(empty, float(len(splits) - 1), found)
        out.append((found if null is None else g.where(null, math.nan, found)).number())
    return tuple(out)


def ascending(_g: GraphWriter, x: Value, bounds: torch.Tensor) -> Value:
    """Flags of the bounds (m,) that are at most x (n, 1): (n, m) bool; -0.0 is below 0.0, as in Java."""
    over = x > bounds
    plus = ((bounds == 0) & ~bounds.signbit()).numpy()
    same = x.equals(bounds)
    return over | (same & ~(x.is_negative_zero() & plus) if plus.any() else same)


@writes(Imputer)
def imputer(g: GraphWriter, m: Imputer, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    out = []
    for x, null, surrogate in zip(xs, nulls, m.fill_values(), strict=True):
        absent = x.equals(m.missing) if m.takes_nulls else x.isnan()
        absent = absent | null if m.takes_nulls and null is not None else absent
        out.append(g.where(absent, float(surrogate), x).number())
    return tuple(out)


# Products of features ---------------------------------------------------------------------------------------------------


@writes(PolynomialExpansion)
def polynomial_expansion(
    g: GraphWriter, m: PolynomialExpansion, xs: Sequence[Value], _nulls: Nulls
) -> tuple[Value, ...]:
    [x] = xs
    levels, place = monomials(x.width, m.degree)
    product, products = None, []
    for shorter, feature in levels:
        factor = x.columns(feature)
        if product is None:  # of degree 1: 1 times the feature
            product = factor
        else:
            before = product.columns(shorter)
            product = g.where(before.equals(0.0) & ~factor.isfinite(), 0.0, before * factor)
        product = product if factor.stored is None else g.where(factor.stored, product, 0.0)
        products.append(product)
    return (g.beside(products).columns(place).without_zeros(x),)


@writes(Interaction)
def interaction(g: GraphWriter, m: Interaction, xs: Sequence[Value], nulls: Nulls) -> tuple[Value, ...]:
    parts, counts = [], []
    for x, null, name, values in zip(xs, nulls, m.names, m.values, strict=True):
        if null is not None:
            g.refuse(null, f"{m.uid}: null in {name!r}")
        if values > 1:
            place = np.arange(values, dtype=np.float64)
            g.refuse(
                ~(x.equals(place).any()), f"{m.uid}: a value in {name!r} that is not one of its {values} categories"
            )
            x = x.equals(place).double().stored_as("sparse")
        parts.append(x)
        counts.append(x.stored or x.equals(x) | x.isnan())
    product = reduce(lambda fast, slow: pairwise(g, "Mul", slow, fast), reversed(parts))
    if all(x.stored is None for x in parts):
        return (product,)
    kept = reduce(lambda fast, slow: pairwise(g, "And", slow, fast), reversed(counts))
    return (g.where(kept, product, 0.0),)


def pairwise(g: GraphWriter, operator: str, slow: Value, fast: Value) -> Value:
    """Operator applied to every pair of an entry of `slow` and an entry of `fast`; the index of `slow` varies slowest."""
    i, j = np.arange(slow.width).repeat(fast.width), np.tile(np.arange(fast.width), slow.width)
    return g.binary_node(operator, slow.columns(i), fast.columns(j))
