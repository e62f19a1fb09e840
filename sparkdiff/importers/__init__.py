"""Import of trees of scikit-learn, LightGBM and XGBoost as plain MLlib models (docs/foreign.md)."""

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
    """A plain MLlib model with the same predictions as a fitted scikit-learn tree model.

    Every double reaches the same leaf as in scikit-learn. DecisionTree, ExtraTree, RandomForest and ExtraTrees
    become DecisionTree or RandomForest models. GradientBoosting and HistGradientBoosting become GBT models; with a
    Poisson or gamma loss, GBTRegressionModel, VectorAssembler and GeneralizedLinearRegressionModel (log link); with
    more than two classes, one GBTRegressionModel per class, VectorAssembler and LogisticRegressionModel.
    featureImportances use the gains of the library.

    Args:
        model: a fitted estimator of exactly one of these classes.
        featuresCol: column of vectors with the features in the order of the training.
        predictionCol: for a classifier, the index of the class in `classes_`.
        probabilityCol: for classifiers.
        rawPredictionCol: for classifiers.
        predictedLabelCol: output column for the classes as text; required unless they are 0 to k - 1 or False and True.
        missing: "keep": NaN takes the same path as in the library, which can need more splits; "absent": no row has
            NaN.

    Returns:
        A PipelineModel, or one fitted stage if one is sufficient.

    Raises:
        InputError: MLlib cannot express the model; the message gives the reason.
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
    """A plain MLlib model with the same predictions as a LightGBM model; see `from_sklearn` for the other arguments.

    Args:
        model: a Booster or a fitted LGBM estimator; used up to its best iteration, if it has one, as by its `predict`.
        categories: "whole": categorical features hold whole numbers (those that LightGBM was trained on; for a pandas
            category, its codes). "any": a model with categorical features is refused, because LightGBM truncates
            fractions and Spark does not.
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
    """A plain MLlib model with the same predictions as an XGBoost model, within about 1e-6, because XGBoost sums in
    float32.

    See `from_sklearn` and `from_lightgbm` for the other arguments. XGBoost does not count rows: the weight of a node in
    featureImportances is its cover, the sum of its hessians.

    Args:
        model: a Booster, or a fitted XGB estimator, used up to its best iteration, if it has one, as by its `predict`.
            A DMatrix may have a missing value other than NaN; a Booster does not store it, and Spark does not support
            it.
    """
    columns = Columns(featuresCol, predictionCol, probabilityCol, rawPredictionCol, predictedLabelCol, missing)
    return xgboost.read(model, whole=_whole(categories)).model(columns)


def _whole(categories: str) -> bool:
    if categories not in ("any", "whole"):
        raise InputError(
            f"categories must be 'any' or 'whole' (categorical features hold whole numbers), got {categories!r}"
        )
    return categories == "whole"
