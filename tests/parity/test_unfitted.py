"""What a fitted pipeline tells of its settings: the estimators made of it fit the same model to the same rows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Model, Pipeline, PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression, OneVsRest, RandomForestClassifier
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import (
    Bucketizer,
    CountVectorizerModel,
    QuantileDiscretizer,
    StandardScaler,
    StringIndexer,
    VectorAssembler,
)
from pyspark.ml.regression import DecisionTreeRegressor, GBTRegressor, RandomForestRegressor
from pyspark.ml.tuning import CrossValidator
from pyspark.sql import DataFrame, SparkSession

import sparkdiff
from sparkdiff import InputError
from sparkdiff.jvm import trees
from sparkdiff.pipeline.unfitted_form import (
    WITHOUT_EFFECT,
    estimator_class,
    is_trees,
    refit,
    unfitted_form,
    untold,
    why_not_grown,
)
from tests.support.readable_uids import named

AS_FITTED = {"ALSModel", "BucketedRandomProjectionLSHModel", "MinHashLSHModel"}
"""Models that lack Params by which they were fitted."""
WITHOUT_JAVA = ("PipelineModel", "CrossValidatorModel", "TrainValidationSplitModel")
WEIGHTS = (
    "coefficientMatrix",
    "coefficients",
    "intercept",
    "interceptVector",
    "pc",
    "mean",
    "std",
    "idf",
    "theta",
    "weights",
)
SOME = (
    "GBTClassificationModel",
    "IDFModel",
    "LogisticRegressionModel",
    "MinHashLSHModel",
    "OneVsRestModel",
    "PCAModel",
    "SQLTransformer",
    "StandardScalerModel",
)
"""Classes that each commit tries; all of them take minutes."""
SUMS_VARY = {"DistributedLDAModel": 1e-5}
"""Relative tolerance where Spark adds up in an order of its own at each run."""


@pytest.fixture(scope="module")
def rows(tool: Any, spark: SparkSession) -> DataFrame:
    return tool.rows(spark)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def made(tool: Any, rows: DataFrame) -> Callable[[str], tuple[Any, Any]]:
    """The unfitted and the fitted stage of a class; the same for a stage that isn't fitted. Each is made once."""
    known: dict[str, tuple[Any, Any]] = {}

    def of(name: str) -> tuple[Any, Any]:
        if name not in known:
            stage = tool.stages()[name]()
            is_model = isinstance(stage, Transformer) and not isinstance(stage, Model)
            known[name] = stage, stage if is_model else stage.fit(rows)
        return known[name]

    return of


@pytest.fixture(params=["some", pytest.param("all", marks=pytest.mark.nightly)])
def names(tool: Any, request: pytest.FixtureRequest) -> list[str]:
    """Of the classes."""
    return [*tool.stages()] if request.param == "all" else [*SOME]


def numbers(value: Any) -> list[Any]:
    if hasattr(value, "toArray"):
        return [*value.toArray()]
    return [x for v in value for x in numbers(v)] if isinstance(value, (list, tuple)) else [value]


def assert_same(one: DataFrame, other: DataFrame, rtol: float = 1e-6) -> None:
    for a, b in zip(one.collect(), other.collect(), strict=True):
        for x, y in zip(numbers(list(a)), numbers(list(b)), strict=True):
            assert x == pytest.approx(y, rel=rtol, abs=1e-9, nan_ok=True) if isinstance(x, float) else x == y


def settings(stage: Any) -> dict[str, dict[str, Any]]:
    """Params of a stage, with NaN and stages in a form that can be compared."""
    maps = {"set": stage._paramMap, "default": stage._defaultParamMap}
    return {
        k: {p.name: repr(v) for p, v in m.items() if p.name not in ("classifier", "stages")} for k, m in maps.items()
    }


def values(stage: Any) -> dict[str, str]:
    """The same, whether they are set or defaults: a loaded OneVsRestModel has set its defaults."""
    return settings(stage)["default"] | settings(stage)["set"]


@pytest.mark.slow
def test_every_estimator_is_told(names: list[str], made: Callable[[str], tuple[Any, Any]], rows: DataFrame) -> None:
    """Class, uid, Params set and default, and what it fits."""
    kept = set()
    for name in names:
        stage, model = made(name)
        form = unfitted_form(model)
        if not form.learns:
            assert form.estimator is model
            kept |= {name} if isinstance(model, Model) else set()
            assert (form.stages[0].role == "as fitted") == isinstance(model, Model)
            continue
        if not form.searches:
            assert type(form.estimator) is type(stage) and form.estimator.uid == model.uid, name
            assert settings(form.estimator) == settings(stage), name
        again = refit(form, rows)
        assert (type(again), again.uid) == (type(model), model.uid)
        assert_same(model.transform(rows), again.transform(rows), SUMS_VARY.get(name, 1e-6))
        for weights in WEIGHTS:
            if hasattr(model, weights):
                one, other = (np.array(numbers(getattr(m, weights))) for m in (model, again))
                np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12, err_msg=f"{name}.{weights}")
        if is_trees(model):
            assert trees.read(model).records() == trees.read(again).records(), name
    assert kept == AS_FITTED & {*names}


def test_java_tells_what_python_declares(names: list[str], made: Callable[[str], tuple[Any, Any]]) -> None:
    """A Param that the Java model lacked would be lost where a model is saved and loaded."""
    for name in {*names} - {*WITHOUT_JAVA, "OneVsRestModel"}:
        model = made(name)[1]
        if isinstance(model, Model):
            kind = estimator_class(type(model))
            lacks = {p.name for p in kind().params if not model._java_obj.hasParam(p.name)}
            assert lacks - WITHOUT_EFFECT == set(untold(kind, type(model))), name
            assert bool(lacks - WITHOUT_EFFECT) == (name in AS_FITTED), name


@pytest.mark.slow
def test_a_loaded_pipeline_tells_the_same(
    names: list[str], made: Callable[[str], tuple[Any, Any]], rows: DataFrame, tmp_path: Path
) -> None:
    """Also defaults, of which pyspark's loaded objects have others: a seed decided by the name of the class."""
    stages = [made(n)[1] for n in names if n not in (*AS_FITTED, *WITHOUT_JAVA)]
    seedless = RandomForestClassifier(numTrees=1, maxDepth=1).fit(rows)
    before = PipelineModel([*(s for s in stages if isinstance(s, Model)), seedless])
    before.write().save(str(tmp_path / "model"))
    after = unfitted_form(PipelineModel.load(str(tmp_path / "model")))
    for one, other in zip(unfitted_form(before).stages, after.stages, strict=True):
        assert (one.role, values(one.stage)) == (other.role, values(other.stage)), one.uid
    assert after.stages[-1].stage.getSeed() == seedless.getSeed()
    assert [note.partition(":")[0] for note in after.notes] == [seedless.uid]


# Pipelines ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def assembled(df: DataFrame) -> DataFrame:
    return VectorAssembler(inputCols=["a", "b"], outputCol="vector").transform(df).cache()


def test_a_nested_pipeline_with_a_search(df: DataFrame) -> None:
    head = LogisticRegression(featuresCol="scaled", labelCol="grade", maxIter=2)
    judge = MulticlassClassificationEvaluator(labelCol="grade", metricName="logLoss")
    grid = [{head.regParam: 0.5}, {head.regParam: 0.01}]
    search = CrossValidator(estimator=head, estimatorParamMaps=grid, evaluator=judge, numFolds=2, seed=1)
    inner = Pipeline(
        stages=[VectorAssembler(inputCols=["a", "b"], outputCol="v"), StandardScaler(inputCol="v", outputCol="scaled")]
    )
    model = Pipeline(stages=[inner, StringIndexer(inputCol="kind", outputCol="i"), search]).fit(df)
    form = unfitted_form(model)
    assert [s.role for s in form.stages] == ["transformer", "estimator", "estimator", "estimator"]
    assert form.searches == (model.stages[2].uid,)
    best = model.stages[2].bestModel
    assert form.estimator.getStages()[2].getRegParam() == best.getRegParam()
    assert form.estimator.uid == model.uid and form.estimator.getStages()[0].uid == model.stages[0].uid
    again = refit(form, df)
    assert (again.uid, [s.uid for s in again.stages]) == (model.uid, [s.uid for s in model.stages])
    assert again.stages[2].avgMetrics == model.stages[2].avgMetrics
    assert_same(model.transform(df), again.transform(df))
    other = refit(form, df, {form.estimator.getStages()[2].regParam: 0.3})
    assert other.stages[2].bestModel.getRegParam() == 0.3 and best.getRegParam() != 0.3
    assert form.estimator.getStages()[2].getRegParam() == best.getRegParam()


def test_the_model_does_not_change_with_its_unfitted_form(assembled: DataFrame) -> None:
    model = OneVsRest(classifier=LogisticRegression(maxIter=2), featuresCol="vector", labelCol="grade").fit(assembled)
    form = unfitted_form(model)
    form.estimator.getClassifier().setMaxIter(7)
    form.estimator.setPredictionCol("other")
    assert (model.getClassifier().getMaxIter(), model.getPredictionCol()) == (2, "prediction")
    again = refit(form, assembled)
    assert again.uid == model.uid and "other" in again.transform(assembled).columns


def test_buckets(df: DataFrame) -> None:
    quantiles = QuantileDiscretizer(numBuckets=3, inputCol="a", outputCol="q").fit(df)
    form = unfitted_form(
        PipelineModel([quantiles, Bucketizer(splits=[0.0, 1.0, 2.0], inputCol="index", outputCol="o")])
    )
    assert [s.role for s in form.stages] == ["as fitted", "transformer"]  # outer splits of quantiles are infinite
    assert not form.learns
    with pytest.raises(
        InputError, match=r"can't be fitted anew: Bucketizer\w+ stays as it is fitted: .* numBuckets and relativeError"
    ):
        refit(form, df)


def test_given_words_and_strange_models(df: DataFrame) -> None:
    given = CountVectorizerModel.from_vocabulary(["a", "b"], "kind", "counts")
    assert "made from a vocabulary" in unfitted_form(given).stages[0].reason

    class Strange(Model):  # type: ignore[type-arg]
        def _transform(self, dataset: DataFrame) -> DataFrame:
            return dataset

    (stage,) = unfitted_form(Strange()).stages
    assert (stage.role, stage.reason.endswith("Strange has no estimator in pyspark.ml")) == ("as fitted", True)


def test_what_cannot_be_unfitted(df: DataFrame) -> None:
    with pytest.raises(InputError, match="isn't fitted"):
        unfitted_form(Pipeline(stages=[]))
    model = StandardScaler(inputCol="vector", outputCol="scaled").fit(
        VectorAssembler(inputCols=["a"], outputCol="vector").transform(df)
    )
    with pytest.raises(InputError, match=r"can't be fitted anew to these rows: .*vector"):
        refit(unfitted_form(model), df)


# Trees that Spark did not grow ----------------------------------------------------------------------------------------


def test_trees_of_spark_can_be_grown_again(assembled: DataFrame) -> None:
    for kind, more in (
        (GBTRegressor, {"maxIter": 3}),
        (RandomForestRegressor, {"numTrees": 5}),
        (DecisionTreeRegressor, {}),
    ):
        model = kind(featuresCol="vector", maxDepth=5, maxBins=4, seed=1, **more).fit(assembled)
        assert why_not_grown(model) == "", kind
        assert "split at 3 places, but maxBins=3" in why_not_grown(model.copy({model.maxBins: 3}))
        assert "but maxDepth=2" in why_not_grown(model.copy({model.maxDepth: 2}))
    boosted = GBTRegressor(featuresCol="vector", maxDepth=1, maxIter=3, seed=1).fit(assembled)
    assert (
        why_not_grown(boosted.copy({boosted.stepSize: 0.2}))
        == "its trees don't have the weights 1, 0.2, 0.2, ... of stepSize=0.2"
    )
    assert why_not_grown(boosted.copy({boosted.maxIter: 2})) == "it has 3 trees, but maxIter=2"


def test_imported_trees_stay(spark: SparkSession) -> None:
    from sklearn.ensemble import ExtraTreesRegressor, GradientBoostingRegressor, HistGradientBoostingRegressor

    random = np.random.default_rng(0)
    x = random.normal(size=(200, 2))
    y = x[:, 0] * x[:, 1] + random.normal(size=200)
    for kind, params in (
        (GradientBoostingRegressor, {}),
        (HistGradientBoostingRegressor, {}),
        (ExtraTreesRegressor, {"n_estimators": 3}),
    ):
        (stage,) = unfitted_form(sparkdiff.from_sklearn(kind(random_state=0, **params).fit(x, y))).stages
        assert stage.role == "as fitted" and stage.reason.startswith("Spark didn't grow its trees by its Params: "), (
            kind
        )


def test_parts_that_were_grown_stay(assembled: DataFrame) -> None:
    head = LogisticRegression(featuresCol="vector", maxIter=1).fit(assembled)
    part = named(f"{head.uid}_grown_trees", GBTRegressor, featuresCol="vector", maxIter=1, seed=1).fit(assembled)
    form = unfitted_form(PipelineModel([part, head]))
    assert [s.role for s in form.stages] == ["as fitted", "estimator"]
    assert "sparkdiff grew it as a part" in form.notes[0]
