"""Conversion of tree models of scikit-learn, LightGBM and XGBoost to plain MLlib models (docs/foreign.md)."""

from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.importers import lightgbm, sklearn, xgboost
from sparkdiff.importers.tree_ensembles import Columns


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
    featureImportances are computed from the gains that scikit-learn recorded.

    Args:
        model: a fitted estimator of exactly one of these classes (no subclass).
        featuresCol: input column of vectors, with the features in the order of training.
        predictionCol: output column; for a classifier, it has the index of the class in `classes_`.
        probabilityCol: output column, only for classifiers.
        rawPredictionCol: output column, only for classifiers.
        predictedLabelCol: output column for the classes as text; required unless the classes are 0 to k - 1 or False
            and True.
        missing: "keep": NaN takes the same path as in scikit-learn, for which splits may have to be added; "absent":
            rows have no NaN.

    Returns:
        A PipelineModel, or a single fitted stage if that is sufficient.

    Raises:
        InputError: MLlib cannot express the model; the message gives the reason.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml import PipelineModel
        >>> from sklearn.ensemble import GradientBoostingClassifier
        >>> rows, assembler = df.toPandas(), pipeline.getStages()[0]
        >>> trees = GradientBoostingClassifier(n_estimators=5).fit(rows[assembler.getInputCols()].to_numpy(), rows["label"])
        >>> stage = sparkdiff.from_sklearn(trees, featuresCol="numbers")
        >>> PipelineModel([assembler, stage]).transform(df).columns[-3:]
        ['rawPrediction', 'probability', 'prediction']
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
    """A plain MLlib model with the same predictions as a LightGBM model.

    Every double reaches the same leaf as in LightGBM. The stages are those that `from_sklearn` makes of boosted trees,
    with the link of the objective. featureImportances are computed from the gains that LightGBM recorded.

    Args:
        model: a Booster or a fitted LGBM estimator; as in its `predict`, trees after the best iteration, if known, are
            left out.
        featuresCol: input column of vectors, with the features in the order of training.
        predictionCol: output column; for a classifier, it has the index of the class.
        probabilityCol: output column, only for classifiers.
        rawPredictionCol: output column, only for classifiers.
        predictedLabelCol: output column for the classes as text; required unless the classes are 0 to k - 1 or False
            and True.
        missing: "keep": NaN takes the same path as in LightGBM, for which splits may have to be added; "absent": rows
            have no NaN.
        categories: "whole": categorical features of the rows are whole numbers (those on which LightGBM was trained;
            for a pandas category, its codes). "any": they may have fractions; then a model with categorical features is
            refused, because LightGBM truncates fractions and Spark does not.

    Returns:
        A PipelineModel, or a single fitted stage if that is sufficient.

    Raises:
        InputError: MLlib cannot express the model, or an argument has a wrong value; the message gives the reason.

    Examples:
        >>> import lightgbm
        >>> import sparkdiff
        >>> from pyspark.ml import PipelineModel
        >>> rows, assembler = df.toPandas(), pipeline.getStages()[0]
        >>> trees = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(rows[assembler.getInputCols()], rows["label"])
        >>> stage = sparkdiff.from_lightgbm(trees, featuresCol="numbers")
        >>> PipelineModel([assembler, stage]).transform(df).columns[-3:]
        ['rawPrediction', 'probability', 'prediction']
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

    Every double reaches the same leaf as in XGBoost. The stages are those that `from_sklearn` makes of boosted trees,
    with the link of the objective. XGBoost does not store numbers of rows, so in featureImportances the weight of a
    node is its cover, the sum of its hessians.

    Args:
        model: a Booster, of which all trees are used; or a fitted XGB estimator, of which, as in its `predict`, trees
            after the best iteration, if known, are left out. Missing values must be NaN: a DMatrix may use another
            value, but a Booster does not store this value, and Spark supports only NaN.
        featuresCol: input column of vectors, with the features in the order of training.
        predictionCol: output column; for a classifier, it has the index of the class.
        probabilityCol: output column, only for classifiers.
        rawPredictionCol: output column, only for classifiers.
        predictedLabelCol: output column for the classes as text; required unless the classes are 0 to k - 1 or False
            and True.
        missing: "keep": NaN takes the same path as in XGBoost, for which splits may have to be added; "absent": rows
            have no NaN.
        categories: "whole": categorical features of the rows are whole numbers (those on which XGBoost was trained; for
            a pandas category, its codes). "any": they may have fractions; then a model with categorical features is
            refused, because XGBoost truncates fractions and Spark does not.

    Returns:
        A PipelineModel, or a single fitted stage if that is sufficient.

    Raises:
        InputError: MLlib cannot express the model, or an argument has a wrong value; the message gives the reason.

    Examples:
        >>> import sparkdiff
        >>> import xgboost
        >>> from pyspark.ml import PipelineModel
        >>> rows, assembler = df.toPandas(), pipeline.getStages()[0]
        >>> trees = xgboost.XGBClassifier(n_estimators=5).fit(rows[assembler.getInputCols()], rows["label"])
        >>> stage = sparkdiff.from_xgboost(trees, featuresCol="numbers")
        >>> PipelineModel([assembler, stage]).transform(df).columns[-3:]
        ['rawPrediction', 'probability', 'prediction']
    """
    columns = Columns(featuresCol, predictionCol, probabilityCol, rawPredictionCol, predictedLabelCol, missing)
    return xgboost.read(model, whole=_whole(categories)).model(columns)


def _whole(categories: str) -> bool:
    if categories not in ("any", "whole"):
        raise InputError(
            f"categories must be 'any' or 'whole' (categorical features hold whole numbers), got {categories!r}"
        )
    return categories == "whole"
