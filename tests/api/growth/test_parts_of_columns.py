"""Crosses, shapes and effects as plain MLlib stages against their output on tensors, on rows with all that columns may hold."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import StringIndexerModel, VectorAssembler, VectorSizeHint
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession

from sparkdiff.fine_tuning.task import prepare
from sparkdiff.growth.assembly import grown_pipeline
from sparkdiff.growth.part import Part, PipelinePlace
from sparkdiff.growth.part_inputs import linear_head
from sparkdiff.growth.parts import coding, shapes
from sparkdiff.growth.parts.blocks import Block
from sparkdiff.growth.parts.coding import Coding
from sparkdiff.growth.parts.crosses import Crosses
from sparkdiff.growth.parts.effects import Intercepts, Slopes
from sparkdiff.growth.parts.shapes import Shapes
from sparkdiff.growth.row_tensors import Column, Split, Table
from sparkdiff.jvm import sessions
from sparkdiff.options import Options

COLUMNS = (
    Column("x", "x"),
    Column("number", "number"),
    Column("a", "a_index", 3, ("p", "q", "r"), indexes=True),
    Column("user", "user", indexes=True, entity=True),
    Column("z", "z"),
    Column("name", "name_index", 4, ("p", "q", "r", "__unknown"), indexes=True),
    Column("flag", "flag", boolean=True),
)
NAMES = ("p", "q", "r", "new", None)
"""The last two are unknown to the indexer, whose index for them is 3."""
NAN = math.nan
SPECIAL = [
    # x,     number, a_index, user, z
    (None, 3, 0.0, 1.0, 0.5),
    (NAN, 4, 3.0, 2.0, NAN),
    (-0.0, 0, 7.0, 99.0, -0.0),
    (0.0, 11, -1.0, 3.0, 0.0),
    (math.inf, 1000, NAN, NAN, math.inf),
    (-math.inf, -5, 1.0, 0.0, -math.inf),
]


def split_of(values: np.ndarray, features: np.ndarray) -> Split:
    n = len(values)
    zero = torch.zeros(n, dtype=torch.float64)
    block = torch.zeros(n, dtype=torch.int64)
    return Split(torch.tensor(features), torch.tensor(values), zero, zero + 1, block, zero)


@pytest.fixture(scope="module")
def table() -> Table:
    random = np.random.default_rng(3)
    n = 400
    x = np.where(random.random(n) < 0.1, NAN, random.normal(size=n).round(1))
    values = np.stack(
        [
            x,
            random.integers(0, 12, n),
            random.integers(0, 3, n),
            random.integers(0, 25, n),
            random.normal(size=n),
            random.integers(0, 3, n),
            random.integers(0, 2, n),
        ],
        1,
    )
    split = split_of(values.astype(np.float64), random.normal(size=(n, 2)))
    return Table("features", COLUMNS, split, split)


@pytest.fixture(scope="module")
def coded(table: Table) -> list[Coding]:
    return coding.codings(table, 8)


@pytest.fixture(scope="module")
def rows(spark: SparkSession, table: Table, coded: list[Coding]) -> tuple[DataFrame, Split]:
    """Special values, values on the edges of buckets and at knots, and some of the table's rows."""
    edges = [(e, i, float(i % 3), float(i % 25), 0.1 * i) for i, e in enumerate(coded[0].edges)]
    at = [(0.3, i, 0.0, 1.0, z) for i, z in enumerate(knots(table, 4, 8).at)]
    old = [(x, int(k), a, u, z) for x, k, a, u, z, _, _ in table.train.values[:40].tolist()]
    data = [*SPECIAL, *edges, *at, *old]
    more = [(NAMES[i % 5], i % 2 == 0) for i in range(len(data))]
    features = np.random.default_rng(4).normal(size=(len(data), 2))
    frame = spark.createDataFrame(
        [(i, *row, *m, Vectors.dense(f)) for i, (row, m, f) in enumerate(zip(data, more, features, strict=True))],
        ["id", *(c.column for c in COLUMNS[:5]), "name", "flag", "features"],
    )
    indexer = StringIndexerModel.from_labels(["p", "q", "r"], "name", outputCol="name_index", handleInvalid="keep")
    index = [(min(NAMES.index(name), 3), flag) for name, flag in more]
    values = np.array(
        [[NAN if v is None else v for v in (*row, *i)] for row, i in zip(data, index, strict=True)], float
    )
    return indexer.transform(frame).persist(), split_of(values, features)


def knots(table: Table, place: int, most: int) -> shapes.Knots:
    found = shapes._knots(table, place, most)
    assert found is not None
    return found


def random_effects(widths: Sequence[tuple[int, ...]], classes: int) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(5)
    more = (classes,) if classes else ()
    return [torch.randn(*w, *more, generator=draws, dtype=torch.float64) for w in widths]


def crosses(table: Table, coded: list[Coding], classes: int) -> Part:
    x, number, a, user, z, name, flag = coded
    blocks: list[Block] = [(x, a), (number, x), (a, user), (z, a), (name, flag)]
    return Crosses("", blocks, random_effects([(p.width * q.width,) for p, q in blocks], classes))


def steps(table: Table, coded: list[Coding], classes: int) -> Part:
    return Shapes("", coded, random_effects([(c.width,) for c in coded], classes), [], [])


def curves(table: Table, coded: list[Coding], classes: int) -> Part:
    bent = [knots(table, 4, 8), knots(table, 1, 32)]
    some = [coded[0], coded[2]]
    drawn = random_effects([(c.width,) for c in some] + [(len(k.at),) for k in bent], 0)
    return Shapes("", some, drawn[:2], bent, drawn[2:])


def intercepts(table: Table, coded: list[Coding], classes: int) -> Part:
    return Intercepts("", [(coded[3],)], random_effects([(coded[3].width,)], classes))


def slopes(table: Table, coded: list[Coding], classes: int) -> Part:
    size = coded[3].width
    return Slopes(
        "", coded[3], torch.tensor([2.0, 0.3], dtype=torch.float64), *random_effects([(size,), (size, 2)], classes)
    )


def gaps(table: Table, coded: list[Coding], classes: int) -> Part:
    """Of a category that some rows lack, crossed with one that none lacks."""
    values = table.train.values.clone()
    values[:5, 2] = NAN
    lacking = coding.coding(replace(table, train=replace(table.train, values=values)), 2, 8)
    assert lacking is not None and lacking.gaps and not lacking.is_number
    return Crosses("", [(lacking,), (coded[3], lacking)], random_effects([(5,), (coded[3].width * 5,)], classes))


CASES = {0: (gaps, crosses, steps, curves, intercepts, slopes), 3: (crosses, steps, slopes)}
"""By the number of classes."""


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("classes", "constructors"),
    [
        (0, True),
        (3, False),
        pytest.param(0, False, marks=pytest.mark.nightly),
        pytest.param(3, True, marks=pytest.mark.nightly),
    ],
)
def test_stages_compute_what_the_parts_compute(
    classes: int,
    constructors: bool,
    table: Table,
    coded: list[Coding],
    rows: tuple[DataFrame, Split],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All parts in one pipeline, as each plan that Spark makes takes longer than these rows."""
    frame, split = rows
    if classes:
        split = split.at(torch.zeros(len(split), classes, dtype=torch.float64))
    parts = [make(table, coded, classes) for make in CASES[classes]]
    monkeypatch.setattr(sessions, "has_constructors", lambda: constructors)
    made = [part.stages(PipelinePlace("features", 2, f"grown{i}", classes)) for i, part in enumerate(parts)]
    for i, one in enumerate(made):
        assert all(stage.uid.startswith(f"grown{i}_") for stage in one.stages)
    stages = [stage for one in made for stage in one.stages]
    columns = [o.column for one in made for o in one.outputs]
    # With 'keep' a column whose metadata lack its size is refused.
    assembler = VectorAssembler(inputCols=["features", *columns], outputCol="all", handleInvalid="keep")
    model = PipelineModel([*stages, VectorSizeHint(inputCol="features", size=2), assembler])
    built = [model]
    if constructors:
        model.save(str(tmp_path / "model"))
        built.append(PipelineModel.load(str(tmp_path / "model")))
    for pipeline in built:
        assert [s.uid for s in pipeline.stages] == [s.uid for s in model.stages]
        found = pipeline.transform(frame).orderBy("id").select("all").collect()
        values, begin = np.array([row["all"].toArray() for row in found]), 2
        for part, one in zip(parts, made, strict=True):
            coefficients = np.concatenate([np.atleast_2d(o.coefficients) for o in one.outputs], 1)
            own, begin = values[:, begin : begin + coefficients.shape[1]], begin + coefficients.shape[1]
            expected = part.output(split).reshape(len(split), -1).numpy()
            np.testing.assert_allclose(own @ coefficients.T, expected, rtol=1e-9, atol=1e-9, err_msg=str(type(part)))
        assert values.shape[1] == begin


def test_vectors_get_their_size_however_columns_are_spelled(spark: SparkSession, any_case: bool) -> None:
    """VectorAssembler with 'keep' refuses a column that doesn't tell its size."""
    rows = spark.createDataFrame([(Vectors.dense(i, i * i), float(i)) for i in range(5)], ["Features", "y"])
    own = LinearRegression(featuresCol="Features", labelCol="y").fit(rows)
    model = PipelineModel([own.setFeaturesCol("FEATURES" if any_case else "Features")])
    head = linear_head(prepare(model, Options(), rows).cut.graph)
    made = grown_pipeline(model, head, [], [], "grown")
    found, expected = (m.transform(rows).select("prediction").collect() for m in (made, model))
    np.testing.assert_allclose(found, expected, rtol=1e-12)
