"""Penalties per group of features, stages chosen by a mixture: what Spark fits from the result is what was found."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import GBTClassifier, LogisticRegression
from pyspark.ml.evaluation import MulticlassClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import (
    Bucketizer,
    Imputer,
    OneHotEncoder,
    RobustScaler,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError, Search, alternatives, integer, loguniform
from sparkdiff.search.hypergradient_method import by_slope
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.tuning.group_penalties import group_penalties
from sparkdiff.tuning.soft_choice import soft_choice

TIGHT = {"tol": 1e-10, "maxIter": 500}


def table(spark: SparkSession, folder: Path, n: int) -> DataFrame:
    """A category that matters, one that doesn't, and three numbers."""
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(n, 3)) * [1, 10, 0.1]
    a, b = draw.integers(0, 4, n), draw.integers(0, 12, n)
    margin = numbers[:, 0] + 0.8 * (a - 1.5)
    columns = {
        "a": np.char.add("a", a.astype(str)),
        "b": np.char.add("b", b.astype(str)),
        **{f"x{i}": numbers[:, i] for i in range(3)},
        "constant": np.ones(n),
        "count": draw.poisson(np.exp(0.4 * margin)) * 1.0,
        "label": (draw.random(n) < 1 / (1 + np.exp(-margin))) * 1.0,
        "part": np.arange(n) % 2,
    }
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    return spark.read.parquet(f"file://{folder}/rows.parquet").coalesce(1)


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[DataFrame, DataFrame]:
    """Half of the rows is for validation."""
    read = table(spark, tmp_path_factory.mktemp("rows"), 400)
    return read.where("part = 0").cache(), read.where("part = 1").cache()


def before() -> list[Any]:
    names = ["a", "b"]
    return [
        StringIndexer(inputCols=names, outputCols=["a_index", "b_index"]),
        OneHotEncoder(inputCols=["a_index", "b_index"], outputCols=["a_hot", "b_hot"]),
        VectorAssembler(inputCols=["x0", "x1", "x2", "constant"], outputCol="numbers"),
        StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True),
        VectorAssembler(inputCols=["a_hot", "b_hot", "scaled"], outputCol="features"),
    ]


def test_sparks_own_fit_has_what_was_found(rows: tuple[DataFrame, DataFrame], tmp_path: Path) -> None:
    train, validation = rows
    estimator = Pipeline(stages=[*before(), LogisticRegression(**TIGHT)])
    found = group_penalties(estimator, train, validation, singles=[0.01, 0.03, 0.1], steps=8)
    assert [*found.penalties] == ["a_hot", "b_hot", "x0", "x1", "x2", "constant"]
    assert found.penalties["b_hot"] > found.penalties["a_hot"]
    assert found.penalties["x1"] > found.penalties["x0"]
    single, loss = found.validationLoss
    assert loss in found.losses and loss < single
    model = found.estimator.fit(train)
    judge = MulticlassClassificationEvaluator(metricName="logLoss")
    assert judge.evaluate(model.transform(validation)) == pytest.approx(loss, rel=1e-6)
    model.write().save(str(tmp_path / "model"))
    assert all(type(stage).__module__.startswith("pyspark.ml.") for stage in model.stages)
    again = PipelineModel.load(str(tmp_path / "model"))
    assert again.stages[-1].coefficients == model.stages[-1].coefficients


@pytest.mark.parametrize("kind", [LinearRegression, GeneralizedLinearRegression])
def test_regressions_on_groups_of_the_users(rows: tuple[DataFrame, DataFrame], kind: Any) -> None:
    train, validation = rows
    given = {"family": "poisson", **TIGHT} if kind is GeneralizedLinearRegression else {"solver": "normal"}
    assembler = VectorAssembler(inputCols=["X0", "x1", "x2", "`constant`"], outputCol="features")  # as Spark finds them
    last = kind(labelCol="count", **given)
    groups = {"noise": ["x1", np.int64(2), "x1"], "signal": "X0"}
    found = group_penalties(Pipeline(stages=[assembler, last]), train, validation, groups=groups, steps=3)
    assert [*found.penalties] == ["signal", "noise", "`constant`"]
    scored = found.estimator.fit(train).transform(validation).select("count", "prediction").toPandas()
    y, mean = scored["count"], scored["prediction"]
    squares = ((y - mean) ** 2).mean()
    deviance = (
        (y * np.log(np.where(y > 0, y, 1)) - y * np.log(mean) - (y - mean)).mean() if "family" in given else squares
    )
    assert found.validationLoss[1] == pytest.approx(deviance, rel=1e-6)


def test_a_mixture_chooses_stages(rows: tuple[DataFrame, DataFrame]) -> None:
    """The levels of a category beside their number, a scaler of numbers beside another one and none."""
    train, validation = rows
    index = StringIndexer(inputCol="a", outputCol="a_index", stringOrderType="alphabetDesc")
    numbers = VectorAssembler(inputCols=["x0", "x1", "x2"], outputCol="numbers")

    assembler = VectorAssembler(outputCol="features")

    def pipeline(level: Any, scaler: Any) -> Pipeline:
        last = assembler.copy({assembler.inputCols: ["a_hot", "scaled" if scaler else "numbers"]})
        return Pipeline(stages=[index, level, numbers, *([scaler] if scaler else []), last, LogisticRegression()])

    hot = OneHotEncoder(inputCols=["a_index"], outputCols=["a_hot"])
    parts = Bucketizer(inputCol="a_index", outputCol="a_hot", splits=[-1, 10, 11])  # all rows are in one: worthless
    scalers = [cls(inputCol="numbers", outputCol="scaled") for cls in (StandardScaler, RobustScaler)]
    variants = {
        "level": [pipeline(hot, scalers[0]), pipeline(parts, scalers[0])],
        "scaler": [pipeline(hot, scaler) for scaler in (*scalers, None)],
    }
    found = soft_choice(variants, train, validation, singles=[0.01, 0.1], steps=6)
    assert found.positions[0] == 0 and [len(gate) for gate in found.gates] == [2, 3]
    assert found.losses[-1] < found.losses[0]
    both = {"one": variants["level"], "other": variants["level"]}
    with pytest.raises(InputError, match="one and other both change 'a_hot'"):
        soft_choice(both, train, validation)
    with pytest.raises(InputError, match="same changes no features"):
        soft_choice({"same": [variants["level"][0], variants["level"][0]]}, train, validation)


def test_what_no_param_tells_of_alternatives_is_refused(rows: tuple[DataFrame, DataFrame]) -> None:
    """The square of what an alternative writes, by a stage that names no columns: the first alternative's stood for all."""
    square = SQLTransformer(statement="SELECT *, x_bin * x_bin AS square FROM __THIS__")
    last = [square, VectorAssembler(inputCols=["x_bin", "square", "x1"], outputCol="features"), LogisticRegression()]
    ways = [
        Bucketizer(inputCol="x0", outputCol="x_bin", splits=[-math.inf, *splits, math.inf])
        for splits in ([0.0], [-1.0, 0.0, 1.0])
    ]
    with pytest.raises(
        InputError, match="way also affects 'square', through a stage whose Params do not name the columns"
    ):
        soft_choice({"way": [Pipeline(stages=[way, *last]) for way in ways]}, *rows)


def test_each_alternative_reads_the_columns_as_they_were(rows: tuple[DataFrame, DataFrame]) -> None:
    """Both fill the same gaps, in the same column."""
    gaps = [part.withColumn("gap", F.when(F.col("x1") > 0, F.col("count"))).cache() for part in rows]

    def gates(column: str) -> list[float]:
        last = [VectorAssembler(inputCols=[column, "x0"], outputCol="features"), LinearRegression(labelCol="count")]
        ways = [Imputer(inputCol="gap", outputCol=column, strategy=s) for s in ("mean", "median")]
        pipelines = [Pipeline(stages=[way, *last]) for way in ways]
        return soft_choice({"way": pipelines}, *gaps, singles=[0.01, 0.1], steps=3).gates[0].tolist()

    assert gates("gap") == pytest.approx(gates("filled"))


@pytest.mark.nightly
def test_a_search_by_slope(spark: SparkSession, tmp_path: Path) -> None:
    """Without trials: a scaler is chosen, each column gets a penalty, fresh rows decide, and Spark has fitted what ships."""
    index, hot, *_ = before()
    scalers = [cls(inputCol="numbers", outputCol="scaled") for cls in (StandardScaler, RobustScaler)]
    numbers = VectorAssembler(inputCols=["x0", "x1", "x2"], outputCol="numbers")
    assembler = VectorAssembler(inputCols=["a_hot", "b_hot", "scaled"], outputCol="features")
    last = LogisticRegression(regParam=1.0)
    pipeline = Pipeline(stages=[index, hot, numbers, alternatives(*scalers, None), assembler, last])
    judge = MulticlassClassificationEvaluator(metricName="logLoss")
    search = Search(
        pipeline,
        space={last.regParam: loguniform(1e-3, 0.1)},
        evaluator=judge,
        method="hypergradient",
        seed=2,
    )
    rows = table(spark, tmp_path, 1600)
    found = search.fit(rows)
    assert {type(stage).__module__.partition(".")[0] for stage in found.bestModel.stages} == {"pyspark"}
    summary = found.summary
    assert (summary.decision, summary.trials, summary.sampler) == ("winner", 1, "hypergradient"), summary.reason
    penalties = {name.rpartition(" of ")[2]: v for name, v in summary.settings.items() if "regParam" in name}
    assert [*penalties] == ["a_hot", "b_hot", "x0", "x1", "x2"]
    assert summary.settings["stage of scaled"] in ("StandardScaler", "RobustScaler", "None")
    for space, options, says in (
        ({last.maxIter: integer(5, 9)}, {}, "can't find LogisticRegression.maxIter"),
        ({last.regParam: [0.0, 1.0]}, {}, "penalties larger than 0"),
        ({last.regParam: [0.1]}, {"runDir": "/tmp/x"}, "runDir='/tmp/x' has no meaning"),
        ({last.regParam: [0.1], last.elasticNetParam: [0.5]}, {}, "can't find LogisticRegression.elasticNetParam"),
    ):
        with pytest.raises(InputError, match=says):
            Search(pipeline, space=space, evaluator=judge, method="hypergradient", **options).fit(rows)


def test_a_penalty_that_is_not_tuned_stays_as_it_is(spark: SparkSession, tmp_path: Path) -> None:
    """Levels that are worth their errors where they are penalised, and not behind this last stage, which has no penalty."""
    draw, levels = np.random.default_rng(0), 60
    effects, level = draw.normal(size=levels), np.concatenate([np.arange(levels), draw.integers(0, levels, 1540)])
    x = draw.normal(size=len(level))
    label = 0.3 * x + effects[level] + 2 * draw.normal(size=len(level))
    columns = {"k": level.astype(float), "x": x, "label": label, "train": np.arange(len(x)) < 130}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet")
    data = spark.read.parquet(f"file://{tmp_path}/rows.parquet")
    rows: Any = SimpleNamespace(part=lambda split: data.where("train" if split == "train" else "NOT train"))
    ways = [
        OneHotEncoder(inputCols=["k"], outputCols=["f"]),
        Bucketizer(inputCol="k", outputCol="f", splits=[-1.0, 99.0, 100.0]),
    ]
    last = LinearRegression()
    pipeline = Pipeline(stages=[alternatives(*ways), VectorAssembler(inputCols=["f", "x"], outputCol="features"), last])
    trial, model = by_slope(SearchSpace.of(pipeline, {}), rows, [RegressionEvaluator()])
    assert trial.configuration == {"stage of f": "Bucketizer"}
    other = Pipeline(stages=[ways[0], *pipeline.getStages()[1:]]).fit(rows.part("train"))
    errors = [RegressionEvaluator().evaluate(m.transform(rows.part("validation"))) for m in (model, other)]
    assert errors[0] < 0.9 * errors[1]


def refused(rows: tuple[DataFrame, DataFrame], *stages: Any, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        group_penalties(Pipeline(stages=[*stages]), *rows, **options)
    return str(raised.value)


def test_what_cannot_be_done_is_named(rows: tuple[DataFrame, DataFrame]) -> None:
    assembler = VectorAssembler(inputCols=["x0", "x1"], outputCol="features")
    assert "but it is GBTClassifier" in refused(rows, assembler, GBTClassifier())
    last = LogisticRegression(elasticNetParam=0.5)
    assert f"elasticNetParam of {last.uid} is 0.5" in refused(rows, assembler, last)
    assert "take LinearRegression" in refused(rows, assembler, GeneralizedLinearRegression())
    assert "loss='huber'" in refused(rows, assembler, LinearRegression(loss="huber"))
    last = LogisticRegression()
    assert "'b_hott'" in refused(rows, assembler, last, groups={"b": ["b_hott"]})
    assert "from 0 to 1" in refused(rows, assembler, last, groups={"b": [2]})
    assert "both have 0" in refused(rows, assembler, last, groups={"a": ["x0"], "b": [0]})
    assert "'x1' is a column" in refused(rows, assembler, last, groups={"x1": ["x0"]})
    assert "the same text" in refused(rows, assembler, last, groups={1: [0], "1": [1]})
    three = LogisticRegression(labelCol="a_level", family="binomial")
    levels = StringIndexer(inputCol="a", outputCol="a_level")
    assert "binomial" in refused(rows, levels, assembler, three)
    assert "'columns' or a dict" in refused(rows, assembler, last, groups="slots")
    assert "larger than 0" in refused(rows, assembler, last, singles=[0.0])
