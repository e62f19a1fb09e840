"""The four laws for stages that Spark holds in float32, ALS and Word2Vec; Spark computes with these, so parity is to 1e-6."""

from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from pyspark.ml.recommendation import ALSModel
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import jvm
from sparkdiff.jvm import embeddings, sessions
from sparkdiff.pipeline.translation import graph_of
from sparkdiff.stages.constraints import Float32Values
from sparkdiff.stages.recommendation import FloatProduct
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.testing import check_stages
from tests.support.recommender_models import ITEMS, USERS, WORDS, als, documents, fitted, pairs, word2vec


@pytest.fixture(scope="module")
def bases(spark: SparkSession) -> tuple[Any, Any]:
    return fitted(spark)


@pytest.fixture(scope="module")
def ids(spark: SparkSession) -> DataFrame:
    return pairs(spark)


@pytest.fixture(scope="module")
def spoken(spark: SparkSession) -> DataFrame:
    return documents(spark)


def test_als(bases: tuple[Any, Any], ids: DataFrame) -> None:
    base, random = bases[0], np.random.default_rng(1)
    check_stages(
        [
            als(base, random),
            als(base, random, 1e15).copy({base.userCol: "fractional", base.itemCol: "long"}),
        ],
        ids,
    )


def test_als_is_spark_s_float_bit_for_bit(bases: tuple[Any, Any], ids: DataFrame) -> None:
    model = als(bases[0], np.random.default_rng(2), 1e3)
    parity = sparkdiff.verify(model, ids)
    assert parity.ok
    assert parity.maxAbsDiff == {"prediction": 0.0}


def test_word2vec(bases: tuple[Any, Any], spoken: DataFrame) -> None:
    base, random = bases[1], np.random.default_rng(3)
    stages = [word2vec(base, random, 10.0**k) for k in (-3, 0, 3)]
    check_stages([base, *stages, stages[0].copy({base.outputCol: "another"})], spoken)


@pytest.mark.slow
def test_by_way_of_files(bases: tuple[Any, Any], ids: DataFrame, spoken: DataFrame) -> None:
    random = np.random.default_rng(4)
    with patch.object(sessions, "has_constructors", lambda: False):
        check_stages([als(bases[0], random)], ids)
        check_stages([word2vec(bases[1], random)], spoken)


def test_both_routes_write_the_same(bases: tuple[Any, Any]) -> None:
    random = np.random.default_rng(5)
    vectors = random.normal(size=(len(WORDS), 3)).astype(np.float32)
    users, items = (np.array(USERS), random.normal(size=(5, 3)).astype("f4")), (np.array(ITEMS), np.ones((3, 3), "f4"))
    for with_constructors in (True, False):
        with patch.object(sessions, "has_constructors", lambda: with_constructors):  # noqa: B023
            new = embeddings.word2vec(bases[1], sorted(WORDS), vectors)
            known, found = embeddings.vocabulary(new)
            assert known == tuple(sorted(WORDS))
            assert np.array_equal(found, vectors)
            model = embeddings.als(bases[0], users, items)
            assert isinstance(model, ALSModel)
            for (ids, table), (wished, values) in zip(embeddings.factor_tables(model), (users, items), strict=True):
                assert np.array_equal(ids, wished)
                assert np.array_equal(table, values)
                assert table.dtype == np.float32
            assert jvm.defined_params(model) == jvm.defined_params(bases[0])
            assert model.rank == 3


def test_saved_and_loaded(bases: tuple[Any, Any], ids: DataFrame, tmp_path: Any) -> None:
    model = als(bases[0], np.random.default_rng(6))
    model.write().save(f"file://{tmp_path}/als")
    again = ALSModel.load(f"file://{tmp_path}/als")
    one, other = (m.transform(ids).orderBy("user", "item").toPandas() for m in (model, again))
    assert one.equals(other)


def test_outputs_are_float32_for_later_stages_as_in_spark(bases: tuple[Any, Any]) -> None:
    network = sparkdiff.translate(bases[0])
    out = network({"user": torch.tensor([0, 12345]), "item": torch.tensor([2, 2])})["prediction"]
    assert out.dtype == torch.float32
    assert out.isnan().tolist() == [False, True]
    network = sparkdiff.translate(bases[1])
    given = dict(zip(network.inputCols, (torch.tensor([[0.5, 0, 0, 0, 0]]), torch.tensor([2.0])), strict=True))
    assert network(given)["vector"].dtype == torch.float32


@pytest.mark.parametrize("value", [float("nan"), 1.5, 3e9, -3e9, float("inf")])
def test_what_is_no_id_is_refused(bases: tuple[Any, Any], value: float) -> None:
    network = sparkdiff.translate(bases[0])
    with pytest.raises(
        sparkdiff.InputError, match=rf"{bases[0].uid}: column 'user' holds .* \(or null\), but ids must be whole"
    ):
        network({"user": torch.tensor([1.0, value]), "item": torch.tensor([2.0, 2.0])})


def test_cold_starts_that_drop_rows_stay_in_spark(bases: tuple[Any, Any]) -> None:
    base = bases[0]
    model = base.copy({base.coldStartStrategy: "drop"})
    [stage] = sparkdiff.plan(model).stages
    assert stage.role == "referenced"
    assert stage.reason == "coldStartStrategy='drop' drops rows, and a torch module cannot drop rows; use 'nan'"
    assert graph_of(model).vertices[0].may_drop


def test_the_product_s_gradient() -> None:
    a, b = (torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    a, b = a.float().double().requires_grad_(), b.float().double().requires_grad_()
    weight = torch.arange(4, dtype=torch.float64)
    ours = torch.autograd.grad((weight * FloatProduct.apply(a, b)).sum(), [a, b])
    theirs = torch.autograd.grad((weight * (a * b).sum(1)).sum(), [a, b])
    assert all(torch.equal(x, y) for x, y in zip(ours, theirs, strict=True))


def test_words_are_counted_by_plain_stages(bases: tuple[Any, Any], spoken: DataFrame) -> None:
    network = sparkdiff.translate(bases[1])
    assert network.reference is not None
    assert [type(s).__module__ for s in network.reference.stages] == ["pyspark.ml.feature"] * 3
    made = network.reference.transform(spoken).select("words", *network.inputCols).collect()
    for said, shares, length in made:
        expected = np.array([sum(w == known for w in said) for known in sorted(WORDS)])
        assert length == len(said)
        assert shares.toArray() == pytest.approx(expected / max(len(said), 1), rel=1e-15)


def test_recovered_words_have_these_shares(bases: tuple[Any, Any]) -> None:
    module, known = sparkdiff.translate(bases[1]).module(0), sorted(WORDS)
    shares = torch.tensor([[0.5, 0, 0.25, 0, 0], [0] * 5, [0] * 5, [0, 1, 0, 0, 0]], dtype=torch.float64)
    length = torch.tensor([4.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    for x in (shares, SparseRows.from_csr(shares.to_sparse_csr())):
        [said] = module.original_inputs(x, length)
        assert said.to_pylist() == [[known[0], known[0], known[2], ""], [], ["", ""], [known[1]]]


def test_rounded_parameters_are_float32_at_every_step() -> None:
    constraint, start = Float32Values(), torch.tensor([0.5, 1e-40, 3.0]).double()
    move = torch.tensor([[0.0, 0.0, 0.0], [1e-9, 1e-42, 1e-3]], dtype=torch.float64)
    value = constraint.value(start, move)
    assert torch.equal(value[0], start)
    assert torch.equal(value, value.float().double())
    assert value[1, 0] == start[0]
    assert value[1, 2] != start[2]
