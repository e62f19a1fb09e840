"""Stages on a GPU, as training has them: values, gradients, affine forms and constraints are the CPU's (on the fake one to the
bit), and nothing in them waits for the device."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.stages.affine import Affine
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.bayes import Bernoulli, Complement, Gaussian, Multinomial
from sparkdiff.stages.binning import Binarizer, Bucketizer, SortedSplits
from sparkdiff.stages.clustering import GaussianMixture, KMeans
from sparkdiff.stages.constraints import (
    Constraint,
    Covariance,
    LogProbabilities,
    Odds,
    OrderedValues,
    PositiveValues,
    Probabilities,
    UnitNorm,
)
from sparkdiff.stages.expanding import PolynomialExpansion
from sparkdiff.stages.factorization_machine import FMRegression
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.imputing import Imputer
from sparkdiff.stages.indexing import OneHotEncoder, VectorIndexer
from sparkdiff.stages.interaction import Interaction
from sparkdiff.stages.isotonic import IsotonicRegression
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.projection import DCT, PCA
from sparkdiff.stages.routing import Router
from sparkdiff.stages.scaling import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler
from sparkdiff.stages.selecting import Selection
from sparkdiff.stages.trees import (
    DecisionTreeClassification,
    DecisionTreeRegression,
    GBTClassification,
    GBTRegression,
    RandomForestClassification,
    RandomForestRegression,
    VotingTrees,
)
from sparkdiff.stages.weighing import IDF, ElementwiseProduct, Normalizer
from sparkdiff.tensors.device import Place, copy_to, repeatable
from sparkdiff.tensors.rows import Rows, SparseRows, dense
from tests.support.random_trees import rows
from tests.support.small_networks import (
    F64,
    bayes,
    glr,
    least_squares,
    logistic,
    normal,
    one_vs_rest,
    support_vector,
    survival,
    trees,
)
from tests.support.some_gpu import GPU, assert_same, no_reads, recorded

D, K = 4, 3
POSITIVE = normal(D, seed=9).abs() + 0.5


@pytest.fixture(autouse=True)
def _as_training_does() -> Iterator[None]:
    with repeatable(GPU):
        yield


def same(gpu: Any, cpu: Any) -> None:
    assert isinstance(gpu, SparseRows) == isinstance(cpu, SparseRows)
    if isinstance(gpu, SparseRows):
        for name in ("indices", "values", "offsets"):
            same(getattr(gpu, name), getattr(cpu, name))
        return
    assert_same(gpu, cpu)


def machine() -> FMRegression:
    out = FMRegression()
    for name, value in (
        ("intercept", normal(1, seed=1)[0]),
        ("linear", normal(D, seed=2)),
        ("factors", normal(D, 2, seed=3)),
    ):
        setattr(out, name, torch.nn.Parameter(value))
    return out


def unfrozen(module: StageModule, name: str) -> StageModule:
    module.unfreeze(name)
    return module


def perceptron() -> MultilayerPerceptron:
    return MultilayerPerceptron(
        normal(D * 5 + 5 + 5 * 3 + 3), [D, 5, 3], shown=MultilayerPerceptron.SHOWN, thresholds=POSITIVE[:3]
    )


COLUMN = torch.cat([normal(9, seed=4), torch.tensor([0.0, 1.0, 2.0], dtype=F64)])
INDEX = torch.arange(12) % 3 * torch.ones(12, dtype=F64)
X = normal(12, D, seed=5)
COUNTS = (normal(12, D, seed=5) > 0.4).to(F64)
STAGES: dict[str, tuple[Callable[[], StageModule], tuple[Tensor, ...]]] = {
    "least squares": (lambda: least_squares(D), (X,)),
    "offset": (lambda: glr(D), (X, COLUMN)),
    "two classes": (lambda: logistic(D), (X,)),
    "a threshold that trains": (lambda: unfrozen(logistic(D), "threshold"), (X,)),
    "three classes": (lambda: logistic(D, 3), (X,)),
    "SVC": (lambda: support_vector(D), (X,)),
    "survival": (lambda: survival(D), (X,)),
    "one against the rest": (lambda: one_vs_rest(D), (X,)),
    "multinomial": (lambda: bayes(Multinomial, D), (COUNTS,)),
    "complement": (lambda: bayes(Complement, D), (COUNTS,)),
    "bernoulli": (lambda: bayes(Bernoulli, D), (COUNTS,)),
    "perceptron": (perceptron, (X,)),
    "factors": (machine, (X,)),
    "k-means": (lambda: KMeans(normal(3, D), False, "means", KMeans.SHOWN), (X,)),
    "cosine": (lambda: KMeans(normal(3, D), True, "means", KMeans.SHOWN), (X,)),
    "isotonic": (
        lambda: IsotonicRegression(normal(9).sort().values, normal(9, seed=2).sort().values, True, 1, "curve"),
        (X,),
    ),
    "StandardScaler": (lambda: StandardScaler(POSITIVE * torch.tensor([1, 0, 1, 1]), normal(D), True, True), (X,)),
    "RobustScaler": (lambda: RobustScaler(POSITIVE, normal(D), True, False), (X,)),
    "MaxAbsScaler": (lambda: MaxAbsScaler(POSITIVE), (X,)),
    "MinMaxScaler": (lambda: MinMaxScaler(-POSITIVE, POSITIVE, 0.0, 2.0), (X,)),
    "PCA": (lambda: PCA(normal(D, 2), normal(2)), (X,)),
    "DCT": (lambda: DCT(False), (X,)),
    "its inverse": (lambda: DCT(True), (X,)),
    "Selection": (lambda: Selection("chosen", [3, 1]), (X,)),
    "IDF": (lambda: IDF(POSITIVE), (X,)),
    "ElementwiseProduct": (lambda: ElementwiseProduct(normal(D)), (X,)),
    "Normalizer": (lambda: Normalizer(3.0), (X,)),
    "PolynomialExpansion": (lambda: PolynomialExpansion(3), (X,)),
    "VectorIndexer": (lambda: VectorIndexer("indexed", D, {1: {0.0: 0, 1.0: 1}}, True), (COUNTS,)),
    "Imputer": (lambda: Imputer(normal(2), -1.0, ["double", "float"]), (COLUMN, COLUMN.flip(0))),
    "OneHotEncoder": (lambda: OneHotEncoder("hot", ("x",), (3,), True, False), (INDEX,)),
    "Interaction": (lambda: Interaction("products", ("a", "b"), (3, 1), ("", "")), (INDEX, X)),
    "Binarizer": (lambda: unfrozen(Binarizer("threshold", torch.tensor(0.2, dtype=F64), 1), "threshold"), (X,)),
    "Bucketizer": (
        lambda: unfrozen(
            Bucketizer("splits", [torch.tensor([-torch.inf, 0.0, 0.5, torch.inf], dtype=F64)], True, "bins", ("x",)),
            "splits",
        ),
        (COLUMN,),
    ),
}
SPARSE = (
    *("least squares", "three classes", "one against the rest", "multinomial", "perceptron", "factors", "isotonic"),
    *("PCA", "IDF", "MaxAbsScaler", "Normalizer", "VectorIndexer"),
)


def entries(x: Rows) -> Tensor:
    return x.values if isinstance(x, SparseRows) else x


def factors(x: Tensor) -> Tensor:
    return torch.arange(x.numel(), dtype=x.dtype, device=x.device).sin().view(x.shape)


def computed(module: StageModule, columns: tuple[Rows, ...]) -> list[Any]:
    """What a step computes, with all gradients."""
    free = [entries(x).detach().requires_grad_() for x in columns]
    inputs = [x.with_values(v) if isinstance(x, SparseRows) else v for x, v in zip(columns, free, strict=True)]
    outs = module.margin(*inputs) if isinstance(module, Predictor) else module(*inputs)
    outs = outs if isinstance(outs, tuple) else (outs,)
    total = sum((x * factors(x)).sum() for x in map(entries, outs) if x.requires_grad)
    leaves = [*(p for p in module.parameters() if p.requires_grad), *free]
    slopes = torch.autograd.grad(total, leaves, allow_unused=True) if isinstance(total, Tensor) else ()
    return [*outs, *(s for s in slopes if s is not None)]


@pytest.mark.parametrize(("name", "sparse"), [*((n, False) for n in STAGES), *((n, True) for n in SPARSE)])
def test_values_and_gradients(name: str, sparse: bool) -> None:
    """At once, as a graph, and nearly so in float32."""
    make, columns = STAGES[name]
    cpu = make()
    given: tuple[Rows, ...] = columns
    if sparse:
        given = tuple(SparseRows.from_csr(x.where(COUNTS > 0, 0.0).to_sparse_csr()) for x in columns)
    gpu, there = copy_to(cpu, GPU.device), tuple(GPU.rows(x) for x in given)
    if name == "PolynomialExpansion":  # the numbers of its monomials come with the first batch
        gpu(*there)
    with no_reads():
        found = computed(gpu, there)
    wanted = computed(cpu, given)
    again = gpu if name == "PolynomialExpansion" else copy_to(cpu, GPU.device)
    graph, captured = recorded(lambda: computed(again, there))
    graph.replay()
    for step in (found, captured):
        for one, other in zip(step, wanted, strict=True):
            same(one, other)
    single = copy_to(cpu, GPU.device, torch.float32)
    place = Place(GPU.device, torch.float32)
    for one, other in zip(computed(single, tuple(place.rows(x) for x in given)), wanted, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(dense(one).cpu().double(), dense(other), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", [n for n, (make, _) in STAGES.items() if isinstance(make(), Affine)])
def test_affine_forms(name: str) -> None:
    make, columns = STAGES[name]
    cpu = make()
    assert isinstance(cpu, Affine)
    widths = [x.shape[1] if x.ndim == 2 else 1 for x in columns]
    if isinstance(cpu, Predictor):
        slope = torch.empty(0, dtype=F64)
    else:
        out = cpu(*columns)
        slope = normal(K, dense(out).shape[1], 2, seed=6)
    p = {n: q.detach() + 0.01 * torch.arange(K, dtype=F64).view(K, *[1] * q.ndim) for n, q in cpu.named_parameters()}
    found = []
    for module, at in ((cpu, torch.device("cpu")), (copy_to(cpu, GPU.device), GPU.device)):
        mine, there = {n: q.to(at) for n, q in p.items()}, slope.to(at)
        with no_reads():
            form = module.affine_form(mine, there, widths)
            constant = [form.constant] if isinstance(form.constant, Tensor) else []
            gradients = [s.expand(K, *s.shape[-2:]) * 0.3 for s in form.slopes]
            above = torch.ones(K, 1, gradients[0].shape[-1], dtype=F64, device=at)
            room = {n: torch.zeros_like(q) for n, q in mine.items()}
            pulled = form.back(gradients, above, room)
        found.append([*form.slopes, *constant, *([] if pulled is None else [pulled]), *room.values()])
    for one, other in zip(found[1], found[0], strict=True):
        same(one, other)


OUTER = torch.tensor([True, False, False, True])
CONSTRAINTS: dict[str, tuple[Constraint, Tensor]] = {
    "Positive": (PositiveValues(), POSITIVE),
    "Odds": (Odds(), torch.tensor([0.2, 0.5], dtype=F64)),
    "Ordered": (OrderedValues(), normal(9).sort().values),
    "SortedSplits": (SortedSplits(OUTER), torch.tensor([-1.0, 0.0, 1.0, torch.inf], dtype=F64)),
    "UnitNorm": (UnitNorm(), normal(3, D)),
    "LogProbabilities": (LogProbabilities(), normal(3, D).log_softmax(1)),
    "Probabilities": (Probabilities(), normal(D).softmax(0)),
    "Covariance": (Covariance(), torch.eye(3, dtype=F64) + 0.1),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(name: str) -> None:
    constraint, start = CONSTRAINTS[name]
    move, slope = 0.1 * normal(K, *start.shape, seed=7), normal(K, *start.shape, seed=8)
    found = []
    for own, at in ((constraint, torch.device("cpu")), (copy_to(constraint, GPU.device), GPU.device)):
        s, m, g = (x.to(at) for x in (start, move, slope))
        with no_reads():
            value = own.value(s, m)
            found.append((value, own.gradient(s, m, value, g)))
    for one, other in zip(found[1], found[0], strict=True):
        assert_same(one, other, 1e-12)


KINDS = (
    GBTRegression,
    GBTClassification,
    RandomForestRegression,
    RandomForestClassification,
    DecisionTreeRegression,
    DecisionTreeClassification,
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparse", [False, True])
def test_trees(kind: type[Trees], sparse: bool) -> None:
    cpu = trees(kind, 11)
    cpu.shown = tuple(c for c in cpu.SHOWN)
    x = torch.from_numpy(rows(40)).nan_to_num(0.5, 2.0, -2.0)
    given: Rows = SparseRows.from_csr(x.to_sparse_csr()) if sparse else x
    gpu, there = copy_to(cpu, GPU.device), GPU.rows(given)
    with torch.no_grad(), no_reads():
        found = [gpu.route(there), gpu.margin(there), *gpu(there)]
    with torch.no_grad():
        for one, other in zip(found, [cpu.route(given), cpu.margin(given), *cpu(given)], strict=True):
            same(one, other)
    for module in (cpu, gpu):
        module.thresholds.requires_grad_()
    gpu.margin(there)  # the nodes come to the device with the first batch
    with no_reads():
        one = computed(gpu, (there,))
    for a, b in zip(one, computed(cpu, (given,)), strict=True):
        same(a, b)
    if isinstance(cpu, VotingTrees):
        for module in (cpu, gpu):
            with torch.no_grad():
                module.leaves.sub_(0.3)
            with no_reads():
                module.project_()
        same(gpu.leaves, cpu.leaves)


def test_rows_go_down_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = trees(GBTRegression, 12)
    x = torch.from_numpy(rows(50)).nan_to_num(0.5)
    monkeypatch.setattr("sparkdiff.stages.routing.GPU_PAIRS", 21)
    router: Router = copy_to(cpu.router, GPU.device)
    for given in (x, SparseRows.from_csr(x.to_sparse_csr())):
        same(router.leaf(GPU.rows(given), GPU.numbers(cpu.thresholds.detach())), cpu.route(given))


def test_covariances_and_gaussian_rows() -> None:
    sigmas = torch.stack([torch.eye(D, dtype=F64) * (k + 1) + 0.1 for k in range(2)])
    for cpu in (
        GaussianMixture(torch.tensor([0.4, 0.6], dtype=F64), normal(2, D), sigmas, "mixture", GaussianMixture.SHOWN),
        bayes(Gaussian, D),
    ):
        if isinstance(cpu, Gaussian):
            cpu.sigma = torch.nn.Parameter(POSITIVE.expand(3, D).clone())
        for one, other in zip(computed(copy_to(cpu, GPU.device), (GPU.rows(X),)), computed(cpu, (X,)), strict=True):
            same(one, other)


@pytest.mark.parametrize("classes", [2, K])
def test_a_coefficient_that_is_not_stored_is_not_multiplied(classes: int) -> None:
    cpu = logistic(D, classes)
    with torch.no_grad():
        cpu.coefficientMatrix[:, 1] = 0
    cpu.unstored = cpu.coefficientMatrix.detach() == 0
    x = normal(5, D)
    x[1, 1], x[2, 1] = torch.nan, torch.inf
    expected = cpu.margin(x)
    assert bool(expected.isfinite().all())
    gpu, there = copy_to(cpu, GPU.device), GPU.rows(x)
    with no_reads():
        found = gpu.margin(there)
    assert_same(found, expected)


def test_a_stage_whose_class_no_module_names_is_copied() -> None:
    """As a worker has it of a class from a notebook, which comes by value."""

    class Own(StageModule):
        def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.kind, self.last = Own, last
            self.register_buffer("b", torch.ones(2, dtype=F64))
            self.again = self.b

    cpu = Own(lambda x: x + 1)
    for gpu in (copy_to(cpu, GPU.device), copy_to(copy_to(cpu, GPU.device), GPU.device, torch.float32)):
        assert (type(gpu), gpu.kind, gpu.last) == (Own, Own, cpu.last)
        assert gpu.again is gpu.b
        assert gpu.b.device == GPU.device
    x = cpu.b
    with pytest.raises(InputError, match=r"stages that hold only numbers and tensors$"):
        copy_to(Own(lambda y: x + y), GPU.device)  # whose tensor would stay behind
