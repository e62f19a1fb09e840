"""Stages of the user's own and SQL: what they change is read from the plan of their transform, for each way out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.param.shared import HasFeaturesCol, HasInputCol, HasOutputCol, HasPredictionCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import StructType

import sparkdiff
from sparkdiff import FineTuner, InputError, Plan, TorchTransformer, plan, verify
from tests.support.custom_stages import Squared
from tests.support.readable_uids import named


class Custom(Transformer, HasInputCol, HasOutputCol, DefaultParamsReadable, DefaultParamsWritable):  # type: ignore[type-arg]
    """A stage of the user's; the mixins give it a default outputCol, which it may ignore."""

    def out(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn(self.getOutputCol(), F.col(self.getInputCol()) * 2)


class Replaces(Custom):
    """Puts the scaled vector in the place of the raw one."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.drop("numbers").withColumnRenamed("scaled", "numbers")


class Clips(Custom):
    """Clips a column in place."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("x", F.least(F.col("x"), F.lit(0.1)))


class Doubles(Custom):
    """Does what it declares."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return self.out(dataset)


class DoublesAndClips(Clips):
    """Declares an output, and clips another column as well."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return super()._transform(self.out(dataset))


class DoublesByUnion(Custom):
    """Does what it declares in a plan that does not show it."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        out = self.out(dataset)
        return out.unionAll(out.limit(0))


class DropsByRdd(Custom):
    """Leaves rows out in code that no plan shows."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        kept = dataset.rdd.filter(lambda row: row.x > 0)
        return dataset.sparkSession.createDataFrame(kept, dataset.schema)


class Selects(Custom):
    """Names the columns that it keeps, and leaves rows out."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.select("numbers", "label", (F.col("y") * 2).alias("z")).where(F.col("z") < 1e9)


class Overrides(Squared):
    """A UnaryTransformer that changes a column besides its own."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return super()._transform(dataset).withColumn("x", F.lit(0.0))


class InPlace(Squared):
    """A UnaryTransformer that writes the column that it reads."""

    def getOutputCol(self) -> str:
        return self.getInputCol()

    def transformSchema(self, schema: StructType) -> StructType:
        return schema


class Mixed(Squared, HasFeaturesCol, HasPredictionCol):
    """A UnaryTransformer with mixins whose columns it neither reads nor writes."""


IN_OUT = {"inputCol": "y", "outputCol": "z"}


def scaled() -> list[Any]:
    return [
        VectorAssembler(inputCols=["x", "y"], outputCol="numbers"),
        StandardScaler(inputCol="numbers", outputCol="scaled", withMean=True),
    ]


def again() -> VectorAssembler:
    return VectorAssembler(inputCols=["x", "y"], outputCol="again")


def sql(statement: str) -> SQLTransformer:
    return named("own", SQLTransformer, statement=f"{statement} FROM __THIS__")


def own(kind: type[Any], **params: str) -> Any:
    return named("own", kind)._set(**params)


REWRITES: dict[str, Callable[[], tuple[list[Any], str]]] = {
    "replaces": lambda: ([*scaled(), own(Replaces)], "numbers"),
    "clips": lambda: ([*scaled(), own(Clips), again()], "again"),
    "declares one and changes two": lambda: ([*scaled(), own(DoublesAndClips, **IN_OUT), again()], "again"),
    "overrides": lambda: ([*scaled(), own(Overrides, **IN_OUT), again()], "again"),
    "in place": lambda: ([*scaled(), own(InPlace, inputCol="x"), again()], "again"),
    "drops rows": lambda: ([*scaled(), own(DropsByRdd)], "scaled"),
    "by a union": lambda: ([*scaled(), own(DoublesByUnion, **IN_OUT)], "scaled"),
    "selects": lambda: ([*scaled(), own(Selects)], "numbers"),
    "SQL": lambda: ([*scaled(), named("own", SQLTransformer, statement=SELECTED)], "numbers"),
}
SELECTED = "SELECT numbers, label, y * 2 AS z FROM __THIS__ WHERE x > 0"


@pytest.fixture(scope="module")
def rows(spark: SparkSession) -> DataFrame:
    made = spark.range(400, numPartitions=1).select(F.randn(1).alias("x"), (F.randn(2) * 3 - 2).alias("y"))
    label = (F.col("x") + 3 * F.col("y") + F.randn(3) > -5).cast("double")
    return made.withColumn("label", label).cache()


@pytest.fixture(scope="module", params=REWRITES)
def model(request: pytest.FixtureRequest, rows: DataFrame) -> PipelineModel:
    stages, features = REWRITES[request.param]()
    return Pipeline(stages=[*stages, LogisticRegression(featuresCol=features, maxIter=5)]).fit(rows)


def of(found: Plan, uid: str) -> Any:
    (only,) = (s for s in found.stages if s.uid.startswith(uid))
    return only


def test_torch_and_verify_have_sparks_outputs(model: PipelineModel, rows: DataFrame) -> None:
    found = verify(model, rows)
    assert found.ok, found
    expected = model.transform(rows)
    made = TorchTransformer(model, device="cpu").transform(rows)
    assert made.columns == expected.columns
    for one, other in zip(expected.select("probability").collect(), made.select("probability").collect(), strict=True):
        assert one.probability.toArray() == pytest.approx(other.probability.toArray(), abs=1e-9)


def test_onnx_names_it_among_the_stages_that_run_before(model: PipelineModel, rows: DataFrame, tmp_path: Path) -> None:
    changes_nothing = isinstance(model.stages[2], (Selects, SQLTransformer, DoublesByUnion))  # of what the file reads
    for i, schema in enumerate((rows, rows.schema, None)):
        described = sparkdiff.export(model, tmp_path / f"{i}.onnx", schema=schema)
        assert "own" in described.sparkStages or (schema is not None and changes_nothing)


def test_a_scorer_refuses_what_it_cannot_compute(model: PipelineModel, rows: DataFrame) -> None:
    for schema in (rows, rows.schema, None):
        with pytest.raises(InputError, match=r"own \(\w+\) cannot be computed without Spark"):
            sparkdiff.Scorer(model, schema=schema).predict({"x": 0.0, "y": 0.0})


def test_compact_keeps_its_outputs(model: PipelineModel, rows: DataFrame) -> None:
    expected = [r.prediction for r in model.transform(rows).select("prediction").collect()]
    small = sparkdiff.compact(model, keepCols=["prediction"], schema=rows.schema)
    assert [r.prediction for r in small.transform(rows).select("prediction").collect()] == expected


def test_a_pipeline_with_it_trains(model: PipelineModel, rows: DataFrame) -> None:
    tuned = FineTuner(pipeline=model, labelCol="label", maxEpochs=2, recipe="fast", verbosity=0, rowsAreNew=True).fit(
        rows
    )
    assert all(parity["ok"] for parity in tuned.summary.parity.values())
    kept = model.transform(rows).count()
    assert sum(tuned.summary.cache["rows"].values()) == kept


# What the plan knows ------------------------------------------------------------------------------------------------------


def planned(stage: Any, rows: DataFrame) -> tuple[PipelineModel, Plan]:
    behind = VectorAssembler(inputCols=["scaled", "z"], outputCol="both")
    model = Pipeline(stages=[*scaled(), stage, behind, LogisticRegression(featuresCol="both", maxIter=5)]).fit(rows)
    return model, plan(model, schema=rows)


@pytest.mark.parametrize(
    "stage",
    [
        lambda: own(Doubles, **IN_OUT),
        lambda: own(Squared, **IN_OUT),
        lambda: sql("SELECT *, y * 2 AS z"),
        lambda: sql("SELECT scaled, label, y * 2 AS z"),
    ],
    ids=["declares", "unary", "SQL", "SQL of named columns"],
)
def test_stages_in_front_of_an_honest_one_train(stage: Callable[[], Any], rows: DataFrame) -> None:
    model, found = planned(stage(), rows)
    if not of(found, "own").reason.endswith("drops columns"):  # it names what it passes on
        assert of(found, "StandardScaler").trainable, of(found, "StandardScaler").reason
        assert of(found, "own").inputCols == ("y",)
    assert of(found, "own").outputCols == ("z",)
    tuned = FineTuner(pipeline=model, labelCol="label", maxEpochs=2, recipe="fast", verbosity=0, rowsAreNew=True).fit(
        rows
    )
    assert all(parity["ok"] for parity in tuned.summary.parity.values())
    assert verify(tuned.pipelineModel, rows).ok
    assert sparkdiff.TorchTransformer(model, device="cpu").transform(rows).columns == model.transform(rows).columns


def test_defaults_of_mixins_declare_nothing(rows: DataFrame) -> None:
    head = LogisticRegression(featuresCol="numbers", maxIter=5)
    model = Pipeline(stages=[own(Mixed, **IN_OUT), *scaled()[:1], head]).fit(rows)
    behind = PipelineModel([*model.stages[1:], own(Mixed, **IN_OUT)])
    for one in (model, behind):
        for schema in (rows, rows.schema, None):
            assert of(plan(one, schema=schema), "own").inputCols == ("y",)
            assert of(plan(one, schema=schema), "own").outputCols == ("z",)
        assert verify(one, rows).ok
        assert sparkdiff.compact(one, schema=rows.schema).transform(rows).columns == one.transform(rows).columns
        found = sparkdiff.Scorer(one, schema=rows.schema, outputCols=["prediction"]).predict({"x": 1.0, "y": -2.0})
        assert found["prediction"] == 0.0


def test_the_plan_names_what_is_assumed(rows: DataFrame) -> None:
    model, found = planned(own(DoublesByUnion, **IN_OUT), rows)
    assumed = "it is assumed to change z only, which it declares, and may drop rows"
    assert assumed in of(found, "own").reason
    assert assumed in of(plan(model, schema=rows.schema), "own").reason
    assert "may read and change any column and drop rows" in of(plan(model), "own").reason
    _, unset = planned(own(DoublesByUnion, inputCol="y")._setDefault(outputCol="z"), rows)
    assert "may read and change any column and drop rows" in of(unset, "own").reason
    assert not of(unset, "StandardScaler").trainable


def test_the_plan_tells_what_sql_does(rows: DataFrame) -> None:
    chosen = named("own", SQLTransformer, statement="SELECT scaled, label, y * 2 AS z FROM __THIS__ WHERE x < 9")
    _, found = planned(chosen, rows)
    assert of(found, "own").reason == "its statement computes z and drops columns and may drop rows"
    assert of(found, "own").inputCols == ("x", "y", "label", "scaled")  # two it only passes on


def test_only_the_stage_that_drops_needed_columns_is_blamed(rows: DataFrame) -> None:
    every = named("every", SQLTransformer, statement="SELECT *, x * y AS xy FROM __THIS__")
    some = named("some", SQLTransformer, statement="SELECT DISTINCT numbers, label FROM __THIS__")
    assembler = VectorAssembler(inputCols=["x", "y", "xy"], outputCol="numbers")
    model = Pipeline(stages=[every, assembler, some, LogisticRegression(featuresCol="numbers", maxIter=5)]).fit(rows)
    with pytest.raises(InputError, match=r"^some drops columns that it does not name, which training needs"):
        FineTuner(pipeline=model, labelCol="label", verbosity=0).fit(rows)


@pytest.mark.parametrize(
    ("statement", "again"),
    [
        ("SELECT x, y, label, numbers FROM __THIS__", "z"),  # every column there is, by its name
        ("SELECT numbers, label FROM __THIS__", "x"),  # a later stage writes a dropped column anew
    ],
)
def test_sql_that_names_its_columns(statement: str, again: str, rows: DataFrame) -> None:
    front = VectorAssembler(inputCols=["x", "y"], outputCol="numbers")
    chosen, scaler = SQLTransformer(statement=statement), StandardScaler(inputCol="numbers", outputCol=again)
    model = Pipeline(stages=[front, chosen, scaler, LogisticRegression(featuresCol=again, maxIter=5)]).fit(rows)
    assert verify(model, rows).ok
    torch, expected = TorchTransformer(model, device="cpu").transform(rows), model.transform(rows)
    assert torch.columns == expected.columns
    assert torch.select("prediction").collect() == expected.select("prediction").collect()
    tuned = FineTuner(pipeline=model, labelCol="label", maxEpochs=1, verbosity=0).fit(rows)
    assert tuned.transform(rows).columns == expected.columns
