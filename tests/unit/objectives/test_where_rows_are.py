"""What runs inside of training computes where its rows are, with their dtype: on a GPU the numbers are the CPU's."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Tallies, Tally
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.objective import with_penalties
from sparkdiff.options import Options
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.bayes import Multinomial
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.device import copy_to, repeatable
from sparkdiff.tensors.rows import SparseRows, running_sum
from sparkdiff.tensors.team import ALONE
from tests.support.small_networks import (
    bayes,
    glr,
    least_squares,
    logistic,
    normal,
    one_vs_rest,
    support_vector,
    survival,
)
from tests.support.some_gpu import GPU, ROUNDING, assert_same, no_reads

F64 = torch.float64
N = 60
PARAMS: dict[str, dict[str, Any]] = {
    "huber": {"delta": 1.2}, "cost": {"costs": [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [2.0, 1.0, 0.0]]},
    "expectedCost": {"costs": [[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [2.0, 1.0, 0.0]]},
}  # fmt: skip
HEADS: dict[str, Callable[[], Predictor]] = {
    "least squares": lambda: least_squares(3),
    "poisson": lambda: glr(3),
    "binomial": lambda: glr(3, "binomial", "probit"),
    "two classes": lambda: logistic(3),
    "three classes": lambda: logistic(3, 3),
    "SVC": lambda: support_vector(3),
    "survival": lambda: survival(3),
    "one against the rest": lambda: one_vs_rest(3),
    "naive Bayes": lambda: bayes(Multinomial, 3),
}
SUMMED = ("auc", "mmce", "areaUnderROC", "areaUnderPR")
"""What a GPU adds up in another order."""


@pytest.fixture(autouse=True)
def _as_training_does() -> Iterator[None]:
    with repeatable(GPU):
        yield


def same(gpu: Tensor, cpu: Tensor, exact: bool = True) -> None:
    assert_same(gpu, cpu, 0.0 if exact else 1e-12)


def rows_of(head: Predictor) -> tuple[Tensor, Tensor, Tensor]:
    """Margins, labels, and weights, some of them 0."""
    y = (torch.arange(N) % max(2, min(3, head.classes or 2))).to(F64)
    weight = torch.where(torch.arange(N) % 7 == 3, 0.0, 0.5 + normal(N, seed=4).abs())
    margin = normal(N, head.margins, seed=3) if head.wide else normal(N, seed=3)
    if head.own_loss()[0] == "weibull":
        margin, y = torch.cat([margin[:, :2], (margin[:, 2:] > 0).to(F64)], 1), y + 0.5
    return margin, y, weight


def fitting(name: str, params: dict[str, dict[str, Any]], head: Predictor) -> dict[str, Any]:
    """The parameters of a loss or metric, of as many classes as there are."""
    given = params.get(name, {})
    return {k: [row[:2] for row in v[:2]] if head.classes == 2 and k == "costs" else v for k, v in given.items()}


@pytest.mark.parametrize("kind", HEADS)
def test_losses_and_their_gradients_are_the_cpu_s(kind: str) -> None:
    cpu, tried = HEADS[kind](), 0
    gpu = copy_to(cpu, GPU.device)
    margin, y, w = rows_of(cpu)
    stats = LabelStats(1.0, 0.8, 0.0, 2.0, torch.tensor([20, 20, 20]))
    groups = torch.arange(N) % 4 + 7
    for name in losses.NAMES:
        for weights in ({}, {"classWeights": [1.0, 2.0, 0.5][: cpu.classes]}):
            params = {**fitting(name, PARAMS, cpu), **weights}
            try:
                found = [losses.resolve(name, params, head, (), stats) for head in (cpu, gpu)]
                if not weights and (cpu.probable or not cpu.classes):
                    found = [
                        with_penalties(f, {"parityGap": {"g": 2.0}}, h, stats, ["g"])
                        for f, h in zip(found, (cpu, gpu), strict=True)
                    ]
            except InputError:
                continue
            tried += 1
            values, slopes = [], []
            for objective, at in zip(found, ("cpu", GPU.device), strict=True):
                m, label, weight, codes = (x.to(at) for x in (margin, y, w, groups))
                m.requires_grad_()
                constants = [torch.ones((), device=at) for _ in range(2)]
                if objective.rows is not None:
                    objective.rows(m, label, weight)  # settings come to the device with the first batch
                with no_reads():
                    value = constants[0] * 0
                    if objective.rows is not None:
                        value = value + (objective.rows(m, label, weight) * weight).sum()
                    if objective.batch is not None:
                        value = value + objective.batch(m, label, weight, {"g": codes})
                    slopes.append(torch.autograd.grad(value, m)[0])
                values.append(value.detach())
            exact = name not in SUMMED and found[0].batch is None
            same(values[1], values[0], exact)
            same(slopes[1], slopes[0], exact)
    assert tried


@pytest.mark.parametrize("kind", HEADS)
def test_scores_are_the_cpu_s(kind: str) -> None:
    cpu, tried = HEADS[kind](), 0
    margin, y, w = rows_of(cpu)
    stats, block = LabelStats(1.0, 0.8, 0.0, 2.0, torch.tensor([20, 20, 20])), torch.arange(N) % 16
    for name in metrics.NAMES:
        options = Options(labelCol="y", metric=name, metricParams=fitting(name, PARAMS, cpu))
        objective = losses.resolve("auto", {}, cpu, (), stats)
        try:
            metric = metrics.resolve(options, objective, cpu, (), stats)
        except InputError:
            continue
        tried += 1
        scores, finite = [], []
        for at in ("cpu", GPU.device):
            tally = Tally(metric, cpu)
            for part in torch.arange(N).split(25):
                given = [x[part].to(at) for x in (margin, y, w, block)]
                metric.rows(*given[:3]) if metric.rows else None
                with no_reads():
                    finite.append(tally.add(*given))
            scores.append(tally.score(ALONE))
        assert torch.equal(torch.cat(finite[3:]).cpu(), torch.cat(finite[:3]))
        assert scores[1].blocks.device.type == "cpu"
        close = max(ROUNDING, 1e-12 if name in SUMMED else 0.0)
        torch.testing.assert_close(scores[1].blocks, scores[0].blocks, rtol=close, atol=close, equal_nan=True)
        torch.testing.assert_close(scores[1].weights, scores[0].weights, rtol=ROUNDING, atol=ROUNDING)
        assert scores[1].below == scores[0].below
    assert tried


@pytest.mark.parametrize("kind", HEADS)
def test_scores_of_several_networks_are_those_of_each(kind: str) -> None:
    """On a GPU the rows of all networks go through a metric in one call."""
    cpu, tried = HEADS[kind](), 0
    margin, y, w = rows_of(cpu)
    event = margin[:, 2:] if cpu.own_loss()[0] == "weibull" else None  # belongs to the label
    margins = torch.stack([margin, margin.flip(0), 2 * margin])
    if event is not None:
        margins[:, :, 2:] = event
    stats, block = LabelStats(1.0, 0.8, 0.0, 2.0, torch.tensor([20, 20, 20])), torch.arange(N) % 16
    for name in (None, *metrics.NAMES):
        options = Options(labelCol="y", metric=name, metricParams=fitting(name or "", PARAMS, cpu))
        try:
            metric = metrics.resolve(options, losses.resolve("auto", {}, cpu, (), stats), cpu, (), stats)
        except InputError:
            continue
        tried += 1
        alone = []
        for m in margins:
            tally = Tally(metric, cpu)
            tally.add(m, y, w, block)
            alone.append(tally.score(ALONE))
        together = Tallies(metric, cpu, len(margins))
        for part in torch.arange(N).split(25):
            there = [x[part].to(GPU.device) for x in (y, w, block)]
            together.add_all(margins[:, part].to(GPU.device), *there)
        for found, wanted in zip(together.scores(ALONE), alone, strict=True):
            torch.testing.assert_close(found.blocks, wanted.blocks, rtol=1e-11, atol=1e-11, equal_nan=True)
            torch.testing.assert_close(found.weights, wanted.weights, rtol=1e-12, atol=1e-12)
            assert (found.below, found.sign) == (wanted.below, wanted.sign)
    assert tried


def test_a_function_that_computes_on_the_cpu_is_named() -> None:
    margin, y, w = (x.to(GPU.device) for x in rows_of(least_squares(3)))

    def constant(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        return (outputs["p"] - label).abs() * (torch.ones(N) if label.ndim and len(label) == N else 1.0)

    def by_numpy(outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        return torch.from_numpy((outputs["p"] - label).detach().numpy())

    stats = LabelStats(1.0, 0.8, 0.0, 2.0, torch.empty(0, dtype=torch.int64))
    for loss in (constant, by_numpy):
        objective = losses.resolve(loss, {}, least_squares(3), ("p",), stats)
        assert objective.rows is not None
        with pytest.raises(InputError, match=rf"the loss .*{loss.__name__} can't compute on {GPU.name} .*device='cpu'"):
            objective.rows(margin, y, w)


def test_sparse_rows_are_the_cpu_s() -> None:
    dense = torch.where(normal(9, 6, seed=5) > 0.3, normal(9, 6, seed=6), 0.0)
    cpu = SparseRows.from_csr(dense.to_sparse_csr())
    gpu = GPU.rows(cpu)
    assert isinstance(gpu, SparseRows)
    order, columns, weights = torch.tensor([3, 3, 0, 8]), torch.tensor([4, 1, 2]), normal(6, 2)
    which = torch.arange(9) % 4 == 1
    for one, other in (
        (gpu.take(GPU.numbers(order)), cpu.take(order)),
        (gpu.select(GPU.numbers(columns)), cpu.select(columns)),
        (gpu.compact()[1], cpu.compact()[1]),
        (gpu.with_nan(GPU.numbers(which)), cpu.with_nan(which)),
        (SparseRows.cat([gpu, gpu]), SparseRows.cat([cpu, cpu])),
    ):
        for name in ("indices", "values", "offsets"):
            same(getattr(one, name), getattr(other, name))
    there = GPU.numbers(order)
    with no_reads():
        made = gpu.to_dense(), gpu.rows(), gpu.take(there, len(cpu.take(order).indices))
    same(made[0], dense)
    same(made[1], cpu.rows())
    same(gpu.compact()[0], cpu.compact()[0])
    same(gpu.matmul(GPU.numbers(weights)), cpu.matmul(weights))


@pytest.mark.parametrize("n", [0, 1, 5, 256, 257, 70_000])
def test_running_sums_on_a_gpu(n: int) -> None:
    x = normal(2, n, seed=7).requires_grad_()
    there = GPU.numbers(x.detach()).requires_grad_()
    with no_reads():
        found = running_sum(there)
    torch.testing.assert_close(found.cpu(), x.cumsum(-1), rtol=1e-12, atol=1e-10)
    factor = normal(2, n, seed=8)
    [slope] = torch.autograd.grad((found * GPU.numbers(factor)).sum(), there)
    [wanted] = torch.autograd.grad((x.cumsum(-1) * factor).sum(), x)
    torch.testing.assert_close(slope.cpu(), wanted, rtol=1e-12, atol=1e-10)
