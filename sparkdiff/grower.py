"""Grower and GrowerModel: growth as a pyspark.ml Estimator and the Model that it returns."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pyspark.ml import Estimator, Pipeline
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.splits import REFERENCE, Source, find_boundaries, fit_on_training_rows
from sparkdiff.errors import InputError, check_dataframe
from sparkdiff.estimator import ONE_AT_A_TIME, FineTuner, FineTunerModel, listed, with_params, with_setters
from sparkdiff.growth.plan import described
from sparkdiff.growth.procedure import grow_pipeline
from sparkdiff.growth.settings import FIELDS, REFUSED, GrowthSettings
from sparkdiff.growth.summary import GrowthSummary
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import FineTuningSummary, Phases


@with_setters(FIELDS)
@with_params(FIELDS)
class Grower(FineTuner):
    """Grow a fitted Spark ML pipeline that ends in a linear stage: add plain MLlib stages that learn what its form cannot say.

    Parts of several kinds (hidden units, crosses of columns, curves, effects of entities, boosted trees) are trained in rounds;
    in each the best one joins. In the end all stages train together, parts that are not missed are dropped, and held-out rows
    decide, as in FineTuner.

    Args:
        pipeline: a fitted PipelineModel, or an unfitted Pipeline, which is fitted on the training rows first. It ends in
            LinearRegression, GeneralizedLinearRegression or LogisticRegression.
        referenceData, callbacks: see `FineTuner`.
        **params: see `sparkdiff.growth.settings.GrowthSettings` and `sparkdiff.options.Options` (all but numFolds and
            rowsAreNew), or `Grower().explainParams()`.

    `fit(df)` returns a `GrowerModel` whose `pipelineModel` is plain Spark ML: the stages that were there, with their uids and
    Params, new MLlib stages among them, and the last linear stage over all columns (its featuresCol is another one).

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; the message names all of them.
    """

    __module__ = "sparkdiff"

    def _setDefaults(self) -> Any:
        super()._setDefaults()
        return self._setDefault(**{name: listed(getattr(GrowthSettings(), name)) for name in FIELDS})

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in REFUSED:
            if given.get(name):
                raise InputError(f"{name} is no option of Grower: it holds validation rows out, and fits once")
        own = {name: value for name, value in given.items() if name in FIELDS}
        problems, found = [], dict[str, Any]()
        for read, part in (
            (super()._checked, {n: v for n, v in given.items() if n not in own}),
            (_growth_values, own),
        ):
            try:
                found |= read(part)
            except InputError as e:
                problems.append(str(e))
        if problems:
            raise InputError("; ".join(problems))
        return found

    def growth_settings(self) -> GrowthSettings:
        """The resolved options of growth."""
        return GrowthSettings.of({p.name: v for p, v in self._paramMap.items() if p.name in FIELDS})

    def explain(self, dataset: DataFrame) -> str:
        """What `fit` of these rows would try: the columns that parts may read, their kinds, and the stages that each adds.

        Runs no Spark job, so that the values of entities are not counted.

        Raises:
            InputError: the pipeline is not fitted, ends in no linear stage, or an option does not fit the columns.
        """
        if not self.isSet("pipeline"):
            raise InputError("Grower has no pipeline: pass one, Grower(pipeline=model)")
        check_dataframe("the dataset of explain()", dataset)
        given = self.getPipeline()
        if isinstance(given, Estimator):
            raise InputError(
                f"{given.uid} isn't fitted, and its columns are not known before: explain a fitted pipeline"
            )
        return described(plain(given), self.options(), self.growth_settings(), dataset)

    def saved_params(self) -> dict[str, Any]:
        own = {name: listed(self.getOrDefault(name)) for name in FIELDS if self.isSet(name)}
        return super().saved_params() | own

    def _fit(self, dataset: DataFrame) -> "GrowerModel":
        if not self.isSet("pipeline"):
            raise InputError("Grower has no pipeline: pass one, Grower(pipeline=model)")
        jvm.session()
        check_dataframe("the dataset of fit()", dataset)
        with ONE_AT_A_TIME:
            options, given = self.options(), self.getPipeline()
            sources = [Source(dataset)]
            if self.isSet("referenceData"):
                sources.append(Source(self.getReferenceData(), REFERENCE))
            if isinstance(given, Estimator) and not isinstance(given, Pipeline):
                raise InputError(f"{given.uid} isn't fitted: pass the result of its fit(), or put it into a Pipeline")
            boundaries = find_boundaries(sources, options)
            if isinstance(given, Pipeline):
                given = fit_on_training_rows(given, sources, options, boundaries)
            phases = Phases(options.verbosity > 0, self.callbacks)
            outcome = grow_pipeline(
                plain(given),
                options,
                self.growth_settings(),
                sources,
                phases,
                boundaries=boundaries,
            )
            return self._found(outcome, options)  # type: ignore[return-value]


def _growth_values(given: Mapping[str, Any]) -> dict[str, Any]:
    found = GrowthSettings.of(given)
    return {name: getattr(found, name) for name in given}


@with_params(FIELDS)
class GrowerModel(FineTunerModel):
    """The result of a growth, with the members of `FineTunerModel` and the Params of the Grower.

    Attributes:
        pipelineModel: the plain Spark ML pipeline; the original object itself if the original was kept.
        originalModel: the pipeline that was grown.
        summary: a `GrowthSummary`: metrics before and after, decision, rounds, parts.
    """

    __module__ = "sparkdiff"

    SUMMARY: ClassVar[type[FineTuningSummary]] = GrowthSummary

    def _setDefaults(self) -> Any:
        super()._setDefaults()
        return self._setDefault(**{name: listed(getattr(GrowthSettings(), name)) for name in FIELDS})


Grower.MODEL = GrowerModel
