"""Boosted trees as plain MLlib stages against their output on tensors, on rows with all that columns may hold."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.growth import cost_table
from sparkdiff.growth.part import Part, PipelinePlace
from sparkdiff.growth.parts import trees
from sparkdiff.growth.row_tensors import Split, Table
from tests.support.growth_tables import table_of

NAN, INF = math.nan, math.inf
SPECIAL = [
    # x,    y,      a,    b,    user
    (None, 1.0, None, 0.0, 0.0),
    (NAN, None, NAN, NAN, NAN),
    (INF, -INF, 6.0, 99.0, 40.0),
    (-INF, INF, -1.0, 0.5, 1e9),
    (-0.0, 5e-324, 0.0, -0.0, 3.9999999999),
    (1e-35, -2e-35, 5.0, 3.0, 39.0),
]


def part_of(library: str, kind: str) -> tuple[Part, Table]:
    """Trees on columns of which two have gaps in training rows."""
    table, criterion = table_of(kind, 900, planted=lambda c: c["y"] * (2 * (c["a"] % 2) - 1))
    gone = torch.rand(table.train.values.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    gone[:, [1, 3, 4]] = False
    values = table.train.values.masked_fill(gone, NAN)
    values[:3, 1] = torch.tensor([INF, -INF, 1e300])
    table = dataclasses.replace(table, train=dataclasses.replace(table.train, values=values))
    item = next(i for i in trees.propose(table, criterion, 0) if i.settings["leaves"] == 31)
    trainer = trees.trainer(dataclasses.replace(item, settings={**item.settings, "library": library}), table)
    for _ in range(2):
        trainer.epoch(table, criterion)
    return trainer.part(), table


def rows_of(spark: SparkSession, part: trees.TreesPart, table: Table) -> tuple[DataFrame, Split]:
    """Special values, rows of the table, and values on and beside each threshold."""
    cells = [list(row) for row in SPECIAL] + table.train.values[:200].tolist() + table.validation.values[:100].tolist()
    for nodes in part.nodes:
        at = nodes.values[nodes.starts[nodes.continuous]]
        for feature, threshold in zip(nodes.featureIndex[nodes.continuous].tolist(), at.tolist(), strict=True):
            place = table.columns.index(part.columns[feature])
            for value in (threshold, np.nextafter(threshold, INF), np.nextafter(threshold, -INF)):
                row = list(cells[len(cells) % 300])
                row[place] = float(value)
                cells.append(row)
    frame = spark.createDataFrame(
        [(i, *row, Vectors.dense(1.0, 2.0)) for i, row in enumerate(cells)],
        ["id", *(c.column for c in table.columns), "features"],
    )
    values = torch.tensor([[NAN if v is None else v for v in row] for row in cells], dtype=torch.float64)
    zero = torch.zeros(len(values), dtype=torch.float64)
    margin = torch.zeros(len(values), table.classes, dtype=torch.float64) if table.classes else zero
    return frame, Split(values[:, :2], values, zero, zero + 1, zero.long(), margin)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("library", "kind", "route"),
    [
        ("lightgbm", "softmax", "constructor"),
        ("xgboost", "poisson", "constructor"),
        ("sklearn", "binary", "saved data"),
    ],
    indirect=["route"],
)
def test_stages_compute_what_the_part_computes(
    library: str, kind: str, spark: SparkSession, tmp_path: Path, route: str
) -> None:
    part, table = part_of(library, kind)
    assert isinstance(part, trees.TreesPart)
    frame, split = rows_of(spark, part, table)
    made = part.stages(PipelinePlace("features", 2, "grown1", table.classes))
    assert [type(s).__name__ for s in made.stages] == ["VectorAssembler", *["GBTRegressionModel"] * table.width]
    assert all(stage.uid.startswith("grown1_") for stage in made.stages)
    last = VectorAssembler(inputCols=["features", *(o.column for o in made.outputs)], outputCol="all")
    model = PipelineModel([*made.stages, last])
    coefficients = np.concatenate([np.atleast_2d(o.coefficients) for o in made.outputs], 1)
    assert coefficients.shape == (table.width, table.width)
    expected = part.output(split).reshape(len(split), -1).numpy()
    assert expected.std(0).min() > 0.01
    built = [model]
    if route == "constructor":
        model.save(str(tmp_path / "model"))
        built.append(PipelineModel.load(str(tmp_path / "model")))
    for pipeline in built:
        assert [s.uid for s in pipeline.stages] == [s.uid for s in model.stages]
        found = np.array([r["all"].toArray() for r in pipeline.transform(frame).orderBy("id").select("all").collect()])
        np.testing.assert_allclose(found[:, 2:] @ coefficients.T, expected, rtol=1e-12, atol=1e-12)
    assert cost_table.of_steps(part.serving_work(2.0).steps) == pytest.approx(
        sum(map(cost_table.of_stage, made.stages))
    )
