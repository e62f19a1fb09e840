"""Parts of growth on generated parameters: Spark computes what the part computes, by both ways back and after saving; each of its
stages passes the four laws; and the costs that are counted for a part are those of its stages."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from pyspark.ml import PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

from sparkdiff.growth import cost_table
from sparkdiff.growth.part import Part, PipelinePlace
from sparkdiff.growth.parts.blocks import Blocks
from sparkdiff.growth.parts.coding import Coding
from sparkdiff.growth.parts.crosses import Crosses
from sparkdiff.growth.parts.effects import Intercepts, Slopes
from sparkdiff.growth.parts.embeddings import Embedding, Products
from sparkdiff.growth.parts.shapes import Knots, Shapes
from sparkdiff.growth.parts.trees import BlockSumCache, TreesPart
from sparkdiff.growth.parts.units import Units
from sparkdiff.growth.row_tensors import Column, Split
from sparkdiff.jvm import sessions
from sparkdiff.testing import check_stages
from tests.support.law_examples import generated
from tests.support.random_trees import CATEGORIES, grown

Random = np.random.Generator
WIDTH, ROWS, USERS = 3, 50, 7
COLUMNS = (
    Column("x", "x", gaps=True),
    Column("y", "y"),
    Column("c", "c", CATEGORIES[2], indexes=True),
    Column("d", "d", CATEGORIES[3], indexes=True),
    Column("user", "user", USERS, indexes=True, entity=True),
    Column("flag", "flag", boolean=True),
)
EDGES = [-1.0, -0.0, 5e-324, 0.5, 1.0, 1e300]
SIZES = [0.0, 1.0, 1.0, 1.0, -0.1, 1e-9, 1e4]
F64 = torch.float64


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> tuple[DataFrame, Tensor, Tensor]:
    """Rows with gaps, values on and beside edges, and categories that no level has; their values, and their features."""
    random = np.random.default_rng(7)
    on = [v for e in EDGES for v in (e, math.nextafter(e, math.inf), math.nextafter(e, -math.inf))]
    x = random.permutation([*on, *random.normal(size=ROWS - len(on) - 3), math.nan, math.inf, -math.inf])
    y = random.permutation([*on, *random.normal(size=ROWS - len(on))])
    c, d, user = (random.integers(0, k, ROWS).astype(float) for k in (CATEGORIES[2], CATEGORIES[3], USERS))
    user[:3] = -1.0, 99.0, math.nan
    values = np.stack([x, y, c, d, user, random.integers(0, 2, ROWS)], 1)
    features = random.normal(size=(ROWS, WIDTH)) * (random.random((ROWS, WIDTH)) < 0.8)
    cells = [
        (i, None if i % 2 and math.isnan(v[0]) else v[0], *v[1:5], bool(v[5]), *f)
        for i, (v, f) in enumerate(zip(values.tolist(), features.tolist(), strict=True))
    ]
    names = [f"f{j}" for j in range(WIDTH)]
    types = ", ".join([f"{name} double" for name in ("x", "y", "c", "d", "user")])
    schema = f"id int, {types}, flag boolean, {', '.join(f'{n} double' for n in names)}"
    frame = VectorAssembler(inputCols=names, outputCol="features").transform(spark.createDataFrame(cells, schema))
    return frame.coalesce(1).cache(), torch.tensor(values), torch.tensor(features)


def numbers(random: Random, *shape: int) -> Tensor:
    """Of many sizes, some of them zero."""
    return torch.tensor(random.normal(size=shape) * random.choice(SIZES, shape))


def coding(random: Random, place: int) -> Coding:
    column = COLUMNS[place]
    if column.levels:
        return Coding(column, place, (), column.levels, (*map(str, range(column.levels)), "other"), False)
    edges = tuple(sorted(random.choice(EDGES, random.integers(1, len(EDGES)), replace=False).tolist()))
    return Coding(column, place, edges, len(edges) + 1, tuple(map(str, range(len(edges) + 2))), column.gaps)


def effects(random: Random, width: int, classes: int) -> Tensor:
    return numbers(random, width, classes) if classes else numbers(random, width)


def crosses(random: Random, classes: int) -> Part:
    places = [random.choice(len(COLUMNS), 2, replace=False).tolist() for _ in range(random.integers(1, 4))]
    blocks = [(coding(np.random.default_rng(a), a), coding(np.random.default_rng(b), b)) for a, b in places]
    return Crosses("", blocks, [effects(random, a.width * b.width, classes) for a, b in blocks])


def shapes(random: Random, classes: int) -> Part:
    steps = [coding(random, place) for place in random.permutation(len(COLUMNS))[: random.integers(1, 4)].tolist()]
    curves = [] if classes else [Knots(COLUMNS[1], 1, tuple(sorted({*random.normal(size=4).tolist(), 0.5})))]
    values = [effects(random, len(knots.at), 0) for knots in curves]
    return Shapes("", steps, [effects(random, c.width, classes) for c in steps], curves, values)


def intercepts(random: Random, classes: int) -> Part:
    user = coding(random, 4)
    return Intercepts("", [(user,)], [effects(random, user.width, classes)])


def slopes(random: Random, classes: int) -> Part:
    user, more = coding(random, 4), (classes,) if classes else ()
    scale = torch.tensor(random.choice([0.0, 1.0, 0.3, 50.0], WIDTH))
    own = numbers(random, user.width, WIDTH, *more)
    return Slopes("", user, scale, effects(random, user.width, classes), own)


def embedding(random: Random, classes: int) -> Part:
    values, r, m = coding(random, 2), int(random.integers(1, 4)), max(classes, 1)
    products = Products(numbers(random, WIDTH, r), numbers(random, r * r, m)) if random.random() < 0.7 else None
    return Embedding("", values, numbers(random, values.width, r), numbers(random, r, m), products, classes, 1)


def units(random: Random, classes: int) -> Part:
    sizes = [WIDTH, *random.integers(1, 5, random.integers(1, 3)).tolist(), max(classes, 2)]
    count = sum((i + 1) * o for i, o in itertools.pairwise(sizes))
    weights = torch.tensor(random.normal(size=count))
    if not classes:  # the second score is zero
        last = weights[-2 * (sizes[-2] + 1) :]
        last[: 2 * sizes[-2]].view(sizes[-2], 2)[:, 1], last[-1] = 0.0, 0.0
    return Units("", sizes, weights, classes)


def trees(random: Random, classes: int) -> Part:
    blocks = [tuple(grown(random, 2, 0) for _ in range(max(classes, 1))) for _ in range(2)]
    return TreesPart(COLUMNS, blocks, BlockSumCache())


KINDS = (crosses, shapes, intercepts, slopes, embedding, units, trees)


def check_cost(part: Part, made: Any) -> None:
    filled, total = {"features": 2.0}, 0.0
    for stage in made.stages:
        total += cost_table.of_stage(stage, filled)
        filled |= cost_table.filled_by(stage, filled)
    served = part.serving_work(2.0)
    assert cost_table.of_steps(served.steps) == pytest.approx(total)
    assert served.entries == pytest.approx(sum(filled.get(o.column, 1.0) for o in made.outputs))
    read = {
        c
        for s in made.stages
        for name in ("inputCol", "inputCols")
        if s.hasParam(name) and s.isDefined(name)
        for c in np.atleast_1d(s.getOrDefault(name)).tolist()
    }
    assert served.columns == read & {c.column for c in COLUMNS}


def check_parts(parts: list[Part], classes: int, data: tuple[DataFrame, Tensor, Tensor], where: Path | None) -> None:
    """Spark computes what the parts compute.

    Args:
        where: to save the stages to and load them from, if anywhere.
    """
    frame, values, features = data
    zero = torch.zeros(ROWS, dtype=F64)
    margin = torch.zeros(ROWS, classes, dtype=F64) if classes else zero
    split = Split(features, values, zero, zero + 1, zero.long(), margin)
    made = [part.stages(PipelinePlace("features", WIDTH, f"grown{i}", classes)) for i, part in enumerate(parts)]
    model = PipelineModel([stage for one in made for stage in one.stages])
    if where is not None:
        model.save(str(where))
        model = PipelineModel.load(str(where))
    found = model.transform(frame).orderBy("id").collect()
    for part, one in zip(parts, made, strict=True):
        check_cost(part, one)
        total = np.zeros((ROWS, max(classes, 1)))
        for output in one.outputs:
            column = [row[output.column] for row in found]
            entries = np.array([v.toArray() if hasattr(v, "toArray") else [v] for v in column])
            total += entries @ np.atleast_2d(output.coefficients).T
        expected = part.output(split).reshape(ROWS, -1).numpy()
        np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-9, err_msg=str(type(part)))
    if not classes and where is not None:
        check_laws(model, found, frame)


def check_laws(model: PipelineModel, found: list[Any], frame: DataFrame) -> None:
    """The four laws for one stage of each class, on rows without gaps."""
    whole = [row for row in found if row["x"] is not None and all(map(math.isfinite, (row["x"], row["user"])))]
    assert len(whole) > ROWS / 2
    stages = {type(stage): stage for stage in model.stages}
    assert len(stages) == 10
    rows = frame.sparkSession.createDataFrame(whole, model.transform(frame.limit(0)).schema)
    check_stages([*stages.values()], rows)


# Without classes: test_parts_of_columns and test_parts_of_torch, by both ways; their stages' laws are those of the other files.
@pytest.mark.parametrize("classes", [pytest.param(0, marks=pytest.mark.nightly), 3])
@generated(1)
@given(st.integers(0, 2**32 - 1))
def test_parts(
    rows: tuple[DataFrame, Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory, classes: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    parts = [make(random, classes) for make in KINDS]
    check_parts(parts, classes, rows, None if classes else tmp_path_factory.mktemp("parts") / "model")
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sessions, "has_constructors", lambda: False)
        check_parts(parts[bool(classes) :: 2], classes, rows, None)


def test_a_planted_fault_is_found(rows: tuple[DataFrame, Tensor, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    part = crosses(np.random.default_rng(1), 0)
    monkeypatch.setattr(Blocks, "output", lambda self, split: torch.ones(ROWS, dtype=F64))
    with pytest.raises(AssertionError, match="Crosses"):
        check_parts([part], 0, rows, None)
