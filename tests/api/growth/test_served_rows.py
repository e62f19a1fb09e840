"""A grown pipeline serves what the original serves: odd values in each column, beside a part of each kind, by Spark and torch."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import Imputer, OneHotEncoder, StringIndexer, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.growth import parts
from sparkdiff.growth.assembly import columns_last, grown_pipeline
from sparkdiff.growth.criterion import Criterion
from sparkdiff.growth.part import Part
from sparkdiff.growth.part_inputs import linear_head, upstream_columns
from sparkdiff.growth.parts.shapes import Shapes
from sparkdiff.growth.rounds import Member
from sparkdiff.growth.row_tensors import Split, Table
from sparkdiff.options import Options
from tests.support.growth_tables import specification_of

MARK = "grown"
NAN, INF = math.nan, math.inf
ODD: dict[str, tuple[Any, ...]] = {
    "x": (None, NAN, INF, -INF, 1e300, -1e300, -0.0),
    "z": (None, NAN, INF, -INF, 1e300, 0.0),
    "hour": (None, NAN, INF, -INF, 1e300, 99.0, -1.0),
    "kind": (None, "unseen", ""),
    "flag": (None, False),
}
"""Values that no training row has."""


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """x is imputed, z is a feature, hour is a number that an indexer reads, as kind, and flag a feature."""
    random = np.random.default_rng(0)
    n = 1200
    x, z = random.normal(size=(2, n))
    hour, kind, flag = random.integers(0, 24, n), random.integers(0, 3, n), random.random(n) < 0.4
    y = x + np.where(hour > 12, 2.0, 0.0) * (1 + x) + 2 * np.abs(x) - z * kind + random.normal(size=n) / 4
    columns = (x, z, hour.astype(float), np.array([*"abc"])[kind], flag, y)
    data = [tuple(v.item() for v in row) for row in zip(*columns, strict=True)]
    return spark.createDataFrame(data, "x double, z double, hour double, kind string, flag boolean, y double").cache()


@pytest.fixture(scope="module")
def model(rows: DataFrame) -> PipelineModel:
    stages = [
        StringIndexer(inputCols=["hour", "kind"], outputCols=["hour_index", "kind_index"], handleInvalid="keep"),
        OneHotEncoder(
            inputCols=["hour_index", "kind_index"], outputCols=["hour_hot", "kind_hot"], handleInvalid="keep"
        ),
        Imputer(inputCols=["x"], outputCols=["x_known"]),
        VectorAssembler(
            inputCols=["x_known", "z", "flag", "hour_hot", "kind_hot"], outputCol="features", handleInvalid="keep"
        ),
        LinearRegression(labelCol="y", regParam=0.01),
    ]
    return Pipeline(stages=stages).fit(rows)


@pytest.fixture(scope="module")
def learned(rows: DataFrame, model: PipelineModel) -> tuple[Table, Criterion]:
    """The columns as growth finds them, and the rows as it reads them."""
    graph = prepare(model, Options(), rows).cut.graph
    known = upstream_columns(graph, rows, {})
    shown = model.transform(rows).toPandas()

    def tensor(values: Any) -> torch.Tensor:
        return torch.tensor(np.array(values, dtype=np.float64))

    label, margin = tensor(shown["y"]), tensor(shown["prediction"])
    block = torch.randint(0, MAX_BLOCKS, (len(label),), generator=torch.Generator().manual_seed(0))
    features = tensor(np.stack([v.toArray() for v in shown["features"]]))
    values = torch.stack([tensor(shown[k.column.column]) for k in known], 1)

    def split(begin: int, end: int) -> Split:
        whole = (features, values, label, torch.ones_like(label), block, margin)
        return Split(*(t[begin:end] for t in whole))

    table = Table("features", tuple(k.column for k in known), split(0, 900), split(900, 1200))
    return table, specification_of("linear", table, label).criterion()


def trained(kind: str, name: str, table: Table, criterion: Criterion) -> Part:
    item = next(i for i in parts.propose([kind], table, criterion, 0) if i.name.startswith(name))
    trainer = parts.trainer(item, table)
    for _ in range(3):
        trainer.epoch(table, criterion)
    return trainer.part()


def odd(spark: SparkSession, rows: DataFrame) -> DataFrame:
    """The first row, and copies of it with an odd value each."""
    usual = rows.drop("y").first()
    assert usual is not None
    data = [{**usual.asDict(), "id": "usual"}]
    data += [{**usual.asDict(), name: value, "id": f"{name}={value}"} for name, some in ODD.items() for value in some]
    schema = rows.drop("y").schema.add("id", "string")
    return spark.createDataFrame([tuple(row[field] for field in schema.names) for row in data], schema).coalesce(1)


def predicted(served: DataFrame) -> dict[str, float]:
    return {row.id: row.prediction for row in served.select("id", "prediction").collect()}


KINDS = (
    ("units", "8 units"),
    ("crosses", ""),
    ("shapes", "curves"),
    ("effects", "effect of hour on features"),
    ("embeddings", "embedding of kind x features"),
    ("embeddings", "embedding of hour"),
    ("trees", "trees of 31"),
)


@pytest.fixture(scope="module")
def members(learned: tuple[Table, Criterion]) -> list[Member]:
    return [Member(trained(*kind, *learned), 1.0, i + 1) for i, kind in enumerate(KINDS)]


def grown_with(model: PipelineModel, rows: DataFrame, members: Sequence[Member], *, drop: bool = False) -> Any:
    head = linear_head(prepare(model, Options(), rows).cut.graph)
    return columns_last(grown_pipeline(model, head, members, (), MARK), MARK, rows, drop=drop)


@pytest.fixture(scope="module")
def serving(spark: SparkSession, rows: DataFrame) -> DataFrame:
    return odd(spark, rows).cache()


@pytest.fixture(scope="module")
def before(serving: DataFrame, model: PipelineModel) -> dict[str, float]:
    """What the original serves."""
    return predicted(model.transform(serving))


@pytest.fixture(scope="module")
def each(
    serving: DataFrame, rows: DataFrame, model: PipelineModel, members: list[Member]
) -> list[tuple[str, Part, dict[str, float]]]:
    """By kind and name a part, and what is served with it alone, so that a test names it."""
    served = [predicted(grown_with(model, rows, [member]).transform(serving)) for member in members]
    return [(f"{kind} {name}", m.part, s) for (kind, name), m, s in zip(KINDS, members, served, strict=True)]


def test_rows_that_the_original_serves_are_served_no_worse(
    before: dict[str, float], each: list[tuple[str, Part, dict[str, float]]]
) -> None:
    """A number where the original has one, and its own infinity."""
    assert sum(map(math.isfinite, before.values())) > 15 and sum(map(math.isinf, before.values())) == 4
    for name, _, after in each:
        worse = {k: (v, after[k]) for k, v in before.items() if math.isfinite(v) != math.isfinite(after[k])}
        worse |= {k: (v, after[k]) for k, v in before.items() if math.isinf(v) and v != after[k]}
        assert not worse, f"{name}: {worse}"


def test_null_where_training_had_none_is_no_large_value(
    before: dict[str, float], each: list[tuple[str, Part, dict[str, float]]], learned: tuple[Table, Criterion]
) -> None:
    """It has no curve, and steps have an entry without an effect for it; in a tree it goes where most rows go."""
    table, _ = learned
    lack = {c.name for c in table.columns if c.gaps and not c.indexes}
    assert lack == {"hour", "z", "flag"}, "x is imputed"
    some = [one for one in each if one[0].startswith(("shapes", "trees"))]
    assert len(some) == 2
    for name, part, after in some:
        added = {k: after[k] - before[k] for k in before}
        assert added["hour=None"] == pytest.approx(added["hour=nan"])
        assert added["hour=None"] != pytest.approx(added["hour=99.0"]), name
        assert not isinstance(part, Shapes) or {k.column.name for k in part.curves} == {"x_known"}


@pytest.mark.nightly
def test_torch_serves_odd_rows_as_spark_does(
    rows: DataFrame, model: PipelineModel, members: list[Member], serving: DataFrame
) -> None:
    """All parts in one pipeline; saved and loaded: test_parts_of_torch, test_parts_of_columns and test_trees_in_spark."""
    grown = grown_with(model, rows, members)
    assert sparkdiff.verify(grown, serving).ok
    expected = predicted(grown.transform(serving))
    scored = sparkdiff.Scorer(grown, rows, outputCols=["prediction"]).predict([r.asDict() for r in serving.collect()])
    assert [r["prediction"] for r in scored] == pytest.approx([*expected.values()], nan_ok=True)
