"""Known errors in the products of Interaction, planted, and found by `check_stage` and `verify`."""

from typing import Any

import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.ml.feature import Interaction, OneHotEncoder
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff.stages import interaction
from sparkdiff.testing import LawBroken, check_stage


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    data = [(float(i % 3), Vectors.dense(i - 1.5, 2.0), Vectors.sparse(3, [i % 3], [5.0]), 0.5 * i) for i in range(6)]
    attributes = {
        "kind": {"type": "nominal", "num_vals": 3},
        "u": {"num_attrs": 2, "attrs": {"numeric": [{"idx": 0}, {"idx": 1}]}},
        "w": {"num_attrs": 3, "attrs": {"numeric": [{"idx": 0}]}},
        "x": {},
    }
    df = spark.createDataFrame(data, list(attributes))
    described = [F.col(c).alias(c, metadata={"ml_attr": a} if a else {}) for c, a in attributes.items()]
    return df.select(*described).coalesce(1).cache()


def crossed(*names: str) -> Interaction:
    return Interaction(inputCols=list(names), outputCol="crossed")


def first_fastest(self: Any, *columns: Any, nulls: Any = None) -> Any:
    turned = interaction.Interaction(self.uid, self.names[::-1], self.values[::-1], self.storage_of[::-1])
    return whole(turned, *columns[::-1])


whole = interaction.Interaction.forward
one_fewer = lambda name, field: max(1, found(name, field) - 1)  # noqa: E731
found = interaction._categories

PLANTED: dict[str, tuple[Any, str, Any, tuple[str, ...]]] = {
    "the first column's index is fastest": (interaction.Interaction, "forward", first_fastest, ("u", "w")),
    "... of categories": (interaction.Interaction, "forward", first_fastest, ("kind", "u")),
    "categories are numbers": (interaction, "_categories", lambda name, field: 1, ("kind", "u")),
    "the last category is dropped": (interaction, "_categories", one_fewer, ("kind", "x")),
    "sparse rows are crossed the wrong way round": (
        interaction,
        "_row_products",
        lambda slow, fast, right=interaction._row_products: right(fast, slow),
        ("u", "w"),
    ),
    "a sparse row's first product only": (
        interaction,
        "_row_products",
        lambda slow, fast, right=interaction._row_products: halved(right(slow, fast)),
        ("u", "w"),
    ),
}


def halved(x: Any) -> Any:
    first = x.offsets[:-1].repeat_interleave(x.lengths()) == torch.arange(len(x.values))
    return x.with_values(torch.where(first, x.values, 0.0))


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found(rows: DataFrame, monkeypatch: pytest.MonkeyPatch, error: str) -> None:
    where, name, wrong, columns = PLANTED[error]
    if error == "the first column's index is fastest":  # nothing is wrong before
        check_stage(crossed(*columns), rows)
    monkeypatch.setattr(where, name, wrong)
    with pytest.raises(LawBroken):
        check_stage(crossed(*columns), rows)


def test_products_with_what_a_sparse_row_lacks(rows: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """Spark's encoder writes sparse rows, whose gaps times NaN are 0; the network's are strided."""
    encoder = OneHotEncoder(inputCol="kind", outputCol="hot", dropLast=False).fit(rows)
    model = PipelineModel([encoder, crossed("hot", "gap")])
    df = rows.withColumn("gap", F.when(F.col("x") > 1, F.lit(float("nan"))).otherwise(F.col("x")))
    assert sparkdiff.verify(model, df).ok
    monkeypatch.setattr(interaction, "is_stored", lambda x, storage: torch.ones_like(x, dtype=torch.bool))
    assert not sparkdiff.verify(model, df).ok


def test_attributes_decide(rows: DataFrame) -> None:
    """A network that was translated without a schema takes source columns for numbers; verify knows better."""
    stage = crossed("kind", "x")
    network, seen = sparkdiff.translate(stage), sparkdiff.translate(stage, schema=rows.schema)
    assert sparkdiff.verify(stage, rows, network=network).ok
    columns = {"kind": torch.tensor([2.0]), "x": torch.tensor([3.0])}
    assert network(columns)["crossed"].tolist() == [[6.0]]
    assert seen(columns)["crossed"].tolist() == [[0.0, 0.0, 3.0]]
