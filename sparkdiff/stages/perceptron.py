"""MultilayerPerceptronClassifier: affine layers with sigmoids between them."""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.stages.base import FeatureStats, LabelStats, parameter, register, tensor
from sparkdiff.stages.linear import coefficient_units
from sparkdiff.stages.predictor import ProbabilisticClassifier, first_largest
from sparkdiff.tensors.rows import Rows, product


@register("pyspark.ml.classification.MultilayerPerceptronClassificationModel")
class MultilayerPerceptron(ProbabilisticClassifier):
    """rawPrediction = the last affine layer of sigmoids of affine layers, probability = its softmax.

    Layer i holds `matrix<i>` (out, in) and `bias<i>` (out,). Spark keeps them in one vector, layer by layer, each matrix column
    by column and then its bias.

    Source: org.apache.spark.ml.ann.{AffineLayerModel, SoftmaxLayerModelWithCrossEntropyLoss}.
    """

    feature_axis = {"matrix0": 1}
    margin_link = "softmax"

    def __init__(self, weights: Tensor, layers: Sequence[int], *, shown: tuple[str, ...], thresholds: Tensor | None):
        # Without a column of scores, Spark predicts from the probabilities (its `predict`) and ignores the thresholds.
        bare = {"rawPredictionCol", "probabilityCol"}.isdisjoint(shown)
        super().__init__()
        self.classes, self.shown, self.cuts = layers[-1], shown, None if bare else thresholds
        self.bare, self.depth, first = bare, len(layers) - 1, 0
        for i, (wide, out) in enumerate(itertools.pairwise(layers)):
            matrix, bias, _ = weights[first:].split([wide * out, out, len(weights) - first - (wide + 1) * out])
            self.register_parameter(f"matrix{i}", parameter(matrix.view(wide, out).T.clone()))
            self.register_parameter(f"bias{i}", parameter(bias.clone()))
            first += (wide + 1) * out

    @classmethod
    def from_spark(cls, stage: Any) -> "MultilayerPerceptron":
        return cls(tensor(stage.weights), list(stage.getOrDefault("layers")), **cls.settings(stage))

    def layer(self, i: int) -> tuple[Tensor, Tensor]:
        return self.get_parameter(f"matrix{i}"), self.get_parameter(f"bias{i}")

    def margin(self, x: Rows) -> Tensor:  # type: ignore[override]  # one input column; (n, k)
        for i in range(self.depth):
            matrix, bias = self.layer(i)
            out = product(x, matrix.T) + bias
            x = torch.sigmoid(out)
        return out

    def raw_and_probability(self, margin: Tensor) -> tuple[Tensor, Tensor]:
        return margin, torch.softmax(margin, 1)  # without the treatment of infinities in Utils.softmax

    def label(self, raw: Tensor, probability: Tensor) -> Tensor:
        return first_largest(probability) if self.bare else super().label(raw, probability)

    def units(self, x: FeatureStats, y: LabelStats) -> dict[str, Tensor]:
        return {"matrix0": coefficient_units(x, 1.0)}

    def to_spark(self, stage: Any) -> Any:
        parts = [p.detach().numpy() for i in range(self.depth) for p in self.layer(i)]
        return jvm.rebuild(stage, {"weights": np.concatenate([p.ravel("F") for p in parts])})
