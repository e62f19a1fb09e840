"""Zeros that Spark stores and zeros that it doesn't: some stages answer them differently, in a batch as alone."""

import functools
import itertools
import math
from collections.abc import Callable
from functools import partial
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
    (1.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, 0.0, 5.0),
    (-0.0, 2.0, 0.0, 3.0),
    (0.0, 2.0, 7.0, 3.0),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, NAN, 0.0, 0.0),
    (NAN, 1.0, 0.0, 1.0),
    (0.0, INF, 0.0, -INF),
    (INF, 0.0, 0.0, 0.0),
    (0.0, 0.0, NAN, INF),
)
VECTORS = (
    Vectors.dense(0.0, 0.0, 3.0, 0.0),
    Vectors.sparse(4, [2], [3.0]),
    Vectors.sparse(4, [0, 2], [0.0, 3.0]),
    Vectors.dense(0.0, NAN, 1.0, 0.0),
    Vectors.sparse(4, [1], [NAN]),
    Vectors.sparse(4, [0, 1], [0.0, NAN]),
    Vectors.dense(0.0, INF, 1.0, 0.0),
    Vectors.sparse(4, [1, 3], [INF, 0.0]),
    Vectors.sparse(4, [], []),
    Vectors.sparse(4, [0, 3], [INF, -1.0]),
)


def assembler(outputCol: str, **settings: Any) -> VectorAssembler:
    return VectorAssembler(inputCols=[*"abcd"], outputCol=outputCol, handleInvalid="keep")


def encoder(outputCol: str, **settings: Any) -> OneHotEncoder:
    return OneHotEncoder(inputCol="i", outputCol=outputCol, handleInvalid="keep")


def crossing(inputCol: str, outputCol: str) -> Interaction:
    return Interaction(inputCols=[inputCol, "b"], outputCol=outputCol)


def trees(inputCol: str, outputCol: str) -> DecisionTreeRegressor:
    return DecisionTreeRegressor(featuresCol=inputCol, predictionCol=outputCol, maxDepth=3)


indexer = partial(VectorIndexer, maxCategories=4, handleInvalid="keep")
binarizer = partial(Binarizer, threshold=0.5)
slicer = partial(VectorSlicer, indices=[1, 0])
Chain = tuple[Callable[..., Any], ...]
PIPELINES: dict[str, tuple[Chain, ...]] = {
    "zeros that are no category": (
        (assembler, indexer),
        (assembler, StandardScaler, indexer),
        (assembler, indexer, trees),
        (assembler, binarizer, indexer),
        (indexer,),
        (PolynomialExpansion, indexer),
    ),
    "zeros times what isn't finite": (
        (assembler, Normalizer),
        (assembler, PolynomialExpansion),
        (assembler, MinMaxScaler, Normalizer),
        (assembler, slicer, crossing),
        (encoder, slicer, crossing),
        (Normalizer,),
        (slicer, Normalizer),
        (PolynomialExpansion,),
    ),
}


def stages_of(chains: tuple[Chain, ...]) -> list[Any]:
    """The stages of each chain behind one another, from `v` on if the first one doesn't choose its input; to out0, out1, ..."""
    out = []
    for k, chain in enumerate(chains):
        names = ["v", *(f"c{k}{i}" for i in range(len(chain) - 1)), f"out{k}"]
        out += [make(inputCol=a, outputCol=b) for make, (a, b) in zip(chain, itertools.pairwise(names), strict=True)]
    return out


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


Expected = tuple[PipelineModel, list[str], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def expected(rows: DataFrame, odd: DataFrame) -> Callable[[str], Expected]:
    """A pipeline's model, the columns to compare, and Spark's rows."""

    @functools.cache
    def of(name: str) -> Expected:
        model, columns = (
            Pipeline(stages=stages_of(PIPELINES[name])).fit(rows),
            [f"out{k}" for k in range(len(PIPELINES[name]))],
        )
        return model, columns, [r.asDict() for r in model.transform(odd).select(columns).collect()]

    return of


def numbers(x: Any) -> Any:
    return np.asarray(x.toArray() if isinstance(x, (DenseVector, SparseVector)) else x, dtype=float)


def check(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    for k, (ours, theirs) in enumerate(zip(found, wanted, strict=True)):
        for c, x in theirs.items():
            np.testing.assert_allclose(numbers(ours[c]), numbers(x), rtol=1e-9, atol=1e-12, err_msg=f"{c} of row {k}")


@pytest.mark.parametrize("name", PIPELINES)
def test_zeros_are_stored_as_in_spark(
    name: str, expected: Callable[[str], Expected], odd: DataFrame, tmp_path: Path
) -> None:
    """Each row alone, all in a batch, in Arrow, in a network, in tasks, and in an exported file, which reads dense vectors."""
    model, columns, wanted = expected(name)
    scorer = sparkdiff.Scorer(model, schema=odd.schema, outputCols=columns)
    given = [r.asDict() for r in odd.collect()]
    check([scorer.predict(r) for r in given], wanted)
    check(scorer.predict(given), wanted)
    if hasattr(odd, "toArrow"):  # from Spark 4.0 on
        check(scorer.predict(odd.toArrow()).to_pylist(), wanted)
    assert sparkdiff.verify(model, odd).ok
    check([r.asDict() for r in by_torch(model, odd, "cpu").select(columns).collect()], wanted)
    sparkdiff.export(model, str(tmp_path / "m.onnx"), outputCols=columns, schema=odd.schema, widths={"v": 4})
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    read = {i.name for i in session.get_inputs()}
    none = {c: np.zeros(len(given), dtype=bool) for c in read if c.endswith(" is null")}
    whole = {c: np.stack([numbers(r[c]) for r in given]) for c in odd.columns if c in read}
    found = dict(zip(columns, session.run(columns, whole | none), strict=True))
    chains = dict(zip(columns, PIPELINES[name], strict=True))
    for k, row in enumerate(wanted):
        known = [c for c in columns if chains[c][0] in (assembler, encoder) or isinstance(given[k]["v"], DenseVector)]
        check([{c: found[c][k] for c in known}], [{c: row[c] for c in known}])


@pytest.mark.parametrize(
    "chain", [(assembler, Normalizer), (Normalizer,), (slicer, Normalizer), (PolynomialExpansion,)]
)
def test_one_stage_alone(chain: Chain, rows: DataFrame, odd: DataFrame) -> None:
    """No other stage in the pipeline asks how the same vectors are stored."""
    model = Pipeline(stages=stages_of((chain,))).fit(rows)
    wanted = [r.asDict() for r in model.transform(odd).select("out0").collect()]
    given = [r.asDict() for r in odd.collect()]
    scorer = sparkdiff.Scorer(model, outputCols=["out0"])
    check([scorer.predict(r) for r in given], wanted)
    check(scorer.predict(given), wanted)


def test_an_unknown_value_is_refused_where_it_is_stored(rows: DataFrame, odd: DataFrame, tmp_path: Path) -> None:
    """With handleInvalid='error' Spark answers the sparse row and refuses the dense one."""
    model = Pipeline(stages=stages_of(((assembler, partial(indexer, handleInvalid="error")),))).fit(rows)
    sparse, dense = (dict(zip("abcd", NUMBERS[k], strict=True)) for k in (1, 3))
    wanted = [r.asDict() for r in model.transform(odd.where("d = 5")).select("out0").collect()]
    scorer = sparkdiff.Scorer(model, schema=rows.schema)
    check([scorer.predict(sparse)], wanted)
    with pytest.raises(InputError, match=r"feature 0 holds 0\.0, which is not one of its categories"):
        scorer.predict([sparse, dense])
    sparkdiff.export(model, str(tmp_path / "m.onnx"))
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    found, refused = session.run(["out0", "refused by Spark"], {c: np.array([sparse[c], dense[c]]) for c in "abcd"})
    check([{"out0": found[0]}], wanted)
    assert refused.tolist() == [False, True]


def test_a_scaler_that_was_fitted_on_nan(rows: DataFrame, odd: DataFrame) -> None:
    """It makes NaN of every entry that is stored."""
    gaps = rows.selectExpr("if(a = 1, double('nan'), a) a", "b", "c", "d")
    model = Pipeline(stages=stages_of(((assembler, StandardScaler),))).fit(gaps)
    wanted = [r.asDict() for r in model.transform(odd).select("out0").collect()]
    given = [r.asDict() for r in odd.select(*"abcd").collect()]
    scorer = sparkdiff.Scorer(model, outputCols=["out0"])
    check([scorer.predict(r) for r in given], wanted)
    check(scorer.predict(given), wanted)


def test_a_feature_without_any_category(spark: SparkSession, route: str, tmp_path: Path) -> None:
    """Spark fits none where it has seen 0.0 and -0.0 only, takes it for a categorical one, and knows none of its values."""
    zeros = spark.createDataFrame([(k, Vectors.dense(1.0 + k, (-1) ** k * 0.0)) for k in range(6)], ["id", "v"])
    given = [{"v": v} for v in (Vectors.dense(2.0, 0.0), Vectors.dense(3.0, 5.0), Vectors.sparse(2, [0], [4.0]))]
    odd = spark.createDataFrame([(row["v"],) for row in given], ["v"]).coalesce(1)
    fits = {
        how: VectorIndexer(inputCol="v", outputCol="out0", maxCategories=2, handleInvalid=how)
        for how in ("keep", "error")
    }
    models = {how: Pipeline(stages=[stage]).fit(zeros) for how, stage in fits.items()}
    wanted = [row.asDict() for row in models["keep"].transform(odd).select("out0").collect()]
    scorer = sparkdiff.Scorer(models["keep"], schema=odd.schema)
    check([scorer.predict(row) for row in given], wanted)
    check(scorer.predict(given), wanted)
    check([row.asDict() for row in by_torch(models["keep"], odd, "cpu").select("out0").collect()], wanted)
    strict = sparkdiff.Scorer(models["error"], schema=odd.schema)
    check([strict.predict(given[2])], wanted[2:])  # stores no value of the feature
    with pytest.raises(Exception, match=r"invalid value 0\.0 on feature index 1"):
        models["error"].transform(odd.limit(1)).collect()
    with pytest.raises(InputError, match=r"feature 1 holds 0\.0, which is not one of its categories"):
        strict.predict(given[0])
    sparkdiff.export(models["error"], str(tmp_path / "m.onnx"), schema=odd.schema, widths={"v": 2})
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    assert session.run(["refused by Spark"], {"v": np.array([[2.0, 0.0], [3.0, 5.0]])})[0].all()


def test_categories_among_nan(spark: SparkSession, route: str) -> None:
    """Spark counts each NaN as a category and finds none of them."""
    seen = [48.0, 3.0, -24.0, math.nan, 10.0, math.nan, 33.0, 1.0, -0.0]
    rows = spark.createDataFrame([(k, Vectors.dense(x)) for k, x in enumerate(seen)], ["id", "v"]).coalesce(1)
    asked = spark.createDataFrame([(Vectors.dense(x),) for x in (*seen, 0.0, 99.0)], ["v"]).coalesce(1)
    given = [row.asDict() for row in asked.collect()]
    for how in ("keep", "error"):
        model = VectorIndexer(inputCol="v", outputCol="out0", maxCategories=12, handleInvalid=how).fit(rows)
        scorer = sparkdiff.Scorer(model, schema=asked.schema)
        for row in given:
            one = spark.createDataFrame([(row["v"],)], ["v"])
            try:
                wanted = [r.asDict() for r in model.transform(one).select("out0").collect()]
            except Exception:
                with pytest.raises(InputError, match="is not one of its categories"):
                    scorer.predict(row)
            else:
                check([scorer.predict(row)], wanted)


def test_what_spark_reads_of_torch_is_stored_as_in_spark(spark: SparkSession) -> None:
    """An Interaction of vectors of categories stays in Spark, and crosses the stored entries only."""
    data = [Vectors.sparse(3, [0, 1, 2], [1.0, 1.5, 0.5]), Vectors.sparse(3, [0, 1], [2.0, -0.5])]
    df = spark.createDataFrame([(v,) for v in data], ["v"]).coalesce(1)
    stages = [VectorIndexer(inputCol="v", outputCol="kinds"), Interaction(inputCols=["kinds"], outputCol="crossed")]
    model = Pipeline(stages=stages).fit(df)
    rows = [Vectors.sparse(3, [], []), Vectors.sparse(3, [0], [2.0]), *data, Vectors.dense(1.0, 1.5, 0.5)]
    given = spark.createDataFrame([(v,) for v in rows], ["v"]).coalesce(1)
    wanted = [r["crossed"] for r in model.transform(given).collect()]
    assert len(wanted[0].indices) == 0
    assert [r["crossed"] for r in by_torch(model, given, "cpu").collect()] == wanted
