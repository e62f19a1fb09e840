"""Improver and ImproverModel: an improvement as a pyspark.ml Estimator and the Model that it returns."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pyspark.ml import Estimator, Pipeline
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.splits import REFERENCE, Source, find_boundaries, fit_on_training_rows
from sparkdiff.errors import InputError, check_dataframe
from sparkdiff.estimator import ONE_AT_A_TIME, FineTuner, FineTunerModel, listed, with_params, with_setters
from sparkdiff.improvement.plan import described
from sparkdiff.improvement.procedure import improve_pipeline
from sparkdiff.improvement.settings import FIELDS, REFUSED, WHY_REFUSED, ImprovementSettings
from sparkdiff.improvement.summary import ImprovementSummary
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import FineTuningSummary, Phases


@with_setters(FIELDS)
@with_params(FIELDS)
class Improver(FineTuner):
    """Improve a fitted Spark ML pipeline within a budget, in every way that sparkdiff knows.

    Weights are trained (`finetune`), stages are fitted anew (`refit`), their settings searched (`search`), stages are deleted
    (`simplify`) or added (`import`: boosted trees; `grow`: hidden units, crosses, curves, effects). Cheap ways come first, those
    that fall behind are stopped, and one test on held-out rows covers everything that was measured on them.

    Args:
        pipeline: a fitted PipelineModel, or an unfitted Pipeline, which is fitted on the training rows first.
        referenceData, callbacks: see `FineTuner`.
        **params: see `sparkdiff.improvement.settings.ImprovementSettings` and `sparkdiff.options.Options` (all but numFolds,
            rowsAreNew and maxSeconds), or `Improver().explainParams()`.

    `fit(df)` returns an `ImproverModel`, whose `pipelineModel` is plain Spark ML: the best pipeline that the rows decide for, or
    the original object itself. `offers` has others by name, such as the best that serves as cheaply as the original.

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; the message names all of them.
    """

    __module__ = "sparkdiff"

    def _setDefaults(self) -> Any:
        super()._setDefaults()
        return self._setDefault(**{name: listed(getattr(ImprovementSettings(), name)) for name in FIELDS})

    def _checked(self, given: Mapping[str, Any]) -> dict[str, Any]:
        for name in REFUSED:
            if given.get(name):
                raise InputError(f"{name} is no option of Improver: {WHY_REFUSED[name]}")
        own = {name: value for name, value in given.items() if name in FIELDS}
        problems, found = [], dict[str, Any]()
        for read, part in (
            (super()._checked, {n: v for n, v in given.items() if n not in own}),
            (_own_values, own),
        ):
            try:
                found |= read(part)
            except InputError as e:
                problems.append(str(e))
        if problems:
            raise InputError("; ".join(problems))
        return found

    def improvement_settings(self) -> ImprovementSettings:
        """The resolved options of the improvement."""
        return ImprovementSettings.of({p.name: v for p, v in self._paramMap.items() if p.name in FIELDS})

    def explain(self, dataset: DataFrame) -> str:
        """What `fit` of these rows would try, and what it would not try and why. Runs no Spark job.

        Raises:
            InputError: the pipeline is not fitted, or an option does not fit the columns.
        """
        if not self.isSet("pipeline"):
            raise InputError("Improver has no pipeline: pass one, Improver(pipeline=model)")
        check_dataframe("the dataset of explain()", dataset)
        given = self.getPipeline()
        if isinstance(given, Estimator):
            raise InputError(
                f"{given.uid} isn't fitted, and its columns are not known before: explain a fitted pipeline"
            )
        return described(plain(given), self.options(), self.improvement_settings(), dataset)

    def saved_params(self) -> dict[str, Any]:
        own = {name: listed(self.getOrDefault(name)) for name in FIELDS if self.isSet(name)}
        return super().saved_params() | own

    def _fit(self, dataset: DataFrame) -> "ImproverModel":
        if not self.isSet("pipeline"):
            raise InputError("Improver has no pipeline: pass one, Improver(pipeline=model)")
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
            model, settings = plain(given), self.improvement_settings()
            if options.verbosity:
                print(described(model, options, settings, dataset), flush=True)
            phases = Phases(options.verbosity > 0, self.callbacks)
            outcome = improve_pipeline(model, options, settings, sources, phases, boundaries=boundaries)
            found: Any = self._found(outcome, options)
            found.offers = dict(outcome.offers)
            return found  # type: ignore[no-any-return]


def _own_values(given: Mapping[str, Any]) -> dict[str, Any]:
    found = ImprovementSettings.of(given)
    return {name: getattr(found, name) for name in given}


@with_params(FIELDS)
class ImproverModel(FineTunerModel):
    """The result of an improvement, with the members of `FineTunerModel` and the Params of the Improver.

    Attributes:
        pipelineModel: the best pipeline, plain Spark ML; the original object itself if the original was kept.
        originalModel: the pipeline that was to be improved.
        summary: an `ImprovementSummary`: the table of all results, the arms, why.
        offers: {name: plain PipelineModel}: "best", and where they exist "asCheap" (the best that serves as cheaply as the
            original), "sameForm" (the best with the original's stages), "simpler" (a stage less, and no worse). They are not
            saved with the model: save those that you want, each is a plain PipelineModel. Empty after loading.
    """

    __module__ = "sparkdiff"

    SUMMARY: ClassVar[type[FineTuningSummary]] = ImprovementSummary

    offers: Mapping[str, Any] = {}

    def _setDefaults(self) -> Any:
        super()._setDefaults()
        return self._setDefault(**{name: listed(getattr(ImprovementSettings(), name)) for name in FIELDS})

    def copy(self, extra: Any = None) -> "ImproverModel":
        new: Any = super().copy(extra)
        new.offers = self.offers
        return new  # type: ignore[no-any-return]


Improver.MODEL = ImproverModel
