"""Parts that torch trains as plain MLlib stages: what Spark computes is what the part computed, by both ways back."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexerModel, VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DoubleType, StructField, StructType
from torch import Tensor

from sparkdiff.growth import parts
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Item, Part, PipelinePlace, Stages
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.tensors.rows import dense
from tests.support.growth_tables import table_of

PREFIX = "glr_units1"


def trained(item: Item, table: Table, criterion: Criterion) -> Part:
    trainer = parts.trainer(item, table)
    for _ in range(3):
        trainer.epoch(table, criterion)
    return trainer.part()


def frame(spark: SparkSession, split: Split, table: Table, sparse: bool = False) -> DataFrame:
    """The first rows with `features`, the columns of the table and a number of the row."""
    x = dense(split.features).numpy()

    def vector(row: Any) -> Any:
        stored = np.flatnonzero(row).tolist()
        return Vectors.sparse(len(row), stored, row[stored]) if sparse else Vectors.dense(row)

    names = [c.column for c in table.columns]
    schema = StructType(
        [StructField("features", VectorUDT()), *(StructField(n, DoubleType()) for n in ("number", *names))]
    )
    rows = [(vector(x[i]), float(i), *split.values[i].tolist()) for i in range(80)]
    return spark.createDataFrame(rows, schema).coalesce(1)


def check(spark: SparkSession, parts: Sequence[Part], table: Table, folder: Path | None, sparse: bool) -> None:
    """The stages of these parts, as they are and saved and loaded, give the parts' outputs and hidden columns only.

    Args:
        folder: to save them in; None where they have come from files.
    """
    df = frame(spark, table.validation, table, sparse)
    places = [PipelinePlace("features", 6, f"{PREFIX}{i}", table.classes) for i in range(len(parts))]
    made = [part.stages(place) for part, place in zip(parts, places, strict=True)]
    assert all(s.uid.startswith(f"{p.prefix}_") for p, one in zip(places, made, strict=True) for s in one.stages)
    stages = [stage for one in made for stage in one.stages]
    model = PipelineModel([*stages, *(assembler(one, i) for i, one in enumerate(made))])
    built = [model]
    if folder is not None:
        model.save(str(folder / "model"))
        built.append(PipelineModel.load(str(folder / "model")))
        assert [s.uid for s in built[1].stages] == [s.uid for s in model.stages]
    for each in built:
        rows = each.transform(df).orderBy("number").collect()
        for i, (part, one) in enumerate(zip(parts, made, strict=True)):
            expected = part.output(table.validation)[:80]
            assert float(expected.std()) > 1e-3
            torch.testing.assert_close(added(rows, one, i), expected, rtol=1e-9, atol=1e-9)
    # An assembler after these stages knows its width before it has seen a row.
    shown = model.transform(df.limit(0)).schema
    assert all(name.startswith((PREFIX, "assembled")) for name in set(shown.names) - set(df.columns))
    for i, one in enumerate(made):
        width = np.concatenate([o.coefficients for o in one.outputs], axis=-1).shape[-1]
        assert shown[f"assembled{i}"].metadata["ml_attr"]["num_attrs"] == width


def kept(route: str, folder: Path) -> Path | None:
    return folder if route == "constructor" else None


def assembler(made: Stages, i: int) -> VectorAssembler:
    return VectorAssembler(inputCols=[o.column for o in made.outputs], outputCol=f"assembled{i}")


def added(rows: Sequence[Any], made: Stages, i: int) -> Tensor:
    """What the last linear stage would add to its margin, (n,) or (n, k)."""
    values = np.stack([row[f"assembled{i}"].toArray() for row in rows])
    return torch.tensor(values @ np.concatenate([o.coefficients for o in made.outputs], axis=-1).T)


EACH_WAY = pytest.mark.parametrize(
    ("route", "kind"),
    [
        ("constructor", "softmax"),
        ("saved data", "poisson"),
        pytest.param("constructor", "poisson", marks=pytest.mark.nightly),
        pytest.param("saved data", "softmax", marks=pytest.mark.nightly),
    ],
    indirect=["route"],
)
"""One output and several, by either way back; how a stage comes back doesn't depend on their number."""


@EACH_WAY
def test_units(spark: SparkSession, tmp_path: Path, route: str, kind: str) -> None:
    table, criterion = table_of(kind, 400, planted=lambda c: c["x"] * c["y"])
    items = parts.propose(("units",), table, criterion, 3)
    check(
        spark,
        [trained(items[i], table, criterion) for i in (0, 2)],
        table,
        kept(route, tmp_path),
        sparse=kind == "poisson",
    )


def embedding_of(column: int, size: int, table: Table, criterion: Criterion) -> Part:
    return trained(
        Item("embeddings", "embedding", 5, 1.0, 3, {"place": column, "size": size, "unit": 1.0}), table, criterion
    )


@pytest.mark.nightly
@EACH_WAY
def test_embeddings(spark: SparkSession, tmp_path: Path, route: str, kind: str) -> None:
    """Of a column with values that no training row has, and with some that are no values."""
    table, criterion = table_of(kind, 400, planted=lambda c: c["user"] / 20 * (1 + c["y"]))
    values = table.validation.values.clone()
    values[:3, 4] = torch.tensor([-1.0, 40.0, torch.nan])
    weight = torch.where(table.train.values[:, 4] < 3, 0.0, table.train.weight)
    train, validation = replace(table.train, weight=weight), replace(table.validation, values=values)
    table = replace(table, train=train, validation=validation)
    made = [embedding_of(4, size, table, criterion) for size in (0, 1, 4)]
    for part in made:
        assert part.output(validation)[:80].eq(0).reshape(80, -1).any(1).sum() > 3
    check(spark, made, table, kept(route, tmp_path), sparse=kind == "softmax")


@pytest.mark.parametrize("invalid", ["error", "keep"])
def test_embeddings_of_what_an_indexer_writes(spark: SparkSession, invalid: str) -> None:
    """An indexer's column says how many values it has, and Spark's encoder compares."""
    table, criterion = table_of("poisson", 400, planted=lambda c: c["a"] / 4)
    levels = 6 + (invalid == "keep")
    columns = [replace(c, levels=levels) if c.name == "a" else c for c in table.columns]
    part = embedding_of(2, 1, replace(table, columns=tuple(columns)), criterion)
    df = frame(spark, table.validation, table).drop("a_index")
    names = spark.createDataFrame(
        [(float(i), f"v{int(v)}") for i, v in enumerate(table.validation.values[:80, 2])], ["number", "a"]
    )
    indexer = StringIndexerModel.from_labels([f"v{i}" for i in range(6)], "a", "a_index", handleInvalid=invalid)
    made = part.stages(PipelinePlace("features", 6, PREFIX, 0))
    model = PipelineModel([indexer, *made.stages, assembler(made, 0)])
    rows = model.transform(df.join(names, "number")).orderBy("number").collect()
    torch.testing.assert_close(added(rows, made, 0), part.output(table.validation)[:80])
