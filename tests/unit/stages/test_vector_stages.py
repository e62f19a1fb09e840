"""Stages on vectors without Spark: sparse rows against dense ones, derivatives, and inputs that don't fit."""

import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import BatchColumn
from sparkdiff.errors import InputError
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.expanding import PolynomialExpansion
from sparkdiff.stages.indexing import VectorIndexer
from sparkdiff.stages.projection import DCT
from sparkdiff.stages.scaling import MaxAbsScaler, RobustScaler, StandardScaler
from sparkdiff.stages.selecting import Selection, VectorSizeHint
from sparkdiff.stages.weighing import IDF, ElementwiseProduct, Normalizer
from sparkdiff.tensors.device import CPU
from sparkdiff.tensors.rows import SparseRows, dense
from tests.support.small_networks import logistic, network
from tests.support.some_gpu import GPU

F64 = torch.float64
WIDTH = 5
WEIGHTS = torch.tensor([2.0, 0.0, -0.5, 1e-3, 7.0], dtype=F64)
MAPS = {1: {0.0: 0, 2.0: 1}, 4: {-1.0: 0, 0.5: 1, 3.0: 2}}


def rows(n: int = 9) -> Tensor:
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, WIDTH, dtype=F64, generator=generator)
    x[torch.rand(n, WIDTH, generator=generator) < 0.5] = 0
    x[0] = 0
    return x


def sparse(x: Tensor) -> SparseRows:
    row, column = x.nonzero(as_tuple=True)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), row.bincount(minlength=len(x)).cumsum(0)])
    return SparseRows(column, x[row, column], offsets, x.shape[1])


MODULES: dict[str, tuple[Callable[[], StageModule], bool]] = {
    # and whether sparse rows stay sparse
    "RobustScaler": (lambda: RobustScaler(WEIGHTS.abs(), WEIGHTS + 1, True, False), True),
    "RobustScaler with median": (lambda: RobustScaler(WEIGHTS.abs(), WEIGHTS + 1, True, True), False),
    "MaxAbsScaler": (lambda: MaxAbsScaler(WEIGHTS.abs()), True),
    "IDF": (lambda: IDF(WEIGHTS.clone()), True),
    "ElementwiseProduct": (lambda: ElementwiseProduct(WEIGHTS.clone()), True),
    "Normalizer of 1": (lambda: Normalizer(1.0), True),
    "Normalizer of 2": (lambda: Normalizer(2.0), True),
    "Normalizer of 3.5": (lambda: Normalizer(3.5), True),
    "Normalizer of infinity": (lambda: Normalizer(math.inf), True),
    "PolynomialExpansion of 1": (lambda: PolynomialExpansion(1), True),
    "PolynomialExpansion of 2": (lambda: PolynomialExpansion(2), True),
    "PolynomialExpansion of 4": (lambda: PolynomialExpansion(4), True),
    "DCT": (lambda: DCT(False), False),
    "inverse DCT": (lambda: DCT(True), False),
    "Selection": (lambda: Selection("s", [3, 0, 4]), True),
    "Selection of none": (lambda: Selection("s", []), True),
    "VectorSizeHint": (lambda: VectorSizeHint("h", WIDTH, True), True),
    "VectorIndexer": (lambda: VectorIndexer("i", WIDTH, {1: {0.0: 0, 2.0: 1}}, True), True),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("x", [rows(), 0 * rows(3), rows()[:0]], ids=["rows", "only zeros", "no row"])
def test_sparse_rows_give_what_dense_rows_give(name: str, x: Tensor) -> None:
    module, stays = MODULES[name][0](), MODULES[name][1]
    out, wished = module(sparse(x)), module(x)
    assert isinstance(out, SparseRows) == stays
    torch.testing.assert_close(dense(out), wished, rtol=1e-14, atol=1e-14)
    if isinstance(out, SparseRows):
        ascending = out.indices.diff() > 0
        same_row = out.rows().diff() == 0
        assert bool(ascending[same_row].all())
        assert out.to_csr().shape == wished.shape


@pytest.mark.parametrize("name", MODULES)
def test_derivatives_of_sparse_rows(name: str) -> None:
    """By what is stored, and by the parameters, as with dense rows."""
    module, x = MODULES[name][0](), rows()
    gradients = []
    for make in (lambda x: x, sparse):
        x = x.detach().requires_grad_()
        out = dense(module(make(x)))
        loss = (out * torch.linspace(-1, 2, out.numel(), dtype=F64).view_as(out)).sum() + 0 * x.sum()
        trained = [p for p in module.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, [x, *trained], allow_unused=True, materialize_grads=True)
        gradients.append([torch.where(x != 0, found[0], 0.0), *found[1:]])
    for a, b in zip(*gradients, strict=True):
        assert bool(a.isfinite().all())
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", MODULES)
def test_derivatives_by_differences(name: str) -> None:
    """Also where entries are 0, but not where a norm has its kink."""
    module, x = MODULES[name][0](), torch.randn(3, WIDTH, dtype=F64, generator=torch.Generator().manual_seed(2))
    if name not in ("Normalizer of 1", "Normalizer of infinity"):
        x[0, 2] = x[1, 0] = x[1, 4] = 0.0
    if name == "VectorIndexer":
        x[:, 1] = 2.0
        out = module(x.requires_grad_())
        assert torch.autograd.grad(out.sum(), [x])[0].tolist() == [[1.0, 0.0, 1.0, 1.0, 1.0]] * 3
        return
    assert torch.autograd.gradcheck(lambda x: dense(module(x)), [x.requires_grad_()])


def test_a_row_of_norm_0_has_a_derivative() -> None:
    for p in (1.0, 1.5, 2.0, 3.0, math.inf):
        x = torch.zeros(2, WIDTH, dtype=F64, requires_grad=True)
        [gradient] = torch.autograd.grad(Normalizer(p)(x).sum(), [x])
        assert gradient.tolist() == torch.ones(2, WIDTH).tolist()


@pytest.mark.parametrize("d", [1, 2, 3, 8, 11])
def test_the_cosine_transform_against_its_matrix(d: int) -> None:
    k, j = torch.arange(d, dtype=F64)[:, None], torch.arange(d, dtype=F64)
    matrix = torch.cos(math.pi * (2 * j + 1) * k / (2 * d)) * math.sqrt(2 / d)
    matrix[0] /= math.sqrt(2)
    x = torch.randn(4, d, dtype=F64, generator=torch.Generator().manual_seed(d))
    torch.testing.assert_close(DCT(False)(x), x @ matrix.T)
    torch.testing.assert_close(DCT(True)(x), x @ matrix)


def indexer(keep: bool) -> VectorIndexer:
    return VectorIndexer("indexer", WIDTH, MAPS, keep)


def test_categories_are_found() -> None:
    x = torch.tensor(
        [[9.0, 0.0, 1.5, -7.0, -1.0], [9.0, 2.0, 1.5, -7.0, 3.0], [9.0, 7.0, 1.5, -7.0, torch.nan]], dtype=F64
    )
    out = torch.tensor([[9.0, 0.0, 1.5, -7.0, 0.0], [9.0, 1.0, 1.5, -7.0, 2.0], [9.0, 2.0, 1.5, -7.0, 3.0]], dtype=F64)
    assert torch.equal(indexer(True)(x), out)
    assert torch.equal(indexer(False)(x[:2]), out[:2])
    assert indexer(True).nominal_features().tolist() == [1, 4]
    assert (
        dense(indexer(False)(sparse(torch.zeros(2, WIDTH, dtype=F64)))).tolist() == [[0.0] * WIDTH] * 2
    )  # as Spark does


def test_gradients_stop_only_where_all_is_categories() -> None:
    assert indexer(True).differentiable
    assert not VectorIndexer("indexer", 1, {0: {1.0: 0}}, True).differentiable


def test_what_does_not_fit_is_refused_by_name() -> None:
    x = rows(3)
    for given in (x, sparse(x)):
        with pytest.raises(InputError, match="slicer: its input has 5 entries per row, but it selects entry 5"):
            Selection("slicer", [0, 5])(given)
        with pytest.raises(InputError, match="hint: its input has 5 entries per row instead of size=4"):
            VectorSizeHint("hint", 4, True)(given)
        with pytest.raises(InputError, match="indexer: its input has 5 entries per row, but it was fitted on 2"):
            VectorIndexer("indexer", 2, {}, True)(given)
    with pytest.raises(InputError, match=r"indexer: feature 4 holds 0\.25, which is not one of its categories"):
        indexer(False)(torch.tensor([[0.0, 2.0, 0.0, 0.0, 0.25]], dtype=F64))
    assert VectorSizeHint("hint", 4, False)(x) is x


def test_units() -> None:
    module = ElementwiseProduct(WEIGHTS.clone())
    unit = module.units(None, None)["scalingVec"]  # type: ignore[arg-type]
    assert bool((unit > 0).all())
    assert unit[[0, 2, 3, 4]].tolist() == WEIGHTS[[0, 2, 3, 4]].abs().tolist()
    assert float(ElementwiseProduct(torch.zeros(2, dtype=F64)).units(None, None)["scalingVec"].sum()) == 2.0  # type: ignore[arg-type]


@pytest.mark.parametrize(("width", "rows"), [(10, 16 * 8192), (500, 67_108), (50_000, 671), (500_000, 256)])
def test_a_gpu_measures_fewer_wide_rows_at_a_time(width: int, rows: int) -> None:
    """256 MiB of them, unless that would be very few."""
    manifest = SimpleNamespace(columns=[BatchColumn("x", "x", "dense", width, F64)])
    stream: Any = SimpleNamespace(manifest=manifest, place=GPU)
    assert rows_at_once(network((logistic(width), ["x"], "p")), stream) == rows


@pytest.mark.parametrize(
    ("with_mean", "width", "kind", "rows"),
    [(True, 1 << 18, "sparse", 64), (False, 1 << 18, "sparse", 1024), (True, 2000, "dense", 8192)],
)
def test_fewer_wide_rows_are_dense_at_a_time(with_mean: bool, width: int, kind: str, rows: int) -> None:
    ones = torch.ones(width, dtype=F64)
    net = network((StandardScaler(ones, ones, True, with_mean), ["x"], "s"), (logistic(width), ["s"], "p"))
    sizes: list[int] = []

    def batches(split: str, *, batchSize: int, **_: Any) -> Iterator[Any]:
        sizes.append(batchSize)
        return iter(())

    stream: Any = SimpleNamespace(
        batches=batches,
        manifest=SimpleNamespace(columns=[BatchColumn("x", "x", kind, width, F64)]),
        together=lambda rows, world: rows * world,
        place=CPU,
    )
    data = Data(stream, {}, rows=rows_at_once(net, stream))
    assert list(data.batches("validation")) == []
    assert sizes == [rows]
