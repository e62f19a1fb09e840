"""Improver, a pyspark.ml Estimator that improves a fitted pipeline within a budget by any method, and ImproverModel,
the Model that it returns.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from sparkdiff.estimators.fine_tuner import ExtendedTuner, FineTunerModel
from sparkdiff.estimators.option_params import with_params
from sparkdiff.estimators.option_types import ImproverGetters, ImproverMembers
from sparkdiff.fine_tuning.task import Outcome
from sparkdiff.history.run_records import Keep
from sparkdiff.improvement.exploration_and_proof import describe_improvement, improve_pipeline
from sparkdiff.improvement.improvement_options import FIELDS, WHY_REFUSED, ImprovementSettings
from sparkdiff.improvement.improvement_summary import ImprovementSummary
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.report import Displayable, Section, SectionTable, signed


@with_params(FIELDS, setters=True)
class Improver(ImproverMembers, ExtendedTuner):
    """An Estimator that improves a fitted Spark ML pipeline within a budget, by every method that sparkdiff has.

    The methods, called arms, train weights (`finetune`), refit stages (`refit`), search the stages' settings
    (`search`), delete stages (`simplify`) or add stages (`import`: boosted trees; `grow`: hidden units, crosses,
    curves, effects). Arms that are likely to succeed, or cheap ones, run first (see the setting `order`), and arms that
    fall behind are stopped. This race uses some of the rows only. The best results of the race are then tested on the
    other rows, usually by folds: each result is made again for every fold, without the fold's rows, and an accepted
    result finally from all rows.

    Args:
        pipeline: a fitted PipelineModel, or an unfitted Pipeline, which is fitted again for each fold.
        referenceData: see `FineTuner`.
        callbacks: see `FineTuner`.
        **params: see `sparkdiff.improvement.improvement_options.ImprovementSettings` and `sparkdiff.options.Options` (all but
            maxSeconds), or `Improver().explainParams()`.

    `fit(df)` returns an `ImproverModel`, whose `pipelineModel` is plain Spark ML: the best pipeline that the test on
    the rows accepts, or the original object itself. `offers` has further pipelines by name, such as the best
    that is as cheap to serve as the original; shown, it has a line for each.

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds; the message names all of them.

    Examples:
        >>> import sparkdiff
        >>> improver = sparkdiff.Improver(pipeline=pipeline, labelCol="label", budget="20 passes", arms=["simplify"], numFolds=0)
        >>> improved = improver.fit(df)
        >>> improved.summary.decision  # print(improved.summary) shows all that was tested
        'improved'
        >>> [type(stage).__name__ for stage in improved.offers["best"].stages]  # without the PCA
        ['VectorAssembler', 'StandardScalerModel', 'LogisticRegressionModel']
    """

    __module__ = "sparkdiff"

    SETTINGS = ImprovementSettings
    WHY_REFUSED = WHY_REFUSED
    DESCRIBE = staticmethod(describe_improvement)
    PROCEDURE = staticmethod(improve_pipeline)

    def _make_model(self, outcome: Outcome, options: Options, keep: Keep) -> "ImproverModel":
        found: Any = super()._make_model(outcome, options, keep)
        found.offers = Offers(found.summary, outcome.offers)  # type: ignore[attr-defined]
        return found  # type: ignore[no-any-return]


class Offers(Displayable, dict[str, Any]):
    """The offered pipelines by name; `repr`, `print` and notebooks show gain, serving cost and stages of each."""

    def __init__(self, summary: ImprovementSummary, offers: Mapping[str, Any]):
        super().__init__(offers)
        self.summary = summary

    def _sections(self) -> Iterator[Section]:
        found = {name: self.summary.table[row] for name, row in self.summary.offers.items()}
        rows = [
            (n, signed(r["gain"]), f"{r['serving']:.1f}x", ", ".join(type(s).__name__ for _, s in flatten(self[n])))
            for n, r in found.items()
            if n in self
        ]
        yield SectionTable([("offer", "gain", "serving", "stages"), *rows], left=(0, 3))

    __repr__ = Displayable.__str__


@with_params(FIELDS)
class ImproverModel(FineTunerModel, ImproverGetters):
    """The result of an improvement, with the members of `FineTunerModel` and the Params of the Improver.

    Attributes:
        pipelineModel: the best pipeline, plain Spark ML; the original object itself if the original was kept.
        originalModel: the pipeline that was to be improved.
        summary: an `ImprovementSummary`: the table of tested results, the arms (methods, whether tried or not), and
            the reasons.
        offers: {name: plain PipelineModel}: "best" and, if such results exist, "asCheap" (the best that is as cheap to
            serve as the original), "sameForm" (the best with the original's stages), "simpler" (fewer stages, cheaper
            to serve, and no worse). Offers are not saved with the model, so `offers` is empty after loading; save the
            pipelines that you want to keep yourself.
    """

    __module__ = "sparkdiff"

    SETTINGS = ImprovementSettings
    SUMMARY = ImprovementSummary

    offers: Mapping[str, Any] = {}


Improver.MODEL = ImproverModel
