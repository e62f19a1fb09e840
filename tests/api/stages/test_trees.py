"""Trees fine-tuned through the public interface: any loss, what trains and what doesn't, trees in front and trees behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import (
    DecisionTreeClassifier,
    GBTClassifier,
    LogisticRegression,
    RandomForestClassifier,
)
from pyspark.ml.feature import PCA, FeatureHasher, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import DecisionTreeRegressor, GBTRegressor, LinearRegression, RandomForestRegressor
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import FineTunerModel, InputError, plan
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.jvm import defined_params, trees
from sparkdiff.jvm.nodes import Nodes
from sparkdiff.options import Options
from sparkdiff.tensors.rows import SparseRows
from tests.support.small_data import NUMBERS, half_deviance, predictions, sides, tune

pytestmark = pytest.mark.slow
FAST: dict[str, Any] = {"maxEpochs": 15, "learningRate": 0.02, "regAnchor": 1e-4, "patience": 15}
SEED = {"featuresCol": "x", "maxDepth": 3, "seed": 3}
HEADS: dict[str, Callable[[], Any]] = {
    "dtr": lambda: DecisionTreeRegressor(labelCol="riders", varianceCol="variance", **SEED),
    "rfr": lambda: RandomForestRegressor(labelCol="riders", numTrees=6, **SEED),
    "gbtr": lambda: GBTRegressor(labelCol="riders", maxIter=6, **SEED),
    "dtc": lambda: DecisionTreeClassifier(labelCol="kind", **SEED),
    "rfc": lambda: RandomForestClassifier(labelCol="kind", numTrees=6, **SEED),
    "gbtc": lambda: GBTClassifier(labelCol="rain", maxIter=6, **SEED),
}


def before() -> list[Any]:
    return [
        StringIndexer(inputCol="hour", outputCol="hour_index"),
        VectorAssembler(inputCols=["hour_index", *NUMBERS], outputCol="x"),
    ]


@pytest.fixture(scope="module")
def fitted(df: DataFrame) -> Callable[[str], PipelineModel]:
    """Indexer, assembler and trees, fitted long ago on a fifth of the rows, by the name in HEADS."""
    made: dict[str, PipelineModel] = {}

    def of(name: str) -> PipelineModel:
        if name not in made:
            made[name] = Pipeline(stages=[*before(), HEADS[name]()]).fit(df.where("number < 300"))
        return made[name]

    return of


def nodes(model: Any) -> Nodes:
    return trees.read(model.stages[-1])


def moved(model: Any, old: Any) -> set[str]:
    """The fields of the nodes of the last stage that differ."""
    new, was = vars(nodes(model)), vars(nodes(old))
    return {name for name in was if not np.array_equal(new[name], was[name])}


def plain(new: Any, old: Any) -> None:
    """The same pipeline but for what was learned."""
    assert [(type(a), a.uid, defined_params(a)) for a in new.stages] == [
        (type(a), a.uid, defined_params(a)) for a in old.stages
    ]
    assert all(type(s).__module__.startswith("pyspark.ml") for s in new.stages)
    if hasattr(old.stages[-1], "trees"):
        assert [(t.uid, defined_params(t)) for t in new.stages[-1].trees] == [
            (t.uid, defined_params(t)) for t in old.stages[-1].trees
        ]
    assert new.stages[-1].featureImportances == old.stages[-1].featureImportances


# Every class, and any loss ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tuned(df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path) -> Callable[[str], FineTunerModel]:
    """By its own loss; whatever training moved is to be seen."""
    made: dict[str, FineTunerModel] = {}

    def of(name: str) -> FineTunerModel:
        if name not in made:
            # Another Spark grows another forest from the same seed: small steps help any.
            rate = 0.002 if name in ("dtc", "rfc") else 0.02
            made[name] = tune(fitted(name), df, shared, guard=1.0, **FAST | {"learningRate": rate})
        return made[name]

    return of


@pytest.mark.nightly
@pytest.mark.parametrize("name", HEADS)
def test_every_class_trains_and_comes_back_plain(
    fitted: Callable[[str], PipelineModel], tuned: Callable[[str], FineTunerModel], name: str
) -> None:
    model = fitted(name)
    was = vars(nodes(model))
    stage = plan(model).stages[-1]
    assert stage.role == "translated" and stage.trainable
    found = tuned(name)
    new = found.pipelineModel
    assert found.summary.decision == "tuned"
    plain(new, model)
    learned = {"impurityStats"} if name in ("dtc", "rfc") else {"prediction"}
    assert learned <= moved(new, model) <= learned | {"prediction"}
    assert found.summary.parity["after"]["ok"]
    assert all(np.array_equal(v, was[k]) for k, v in vars(nodes(model)).items())


def test_boosted_trees_of_small_steps_improve(df: DataFrame, tuned: Callable[[str], FineTunerModel]) -> None:
    found = tuned("gbtr")
    assert found.summary.gain > 0.1 and found.summary.p < 0.025
    assert sparkdiff.verify(found.pipelineModel, df).ok


def test_a_quantile_of_trees_fitted_by_squares(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path
) -> None:
    model = fitted("gbtr")
    found = tune(model, df, shared, loss="quantile", lossParams={"tau": 0.9}, **FAST | {"maxEpochs": 60})
    assert found.summary.decision == "tuned"
    held = sides(df)["validation"]
    shares = [
        float((y <= p).mean()) for p, y in (predictions(m, held, "riders").T for m in (model, found.pipelineModel))
    ]
    assert shares[0] < 0.75 and 0.8 < shares[1] < 0.97
    p, y = predictions(found.pipelineModel, held, "riders").T
    pinball = np.maximum(0.9 * (y - p), -0.1 * (y - p)).mean()
    assert found.summary.metrics["validation"]["after"] == pytest.approx(pinball, rel=1e-12)


def test_a_deviance_of_trees_fitted_by_squares(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path
) -> None:
    found = tune(fitted("gbtr"), df, shared, loss="poisson", **FAST)
    assert found.summary.decision == "tuned"
    p, y = predictions(found.pipelineModel, sides(df)["validation"], "riders").T
    assert (p > 0).all()
    assert found.summary.metrics["validation"]["after"] == pytest.approx(half_deviance(y, p).mean(), rel=1e-12)


COSTS = [[0.0, 1.0, 1.0], [8.0, 0.0, 1.0], [1.0, 8.0, 0.0]]


def test_costs_of_a_forest(df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path) -> None:
    model = fitted("rfc")
    found = tune(model, df, shared, loss="cost", lossParams={"costs": COSTS}, **FAST)
    assert found.summary.decision == "tuned"

    def cost(m: Any) -> float:
        shown = predictions(m, sides(df)["validation"], "kind").astype(int)
        return float(np.array(COSTS)[shown[:, 1], shown[:, 0]].mean())

    assert cost(found.pipelineModel) < cost(model)


def test_hinge_and_log_loss_of_boosted_classes(
    df: DataFrame, fitted: Callable[[str], PipelineModel], tuned: Callable[[str], FineTunerModel], shared: Path
) -> None:
    for loss in ("hinge", "focal"):
        assert tune(fitted("gbtc"), df, shared, loss=loss, **FAST).summary.decision == "tuned"
    found = tuned("gbtc")
    rows = found.pipelineModel.transform(sides(df)["validation"]).select("probability", "rain").toPandas()
    p = np.stack([v.toArray() for v in rows["probability"]])[np.arange(len(rows)), rows["rain"].astype(int)]
    assert found.summary.metric == "logLoss"
    assert found.summary.metrics["validation"]["after"] == pytest.approx(-np.log(p).mean(), rel=1e-10)


# What trains -----------------------------------------------------------------------------------------------------------


def test_thresholds_and_weights_train_on_request(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path
) -> None:
    model = fitted("gbtr")
    uid = model.stages[-1].uid
    given = [f"{uid}.thresholds", "GBTRegressionModel.treeWeights"]
    found = tune(model, df, shared, guard=1.0, unfreeze=given, **FAST)
    new = found.pipelineModel
    assert found.summary.decision == "tuned"
    assert {"values", "prediction"} <= moved(new, model)
    assert new.stages[-1].treeWeights != model.stages[-1].treeWeights
    plain(new, model)
    assert found.summary.parity["after"]["ok"]
    # every threshold that moved lies in the middle between two values that training rows have
    was, now = nodes(model), nodes(new)
    train = sides(df)["train"]
    x = np.stack([v.toArray() for v in model.transform(train).select("x").toPandas()["x"]])
    at = np.flatnonzero(now.continuous)
    checked = 0
    for j in at:
        old, t = was.values[was.starts[j]], now.values[now.starts[j]]
        if old != t:
            points = np.unique(x[:, now.featureIndex[j]])
            assert t in (points[1:] + points[:-1]) / 2
            checked += 1
    assert checked > 3


def test_the_leaves_can_be_frozen(fitted: Callable[[str], PipelineModel]) -> None:
    with pytest.raises(InputError, match="nothing to train"):
        prepare(fitted("gbtr"), Options.of({"freeze": ["GBTRegressionModel"]}))


@pytest.mark.parametrize(
    ("unfreeze", "said"),
    [
        (
            "GBTRegressionModel.threshold",
            r"of .* are: GBTRegressionModel\.thresholds, GBTRegressionModel\.treeWeights",
        ),
        (
            "GBTRegressionModel.leaves",
            r"unfreeze='GBTRegressionModel\.leaves' must name a parameter that trains on request",
        ),
        ("thresholds", r"without its stage. Did you mean 'GBTRegressionModel\.thresholds'\?"),
        ("StringIndexerModel.labels", "are: none"),
        ("GBTRegresionModel.thresholds", "Did you mean 'GBTRegressionModel'"),
    ],
)
def test_wrong_names_of_parameters(fitted: Callable[[str], PipelineModel], unfreeze: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        prepare(fitted("gbtr"), Options.of({"unfreeze": [unfreeze]}))


def test_labels_that_are_no_classes(df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path) -> None:
    with pytest.raises(InputError, match=r"label column 'kind' holds 2\.0"):
        tune(fitted("gbtc"), df, shared, labelCol="kind")


def test_a_wish_for_monotone_trees_is_refused(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path
) -> None:
    with pytest.raises(InputError, match="is not linear in the inputs, so there is no single slope"):
        tune(fitted("gbtr"), df, shared, penalties={"monotone": {"wind": 1.0}})


def test_groups_that_are_treated_alike(
    df: DataFrame, fitted: Callable[[str], PipelineModel], tuned: Callable[[str], FineTunerModel], shared: Path
) -> None:
    def gap(m: Any) -> float:
        shown = m.transform(df).select("prediction", "hour").toPandas()
        return float(shown.groupby("hour")["prediction"].mean().var() / shown["prediction"].var())

    given = FAST | {"guard": 1.0, "guardCols": ["hour"]}
    wish = {"parityGap": {"hour": 1.0}}  # a larger one finds no epoch that is better for the metric
    found = tune(fitted("gbtr"), df, shared, penalties=wish, **given)
    assert gap(tuned("gbtr").pipelineModel) > 1.5 * gap(found.pipelineModel)


# Trees behind and in front of other stages -------------------------------------------------------------------------------


def test_a_gradient_reaches_what_stands_in_front(df: DataFrame, shared: Path) -> None:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="raw"),
        StandardScaler(inputCol="raw", outputCol="s", withMean=True),
        PCA(inputCol="s", outputCol="x", k=2),
        GBTRegressor(labelCol="riders", maxIter=6, **SEED),
    ]
    model = Pipeline(stages=stages).fit(df)
    shown = {s.stageClass: s.trainable for s in plan(model).stages}
    assert shown == {
        "VectorAssembler": False,
        "StandardScalerModel": True,
        "PCAModel": True,
        "GBTRegressionModel": True,
    }
    found = tune(model, df, shared, guard=1.0, **FAST)
    new = found.pipelineModel
    assert found.summary.decision == "tuned"
    assert not np.array_equal(new.stages[2].pc.toArray(), model.stages[2].pc.toArray())
    assert moved(new, model) == {"prediction"}
    assert found.summary.parity["after"]["ok"]
    alone = tune(model, df, shared, guard=1.0, target=["PCAModel"], **FAST)
    assert moved(alone.pipelineModel, model) == set()
    assert alone.summary.metrics["train"]["after"] < alone.summary.metrics["train"]["before"]


def test_leaves_train_through_a_linear_stage(df: DataFrame, shared: Path) -> None:
    stages = [
        *before(),
        GBTRegressor(labelCol="riders", predictionCol="trees", maxIter=6, **SEED),
        VectorAssembler(inputCols=["trees", "wind"], outputCol="all"),
        LinearRegression(featuresCol="all", labelCol="riders"),
    ]
    model = Pipeline(stages=stages).fit(df)
    found = tune(model, df, shared, guard=1.0, predictionCol="prediction", **FAST)
    new = found.pipelineModel
    assert found.summary.decision == "tuned"
    assert not np.array_equal(trees.read(new.stages[2]).prediction, trees.read(model.stages[2]).prediction)
    assert new.stages[4].coefficients != model.stages[4].coefficients
    assert found.summary.parity["after"]["ok"]
    held = found.summary.metrics["validation"]
    assert held["after"] < held["before"]


def test_numbers_of_leaves_have_no_gradient(df: DataFrame, shared: Path) -> None:
    stages = [
        *before(),
        GBTClassifier(labelCol="rain", maxIter=3, leafCol="leaf", **SEED | {"featuresCol": "x"})
        .setPredictionCol("own")
        .setRawPredictionCol("ownRaw")
        .setProbabilityCol("ownP"),
        VectorAssembler(inputCols=["leaf", "wind"], outputCol="all"),
        LogisticRegression(featuresCol="all", labelCol="rain", regParam=0.3),
    ]
    model = Pipeline(stages=stages).fit(df)
    shown = {s.stageClass: s for s in plan(model).stages}
    found = tune(model, df, shared, guard=1.0, predictionCol="prediction", **FAST)
    assert not shown["GBTClassificationModel"].trainable
    assert found.summary.decision == "tuned"
    assert found.pipelineModel.stages[2] is model.stages[2]
    assert found.pipelineModel.stages[4].coefficients != model.stages[4].coefficients


def test_wide_sparse_features_stay_sparse(df: DataFrame, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    columns = ["hour", *NUMBERS]
    hashed = FeatureHasher(inputCols=columns, outputCol="x", numFeatures=1 << 18)
    narrow = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), HEADS["rfc"]()]).fit(df)
    row = df.limit(1)
    slots = [
        int(hashed.copy({hashed.inputCols: [c]}).transform(row).first()["x"].indices[0]) for c in NUMBERS
    ]  # Spark would need many gigabytes to fit trees on so many
    old = nodes(narrow)
    wide = old.replace(featureIndex=np.where(old.leaf, -1, np.array(slots)[old.featureIndex]).astype(np.int32))
    model = PipelineModel([hashed, trees.model_with_nodes(HEADS["rfc"](), wide, 1 << 18, numClasses=3)])

    to_dense = SparseRows.to_dense

    def of_few(self: SparseRows) -> Any:
        assert self.width <= len(NUMBERS), f"{self.width} columns made dense"
        return to_dense(self)

    monkeypatch.setattr(SparseRows, "to_dense", of_few)
    assert sparkdiff.verify(model, df).ok
    found = tune(model, df, shared, guard=1.0, **FAST | {"maxEpochs": 3})
    assert found.summary.decision == "tuned"
    assert moved(found.pipelineModel, model) >= {"impurityStats"}


@pytest.mark.nightly  # trees in processes: test_ranks
@pytest.mark.parametrize("name", ["gbtr", "rfc"])
def test_processes_change_nothing(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path, name: str
) -> None:
    given = FAST | {"maxEpochs": 4, "guard": 1.0, "unfreeze": [f"{fitted(name).stages[-1].uid}.thresholds"]}
    one, two = (nodes(tune(fitted(name), df, shared, numProcesses=n, **given).pipelineModel) for n in (1, 2))
    was = nodes(fitted(name))
    assert not np.array_equal(one.values, was.values)
    for field in ("values", "prediction", "impurityStats"):
        np.testing.assert_allclose(getattr(two, field), getattr(one, field), rtol=0, atol=1e-12)


def test_the_same_run_again_is_read_and_a_fit_repeats(
    df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path, tmp_path: Path
) -> None:
    model = fitted("gbtr")
    given = FAST | {"maxEpochs": 6, "unfreeze": ["GBTRegressionModel.thresholds"], "guard": 1.0}
    one = tune(model, df, shared, **given).pipelineModel
    run = {"checkpointDir": str(tmp_path), "runId": "trees"}
    first = tune(model, df, shared, **given, **run).pipelineModel
    assert moved(first, one) == set()
    again = tune(model, df, shared, **given, **run)
    assert moved(again.pipelineModel, one) == set()


def test_weights_of_rows_count(df: DataFrame, fitted: Callable[[str], PipelineModel], shared: Path) -> None:
    """Rows of weight 0 count nowhere: what they say makes no difference."""
    model = fitted("gbtr")
    strange = df.withColumn("riders", F.when(F.col("weight") == 0, 1000.0).otherwise(F.col("riders")))
    indicator = {"validationIndicatorCol": "held"}
    one, other = (
        tune(model, rows, shared, guard=1.0, weightCol="weight", **indicator, **FAST | {"maxEpochs": 3})
        for rows in (df, strange)
    )
    assert moved(one.pipelineModel, model) == {"prediction"}
    assert moved(one.pipelineModel, other.pipelineModel) == set()
    assert one.summary.gain == other.summary.gain
