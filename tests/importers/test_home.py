"""What comes home is a plain Spark model: it is saved, loaded and served like one; and what can't come is refused by name."""

import re
from pathlib import Path
from typing import Any

import lightgbm as lgb
import numpy as np
import pytest
import xgboost as xgb
from pyspark.ml import PipelineModel
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import (
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LinearRegression
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

import sparkdiff
from sparkdiff import InputError, jvm
from sparkdiff.jvm import sessions
from tests.support import rows_on_thresholds
from tests.support.foreign_data import SMALL_LIGHTGBM as SMALL, WIDTH, data

X, Y = data(nan=True)
COUNTS = np.minimum(Y, 2).astype(int)
CLEAN = np.nan_to_num(X)


def poisson() -> Any:
    return HistGradientBoostingRegressor(loss="poisson", max_iter=8, max_leaf_nodes=6).fit(X, Y)


def homes() -> dict[str, Any]:
    return {
        "GBTRegressionModel": sparkdiff.from_lightgbm(lgb.LGBMRegressor(**SMALL | {"n_estimators": 3}).fit(X, Y)),
        "GBTClassificationModel": sparkdiff.from_xgboost(xgb.XGBClassifier(n_estimators=5).fit(X, COUNTS > 1)),
        "RandomForestRegressionModel": sparkdiff.from_sklearn(RandomForestRegressor(2, max_depth=4).fit(X, Y)),
        "RandomForestClassificationModel": sparkdiff.from_sklearn(
            RandomForestClassifier(2, max_depth=4).fit(X, COUNTS)
        ),
        "DecisionTreeClassificationModel": sparkdiff.from_sklearn(DecisionTreeClassifier(max_depth=4).fit(X, COUNTS)),
        "poisson": sparkdiff.from_sklearn(poisson()),
        "softmax": sparkdiff.from_sklearn(HistGradientBoostingClassifier(max_iter=5).fit(X, COUNTS)),
    }


@pytest.mark.nightly  # test_without_constructors_it_is_the_same saves and loads too
def test_saved_and_loaded_it_is_the_same(spark: Any, tmp_path: Path) -> None:
    for name, home in homes().items():
        kind = [type(stage).__name__ for stage in getattr(home, "stages", [home])]
        assert kind == {
            "poisson": ["GBTRegressionModel", "VectorAssembler", "GeneralizedLinearRegressionModel"],
            "softmax": ["GBTRegressionModel"] * 3 + ["VectorAssembler", "LogisticRegressionModel"],
        }.get(name, [name])
        home.write().save(str(tmp_path / name))
        back = type(home).load(str(tmp_path / name))
        rows = rows_on_thresholds.rows(home, WIDTH, inf=False)[::8]
        columns = ["prediction", *(["probability", "rawPrediction"] if "Classifi" in name or name == "softmax" else [])]
        before, after = (rows_on_thresholds.served(spark, model, rows, *columns) for model in (home, back))
        for one, other in zip(before, after, strict=True):
            np.testing.assert_array_equal(one, other)
            assert len(np.unique(one)) > 1
        for one, other in zip(rows_on_thresholds.ensembles(home), rows_on_thresholds.ensembles(back), strict=True):
            assert one.uid == other.uid
            assert jvm.defined_params(one)["set"] == jvm.defined_params(other)["set"]
            np.testing.assert_array_equal(one.featureImportances.toArray(), other.featureImportances.toArray())
            assert one.numFeatures == other.numFeatures == WIDTH


def test_columns_and_params(spark: Any) -> None:
    home = sparkdiff.from_sklearn(
        HistGradientBoostingClassifier(max_iter=5, max_depth=3).fit(
            X, np.array(["no", "yes"])[(COUNTS > 1).astype(int)]
        ),
        featuresCol="features",
        predictionCol="p",
        probabilityCol="q",
        rawPredictionCol="r",
        predictedLabelCol="label",
        missing="absent",
    )
    clean = np.nan_to_num(X)
    number, probability, raw, label = rows_on_thresholds.served(spark, home, clean, "p", "q", "r", "label")
    np.testing.assert_array_equal(number, probability.argmax(1))
    np.testing.assert_array_equal(number, raw.argmax(1))
    np.testing.assert_array_equal(label, np.array(["no", "yes"])[number.astype(int)])
    assert set(label) == {"no", "yes"}
    trees = home.stages[0]
    assert (trees.getMaxDepth(), trees.getMaxIter()) == (3, 6)  # the sixth is what they start from
    assert trees.getNumTrees == 6


FOREIGN: dict[str, tuple[str, Any]] = {
    "DecisionTreeRegressionModel": ("sklearn", lambda: DecisionTreeRegressor(max_depth=4).fit(X, Y)),
    "DecisionTreeClassificationModel": ("sklearn", lambda: DecisionTreeClassifier(max_depth=4).fit(X, COUNTS)),
    "RandomForestRegressionModel": ("sklearn", lambda: RandomForestRegressor(2, max_depth=4).fit(X, Y)),
    "RandomForestClassificationModel": (
        "sklearn",
        lambda: RandomForestClassifier(2, max_depth=4, criterion="entropy").fit(X, COUNTS),
    ),
    "GBTClassificationModel": ("xgboost", lambda: xgb.XGBClassifier(n_estimators=3, max_depth=4).fit(X, COUNTS > 1)),
    "GeneralizedLinearRegressionModel": ("sklearn", poisson),
    "LogisticRegressionModel": ("sklearn", lambda: HistGradientBoostingClassifier(max_iter=2).fit(X, COUNTS)),
}


LIKE_A_FOREST = {"DecisionTreeRegressionModel", "DecisionTreeClassificationModel", "RandomForestRegressionModel"}


@pytest.mark.nightly
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.nightly if n in LIKE_A_FOREST else ()) for n in FOREIGN]
)
def test_without_constructors_it_is_the_same(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Each class of trees, and the two links behind a GBTRegressionModel, by Spark's constructors and by files."""
    library, fit = FOREIGN[name]
    foreign, homes = fit(), []
    for constructors in (True, False):
        monkeypatch.setattr(sessions, "has_constructors", lambda constructors=constructors: constructors)
        homes.append(getattr(sparkdiff, f"from_{library}")(foreign))
    stages = [getattr(home, "stages", [home]) for home in homes]
    assert [type(stage) for stage in stages[0]] == [type(stage) for stage in stages[1]]
    assert type(stages[1][-1]).__name__ == name
    monkeypatch.setattr(sessions, "has_constructors", lambda: True)
    rows = rows_on_thresholds.rows(homes[0], WIDTH, inf=False)[::8]
    columns = ["prediction", *(["probability", "rawPrediction"] if homes[0].hasParam("probabilityCol") else [])]
    homes[1].write().save(str(tmp_path / "model"))
    homes.append(type(homes[1]).load(str(tmp_path / "model")))
    expected, *others = (rows_on_thresholds.served(spark, home, rows, *columns) for home in homes)
    for found in others:
        for one, other in zip(expected, found, strict=True):
            np.testing.assert_array_equal(one, other)
    for one, other in zip(*map(rows_on_thresholds.ensembles, homes[:2]), strict=True):
        params, same = jvm.defined_params(one), jvm.defined_params(other)
        if "__margin" in one.getPredictionCol():  # named after the uid of the link
            assert params["set"].pop("predictionCol") != same["set"].pop("predictionCol")
        assert params == same
        assert trees_of(one) == trees_of(other)
        np.testing.assert_array_equal(one.featureImportances.toArray(), other.featureImportances.toArray())
        assert one.numFeatures == other.numFeatures == WIDTH
        if hasattr(one, "numClasses"):
            assert one.numClasses == other.numClasses


def trees_of(stage: Any) -> list[Any]:
    """The trees of a stage with their uids' beginnings, Params and weights, as Spark knows them."""
    members = list(stage._java_obj.trees()) if hasattr(stage, "trees") else [stage._java_obj]
    weights = stage.treeWeights if hasattr(stage, "trees") else [1.0]
    text = []
    for tree, weight in zip(members, weights, strict=True):
        uid = tree.uid()
        params = sorted(line.strip() for line in tree.extractParamMap().toString().replace(uid, "").splitlines())
        text.append((uid.partition("_")[0], weight, tree.toDebugString().replace(uid, ""), params))
    return text


def test_missing_values_cost_splits_only_where_they_may_come(spark: Any) -> None:
    model = HistGradientBoostingRegressor(max_iter=5).fit(np.nan_to_num(X), Y)
    sizes = [len(rows_on_thresholds.trees.read(sparkdiff.from_sklearn(model, missing=m))) for m in ("absent", "keep")]
    assert sizes[0] == 1 + sum(len(p[0].nodes) for p in model._predictors) < sizes[1]


def test_two_models_in_one_pipeline_do_not_clash(spark: Any) -> None:
    first, second = (sparkdiff.from_sklearn(poisson(), predictionCol=name) for name in ("first", "second"))
    both = PipelineModel([*first.stages, *second.stages])
    one, other = rows_on_thresholds.served(spark, both, X, "first", "second")
    np.testing.assert_array_equal(one, other)


class Doubled(GradientBoostingRegressor):
    def predict(self, X: Any) -> Any:
        return 2 * super().predict(X)


REFUSED: dict[str, tuple[str, Any, str]] = {
    "no trees": (
        "sklearn",
        lambda: LinearRegression(),
        r"from_sklearn reads DecisionTreeRegressor, .*got sklearn\.linear_model",
    ),
    "a subclass": ("sklearn", lambda: Doubled(), r"got test_home\.Doubled"),
    "unfitted": ("sklearn", lambda: RandomForestRegressor(), "RandomForestRegressor isn't fitted"),
    "unfitted lightgbm": ("lightgbm", lambda: lgb.LGBMRegressor(), "LGBMRegressor isn't fitted"),
    "unfitted xgboost": ("xgboost", lambda: xgb.XGBRegressor(), "XGBRegressor isn't fitted"),
    "another library": ("lightgbm", lambda: RandomForestRegressor(), "from_lightgbm reads a Booster .*got sklearn"),
    "yet another": ("xgboost", lambda: RandomForestRegressor(), "from_xgboost reads a Booster .*got sklearn"),
    "outputs": ("sklearn", lambda: RandomForestRegressor(3).fit(X, np.stack([Y, Y], 1)), "has 2 outputs"),
    "init": (
        "sklearn",
        lambda: GradientBoostingRegressor(init=LinearRegression()).fit(CLEAN, Y),
        "init is LinearRegression",
    ),
    "drawn init": (
        "sklearn",
        lambda: GradientBoostingClassifier(n_estimators=2, init=DummyClassifier(strategy="stratified")).fit(
            CLEAN, COUNTS
        ),
        r"init is DummyClassifier\(strategy='stratified'\), which draws",
    ),
    "classes": (
        "sklearn",
        lambda: RandomForestClassifier(3).fit(X, COUNTS + 1),
        "the classes are 1, 2, 3, .*predictedLabelCol",
    ),
    "texts": (
        "sklearn",
        lambda: HistGradientBoostingRegressor(categorical_features=[0], max_iter=2).fit(
            np.array([["a"], ["b"]] * 50, dtype=object), np.arange(100) % 2
        ),
        "feature 0 has the categories 'a', 'b'",
    ),
    "fractions": (
        "sklearn",
        lambda: HistGradientBoostingRegressor(categorical_features=[0], max_iter=2).fit(
            np.array([[0.5], [1.5]] * 50), np.arange(100) % 2
        ),
        r"feature 0: [01]\.5 is a category",
    ),
    "linear trees": ("lightgbm", lambda: lgb.LGBMRegressor(**SMALL, linear_tree=True).fit(X, Y), "linear_tree"),
    "square root": (
        "lightgbm",
        lambda: lgb.LGBMRegressor(**SMALL, reg_sqrt=True).fit(X, Y),
        "objective 'regression sqrt'",
    ),
    "one versus all": (
        "lightgbm",
        lambda: lgb.LGBMClassifier(**SMALL, objective="multiclassova").fit(X, COUNTS),
        "'multiclassova num_class:3",
    ),
    "own objective": (
        "lightgbm",
        lambda: lgb.LGBMRegressor(**SMALL, objective=lambda y, p: (p - y, np.ones(len(y)))).fit(X, Y),
        "objective 'of your own'",
    ),
    "targets": ("xgboost", lambda: xgb.XGBRegressor(n_estimators=2).fit(X, np.stack([Y, Y], 1)), "has 2 targets"),
    "vector leaves": (
        "xgboost",
        lambda: xgb.XGBRegressor(n_estimators=2, multi_strategy="multi_output_tree").fit(X, np.stack([Y, Y], 1)),
        "has 2 targets",
    ),
    "vector leaves of classes": (
        "xgboost",
        lambda: xgb.XGBClassifier(n_estimators=2, multi_strategy="multi_output_tree").fit(X, COUNTS),
        "multi_strategy='multi_output_tree' has a value per class",
    ),
    "classes of a regressor": (
        "xgboost",
        lambda: xgb.XGBRegressor(n_estimators=2, objective="multi:softprob", num_class=3).fit(X, COUNTS),
        "XGBRegressor with objective='multi:softprob' has 3 classes",
    ),
    "classes of another": (
        "lightgbm",
        lambda: lgb.LGBMRegressor(**SMALL, objective="multiclass", num_class=3).fit(X, COUNTS),
        "LGBMRegressor with objective='multiclass' has 3 classes",
    ),
    "numbers of a classifier": (
        "xgboost",
        lambda: xgb.XGBClassifier(n_estimators=2, objective="reg:squarederror").fit(X, COUNTS > 1),
        r"XGBClassifier with objective='reg:squarederror' .*over 0\.5.* train with objective='binary:logistic'",
    ),
    "numbers of another": (
        "lightgbm",
        lambda: lgb.LGBMClassifier(**SMALL, objective="poisson").fit(X, COUNTS > 1),
        r"LGBMClassifier with objective='poisson' .*over 0\.5.* train with objective='binary'",
    ),
    "several quantiles": (
        "xgboost",
        lambda: xgb.XGBRegressor(n_estimators=2, objective="reg:quantileerror", quantile_alpha=[0.1, 0.9]).fit(X, Y),
        "has 2 targets",
    ),
    "no trees either": ("xgboost", lambda: xgb.XGBRegressor(booster="gblinear").fit(CLEAN, Y), "booster=gblinear"),
    "hinge": (
        "xgboost",
        lambda: xgb.XGBClassifier(objective="binary:hinge").fit(X, COUNTS > 1),
        "objective binary:hinge",
    ),
    "survival": ("xgboost", lambda: xgb.XGBRegressor(objective="survival:cox").fit(X, Y + 1), "objective survival:cox"),
    "zero is missing": ("xgboost", lambda: xgb.XGBRegressor(n_estimators=2, missing=0.0).fit(CLEAN, Y), "missing=0.0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(spark: Any, name: str) -> None:
    library, model, said = REFUSED[name]
    with pytest.raises(InputError, match=said):
        getattr(sparkdiff, f"from_{library}")(model())


def test_wrong_options(spark: Any) -> None:
    model = poisson()
    with pytest.raises(InputError, match=r"missing must be 'keep'.*got 'left'"):
        sparkdiff.from_sklearn(model, missing="left")
    with pytest.raises(InputError, match=r"categories must be 'any' or 'whole'.*got 'some'"):
        sparkdiff.from_xgboost(model, categories="some")


def test_the_example_of_the_docs(spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[2]
    (example,) = re.findall(
        r"```python\n(.*?)```", (root / "docs" / "foreign.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert "models/riders" in example
    monkeypatch.chdir(root)
    names: dict[str, Any] = {"spark": spark}
    exec(example.replace("models/riders", str(tmp_path / "riders")), names)
    out = (
        PipelineModel.load(str(tmp_path / "riders"))
        .transform(names["hours"])
        .select("prediction")
        .toPandas()["prediction"]
    )
    np.testing.assert_allclose(out, names["boosted"].predict(np.stack(names["rows"]["x"])), rtol=1e-12)
    assert out.min() > 0
