"""Spark's record batches through a network, on the CPU and on a GPU: without Spark."""

import dataclasses
import math

import numpy as np
import pyarrow as pa
import pytest
import torch

from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_tensors import to_arrow
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.spark_inference import BatchTransform, first_free
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.binning import Bucketizer
from sparkdiff.stages.scaling import MaxAbsScaler
from sparkdiff.stages.trees import GBTRegression
from sparkdiff.tensors.rows import Rows, SparseRows
from tests.support.small_networks import F64, glr, least_squares, network, trees
from tests.support.some_gpu import GPU

DEVICES = ["cpu", GPU.name]


def task(device: str, keep: bool = True) -> BatchTransform:
    """a and v side by side, scaled, into trees: `bin` keeps null."""
    forest = trees(GBTRegression, 1)
    d = int(forest.feature.max()) + 1
    splits = Bucketizer("splits", [torch.tensor([-9.0, 0.0, 9.0], dtype=F64)], True, "bins", ("a",))
    net = network(
        (splits, ["a"], "bin"),
        (VectorAssembler("beside", ("a", "v"), keep), ["a", "v"], "all"),
        (MaxAbsScaler(torch.full((d,), 2.0, dtype=F64)), ["all"], "scaled"),
        (forest, ["scaled"], "prediction"),
    )
    made = [("bin", 0), ("prediction", 3), ("scaled", 2)]
    kinds = dict.fromkeys(made, "double") | {("prediction", 3): "float"}
    names = ("id", "bin", "prediction", "scaled")
    return BatchTransform(net, {("a", -1): 1, ("v", -1): 2}, [0], made, kinds, names, device)


def batch(task: BatchTransform, null_vector: bool = False) -> pa.RecordBatch:
    width = len(task.network.module(2).maxAbs) - 1
    vectors = to_arrow(torch.from_numpy(np.random.default_rng(0).normal(size=(4, width))))
    if null_vector:
        vectors = pa.array([None, *vectors.to_pylist()[1:]], vectors.type)
    numbers = pa.array([-1.0, None, float("nan"), 3.0])
    return pa.RecordBatch.from_arrays([pa.array(["w", "x", "y", "z"]), numbers, vectors], ["id", "a", "v"])


@pytest.mark.parametrize("device", DEVICES)
def test_columns_are_those_of_the_network(device: str) -> None:
    run = task(device)
    given = batch(run)
    assert first_free(run.network) == 2
    [out] = run([given.slice(0, 0), given])
    assert out.schema.names == ["id", "bin", "prediction", "scaled"]
    assert out.column(0).to_pylist() == ["w", "x", "y", "z"]
    assert out.column(1).to_pylist() == [0.0, None, 2.0, 1.0]
    assert out.column(2).type == pa.float32()
    values, _ = run.inputs(given)
    run.network.run(values, run.computed)
    expected = values["prediction", 3].detach().float().numpy()
    np.testing.assert_array_equal(out.column(2).to_numpy(), expected)
    scaled = out.column(3).field(3).flatten().to_numpy()
    np.testing.assert_array_equal(scaled, values["scaled", 2].detach().numpy().ravel())


@pytest.mark.parametrize("device", DEVICES)
def test_rows_that_spark_refuses_are_refused_on_every_device(device: str) -> None:
    strict = task(device, keep=False)
    with pytest.raises(InputError, match="beside: column 'a' holds null or NaN"):
        list(strict([batch(strict)]))
    with pytest.raises(InputError, match="stage1: column 'v' holds null in place of a vector"):
        list(strict([batch(strict, null_vector=True)]))
    assert len(next(task(device)([batch(task(device), null_vector=True)]))) == 4


def alone(*stages: tuple[StageModule, list[str], str]) -> BatchTransform:
    """The last column of stages that read a number, x."""
    net = network(*stages)
    last = (stages[-1][2], len(stages) - 1)
    return BatchTransform(net, {("x", -1): 0}, [], [last], {last: "double"}, [last[0]])


def bucketizer(column: str) -> Bucketizer:
    return Bucketizer("splits", [torch.tensor([-9.0, 0.0, 9.0], dtype=F64)], False, "bins", (column,))


def numbers(*values: float | None) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(values, pa.float64())], ["x"])


def test_a_nan_is_refused_whatever_rows_share_its_batch() -> None:
    bins = alone((bucketizer("x"), ["x"], "bin"))
    assert next(bins([numbers(1.0, None)])).column(0).to_pylist() == [1.0, None]
    behind = alone(
        (VectorAssembler("beside", ("x",), True), ["x"], "v"),
        (least_squares(1), ["v"], "p"),
        (bucketizer("p"), ["p"], "bin"),
    )
    assert next(behind([numbers(0.0)])).column(0).to_pylist() == [1.0]
    for run, rows in ((bins, (1.0, math.nan)), (bins, (1.0, math.nan, None)), (behind, (1.0, math.nan))):
        with pytest.raises(InputError, match=r"bins: column '[xp]' holds NaN"):
            list(run([numbers(*rows)]))


def test_a_null_from_a_null_offset_is_null_to_later_stages() -> None:
    bins = Bucketizer("splits", [torch.tensor([-math.inf, 0.0, math.inf], dtype=F64)], False, "bins", ("p",))
    net = network((glr(1), ["v", "offset"], "p"), (bins, ["p"], "bin"))
    values: dict[Version, Rows] = {("v", -1): torch.zeros(2, 1, dtype=F64)}
    values["offset", -1] = torch.tensor([0.0, math.nan], dtype=F64)
    net.run(values, [("bin", 1)])
    torch.testing.assert_close(values["bin", 1], torch.tensor([1.0, math.nan], dtype=F64), equal_nan=True)
    values = {("v", -1): torch.full((1, 1), math.nan, dtype=F64), ("offset", -1): torch.zeros(1, dtype=F64)}
    with pytest.raises(InputError, match="bins: column 'p' holds NaN"):
        net.run(values, [("bin", 1)])


def test_all_null_vectors_have_the_width_of_the_metadata() -> None:
    run, nothing = task("cpu"), batch(task("cpu"))
    nothing = pa.RecordBatch.from_arrays(
        [nothing.column(0), nothing.column(1), pa.nulls(4, nothing.column(2).type)], nothing.schema.names
    )
    with pytest.raises(InputError, match="stage1: column 'v' holds null in place of every vector of a batch"):
        list(run([nothing]))
    width = len(run.network.module(2).maxAbs) - 1
    told = dataclasses.replace(run, widths={("v", -1): width})
    assert next(told([nothing])).column(3).field(3).value_lengths().to_pylist() == [width + 1] * 4


def test_vectors_that_are_too_narrow_for_trees_are_refused() -> None:
    """Instead of reading the next row's values."""
    forest = trees(GBTRegression, 1)
    net = network((forest, ["v"], "prediction"))
    width = int(forest.feature.max())
    x = torch.zeros(3, width, dtype=F64)
    for rows in (x, SparseRows.from_csr(x.to_sparse_csr())):
        with pytest.raises(
            InputError, match=rf"stage0 can't compute .* 'v' \(3, {width}\) .* need {width + 1} entries"
        ):
            net.run({("v", -1): rows}, [("prediction", 0)], explain=True)
