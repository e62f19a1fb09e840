"""Zeros that Spark stores and zeros that it doesn't: some stages answer them differently, in a batch as alone."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import (
    Binarizer,
    Interaction,
    MinMaxScaler,
    Normalizer,
    OneHotEncoder,
    PolynomialExpansion,
    StandardScaler,
    VectorAssembler,
    VectorIndexer,
    VectorSlicer,
)
from pyspark.ml.linalg import DenseVector, SparseVector, Vectors
from pyspark.ml.regression import DecisionTreeRegressor
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import InputError
from sparkdiff.serving.torch_transformer import by_torch

NAN, INF = float("nan"), float("inf")
NAMES = ["a", "b", "c", "d", "i", "v", "label"]
NUMBERS = (
    (1.0, 0.0, 0.0, 0.0), (0.0, 0.0, 0.0, 5.0), (-0.0, 2.0, 0.0, 3.0), (0.0, 2.0, 7.0, 3.0), (0.0, 0.0, 0.0, 0.0),
    (0.0, NAN, 0.0, 0.0), (NAN, 1.0, 0.0, 1.0), (0.0, INF, 0.0, -INF), (INF, 0.0, 0.0, 0.0), (0.0, 0.0, NAN, INF),
)  # fmt: skip
VECTORS = (
    Vectors.dense(0.0, 0.0, 3.0, 0.0), Vectors.sparse(4, [2], [3.0]), Vectors.sparse(4, [0, 2], [0.0, 3.0]),
    Vectors.dense(0.0, NAN, 1.0, 0.0), Vectors.sparse(4, [1], [NAN]), Vectors.sparse(4, [0, 1], [0.0, NAN]),
    Vectors.dense(0.0, INF, 1.0, 0.0), Vectors.sparse(4, [1, 3], [INF, 0.0]), Vectors.sparse(4, [], []),
    Vectors.sparse(4, [0, 3], [INF, -1.0]),
)  # fmt: skip


def assembled(*columns: str) -> VectorAssembler:
    return VectorAssembler(inputCols=[*(columns or "abcd")], outputCol="all", handleInvalid="keep")


def indexer(column: str, invalid: str = "keep") -> VectorIndexer:
    return VectorIndexer(inputCol=column, outputCol="out", maxCategories=4, handleInvalid=invalid)


def encoded() -> OneHotEncoder:
    return OneHotEncoder(inputCol="i", outputCol="hot", handleInvalid="keep")


STAGES: dict[str, Callable[[], list[Any]]] = {
    "assembler, indexer": lambda: [assembled(), indexer("all")],
    "assembler, scaler, indexer": lambda: [assembled(), StandardScaler(inputCol="all", outputCol="s"), indexer("s")],
    "assembler, indexer, trees": lambda: [
        assembled(), indexer("all"), DecisionTreeRegressor(featuresCol="out", predictionCol="found", maxDepth=3)
    ],
    "assembler, normalizer": lambda: [assembled(), Normalizer(inputCol="all", outputCol="out")],
    "assembler, expansion": lambda: [assembled(), PolynomialExpansion(inputCol="all", outputCol="out")],
    "assembler, range, normalizer": lambda: [
        assembled(), MinMaxScaler(inputCol="all", outputCol="s"), Normalizer(inputCol="s", outputCol="out")
    ],
    "assembler, binarizer, indexer": lambda: [
        assembled(), Binarizer(inputCol="all", outputCol="s", threshold=0.5),
        VectorAssembler(inputCols=["s", "a"], outputCol="t", handleInvalid="keep"), indexer("t"),
    ],
    "encoder, slicer, interaction": lambda: [
        encoded(), VectorSlicer(inputCol="hot", outputCol="s", indices=[1, 0]), Interaction(inputCols=["s", "b"], outputCol="out")
    ],
    "indexer": lambda: [indexer("v")],
    "normalizer": lambda: [Normalizer(inputCol="v", outputCol="out")],
    "slicer, normalizer": lambda: [
        VectorSlicer(inputCol="v", outputCol="s", indices=[1, 0]), Normalizer(inputCol="s", outputCol="out")
    ],
    "expansion, indexer": lambda: [PolynomialExpansion(inputCol="v", outputCol="s"), indexer("s")],
    "interaction": lambda: [Interaction(inputCols=["v", "b"], outputCol="out")],
}  # fmt: skip


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    """Rows to fit on: of `a` and of the vectors' first entry 0 is no category."""
    return spark.createDataFrame(
        [
            (
                1.0 + k % 2,
                1.0 + k,
                k / 3 - 1,
                1.0 - k,
                float(k % 3),
                Vectors.dense(1.0 + k % 2, k, 2.0 + k % 3, -k),
                k % 4.0,
            )
            for k in range(12)
        ],
        NAMES,
    ).coalesce(1)


@pytest.fixture(scope="module")
def odd(spark: SparkSession) -> DataFrame:
    table = [(*x, float(k % 3), v, 0.0) for k, (x, v) in enumerate(zip(NUMBERS, VECTORS, strict=True))]
    return spark.createDataFrame(table, NAMES).coalesce(1)


@pytest.fixture(scope="module")
def expected(rows: DataFrame, odd: DataFrame) -> Callable[[str], tuple[PipelineModel, str, list[Any]]]:
    """The model of some stages, the column to compare, and Spark's values."""

    @functools.cache
    def of(name: str) -> tuple[PipelineModel, str, list[Any]]:
        model = Pipeline(stages=STAGES[name]()).fit(rows)
        column = "found" if "trees" in name else "out"
        return model, column, [r[0] for r in model.transform(odd).select(column).collect()]

    return of


def numbers(x: Any) -> Any:
    return np.asarray(x.toArray() if isinstance(x, (DenseVector, SparseVector)) else x, dtype=float)


def check(found: list[Any], wanted: list[Any], rows: Any = None) -> None:
    for k in range(len(wanted)) if rows is None else rows:
        np.testing.assert_allclose(numbers(found[k]), numbers(wanted[k]), rtol=1e-9, atol=1e-12, err_msg=f"row {k}")


@pytest.mark.parametrize("name", STAGES)
def test_zeros_are_stored_as_in_spark(
    name: str, expected: Callable[[str], tuple[PipelineModel, str, list[Any]]], odd: DataFrame, tmp_path: Path
) -> None:
    """Each row alone, all in a batch, in Arrow, in a network, and in an exported file, which reads dense vectors."""
    model, column, wanted = expected(name)
    scorer = sparkdiff.Scorer(model, schema=odd.schema, outputCols=[column])
    given = [r.asDict() for r in odd.collect()]
    check([scorer.predict(r)[column] for r in given], wanted)
    check([r[column] for r in scorer.predict(given)], wanted)
    check(scorer.predict(odd.toArrow())[column].to_pylist(), wanted)
    assert sparkdiff.verify(model, odd).ok
    sparkdiff.export(model, str(tmp_path / "m.onnx"), outputCols=[column], schema=odd.schema, widths=widths(name))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    read = {i.name for i in session.get_inputs()}
    columns = {c: np.stack([numbers(r[c]) for r in given]) for c in odd.columns if c in read}
    none = {c: np.zeros(len(given), dtype=bool) for c in read if c.endswith(" is null")}
    dense = [k for k, r in enumerate(given) if "v" not in read or isinstance(r["v"], DenseVector)]
    check(session.run([column], columns | none)[0], wanted, dense)


def widths(name: str) -> dict[str, int]:
    return {"v": 4} if name in ("slicer, normalizer", "normalizer", "expansion, indexer", "interaction") else {}


@pytest.mark.parametrize("name", ["assembler, indexer", "expansion, indexer", "slicer, normalizer"])
def test_tasks_store_them_too(
    name: str, expected: Callable[[str], tuple[PipelineModel, str, list[Any]]], odd: DataFrame
) -> None:
    model, column, wanted = expected(name)
    check([r[0] for r in by_torch(model, odd, "cpu").select(column).collect()], wanted)


def test_an_unknown_value_is_refused_where_it_is_stored(rows: DataFrame, odd: DataFrame, tmp_path: Path) -> None:
    """With handleInvalid='error' Spark answers the sparse row and refuses the dense one."""
    model = Pipeline(stages=[assembled(), indexer("all", "error")]).fit(rows)
    sparse, dense = (dict(zip("abcd", NUMBERS[k], strict=True)) for k in (1, 3))
    wanted = [r["out"] for r in model.transform(odd.where("d = 5")).collect()]
    scorer = sparkdiff.Scorer(model, schema=rows.schema)
    check([scorer.predict(sparse)["out"]], wanted)
    with pytest.raises(InputError, match=r"feature 0 holds 0\.0, which is not one of its categories"):
        scorer.predict([sparse, dense])
    sparkdiff.export(model, str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    found, refused = session.run(["out", "refused by Spark"], {c: np.array([sparse[c], dense[c]]) for c in "abcd"})
    check(found, wanted)
    assert refused.tolist() == [False, True]


def test_a_scaler_that_was_fitted_on_nan(rows: DataFrame, odd: DataFrame) -> None:
    """It makes NaN of every entry that is stored."""
    gaps = rows.selectExpr("if(a = 1, double('nan'), a) a", "b", "c", "d")
    model = Pipeline(stages=[assembled(), StandardScaler(inputCol="all", outputCol="out")]).fit(gaps)
    wanted = [r["out"] for r in model.transform(odd).collect()]
    given = [r.asDict() for r in odd.select(*"abcd").collect()]
    scorer = sparkdiff.Scorer(model, outputCols=["out"])
    check([scorer.predict(r)["out"] for r in given], wanted)
    check([r["out"] for r in scorer.predict(given)], wanted)
