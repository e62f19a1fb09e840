"""Laws of Interaction over columns of every kind; in pipelines, where Spark stores vectors dense or sparse row by row."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import Interaction, OneHotEncoderModel, VectorAssembler
from pyspark.ml.linalg import Vectors, VectorUDT
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import DoubleType, LongType, StructField, StructType

import sparkdiff
from sparkdiff import InputError
from sparkdiff.stages import interaction
from tests.support.stages_and_rows import EXTREME, ORDINARY, check, sparse

WIDE = 1500


def numeric(width: int) -> dict[str, Any]:
    return {"num_attrs": width, "attrs": {"numeric": [{"idx": i} for i in range(width)]}}


COLUMNS: dict[str, tuple[Any, dict[str, Any] | None]] = {
    "number": (DoubleType(), None),
    "long": (LongType(), None),
    "binary": (DoubleType(), {"type": "binary", "vals": ["no", "yes"]}),
    "three": (DoubleType(), {"type": "nominal", "num_vals": 3}),
    "named": (LongType(), {"type": "nominal", "vals": ["a", "b", "c", "d"], "ord": True}),
    "single": (DoubleType(), {"type": "nominal", "vals": ["only"]}),
    "none": (DoubleType(), {"type": "nominal", "num_vals": 0}),
    "many": (DoubleType(), {"type": "nominal", "num_vals": WIDE}),
    "dense": (VectorUDT(), numeric(3)),
    "partly": (VectorUDT(), {"num_attrs": 2, "attrs": {"binary": [{"idx": 1, "name": "yes"}]}}),
    "sparse": (VectorUDT(), numeric(4)),
    "wide": (VectorUDT(), numeric(400)),
    "trivial": (
        VectorUDT(),
        {"num_attrs": 2, "attrs": {"nominal": [{"idx": 0, "vals": ["one"]}], "numeric": [{"idx": 1}]}},
    ),
    "single slot": (VectorUDT(), numeric(1)),
}


def rows() -> Iterator[tuple[Any, ...]]:
    """In each row one column at most holds a number that isn't ordinary: of two, which was first would show."""
    random = np.random.default_rng(4)
    for i in range(48):
        number, dense, few = random.choice(ORDINARY), random.choice(ORDINARY, 3), random.choice(ORDINARY, 4)
        extreme = EXTREME[i // 3 % len(EXTREME)]
        if i < 3 * len(EXTREME):
            if i % 3 == 0:
                number = extreme
            else:
                (dense, few)[i % 3 - 1][i % 3] = extreme
        wide = Vectors.sparse(400, [i, 399], [number if np.isfinite(number) else 1.0, -0.0])
        yield (
            float(number),
            i - 5,
            float(i % 2),
            float(i % 3),
            i % 4,
            float(random.choice(ORDINARY)),
            float(random.choice(ORDINARY)),
            float(i * 31 % WIDE),
            Vectors.dense(dense),
            Vectors.dense(random.choice(ORDINARY, 2)),
            sparse(few),
            wide,
            Vectors.dense(random.choice(ORDINARY, 2)),
            Vectors.dense(float(random.choice(ORDINARY))),
        )


@pytest.fixture(scope="module")
def columns(spark: SparkSession) -> DataFrame:
    schema = StructType([StructField(name, kind) for name, (kind, _) in COLUMNS.items()])
    df = spark.createDataFrame(list(rows()), schema)
    described = [F.col(f"`{c}`").alias(c, metadata={"ml_attr": a} if a else {}) for c, (_, a) in COLUMNS.items()]
    df = df.select(*described)
    empty = df.where("number > 1e301 AND number < 1e300")
    return df.unionAll(empty).repartition(3).cache()


def crossed(*names: str) -> Interaction:
    return Interaction(inputCols=list(names), outputCol="crossed")


KINDS: Sequence[Sequence[str]] = [
    ["number"],
    ["dense"],
    ["sparse"],
    ["three"],
    ["many"],
    ["number", "long"],
    ["dense", "partly"],
    ["partly", "dense"],
    ["sparse", "dense"],
    ["dense", "sparse"],
    ["three", "named"],
    ["named", "three"],
    ["three", "number"],
    ["number", "three"],
    ["binary", "single", "none", "three"],
    ["binary", "dense"],
    ["named", "dense", "long"],
    ["dense", "named", "partly"],
    ["three", "sparse", "dense"],
    ["wide", "three"],
    ["three", "wide"],
    ["wide", "partly", "named"],
    ["many", "three"],
    ["number", "many"],
    ["dense", "many", "sparse"],
    ["trivial", "three", "number"],
    ["single slot", "number", "three"],
    ["long", "wide", "number"],
]


def test_interaction(columns: DataFrame) -> None:
    check([crossed(*names) for names in KINDS], columns)


def test_the_first_columns_index_is_slowest() -> None:
    """STAGES: u(2, 3) x w(5, 7) = 10, 14, 15, 21."""
    network = sparkdiff.translate(crossed("u", "w"))
    out = network({"u": torch.tensor([[2.0, 3.0]]), "w": torch.tensor([[5.0, 7.0]])})["crossed"]
    assert out.tolist() == [[10.0, 14.0, 15.0, 21.0]]
    assert network({"u": torch.zeros(0, 2), "w": torch.zeros(0)})["crossed"].shape == (0, 2)


def test_layouts() -> None:
    """Strided, unless an input is CSR, or categories make it as wide as one-hot blocks that travel sparse."""
    dense, few = torch.ones(3, 2), torch.eye(3).to_sparse_csr()
    out = sparkdiff.translate(crossed("a", "b"))({"a": dense, "b": few})["crossed"]
    assert out.layout == torch.sparse_csr
    assert torch.equal(out.to_dense(), torch.cat([torch.eye(3)] * 2, 1).double())
    assert sparkdiff.translate(crossed("a", "b"))({"a": dense, "b": dense})["crossed"].layout == torch.strided
    for values, layout in ((511, torch.strided), (512, torch.sparse_csr)):
        module = interaction.Interaction("i", ("a", "b"), (values, 1), ("", ""))
        made = module(torch.tensor([0.0, 1.0, 510.0], dtype=torch.float64), dense.double())
        assert isinstance(made, torch.Tensor) == (layout == torch.strided)


def test_gradients() -> None:
    """Through both layouts, against finite differences."""
    scalar, vector = (
        torch.tensor([0.5, -2.0, 0.0]).double(),
        torch.tensor([[1.0, 2.0], [0.0, 3.0], [4.0, 5.0]]).double(),
    )
    for values in (3, 1024):
        module = interaction.Interaction("i", ("k", "x", "v"), (values, 1, 1), ("", "", ""))

        def made(x: torch.Tensor, v: torch.Tensor, module: Any = module) -> torch.Tensor:
            out = module(torch.tensor([0.0, 2.0, 1.0], dtype=torch.float64), x, v)
            return out if isinstance(out, torch.Tensor) else out.values

        assert torch.autograd.gradcheck(made, (scalar.requires_grad_(), vector.requires_grad_()))


@pytest.mark.parametrize("value", [3.0, -1.0, 0.5, np.nan, np.inf])
def test_what_is_no_category_is_refused_as_by_spark(columns: DataFrame, value: float) -> None:
    known = F.lit(value).alias("three", metadata={"ml_attr": {"type": "nominal", "num_vals": 3}})
    df, stage = columns.limit(1).select(known, "number"), crossed("three", "number")
    network = sparkdiff.translate(stage, schema=df.schema)
    with pytest.raises(InputError, match=rf"{stage.uid}: column 'three' holds .*, but its categories are 0 to 2"):
        network({"three": torch.tensor([1.0, value]), "number": torch.ones(2)})
    with pytest.raises(InputError, match="Spark failed"):
        sparkdiff.verify(stage, df)


def test_null_is_refused_as_by_spark(columns: DataFrame) -> None:
    df, stage = columns.limit(1).select("number", F.lit(None).cast("double").alias("long")), crossed("number", "long")
    network = sparkdiff.translate(stage, schema=df.schema)
    for null in (torch.tensor([False]), torch.tensor([True])):
        given = {"number": torch.ones(1), "long": torch.tensor([torch.nan]), "long is null": null}
        if null:
            with pytest.raises(InputError, match=rf"{stage.uid}: column 'long' holds null"):
                network(given)
        else:
            assert network(given)["crossed"].isnan().all()
    assert np.isnan(sparkdiff.Scorer(stage, schema=df.schema).predict({"number": 1.0, "long": np.nan})["crossed"]).all()
    with pytest.raises(InputError, match="column 'long' holds null"):
        sparkdiff.Scorer(stage, schema=df.schema).predict({"number": 1.0, "long": None})
    with pytest.raises(InputError, match="Spark failed"):
        sparkdiff.verify(stage, df)


def test_rows_that_spark_stores_one_way_or_the_other(columns: DataFrame) -> None:
    """A product with what a sparse row doesn't store is 0, whatever the other factor is; with a stored zero it may be NaN."""
    encoder = one_hot(columns)
    assembled = VectorAssembler(inputCols=["number", "three", "binary", "long"], outputCol="few", handleInvalid="keep")
    wider = VectorAssembler(inputCols=["sparse", "dense", "three", "number"], outputCol="more", handleInvalid="keep")
    model = PipelineModel(
        [
            encoder,
            assembled,
            wider,
            crossed("hot", "number"),
            _named(crossed("few", "number"), "a"),
            _named(crossed("number", "more", "hot"), "b"),
            _named(crossed("crossed", "number"), "c"),
        ]
    )
    plain = columns.withColumn("three", F.col("three") * 1).withColumn("kind", F.col("three"))
    assert sparkdiff.verify(model, plain).ok


def one_hot(df: DataFrame) -> OneHotEncoderModel:
    from pyspark.ml.feature import OneHotEncoder

    return OneHotEncoder(inputCol="three", outputCol="hot", dropLast=False).fit(df)


def _named(stage: Interaction, outputCol: str) -> Interaction:
    return stage.copy({stage.outputCol: outputCol})
