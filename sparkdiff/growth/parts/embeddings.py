"""Embeddings: a learned vector for each value of a category, such as a user or an hour, which the last linear stage reads.

There are two forms. A *main effect* is one number for each value (k numbers for k classes). A *low-rank* embedding e(a) of a
value a has r coordinates, which also multiply the features x: it adds c.e(a) + the sum over i of e_i(a) * (P x)_i to the margin.
So each value has its own coefficients of all d features, with r * (values + d) parameters instead of values * d.

In MLlib, the vectors e(a), here called points, are the matrix of a PCAModel that reads a OneHotEncoderModel's vectors. P is the
matrix of a PCAModel that reads the features, and an Interaction multiplies the two. The point of a value without training rows is
zero.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyspark.ml.feature import PCA, Interaction
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.descent import AdamTrainer, pieces, standardisation, work
from sparkdiff.growth.part import Item, Output, Part, PipelinePlace, ServingWork, Stages, Trainer, unused_heading
from sparkdiff.growth.parts import coding, score_test
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.tensors.rows import Rows, product, width

MAIN, PRODUCTS = 3, 2
"""Largest number of columns for which a main effect is proposed, and for which low-rank embeddings are proposed."""
LEAST = 1.0
"""Score that a column must exceed for a main effect to be proposed (see `score_test`)."""
SIZES = (1, 4)
"""Numbers of coordinates of a low-rank embedding."""
WIDEST, LARGEST = 200, 2**24
"""Largest number of features, and largest product of values and features, for a low-rank embedding."""
NEWTON, EPOCHS = 12, 30
"""Epochs of a main effect and of a low-rank embedding."""
RATE, DECAY = 0.01, 0.5
FARTHEST = 2.0
"""Largest Newton step of a value's effect, in units of the margin (`Criterion.unit`)."""


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """Items for the columns with the largest scores: one score for main effects, and another score for low-rank embeddings."""
    coded = [c for c in coding.codings(table, 2) if not c.is_number]
    main = [c for score, c in score_test.columns(coded, table.train, criterion) if score > LEAST][:MAIN]
    rows, d, items = len(table.train), width(table.train.features), list[Item]()
    for c in main:
        seconds, settings = 5e-7 * NEWTON * rows, _settings(c, 0, criterion)
        items.append(Item("embeddings", f"embedding of {c.column.name}", NEWTON, seconds, seed, settings))
    for c in _by_products(coded, table, criterion)[:PRODUCTS]:
        for size in SIZES:
            name = f"embedding of {c.column.name} x features" + (", 1 coordinate" if size == 1 else "")
            seconds, settings = work(rows, size * (c.width + d), EPOCHS), _settings(c, size, criterion)
            items.append(Item("embeddings", name, EPOCHS, seconds, seed + len(items), settings))
    return items


def _settings(c: coding.Coding, size: int, criterion: Criterion) -> dict[str, Any]:
    return {"place": c.place, "size": size, "unit": criterion.unit}


def trainer(item: Item, table: Table) -> Trainer:
    return LowRankTrainer(item, table) if item.settings["size"] else MainTrainer(item, table)


def _by_products(coded: Sequence[coding.Coding], table: Table, criterion: Criterion) -> list[coding.Coding]:
    """Columns whose values seem to need their own coefficients of the features, largest score first.

    Empty if the features are sparse or more than `WIDEST`.
    """
    features = table.train.features
    if not isinstance(features, Tensor) or features.shape[1] > WIDEST:
        return []
    some = score_test.rows_of(table.train)
    mean, inverse = standardisation(table.train)
    z = (features[:: -(-len(features) // score_test.ENOUGH)] - mean) * inverse
    d = score_test.derivatives(some, criterion)
    found = [(low_rank_score(c.index(some), c.width, z, d), c) for c in coded if c.width * z.shape[1] <= LARGEST]
    return [c for score, c in sorted(found, key=lambda of: -of[0]) if score > 0]


def low_rank_score(index: Tensor, values: int, z: Tensor, d: score_test.Derivatives) -> float:
    """Score of a low-rank matrix of coefficients, one for each value and feature: its gain beyond what chance explains.

    The score is computed from the gradient with respect to this matrix, for decorrelated features and in units of its standard
    deviation. Each squared singular value of the gradient is twice the gain of one coordinate. For pure noise, the squared
    singular values are below (sqrt(values) + sqrt(d))^2, or little above this bound.
    Source: Johnstone, "On the distribution of the largest eigenvalue in principal components analysis", 2001.

    Args:
        index: (n,) index of each row's value.
        values: number of values.
        z: (n, d) standardised features.

    Returns:
        Sum over the `SIZES[-1]` largest squared singular values of their excess over the bound plus twice the spread
        that noise gives the largest one; for several margins, the largest sum.
    """
    best = 0.0
    for pull, curve in zip(d.pull, d.curve, strict=True):
        size, axes = torch.linalg.eigh(z.T @ (z * curve[:, None]) / curve.sum())
        varies = size > 1e-9 * size[-1]
        apart = z @ (axes[:, varies] / size[varies].sqrt())
        slopes = z.new_zeros(values, apart.shape[1]).index_add_(0, index, pull[:, None] * apart)
        curves = z.new_zeros(values).index_add_(0, index, curve)
        scaled = slopes / (curves + d.least).sqrt()[:, None]
        squares = torch.linalg.eigvalsh(scaled.T @ scaled).flip(0)[: SIZES[-1]] / d.dispersion
        n, p = int((curves > 0).sum()), apart.shape[1]
        edge, spread = (n**0.5 + p**0.5) ** 2, (n**0.5 + p**0.5) * (n**-0.5 + p**-0.5) ** (1 / 3)
        best = max(best, float((squares - edge - 2 * spread).clamp_min(0).sum()))
    return best


@dataclass(frozen=True)
class Products:
    """Second-order term of a low-rank embedding: products of the r coordinates of a point with the r entries of P x.

    Attributes:
        projection: (d, r), the transpose of P.
        coefficients: (r * r, m) for m margins, one row for each product of a coordinate (the slow index) and an entry of P x.
    """

    projection: Tensor
    coefficients: Tensor

    def of(self, points: Tensor, features: Rows) -> Tensor:
        """Margin that this term adds, from each row's point (n, r) and features (n, d); (n, m)."""
        projected = product(features, self.projection)
        projected = torch.where(coding.are_finite(features)[:, None], projected, 0.0)
        return (points[:, :, None] * projected[:, None, :]).flatten(1) @ self.coefficients


class Embedding(Part):
    """A point for each value, and the coefficients of its coordinates in the last stage.

    Args:
        values: coding of the category.
        points: (values, r), the point of each value.
        coefficients: (r, m) coefficients of the coordinates in each of the m margins.
        products: second term of a low-rank embedding; None for a main effect.
        classes: number of margins of a softmax; 0 if a row's margin is one number.
        parameters: number of fitted parameters.
    """

    kind = "embeddings"

    def __init__(
        self,
        name: str,
        values: coding.Coding,
        points: Tensor,
        coefficients: Tensor,
        products: Products | None,
        classes: int,
        parameters: int,
    ):
        self.name, self.values, self.classes, self.fitted = name, values, classes, parameters
        self.points, self.coefficients, self.products = points, coefficients, products

    @property
    def parameters(self) -> int:
        return self.fitted

    def output(self, split: Split) -> Tensor:
        points = self.points[self.values.index(split)]
        out = points @ self.coefficients
        if self.products is not None:
            out = out + self.products.of(points, split.features)
        return out if self.classes else out[:, 0]

    def serving_work(self, features: float) -> ServingWork:
        r = float(self.points.shape[1])
        steps = [*coding.steps([self.values]), ("PCAModel", r)]  # reads a vector with one entry
        columns = frozenset({self.values.column.column})
        if self.products is None:
            return ServingWork(steps, r, columns)
        steps += [("PCAModel", features * r), *[("VectorAssembler", r)] * 2, ("Interaction", r * r)]
        steps += coding.gate_steps(features)
        return ServingWork(steps, r + r * r, columns)

    def stages(self, place: PipelinePlace) -> Stages:
        stages, blocks = coding.one_hot([self.values], place)
        stages.append(_linear(place, "points", blocks[self.values], self.points))
        outputs = [self._output(place.name("points"), self.coefficients)]
        if self.products is not None:
            stages.append(_linear(place, "projection", place.features, self.products.projection))
            finite, gating = coding.gate(place)
            stages, inputs = [*stages, *gating], []
            for what in (
                "points",
                "projection",
            ):  # Interaction needs attributes of the entries, which PCAModel does not write
                column = place.name(f"{what}_entries")
                stages.append(coding.assembler([place.name(what)], column))
                inputs.append(column)
            column = place.name("products")
            stages.append(jvm.set_uid(Interaction(inputCols=[finite, *inputs], outputCol=column), column))
            outputs.append(self._output(column, self.products.coefficients))
        return Stages(stages, outputs)

    def _output(self, column: str, coefficients: Tensor) -> Output:
        by_margin = coefficients.T.contiguous().numpy()
        return Output(column, by_margin if self.classes else by_margin[0])

    def learned_table(self) -> list[dict[str, Any]]:
        """Table of the values with a nonzero point, and its coordinates; for a main effect, the effects on the margin."""
        r = self.points.shape[1]
        if self.products is not None:
            names = [f"coordinate {i + 1}" for i in range(r)]
        else:
            names = [f"effect on class {i}" for i in range(r)] if self.classes else ["effect"]
        there = self.points.any(1).nonzero()[:, 0].tolist()
        column, labels = self.values.column.name, self.values.labels
        names = [unused_heading(name, [column]) for name in names]
        return [{column: labels[i], **dict(zip(names, self.points[i].tolist(), strict=True))} for i in there]


def _linear(place: PipelinePlace, what: str, column: str, matrix: Tensor) -> Any:
    """A PCAModel that multiplies vectors by a matrix (d, r), as Spark's PCAModel does not centre. Its explained variance is 0."""
    pca = PCA(inputCol=column, outputCol=place.name(what), k=matrix.shape[1])
    weights = {"pc": matrix.numpy(), "explainedVariance": np.zeros(matrix.shape[1])}
    return jvm.model_with_weights(jvm.set_uid(pca, place.name(what)), weights)


class MainTrainer(Trainer):
    """Newton's method for one effect per value and margin, with a ridge whose strength is estimated.

    The effects have a normal prior. Its variance is estimated from the training rows: first from moments of the
    gradients, then by one step of the EM algorithm after each Newton step. So effects of values with few rows stay near
    zero, and the nearer, the less the effects of the other values differ.
    """

    def __init__(self, item: Item, table: Table):
        self.name, self.unit, self.classes = item.name, float(item.settings["unit"]), table.classes
        self.values = coding.coding_of(table, item.settings["place"], 2)
        self.effects = table.train.margin.new_zeros(self.values.width, table.width)
        self.variance: Tensor | None = None
        self.seen = 0

    def epoch(self, table: Table, criterion: Criterion) -> None:
        split = table.train.at(table.train.margin + self.part().output(table.train))
        d = score_test.derivatives(split, criterion)
        index = self.values.index(split)
        pull, curve = (torch.zeros_like(self.effects).index_add_(0, index, of.T) for of in (d.pull, d.curve))
        known = curve > 0
        self.seen = int(known[:, 0].sum())
        if self.variance is None:
            self.variance = (pull.square() - d.dispersion * curve).sum(0) / curve.square().sum(0)
        self.variance = self.variance.clamp_min(1e-6 * self.unit**2)
        ridge = d.dispersion / self.variance
        # Softmax's Hessian is at most twice its diagonal: its rows sum to zero, so the other entries sum to the diagonal's size.
        steep = 2 * curve if self.classes else curve
        step = ((pull - ridge * self.effects) / (steep + ridge)).clamp(-FARTHEST * self.unit, FARTHEST * self.unit)
        self.effects = torch.where(known, self.effects + step, 0.0)
        square = self.effects.square() + d.dispersion / (curve + ridge)
        self.variance = torch.where(known, square, 0.0).sum(0) / known.sum(0)

    def part(self) -> Embedding:
        same = torch.eye(self.effects.shape[1], dtype=self.effects.dtype)
        return Embedding(self.name, self.values, self.effects.clone(), same, None, self.classes, self.seen * len(same))


class LowRankTrainer(AdamTrainer):
    """Trainer of low-rank embeddings by Adam.

    The parameters are the points, the coefficients of their coordinates, the projection of standardised features and, for
    several classes, the coefficients of products. Coefficients of coordinates and the projection begin at zero, so
    training starts at the table's margin. With one margin, coordinate i is multiplied by entry i of the projected
    features only.
    """

    def __init__(self, item: Item, table: Table):
        self.values = coding.coding_of(table, item.settings["place"], 2)
        r, m, values, d = int(item.settings["size"]), table.width, self.values.width, width(table.train.features)
        shapes = [(values, r), (r, m), (d, r), *([(r * r, m)] if table.classes else [])]
        super().__init__(item, table, shapes, RATE, DECAY)
        index = self.values.index(table.train)[table.train.weight > 0]
        self.known = (torch.bincount(index, minlength=values) > 0).to(self.mean.dtype)[:, None]
        random = torch.Generator().manual_seed(item.seed)
        points, _, _, *products = pieces(self.parameters, shapes)
        for tensor in (points, *products):
            tensor.normal_(0, 0.3, generator=random)

    def part_margin(self, parameters: Tensor, split: Split, rows: Tensor) -> Tensor:
        assert isinstance(split.features, Tensor)
        points, coefficients, projection, *products = pieces(parameters, self.shapes)
        own = (points * self.known)[self.values.entry(split.values[rows, self.values.place])]
        z = (split.features[rows] - self.mean) * self.inverse
        out = self.unit * (own @ coefficients + Products(projection, self._products(products)).of(own, z))
        return out if self.classes else out[:, 0]

    def _products(self, products: Sequence[Tensor]) -> Tensor:
        """Coefficients of the products, (r * r, m); with one margin they are fixed, and 1 only for coordinate i times entry i."""
        if products:
            return products[0]
        r = self.shapes[1][0]
        return torch.eye(r, dtype=self.mean.dtype).view(r * r, 1)

    def part(self) -> Embedding:
        points, coefficients, projection, *products = pieces(self.parameters, self.shapes)
        both = self.unit * self._products(products)
        scaled = projection * self.inverse[:, None]
        r, m = coefficients.shape
        centre = torch.einsum("j,ijk->ik", self.mean @ scaled, both.view(r, r, m))
        fitted = r * (int(self.known.sum()) + m + len(projection)) + sum(p.numel() for p in products)
        return Embedding(
            self.name,
            self.values,
            points * self.known,
            self.unit * coefficients - centre,
            Products(scaled, both),
            self.classes,
            fitted,
        )
