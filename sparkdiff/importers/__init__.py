"""Trees of scikit-learn, LightGBM and XGBoost as plain MLlib models (docs/foreign.md)."""

from __future__ import annotations

from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.importers import lightgbm, sklearn, xgboost
from sparkdiff.importers.models import Columns


def from_sklearn(
    model: Any,
    *,
    featuresCol: str = "features",
    predictionCol: str = "prediction",
    probabilityCol: str = "probability",
    rawPredictionCol: str = "rawPrediction",
    predictedLabelCol: str | None = None,
    missing: str = "keep",
) -> Any:
    """A plain MLlib model that predicts what a fitted scikit-learn model of trees does.

    Every double reaches the leaf that scikit-learn sends it to. DecisionTree, ExtraTree, RandomForest and ExtraTrees become
    DecisionTree or RandomForest models. GradientBoosting and HistGradientBoosting become GBT models; of a Poisson or gamma
    loss, GBTRegressionModel, VectorAssembler and GeneralizedLinearRegressionModel (log link); of more than two classes, one
    GBTRegressionModel a class, VectorAssembler and LogisticRegressionModel. featureImportances are by the library's own gains.

    Args:
        model: a fitted estimator of exactly one of these classes.
        featuresCol: column of vectors, the features in the order of the training.
        predictionCol: of a classifier the number of the class in `classes_`.
        probabilityCol, rawPredictionCol: of a classifier.
        predictedLabelCol: where the classes themselves go as text; needed unless they are 0 to k - 1.
        missing: "keep": NaN goes where the library sends it, which can take more splits; "absent": no row has NaN.

    Returns:
        A PipelineModel, or one fitted stage where that is all.

    Raises:
        InputError: what MLlib can't express, by name; or no constructors can be called (Spark Connect).
    """
    columns = Columns(featuresCol, predictionCol, probabilityCol, rawPredictionCol, predictedLabelCol, missing)
    return sklearn.read(model).model(columns)


def from_lightgbm(
    model: Any,
    *,
    featuresCol: str = "features",
    predictionCol: str = "prediction",
    probabilityCol: str = "probability",
    rawPredictionCol: str = "rawPrediction",
    predictedLabelCol: str | None = None,
    missing: str = "keep",
    categories: str = "any",
) -> Any:
    """A plain MLlib model that predicts what a LightGBM model does; see `from_sklearn` for what isn't said here.

    Args:
        model: a Booster or a fitted LGBM estimator; up to its best iteration, where it has one, as its own `predict`.
        categories: "whole": categorical features hold whole numbers (those that LightGBM was trained on; of a pandas
            category its codes). LightGBM cuts fractions off, which Spark doesn't: with "any" such a model is refused.
    """
    columns = Columns(featuresCol, predictionCol, probabilityCol, rawPredictionCol, predictedLabelCol, missing)
    return lightgbm.read(model, whole=_whole(categories)).model(columns)


def from_xgboost(
    model: Any,
    *,
    featuresCol: str = "features",
    predictionCol: str = "prediction",
    probabilityCol: str = "probability",
    rawPredictionCol: str = "rawPrediction",
    predictedLabelCol: str | None = None,
    missing: str = "keep",
    categories: str = "any",
) -> Any:
    """A plain MLlib model that predicts what an XGBoost model does, which sums in float32: within about 1e-6.

    See `from_sklearn` and `from_lightgbm` for what isn't said here. XGBoost counts no rows: a node's weight in
    featureImportances is its cover, the sum of its hessians.

    Args:
        model: a Booster, or a fitted XGB estimator: up to its best iteration, where it has one, as its own `predict`. What a
            DMatrix counts as missing beside NaN is no part of a Booster, and Spark doesn't know of it.
    """
    columns = Columns(featuresCol, predictionCol, probabilityCol, rawPredictionCol, predictedLabelCol, missing)
    return xgboost.read(model, whole=_whole(categories)).model(columns)


def _whole(categories: str) -> bool:
    if categories not in ("any", "whole"):
        raise InputError(
            f"categories must be 'any' or 'whole' (categorical features hold whole numbers), got {categories!r}"
        )
    return categories == "whole"
