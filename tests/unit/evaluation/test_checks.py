"""What is said of a loss or a metric with which nothing can be measured."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch
from sparkdiff.errors import InputError
from sparkdiff.evaluation.row_checks import check_finite, check_repeats
from sparkdiff.evaluation.scores import score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.losses import resolve
from sparkdiff.objectives.metric import Metric
from sparkdiff.stages.base import LabelStats, StageModule
from tests.support.small_networks import F64, least_squares, logistic, network, normal

N = 50
X = normal(N, 2)
LABEL = (normal(N, seed=3) > 0).to(F64)
LABELS = LabelStats(0.5, 0.5, 0.0, 1.0, torch.tensor([N, N]))


class Given(Data):
    """Two batches, without a cache."""

    def __init__(self) -> None:
        super().__init__(None, {("x", -1): "x"})  # type: ignore[arg-type]

    def batches(self, split: str) -> Iterator[tuple[Batch, Tensor, Tensor, Tensor]]:
        weight = (torch.arange(N) % 5 > 0).to(F64)
        for part in (slice(0, 30), slice(30, N)):
            yield {"x": X[part]}, LABEL[part], weight[part], torch.arange(N)[part]


def checked(module: StageModule, loss: str | Callable[..., Tensor]) -> None:
    net = network((module, ["x"], "prediction"))
    columns = {0: ("prediction",)}.get(net.head.classes, ("raw", "probability", "prediction"))
    objective = resolve(loss, {}, net.head, columns, LABELS)
    metric = Metric(objective.name, rows=objective.rows)
    check_finite({"train": score(net, Given(), "train", metric)}, metric, "model1", LABELS, own=callable(loss))
    if callable(loss):
        check_repeats(metric, net, Given())


def logarithm(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - torch.log(label - 0.5)) ** 2


def chance(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - label) ** 2 * torch.rand_like(label)


def steady(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
    return (outputs["prediction"] - label) ** 2 / (label.std() + 1)


def test_a_loss_of_ones_own_that_is_nan_is_told_with_its_rows() -> None:
    rows = int(((LABEL == 0).numpy() & (np.arange(N) % 5 > 0)).sum())
    with pytest.raises(
        InputError, match=rf"the loss .*logarithm of the predictions of model1 is NaN on {rows} train rows"
    ):
        checked(least_squares(2), logarithm)


def test_a_model_of_one_class_has_no_finite_loss() -> None:
    module = logistic(2)
    module.coefficientMatrix.data.zero_()
    module.interceptVector.data.fill_(torch.inf)
    with pytest.raises(
        InputError, match=r"logLoss of model1 on the train rows is nan: on 40 of them .* on one class only"
    ):
        checked(module, "logLoss")


def test_a_loss_of_ones_own_gives_the_same_for_the_same_rows() -> None:
    checked(least_squares(2), steady)
    with pytest.raises(
        InputError, match=r"the loss .*chance gave other values when it was called again with the same rows"
    ):
        checked(least_squares(2), chance)
