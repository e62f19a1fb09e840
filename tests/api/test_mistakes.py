"""Mistakes of first hours: each message names what was found, says why it can't be, and what to do.

Those on the command line are in tests/unit/test_command_line.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.evaluation import BinaryClassificationEvaluator, RegressionEvaluator
from pyspark.ml.feature import OneHotEncoder, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel, Improver, InputError, Search
from tests.support.small_data import NUMBERS, tune


@dataclass
class Given:
    """What a user has: rows, pipelines fitted on them, with and without a StringIndexer, and a folder for caches."""

    df: DataFrame
    model: PipelineModel
    numeric: PipelineModel
    cache: Path

    def tune(self, df: DataFrame | None = None, **options: Any) -> FineTunerModel:
        return tune(self.numeric, self.df if df is None else df, self.cache, **options)

    @property
    def gaps(self) -> DataFrame:
        return self.df.withColumn("wind", F.lit(None).cast("double"))

    @property
    def none(self) -> DataFrame:
        return self.df.where("number < 0")

    def keeping(self, *last: Any) -> list[Any]:
        """An assembler that keeps null, and what follows."""
        return [VectorAssembler(inputCols=NUMBERS, outputCol="assembled", handleInvalid="keep"), *last]

    def classify(self, df: DataFrame, **given: Any) -> Any:
        """A grid of one setting of a logistic regression; its fit."""
        head = LogisticRegression(featuresCol="assembled", labelCol="rain", maxIter=5)
        grid = sparkdiff.CrossValidator(
            estimator=Pipeline(stages=self.keeping(head)),
            evaluator=BinaryClassificationEvaluator(labelCol="rain"),
            estimatorParamMaps=[{head.regParam: 0.1}],
            numFolds=2,
            **given,
        )
        return grid.fit(df)

    def search(self, kind: Any, estimator: Any = None, df: DataFrame | None = None, **given: Any) -> Any:
        """A search of two settings of a linear regression, by an evaluator with a wrong label unless one is given; its fit."""
        head = LinearRegression(featuresCol="x", labelCol="riders")
        whole = Pipeline(stages=[VectorAssembler(inputCols=NUMBERS, outputCol="x"), head])
        values = {head.regParam: [0.1, 1.0]}
        grid = {"estimatorParamMaps": [{p: v} for p, many in values.items() for v in many]}
        space = {"space": values} if kind is Search else grid
        judge = RegressionEvaluator(labelCol="rider")
        chosen: dict[str, Any] = {"estimator": estimator or whole, "evaluator": judge, **space, **given}
        return kind(**chosen).fit(self.df if df is None else df)


def reads_another_name(outputs: Any, label: Any, weight: Any) -> Any:
    return (outputs["pred"] - label) ** 2


LABEL = ("labelCol='rider' of RegressionEvaluator", "neither a column of the data nor", "Did you mean 'riders'")
STAGES = ("list", "expected a fitted PipelineModel or stage", "PipelineModel(stages)")
PATH = ("str", "expected a fitted PipelineModel or stage", "load it with PipelineModel.load(path)")
INDEX = ("labelCol='hour' is string", "must be a number", "set labelCol='hour_index', which StringIndexer")
NO_ROWS = ("the data have no rows", "check how they are read and filtered")
NO_STAGES = ("Pipeline_", "has no stages, so there is nothing to fit", "Pipeline(stages=[...])")
IMPUTE = ("VectorAssembler", "while assembling a row", "put an Imputer in front of it", "'keep' is for trees")
MISTAKES: dict[str, tuple[Callable[[Given], Any], tuple[str, ...]]] = {
    "a group column of four values": (
        lambda g: g.tune(g.df.withColumn("quarter", F.expr("number % 4")), groupCol="quarter", maxEpochs=1),
        ("30 ", "groupCol='quarter' has too few values"),
    ),
    "a group column of one value": (
        lambda g: g.tune(g.df.withColumn("one", F.lit(1)), groupCol="one"),
        ("0 ", "groupCol='one' has too few values, as no group is split", "set one of 30 or more, or none"),
    ),
    "a split that the rows are not in": (
        lambda g: g.tune(g.df.withColumn("held", F.lit(False)), validationIndicatorCol="held"),
        ("0 validation rows", "validationIndicatorCol='held' must be true for some rows and false for others"),
    ),
    "null in front of a linear stage": (
        lambda g: sparkdiff.verify(g.numeric, g.gaps),
        IMPUTE,
    ),
    "null that is kept in front of a linear stage": (
        lambda g: tune(PipelineModel(g.keeping(*g.numeric.stages[1:])), g.gaps, g.cache),
        ("holds nan (or null)", "so a linear stage gives NaN", "impute it before the pipeline, or drop these rows"),
    ),
    "the same before the fit": (
        lambda g: FineTuner(
            Pipeline(stages=g.keeping(LinearRegression(featuresCol="assembled", labelCol="riders"))),
            cacheDir=str(g.cache),
        ).fit(g.gaps),
        (
            "cannot be fitted on the training rows",
            "MUST NOT be NaN",
            "put an Imputer in front of it",
            "'keep' is for trees",
        ),
    ),
    "a hundred rows": (
        lambda g: g.tune(g.df.where("number < 100")),
        ("rows, 30 are needed", "set numFolds=5, so that all rows decide"),
    ),
    "no rows, and folds": (
        lambda g: Improver(g.numeric, cacheDir=str(g.cache)).fit(g.none),
        NO_ROWS,
    ),
    "no rows": (lambda g: g.tune(g.none), NO_ROWS),
    "no rows for a search": (
        lambda g: g.search(Search, df=g.none, evaluator=RegressionEvaluator(labelCol="riders")),
        NO_ROWS,
    ),
    "no rows for a grid": (
        lambda g: g.classify(g.none),
        ("fold 0 is trained on no rows", "check how the data are read and filtered"),
    ),
    "no rows to compare": (
        lambda g: sparkdiff.verify(g.numeric, g.none),
        ("no rows to compare", "check how the data are read and filtered"),
    ),
    "a fold of one class": (
        lambda g: g.classify(
            g.df.withColumns({"fold": F.expr("int(number % 2)"), "rain": F.expr("if(number % 2 = 0, rain, 0D)")}),
            foldCol="fold",
        ),
        ("fold 0 is trained on rows of one class, rain=0.0", "take fewer folds, or spread the classes over the folds"),
    ),
    "a parameter without its stage": (
        lambda g: sparkdiff.plan(g.numeric, unfreeze=["pc"]),
        ("unfreeze='pc' names a parameter without its stage", "Did you mean 'PCAModel.pc'?"),
    ),
    "a metric's short name": (
        lambda g: g.tune(metric="auc"),
        ("'metric' option can't be 'auc'. Did you mean 'areaUnderROC'? It must be one of",),
    ),
    "an option in small letters": (
        lambda g: g.tune(learningrate=0.1),
        ("unknown option 'learningrate'. Did you mean 'learningRate'?",),
    ),
    "a label that the pipeline indexes": (lambda g: FineTuner(g.model, labelCol="hour").fit(g.df), INDEX),
    "the same for an improvement": (
        lambda g: Improver(g.model, labelCol="hour", cacheDir=str(g.cache)).fit(g.df),
        INDEX,
    ),
    "stages in place of a pipeline": (lambda g: FineTuner(pipeline=g.numeric.stages), STAGES),
    "a path in place of a pipeline": (lambda g: Improver(pipeline="models/fair"), PATH),
    "a loss that reads another name": (
        lambda g: g.tune(loss=reads_another_name),
        ("outputs['pred']", "which the predictor doesn't write", "Known: prediction"),
    ),
    "a budget without a unit": (
        lambda g: Improver(g.numeric, budget=5),
        ("budget='5' must be a time such as 90s, 30m",),
    ),  # type: ignore[arg-type]
    "metrics of other rows": (
        lambda g: FineTunerModel(g.numeric, g.numeric, None).evaluate(g.df),  # type: ignore[arg-type]
        ("FineTunerModel has no metrics of other rows", "evaluator.evaluate(model.transform(df))"),
    ),
    "a wrong label of a grid's evaluator": (
        lambda g: g.search(sparkdiff.CrossValidator),
        LABEL,
    ),
    "a wrong label of a search's evaluator": (lambda g: g.search(Search), LABEL),
    "a wrong prediction of a grid's evaluator": (
        lambda g: g.search(
            sparkdiff.CrossValidator, evaluator=RegressionEvaluator(predictionCol="predicted", labelCol="riders")
        ),
        ("predictionCol='predicted' of RegressionEvaluator", "Did you mean 'prediction'"),
    ),
    "an evaluator of another kind of head": (
        lambda g: g.search(Search, evaluator=BinaryClassificationEvaluator(labelCol="riders")),
        ("rawPredictionCol='rawPrediction' of BinaryClassificationEvaluator", "neither a column", "'prediction'"),
    ),
    "a negative weight": (
        lambda g: g.tune(g.df.withColumn("weight", F.expr("if(number = 7, -1D, 1D)")), weightCol="weight"),
        ("weightCol='weight' holds -1.0 in 1 or more rows", "must be >= 0", "check its sign, or clip it at 0"),
    ),
    "names in a space": (
        lambda g: g.search(Search, space={"LinearRegression": {"regParam": [0.1]}}),
        ("space has the key 'LinearRegression'", "its keys are Params", "space={head.regParam: uniform(0, 1)}"),
    ),
    "a pipeline without stages in a grid": (
        lambda g: g.search(sparkdiff.CrossValidator, Pipeline()),
        NO_STAGES,
    ),
    "a pipeline without stages": (lambda g: FineTuner(Pipeline()).fit(g.df), NO_STAGES),
    "a pipeline without stages among alternatives": (
        lambda g: sparkdiff.alternatives(g.numeric.stages[0], Pipeline()),
        ("write different columns", "Pipeline writes columns that no Param names"),
    ),
    "an encoder of Spark 2.2": (
        lambda g: sparkdiff.plan(PipelineModel([OneHotEncoder(inputCol="a", outputCol="b")])),
        ("OneHotEncoder", "isn't fitted", "one that Spark 2.2 or older has saved needed no fit", "fit it anew"),
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_answered(
    df: DataFrame, model: PipelineModel, numeric: PipelineModel, shared: Path, name: str
) -> None:
    make, words = MISTAKES[name]
    try:
        said = make(Given(df, model, numeric, shared)).summary.reason  # of a run that tests nothing
    except InputError as e:
        said = str(e)
    assert not [word for word in words if word not in said], said
