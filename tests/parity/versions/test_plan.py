"""Roles, cut and reasons of `plan` on pipelines of every shape; the columns have versions, and no Spark job runs."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel, UnaryTransformer
from pyspark.ml.classification import LinearSVC, LogisticRegression
from pyspark.ml.feature import Imputer, SQLTransformer, StandardScaler, VectorAssembler
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import DataType

import sparkdiff
from sparkdiff import InputError, Plan, plan
from tests.support.readable_uids import named

Stage = Callable[..., Any]


@pytest.fixture
def stage(fitted: dict[str, Any]) -> Stage:
    """A copy of a fitted stage with other Params; its name is its uid."""
    return lambda name, **params: fitted[name].copy({fitted[name].getParam(p): v for p, v in params.items()})


def assembler(uid: str, inputCols: list[str], outputCol: str = "all") -> VectorAssembler:
    return named(uid, VectorAssembler, inputCols=inputCols, outputCol=outputCol)


class Unit(UnaryTransformer):
    """A stage of somebody's own, in Python."""

    def createTransformFunc(self) -> Any:
        raise NotImplementedError  # a plan runs nothing

    def outputDataType(self) -> DataType:
        raise NotImplementedError

    def validateInputType(self, inputType: DataType) -> None:
        raise NotImplementedError


def normalizer(source: str, to: str) -> Unit:
    """A stage without a torch form."""
    stage = named("normalizer", Unit)
    return stage.copy({stage.inputCol: source, stage.outputCol: to})


def sql(statement: str) -> SQLTransformer:
    return named("sql", SQLTransformer, statement=statement)


def of(found: Plan, uid: str) -> Any:
    (only,) = (s for s in found.stages if s.uid == uid)
    return only


def trained(found: Plan) -> list[str]:
    return [s.uid for s in found.stages if s.trainable]


def cached(found: Plan) -> list[str]:
    return [s.uid for s in found.stages if s.cached]


def lines(found: Plan) -> set[tuple[str, str, str, bool]]:
    """The edges, with uids in place of positions."""
    uids = [*(s.uid for s in found.stages), "data"]
    return {(e.column, uids[e.source], uids[e.target], e.gradients) for e in found.edges}


def test_a_chain(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("indexer"),
                stage("encoder", inputCols=["kindIndex"]),
                stage("assembler", inputCols=["hot", "a", "b"]),
                stage("scaler"),
                stage("pca", inputCol="scaled"),
                stage("glr", featuresCol="components"),
            ]
        )
    )
    assert [s.role for s in found.stages] == ["referenced", *["translated"] * 5]
    assert trained(found) == ["scaler", "pca", "glr"]
    assert cached(found) == ["indexer"]
    assert found.cacheCols == ("kindIndex", "a", "b")
    assert [s.numParameters for s in found.stages] == [0, 0, 0, 6, 6, 4]
    assert [s.path for s in found.stages] == [(i,) for i in range(6)]
    assert of(found, "indexer").reason == "its input is strings, which torch cannot hold"
    assert of(found, "encoder").reason == "nothing to train"
    assert of(found, "pca").reason == "a differentiable path leads to the loss"
    assert of(found, "glr").reason == "the loss"
    assert (of(found, "scaler").inputCols, of(found, "scaler").outputCols) == (("vector",), ("scaled",))
    assert of(found, "scaler").stageClass == "StandardScalerModel"
    assert lines(found) == {
        ("kind", "data", "indexer", False),
        ("kindIndex", "indexer", "encoder", False),
        ("hot", "encoder", "assembler", False),
        ("a", "data", "assembler", False),
        ("b", "data", "assembler", False),
        ("vector", "assembler", "scaler", False),
        ("scaled", "scaler", "pca", True),
        ("components", "pca", "glr", True),
    }
    assert found.head == 5
    assert repr(found) == "<Plan: trains 16 parameters in 3 of 6 stages>"
    assert found.draw()._repr_svg_().count('class="gradient"') == 3  # two columns, and the legend


def test_what_has_nothing_to_train_and_grows_nothing_is_cached(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [stage("assembler"), stage("scaler", withMean=False, withStd=False), stage("linear", featuresCol="scaled")]
        )
    )
    assert (trained(found), cached(found), found.cacheCols) == (["linear"], ["assembler", "scaler"], ("scaled",))


def test_a_stage_that_stays_in_spark_cuts_off_what_feeds_it(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                normalizer("scaled", "unit"),
                stage("minmax", inputCol="unit"),
                stage("linear", featuresCol="squeezed"),
            ]
        )
    )
    assert of(found, "scaler").role == "translated"
    assert of(found, "scaler").reason.startswith("feeds normalizer, which stays in Spark: ")
    assert (trained(found), found.cacheCols) == (["minmax", "linear"], ("unit",))
    assert cached(found) == ["assembler", "scaler", "normalizer"]


def test_branches_that_join_again(stage: Stage) -> None:
    model = PipelineModel(
        [
            stage("assembler"),
            stage("scaler"),
            stage("minmax"),
            assembler("joined", ["scaled", "squeezed", "c"]),
            stage("linear", featuresCol="all"),
        ]
    )
    found = plan(model)
    assert trained(found) == ["scaler", "minmax", "linear"]
    assert found.cacheCols == ("vector", "c")
    assert {line[:3] for line in lines(found) if line[3]} == {
        ("scaled", "scaler", "joined"),
        ("squeezed", "minmax", "joined"),
        ("all", "joined", "linear"),
    }
    only = plan(model, freeze=["minmax", "scaler"])
    assert not [line for line in lines(only) if line[3]]  # nothing trains there


def test_a_scaler_that_feeds_both_sides_must_not_move(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                normalizer("scaled", "unit"),
                stage("minmax", inputCol="scaled"),
                assembler("joined", ["scaled", "unit", "squeezed"]),
                stage("linear", featuresCol="all"),
            ]
        )
    )
    assert trained(found) == ["minmax", "linear"]
    assert of(found, "scaler").reason.startswith("feeds normalizer, which stays in Spark: ")
    assert set(found.cacheCols) == {"scaled", "unit"}


def test_a_dead_branch_neither_trains_nor_counts(stage: Stage) -> None:
    found = plan(
        PipelineModel([stage("assembler"), stage("scaler"), stage("pca"), stage("linear", featuresCol="scaled")])
    )
    assert trained(found) == ["scaler", "linear"]
    assert of(found, "pca").reason == "no differentiable path to the loss"
    assert not of(found, "pca").cached


def test_columns_have_versions(fitted: dict[str, Any], stage: Stage, df: DataFrame) -> None:
    """`a` is assembled, then overwritten by an Imputer, then assembled again."""
    imputer = named("imputer", Imputer, inputCols=["a"], outputCols=["a"]).fit(df)
    model = PipelineModel(
        [
            assembler("early", ["a", "b"], "raw"),
            imputer,
            assembler("late", ["a", "b", "c"], "vector"),
            stage("scaler"),
            assembler("joined", ["raw", "scaled"]),
            stage("linear", featuresCol="all"),
        ]
    )
    whole = plan(model)
    assert trained(whole) == ["imputer", "scaler", "linear"]
    assert whole.cacheCols == ("a", "b", "c", "raw")
    assert {("a", "data", "early", False), ("a", "imputer", "late", True)} <= lines(whole)
    found = plan(model, reference=["imputer"])
    assert of(found, "early").role == "referenced"
    assert of(found, "early").reason == "reads 'a' before imputer, which stays in Spark, rewrites it"
    assert trained(found) == ["scaler", "linear"]
    assert of(found, "late").role == "translated"
    assert found.cacheCols == ("vector", "raw")


def test_overwriting_in_another_case_makes_a_new_version(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler", outputCol="VECTOR"),
                stage("minmax"),
                stage("linear", featuresCol="Squeezed"),
            ]
        )
    )
    assert trained(found) == ["scaler", "minmax", "linear"]  # minmax reads what the scaler wrote
    assert found.cacheCols == ("vector",)


@pytest.mark.parametrize(
    "statement", ["SELECT *, a + 1 AS a1 FROM __THIS__", "SELECT scaled, count FROM __THIS__ WHERE a > 0"]
)
def test_sql_in_the_middle_cuts_off_everything_before(stage: Stage, statement: str) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                sql(statement),
                stage("minmax", inputCol="scaled"),
                stage("linear", featuresCol="squeezed"),
            ]
        )
    )
    assert of(found, "sql").role == "referenced"
    assert of(found, "scaler").role == "referenced"
    assert of(found, "scaler").reason == "reads 'vector' before sql, which stays in Spark and may rewrite it"
    assert (trained(found), found.cacheCols) == (["minmax", "linear"], ("scaled",))
    assert cached(found) == ["assembler", "scaler", "sql"]


def test_sql_at_the_end_stops_nothing(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                stage("linear", featuresCol="scaled"),
                sql("SELECT prediction FROM __THIS__"),
            ]
        )
    )
    assert trained(found) == ["scaler", "linear"]
    assert (of(found, "sql").role, of(found, "sql").cached) == ("referenced", False)
    assert found.cacheCols == ("vector",)


def test_sql_at_the_beginning(stage: Stage) -> None:
    found = plan(
        PipelineModel([sql("SELECT *, 1.0 AS d FROM __THIS__ WHERE a > 0"), stage("assembler"), stage("linear")])
    )
    assert (trained(found), found.cacheCols) == (["linear"], ("vector",))
    assert cached(found) == ["sql", "assembler"]


def test_skipping_rows_is_sparks_work(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [stage("assembler", handleInvalid="skip"), stage("scaler"), stage("linear", featuresCol="scaled")]
        )
    )
    assert of(found, "assembler").role == "referenced"
    assert (
        of(found, "assembler").reason
        == "handleInvalid='skip' drops rows, and a torch module cannot drop rows; use 'error' or 'keep'"
    )
    assert (trained(found), found.cacheCols) == (["scaler", "linear"], ("vector",))


def test_of_two_predictors_the_last_is_the_head(stage: Stage) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                stage("minmax"),
                stage("logistic", featuresCol="scaled"),
                assembler("joined", ["scaled", "squeezed"]),
                stage("linear", featuresCol="all", predictionCol="other"),
            ]
        )
    )
    assert trained(found) == ["minmax", "linear"]
    assert of(found, "scaler").reason == (
        "also feeds the predictor logistic, outside the loss: rawPrediction, probability, prediction would change; "
        "trains on request (target, unfreeze): std, mean"
    )
    assert of(found, "logistic").reason == "no differentiable path to the loss"
    assert of(found, "linear").reason == "the loss"


def test_a_predictor_without_a_torch_form_is_seen_too(stage: Stage, df: DataFrame) -> None:
    svc = named("svc", LinearSVC, featuresCol="vector", maxIter=1).fit(stage("assembler").transform(df))
    svc = svc.copy({svc.featuresCol: "scaled", svc.predictionCol: "side"})
    found = plan(PipelineModel([stage("assembler"), stage("scaler"), svc, stage("linear", featuresCol="scaled")]))
    assert of(found, "scaler").reason.startswith("also feeds the predictor svc, outside the loss: ")
    assert trained(found) == ["linear"]


@pytest.mark.parametrize(("column", "path"), [("probability", True), ("rawPrediction", True), ("below", False)])
def test_stacking(stage: Stage, column: str, path: bool) -> None:
    found = plan(
        PipelineModel(
            [
                stage("assembler"),
                stage("scaler"),
                stage("logistic", featuresCol="scaled", predictionCol="below"),
                assembler("joined", ["vector", column]),
                stage("linear", featuresCol="all"),
            ]
        )
    )
    assert trained(found) == (["scaler", "logistic", "linear"] if path else ["linear"])
    if not path:  # a class has no gradient
        assert of(found, "logistic").reason == of(found, "scaler").reason == "no differentiable path to the loss"


def test_without_a_predictor(stage: Stage) -> None:
    found = plan(PipelineModel([stage("assembler"), stage("scaler")]))
    assert (trained(found), cached(found), found.cacheCols) == ([], [], ())
    assert of(found, "scaler").reason == "no predictor that a loss could train"


def test_a_single_stage_and_nested_pipelines(stage: Stage) -> None:
    assert plan(stage("linear")).stages[0].path == ()
    assert plan(stage("linear")).cacheCols == ("vector",)
    inner = PipelineModel([stage("assembler"), PipelineModel([stage("scaler")])])
    found = plan(PipelineModel([inner, PipelineModel([]), stage("linear", featuresCol="scaled")]))
    assert [s.path for s in found.stages] == [(0, 0), (0, 1, 0), (2,)]
    assert trained(found) == ["scaler", "linear"]


# The user's wishes ------------------------------------------------------------------------------------------------------


@pytest.fixture
def chain(stage: Stage) -> PipelineModel:
    return PipelineModel(
        [
            stage("assembler"),
            stage("scaler"),
            stage("pca", inputCol="scaled"),
            stage("linear", featuresCol="components"),
        ]
    )


WAYS = {
    "uid": lambda s: "pca",
    "class": lambda s: "PCAModel",
    "output column": lambda s: "Components",
    "stage": lambda s: s,
    "one stage": lambda s: s,
}


@pytest.mark.parametrize("way", WAYS)
def test_freeze_keeps_the_cut(chain: PipelineModel, way: str) -> None:
    wish = WAYS[way](chain.stages[2])
    found = plan(chain, freeze=wish if way == "one stage" else [wish])
    assert trained(found) == ["scaler", "linear"]
    assert of(found, "pca").reason == "frozen on request"
    assert found.cacheCols == plan(chain).cacheCols == ("vector",)
    assert cached(found) == cached(plan(chain))


@pytest.mark.parametrize("way", WAYS)
def test_reference(chain: PipelineModel, way: str) -> None:
    wish = WAYS[way](chain.stages[2])
    found = plan(chain, reference=wish if way == "one stage" else [wish])
    assert (of(found, "pca").role, of(found, "pca").reason) == ("referenced", "left in Spark on request")
    assert of(found, "scaler").reason == "feeds pca, which stays in Spark: left in Spark on request"
    assert (trained(found), found.cacheCols) == (["linear"], ("components",))


@pytest.mark.parametrize("way", WAYS)
def test_target(chain: PipelineModel, way: str) -> None:
    wish = WAYS[way](chain.stages[2])
    found = plan(chain, target=wish if way == "one stage" else [wish])
    assert trained(found) == ["pca"]
    assert of(found, "linear").reason == "not in target"
    assert found.cacheCols == plan(chain).cacheCols


def test_targets_less_frozen(chain: PipelineModel) -> None:
    assert trained(plan(chain, target=["pca", "linear"], freeze=["linear"])) == ["pca"]


@pytest.mark.parametrize("option", ["freeze", "reference", "target"])
def test_unknown_names(chain: PipelineModel, option: str) -> None:
    with pytest.raises(
        InputError, match=rf"{option}='PCAModle' is no uid, class or output column of a stage\. Did you mean 'PCAModel'"
    ):
        plan(chain, **{option: ["PCAModle"]})


def test_a_target_that_cannot_train(stage: Stage) -> None:
    model = PipelineModel(
        [stage("assembler"), stage("scaler"), normalizer("scaled", "unit"), stage("linear", featuresCol="unit")]
    )
    with pytest.raises(InputError, match="target='scaler' can't train: feeds normalizer"):
        plan(model, target=["scaler"])
    with pytest.raises(InputError, match="target='assembler' can't train: nothing to train"):
        plan(model, target="assembler")


def test_unfitted_ones_are_refused_by_name(stage: Stage) -> None:
    scaler, pipeline = StandardScaler(inputCol="a", outputCol="b"), Pipeline(stages=[LogisticRegression()])
    for function in (plan, sparkdiff.translate):
        with pytest.raises(InputError, match=rf"Pipeline {pipeline.uid} isn't fitted: call fit.. first"):
            function(pipeline)
        with pytest.raises(InputError, match=rf"StandardScaler {scaler.uid} isn't fitted"):
            function(PipelineModel([stage("assembler"), scaler]))
        with pytest.raises(InputError, match="expected a fitted PipelineModel or stage, got str"):
            function("models/churn")


def test_the_schema_is_held_against_the_pipeline(chain: PipelineModel, df: DataFrame) -> None:
    assert trained(plan(chain, schema=df.schema)) == ["scaler", "pca", "linear"]
    assert trained(plan(chain, schema=df.withColumnRenamed("b", "B").schema)) == ["scaler", "pca", "linear"]
    with pytest.raises(InputError, match="assembler reads column 'b', which is not in the data"):
        plan(chain, schema=df.drop("b").schema)
    renamed = df.withColumnRenamed("vector", "v").drop("a").withColumnRenamed("weight", "aa").schema
    with pytest.raises(InputError, match=r"'a', which is not in the data\. Did you mean 'aa'"):
        plan(chain, schema=renamed)


# Showing ----------------------------------------------------------------------------------------------------------------


def test_the_plan_as_text_table_and_json(chain: PipelineModel) -> None:
    found = plan(chain, freeze="pca")
    text = str(found).splitlines()
    assert len(text) == 6
    assert [line.split()[1] for line in text[1:5]] == [
        "VectorAssembler",
        "StandardScalerModel",
        "PCAModel",
        "LinearRegressionModel",
    ]
    assert text[3].endswith("frozen on request")
    assert text[-1] == "trains 10 parameters in 2 of 4 stages; the cache holds vector"
    table = found.toPandas()
    assert table["uid"].tolist() == ["assembler", "scaler", "pca", "linear"]
    assert table["trainable"].tolist() == [False, True, False, True]
    loaded = json.loads(found.toJSON())
    assert loaded["cacheCols"] == ["vector"]
    assert loaded["stages"][1] == {
        "path": [1],
        "uid": "scaler",
        "stageClass": "StandardScalerModel",
        "role": "translated",
        "cached": False,
        "trainable": True,
        "numParameters": 6,
        "inputCols": ["vector"],
        "outputCols": ["scaled"],
        "reason": "a differentiable path leads to the loss",
    }


def test_requires_grad_is_where_the_plan_says_trainable(stage: Stage) -> None:
    model = PipelineModel(
        [
            stage("assembler"),
            stage("scaler", withMean=False),
            normalizer("scaled", "unit"),
            stage("minmax", inputCol="unit"),
            stage("logistic", featuresCol="squeezed", fitIntercept=False),
        ]
    )
    network, found = sparkdiff.translate(model), plan(model)
    for i, planned in enumerate(found.stages):
        grads = [p.requires_grad for p in network.module(i).parameters()] if i in network.positions else []
        assert any(grads) == planned.trainable, planned.uid
    assert not network.module(4).interceptVector.requires_grad


def test_no_job_runs(spark: SparkSession, chain: PipelineModel, df: DataFrame) -> None:
    context, tracker, group = spark.sparkContext, spark.sparkContext.statusTracker(), uuid.uuid4().hex
    try:
        context.setJobGroup(group, "no job runs")
        plan(chain, schema=df.schema, freeze="pca", reference="assembler")
        sparkdiff.write_back(chain, sparkdiff.translate(chain))
        assert tracker.getJobIdsForGroup(group) == []
        df.select("a").collect()
        assert len(tracker.getJobIdsForGroup(group)) == 1  # so jobs would have been seen
    finally:
        context.setLocalProperty("spark.jobGroup.id", None)


def test_plain_spark_stages_only(stage: Stage) -> None:
    found = plan(PipelineModel([normalizer("v", "u")]))
    assert (found.stages[0].role, found.cacheCols) == ("referenced", ())
    assert "trains 0 parameters in 0 of 1 stage; the cache holds nothing" in str(found)


def test_vector_assembler_alone(fitted: dict[str, Any]) -> None:
    assert isinstance(fitted["assembler"], VectorAssembler)
    assert plan(fitted["assembler"]).stages[0].reason == "nothing to train"
