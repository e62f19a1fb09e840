"""Hidden units: a multilayer perceptron on the features, whose raw scores the last linear stage adds to its margin.

In MLlib it is a MultilayerPerceptronClassificationModel, which has sigmoids in its hidden layers, and a linear last layer whose
outputs are the rawPrediction. The model has at least two outputs; if there is only one margin, the second output is zero.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from pyspark.ml.classification import MultilayerPerceptronClassifier
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.descent import AdamTrainer, pieces, work
from sparkdiff.growth.part import Item, Output, Part, PipelinePlace, ServingWork, Stages
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.tensors.rows import dense, rows_at, width

SIZES: Sequence[tuple[tuple[int, ...], float, str]] = (
    ((8,), 0.03, "8 units"),
    ((32,), 0.1, "32 units"),
    ((32, 32), 0.1, "2 layers of 32 units"),
    ((32, 32), 0.3, "2 layers of 32 units, small weights"),
)
"""Sizes of the hidden layers, weight decay, name of the part."""
EPOCHS, RATE = 50, 0.03
WIDEST = 4096
"""Largest number of features. It is limited because Spark's perceptron makes each row dense."""


def propose(table: Table, criterion: Criterion, seed: int) -> list[Item]:
    """Items, one for each of `SIZES`; none if there are more than `WIDEST` features."""
    rows, d = len(table.train), width(table.train.features)
    if d > WIDEST:
        return []
    return [
        Item(
            "units",
            name,
            EPOCHS,
            work(rows, _count([d, *layers, table.width]), EPOCHS),
            seed + i,
            {"layers": list(layers), "decay": decay, "unit": criterion.unit},
        )
        for i, (layers, decay, name) in enumerate(SIZES)
    ]


def _count(sizes: Sequence[int]) -> int:
    """Number of weights of layers of these sizes."""
    return sum((i + 1) * o for i, o in itertools.pairwise(sizes))


class Units(Part):
    """A multilayer perceptron on the features.

    Args:
        sizes: sizes of the layers, inputs and outputs included.
        weights: all weights of all layers, in Spark's order, see `MultilayerPerceptron`.
        classes: number of margins of a softmax; 0 if a row's margin is one number.
    """

    kind = "units"

    def __init__(self, name: str, sizes: Sequence[int], weights: Tensor, classes: int):
        self.name, self.sizes, self.weights, self.classes = name, tuple(sizes), weights, classes

    @property
    def parameters(self) -> int:
        return _count([*self.sizes[:-1], max(self.classes, 1)])

    @torch.no_grad()
    def output(self, split: Split) -> Tensor:
        net = MultilayerPerceptron(self.weights, self.sizes, shown=("rawPredictionCol",), thresholds=None)
        raw = net.margin(split.features)
        return raw if self.classes else raw[:, 0]

    def serving_work(self, features: float) -> ServingWork:
        kind = "MultilayerPerceptronClassificationModel"
        return ServingWork([(kind, float(len(self.weights)))], float(self.sizes[-1]))

    def stages(self, place: PipelinePlace) -> Stages:
        column = place.name("units")
        estimator = MultilayerPerceptronClassifier(
            featuresCol=place.features,
            layers=list(self.sizes),
            rawPredictionCol=column,
            probabilityCol="",
            predictionCol="",
        )
        model = jvm.model_with_weights(
            jvm.set_uid(estimator, place.name("perceptron")), {"weights": self.weights.numpy()}
        )
        return Stages([model], [Output(column, np.eye(self.classes) if self.classes else np.array([1.0, 0.0]))])


class UnitsTrainer(AdamTrainer):
    """Trainer of units as layers of tanh(z / 2) on standardised features; gradients are better conditioned than for sigmoids.

    The functions are the same as with sigmoids on the original features, because tanh(z / 2) = 2 * sigmoid(z) - 1 and the
    standardisation is affine: `part` folds both into the weights. The last layer begins at zero, so training starts at the
    table's margin.
    """

    def __init__(self, item: Item, table: Table):
        self.sizes = [width(table.train.features), *item.settings["layers"], table.width]
        shapes = [shape for i, o in itertools.pairwise(self.sizes) for shape in ((i, o), (o,))]
        super().__init__(item, table, shapes, RATE, float(item.settings["decay"]))
        random = torch.Generator().manual_seed(item.seed)
        for matrix in pieces(self.parameters, shapes)[:-2:2]:
            matrix.normal_(0, 2 / math.sqrt(len(matrix)), generator=random)

    def part_margin(self, parameters: Tensor, split: Split, rows: Tensor) -> Tensor:
        out = (dense(rows_at(split.features, rows)) - self.mean) * self.inverse
        *hidden, (matrix, bias) = self._layers(parameters)
        for inner, offset in hidden:
            out = torch.tanh(torch.addmm(offset, out, inner) / 2)
        out = self.unit * torch.addmm(bias, out, matrix)
        return out if self.classes else out[:, 0]

    def part(self) -> Units:
        (first, offset), *later = self._layers(self.parameters)
        scaled = first * self.inverse[:, None]
        layers = [scaled, offset - self.mean @ scaled]
        for matrix, bias in later:
            layers += [2 * matrix, bias - matrix.sum(0)]
        last = [self.unit * layer for layer in layers[-2:]]
        if not self.classes:
            last = [torch.cat([t, torch.zeros_like(t)], -1) for t in last]
        weights = torch.cat([layer.flatten() for layer in (*layers[:-2], *last)])
        return Units(self.name, [*self.sizes[:-1], len(last[1])], weights, self.classes)

    def _layers(self, parameters: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The matrix (in, out) and the bias (out,) of each layer."""
        both = pieces(parameters, self.shapes)
        return list(zip(both[::2], both[1::2], strict=True))


trainer = UnitsTrainer
