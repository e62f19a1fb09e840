"""Grower and GrowerModel: growth as a pyspark.ml Estimator and the Model that it returns."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pyspark.sql import DataFrame

from sparkdiff.data.splits import Source
from sparkdiff.extended import ExtendedModel, ExtendedTuner
from sparkdiff.fine_tuning.option_params import with_params, with_setters
from sparkdiff.fine_tuning.values import Outcome
from sparkdiff.growth.plan import described
from sparkdiff.growth.settings import FIELDS, GrowthSettings
from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.improvement.growing_by_folds import grow_pipeline
from sparkdiff.options import Options
from sparkdiff.report import FineTuningSummary, Phases


@with_setters(FIELDS)
@with_params(FIELDS)
class Grower(ExtendedTuner):
    """Grow a fitted Spark ML pipeline that ends in a linear stage: add plain MLlib stages that learn what its form cannot say.

    Parts of several kinds (hidden units, crosses of columns, curves, effects of entities, boosted trees) are trained in rounds;
    in each the best one joins. In the end all stages train together, parts that are not missed are dropped, and held-out rows
    decide, as in FineTuner.

    Args:
        pipeline: a fitted PipelineModel, or an unfitted Pipeline, which is fitted on the training rows first. It ends in
            LinearRegression, GeneralizedLinearRegression or LogisticRegression.
        referenceData: see `FineTuner`.
        callbacks: see `FineTuner`.
        **params: see `sparkdiff.growth.settings.GrowthSettings` and `sparkdiff.options.Options` or `Grower().explainParams()`.

    `fit(df)` returns a `GrowerModel` whose `pipelineModel` is plain Spark ML: the stages that were there, with their uids and
    Params, new MLlib stages among them, and the last linear stage over all columns (its featuresCol is another one).

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; the message names all of them.
    """

    __module__ = "sparkdiff"

    SETTINGS = GrowthSettings

    def growth_settings(self) -> GrowthSettings:
        """The resolved options of growth."""
        return self._settings()  # type: ignore[no-any-return]

    def _described(self, model: Any, options: Options, dataset: DataFrame) -> str:
        return described(model, options, self.growth_settings(), dataset)

    def _run(self, given: Any, options: Options, sources: Sequence[Source], phases: Phases) -> Outcome:
        return grow_pipeline(given, options, self.growth_settings(), sources, phases)


@with_params(FIELDS)
class GrowerModel(ExtendedModel):
    """The result of a growth, with the members of `FineTunerModel` and the Params of the Grower.

    Attributes:
        pipelineModel: the plain Spark ML pipeline; the original object itself if the original was kept.
        originalModel: the pipeline that was grown.
        summary: a `GrowthSummary`: metrics before and after, decision, rounds, parts.
    """

    __module__ = "sparkdiff"

    SETTINGS = GrowthSettings
    SUMMARY: ClassVar[type[FineTuningSummary]] = GrowthSummary


Grower.MODEL = GrowerModel
