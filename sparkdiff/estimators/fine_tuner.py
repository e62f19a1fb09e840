"""FineTuner, fine-tuning as a pyspark.ml Estimator; FineTunerModel, the Model that it returns; and ExtendedTuner, the
base of the estimators with further settings (Grower, Improver).
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

from pyspark.ml import Estimator, Model, Pipeline, Transformer
from pyspark.ml.param import Param, Params
from pyspark.sql import DataFrame
from typing_extensions import Self, Unpack

from sparkdiff import jvm
from sparkdiff.data.cache import root
from sparkdiff.data.splits import REFERENCE, Source, find_boundaries, fit_on_training_rows, held_out_first, rule
from sparkdiff.errors import InputError, check_dataframe, did_you_mean, kind_of
from sparkdiff.estimators.option_params import CheckedParams, convert_options, tuple_as_list, with_params
from sparkdiff.estimators.option_types import TunerGetters, TunerMembers, TunerOptions
from sparkdiff.evaluation.model_saving import check_what_is_saved
from sparkdiff.fine_tuning.costs import Cost, cost_of
from sparkdiff.fine_tuning.fine_tuning_run import fine_tune, starting_point
from sparkdiff.fine_tuning.task import FitResults, Outcome, prepare
from sparkdiff.history.caches import remove_old
from sparkdiff.history.run_records import Keep, keeping
from sparkdiff.improvement.by_folds import fine_tune_by_folds
from sparkdiff.options import FIELDS, OptionGroup, Options, callable_name, named_callable, option, refuse
from sparkdiff.pipeline.nesting import Holder, flatten, plain, with_stage_params
from sparkdiff.pipeline.unfitted_form import check_unfitted
from sparkdiff.report import (
    Events,
    FineTuningSummary,
    Phases,
    RunPlan,
    SummarizedModel,
    check_callbacks,
    is_progress_shown,
)
from sparkdiff.report.fit_observer import fit_with_observer
from sparkdiff.tuning.fits import leaves_of

OBJECTS = {
    "pipeline": option(None, "the pipeline to fine-tune: a fitted PipelineModel or stage, or an unfitted Pipeline"),
    "referenceData": option(None, "a DataFrame of rows on which the tuned pipeline may not be worse"),
}
ONE_AT_A_TIME = threading.RLock()
"""A lock that each fit holds, because a fit changes process-wide settings: torch's number of threads, Python's warning
filters and Spark's confs.
"""


@with_params(FIELDS)
class _TunerParams(Params, TunerGetters):
    """Base with a Param for each option of fine-tuning; subclasses may have Params for further settings (`SETTINGS`)."""

    SETTINGS: ClassVar[Any] = OptionGroup
    """The frozen dataclass of further options, of which `of` checks the values; empty for fine-tuning itself."""

    def _setDefaults(self) -> Any:
        return self._setDefault(**Options().asdict(), **self.SETTINGS().asdict())


@with_params(OBJECTS | FIELDS, setters=True)
class FineTuner(Estimator, CheckedParams, _TunerParams, jvm.Persistent, TunerMembers):  # type: ignore[type-arg]
    """An Estimator that fine-tunes a fitted Spark ML pipeline on a loss of your choice.

    Args:
        pipeline: a fitted PipelineModel or a single fitted stage; the fitted model of a search (CrossValidator,
            TrainValidationSplit or Search), whose bestModel is tuned; or an unfitted Pipeline, which is fitted on the
            training rows first.
        referenceData: a DataFrame of rows, for example of previous weeks, on which the tuned pipeline must not be
            worse: if it is significantly worse on these rows, it is not returned. Training never reads the rows, and
            they are not saved with the FineTuner.
        callbacks: instances of subclasses of `sparkdiff.Events`, which receive each phase, each epoch and the decision;
            an exception in a callback becomes a warning. Callbacks are not a Param, and not saved with the FineTuner.
        **params: see `sparkdiff.options.Options`, or `FineTuner().explainParams()`.

    `fit(df)` returns a `FineTunerModel` whose `pipelineModel` is plain Spark ML. `fit(df, [map, ...])`, and therefore
    each fold of a CrossValidator, does the work that the maps share only once: fitting an unfitted pipeline, writing
    the cache, checking against Spark. A map may also set Params of the pipeline's stages. Fits from several threads run
    one after the other.

    Raises:
        InputError: options are unknown, of a wrong type or out of bounds; the message names all of them.

    Examples:
        >>> import sparkdiff
        >>> tuned = sparkdiff.FineTuner(pipeline=pipeline, labelCol="label", maxEpochs=3).fit(df)
        >>> tuned.summary.decision  # print(tuned.summary) shows the reason, and the metrics before and after
        'tuned'
        >>> [type(stage).__name__ for stage in tuned.pipelineModel.stages]
        ['VectorAssembler', 'StandardScalerModel', 'PCAModel', 'LogisticRegressionModel']
        >>> tuned.pipelineModel.write().overwrite().save(f"{folder}/churn-tuned")  # plain Spark ML
    """

    __module__ = "sparkdiff"

    MODEL: ClassVar[type["FineTunerModel"]]
    """The class of the model that `fit` returns."""

    OBJECTS = OBJECTS

    def __init__(
        self,
        pipeline: Any = None,
        *others: Any,
        referenceData: DataFrame | None = None,
        callbacks: Sequence[Events] = (),
        **params: Unpack[TunerOptions],
    ):
        if others:
            own = type(self).__name__
            raise InputError(
                f"{own} takes only the pipeline without a name, but got {', '.join(map(kind_of, others))} "
                f'as well: {own}(model, labelCol="label")'
            )
        check_callbacks(callbacks)
        super().__init__()
        self.callbacks = callbacks
        self._shared: FitResults | None = None  # set on the copy that the fits of one fitMultiple start from
        self._setDefaults()
        self.setParams(pipeline=pipeline, referenceData=referenceData, **params)

    def _convert_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """The values of these options, converted to their types.

        Raises:
            InputError: an option is unknown or a value can't be converted; the message lists all of them.
        """
        return convert_options(Options, given)

    def _set(self, **values: Any) -> Any:
        # Every way to set a Param calls this method, also for the values of a grid, which nothing has checked before.
        if "referenceData" in values:
            check_dataframe("referenceData", values["referenceData"])
        if not isinstance(values.get("pipeline", self), (Estimator, Transformer)):
            flatten(values["pipeline"])  # raises an error with the way to a pipeline
        checked = self._convert_options({name: v for name, v in values.items() if name not in OBJECTS})
        return super()._set(**values | {name: tuple_as_list(value) for name, value in checked.items()})

    def copy(self, extra: Any = None) -> Self:
        """A copy with the same uid; mutable values such as lists are copied.

        Params in `extra` that belong to stages of the pipeline are set on these stages, as OneVsRest does with its
        classifier.
        """
        new = super().copy(extra)._setDefaults()
        others = {param: value for param, value in (extra or {}).items() if param.parent != self.uid}
        if others and new.isSet("pipeline"):
            new._set(pipeline=self._with_params(new.getOrDefault("pipeline"), others))
        return new  # type: ignore[no-any-return]

    def _with_params(self, given: Any, params: dict[Param[Any], Any]) -> Any:
        """The pipeline with these Params set on its stages.

        Within one fitMultiple, equal Params give the same pipeline object, so that its fits can share results.
        """
        try:
            key = ("pipeline", given, frozenset(params.items()))
            hash(key)
        except TypeError:  # an unhashable value, such as a list
            return with_stage_params(given, params)
        return (self._shared or FitResults()).once(key, lambda: with_stage_params(given, params))

    def options(self) -> Options:
        """The options of this tuner, set or default."""
        return Options.of({p.name: v for p, v in self._paramMap.items() if p.name in FIELDS})

    def fitMultiple(self, dataset: DataFrame, paramMaps: Sequence[Any]) -> "Iterator[tuple[int, FineTunerModel]]":
        """Fit once per map. All maps are checked before the first fit.

        All maps that do not change the content of the cache share one. Maps that differ only in `learningRate`,
        `regAnchor`, `recipe` or `ema` train together, in one pass over the rows per epoch.
        """
        tuner = self.copy()
        tuner._shared = FitResults()
        fits = [tuner.copy(params) for params in paramMaps]
        runs = [fit.options().runId for fit in fits]
        if shared_run := next((r for r in runs if r is not None and runs.count(r) > 1), None):
            raise InputError(
                f"runId={shared_run!r} names one training, but {runs.count(shared_run)} settings would share "
                "it: leave it unset, or set a different one in each"
            )
        if self.isSet("pipeline"):
            tuner._shared.train_together([(fit.getOrDefault("pipeline"), fit.options()) for fit in fits])
        return super(FineTuner, tuner).fitMultiple(dataset, paramMaps)

    @jvm.interruptible()
    def _fit(self, dataset: DataFrame) -> "FineTunerModel":
        def check(found: FineTunerModel) -> None:
            rows = lambda: held_out_first(self._sources(dataset), self.options())  # noqa: E731
            check_what_is_saved(found.pipelineModel, rows, lambda: root(self.options()), found.summary)

        fit = lambda more: self._fit_with_callbacks(dataset, [*self.callbacks, *more])  # noqa: E731
        return fit_with_observer(self, fit, dataset, alone=self._shared is None, check=check)

    def _fit_with_callbacks(self, dataset: DataFrame, callbacks: Sequence[Events]) -> "FineTunerModel":
        given = self._require_pipeline()
        jvm.session()
        check_dataframe("the dataset of fit()", dataset)
        if isinstance(given, Estimator) and not isinstance(given, Pipeline):
            raise InputError(f"{given.uid} isn't fitted: pass the result of its fit(), or put it into a Pipeline")
        options, sources = self.options(), self._sources(dataset)
        with ONE_AT_A_TIME, open_run_store(options) as keep:
            phases = Phases(is_progress_shown(options.verbosity), callbacks)
            return self._make_model(self._run(given, options, sources, phases), options, keep)

    def _run(self, given: Any, options: Options, sources: Sequence[Source], phases: Phases) -> Outcome:
        """Run the procedure on a fitted pipeline, or on an unfitted Pipeline."""
        if options.numFolds and options.tune == "weights":
            return fine_tune_by_folds(given, options, sources, phases)
        shared, boundaries = self._shared or FitResults(), None
        if isinstance(given, Pipeline):
            divided = ("boundaries", rule(options), *(s.df for s in sources[1:]))
            boundaries = known = shared.once(divided, lambda: find_boundaries(sources, options))
            model = shared.once(
                ("fitted", given, rule(options)), lambda: plain(fit_on_training_rows(given, sources, options, known))
            )
        else:
            model = shared.once(("plain", given), lambda: plain(given))
        start = starting_point(given, model, options, sources, phases, boundaries=boundaries, shared=shared)
        task, member = prepare(start.model, options, sources[0].df), shared.member_of(given, options)
        return fine_tune(task, sources, phases, shared=shared, boundaries=boundaries, member=member, start=start)

    @jvm.interruptible()
    def cost(self, dataset: DataFrame) -> Cost:
        """The expected cost of `fit` on these rows: Spark jobs, bytes of the cache, seconds. Writes nothing.

        This method counts the rows, runs Spark on up to 40,000 of them, and trains on the first 2,000 for two epochs.

        Raises:
            InputError: the pipeline is not fitted, or the pipeline, the rows or an option cannot be used.
        """
        given = self._require_pipeline()
        check_dataframe("the dataset of cost()", dataset)
        if isinstance(given, Estimator):
            raise InputError(f"{given.uid} isn't fitted, so its columns are not known yet: pass a fitted pipeline")
        with ONE_AT_A_TIME:
            return cost_of(prepare(plain(given), self.options(), dataset), dataset)

    def _require_pipeline(self) -> Any:
        if not self.isSet("pipeline"):
            own = type(self).__name__
            raise InputError(f"{own} has no pipeline: pass one, {own}(pipeline=model)")
        leaves_of(self.getOrDefault("pipeline"), lambda _pipeline: False)  # raises where a Pipeline has no stages
        check_unfitted(self.getOrDefault("pipeline"), self.options().rowsAreNew)  # before anything is fitted
        return self.getOrDefault("pipeline")

    def _sources(self, dataset: DataFrame) -> list[Source]:
        """The sources of rows of a fit: the DataFrame, and the reference rows if there are any."""
        reference = [Source(self.getOrDefault("referenceData"), REFERENCE)] if self.isSet("referenceData") else []
        return [Source(dataset), *reference]

    def _make_model(self, outcome: Outcome, options: Options, keep: Keep) -> "FineTunerModel":
        keep(outcome.summary, outcome.model, outcome.original, outcome.summary.options, outcome.plan)
        found = self.MODEL(outcome.model, outcome.original, outcome.summary)
        self.copy()._copyValues(found)  # from a copy, so that the lists are not shared
        return found._set(loss=callable_name(options.loss)) if callable(options.loss) else found  # type: ignore[return-value]

    def saved_params(self) -> dict[str, Any]:
        """The options that are set, by name, ready for JSON."""
        return {name: v for name, v in self.options().asdict().items() if self.isSet(name)}

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options that are set and the pipeline, as `write` saves them.

        Returns:
            The values, ready for JSON: the options as "params", and the names of the stages as "stages"; and the stages
            by name: the pipeline, if it is set.

        Raises:
            InputError: referenceData is set; or the loss is a function that its module does not hold under its name,
                such as a lambda.
        """
        loss = self.options().loss
        if callable(loss) and not _has_name(loss):
            name = callable_name(loss)
            raise InputError(f"loss={name} cannot be saved: define it as a function at the top level of a module")
        if self.isSet("referenceData"):
            raise InputError(
                "referenceData is a DataFrame, which cannot be saved: clear it with "
                "tuner.clear(tuner.referenceData), and set it again after loading"
            )
        stages = {"pipeline": self.getOrDefault("pipeline")} if self.isSet("pipeline") else {}
        return {"params": self.saved_params(), "stages": [*stages]}, stages

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "FineTuner":
        """A tuner with the values and the stages that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.

        Raises:
            InputError: an option is unknown or has a wrong value; the message lists all of them.
        """
        return cls(**values["params"], **{name: stage(name) for name in values["stages"]})


@contextlib.contextmanager
def open_run_store(options: Options) -> Iterator[Keep]:
    """The context manager `keeping` with the values of these options; after a run without an error, old caches are removed
    (`cacheMaxAge`).
    """
    with keeping(options.storeDir, options.tags, options.redact, lambda: root(options)) as keep:
        yield keep
    if options.cacheMaxAge is not None and jvm.stores.url_of(root(options)) is None:
        with contextlib.suppress(OSError), Phases(is_progress_shown(options.verbosity)).phase("caches") as say:
            say(remove_old(root(options), options.cacheMaxAge))


class FineTunerModel(SummarizedModel, Holder, Model, _TunerParams, jvm.Persistent):  # type: ignore[type-arg]
    """The result of fine-tuning, with the Params of the FineTuner; a custom loss function is stored by its name.

    Attributes:
        pipelineModel: the tuned pipeline, plain Spark ML; the original object itself if the original was kept.
        originalModel: the pipeline that was fine-tuned.
        summary: metrics before and after, decision, history.
        dataset: the rows of the fit; None for a model that was loaded or copied.
    """

    __module__ = "sparkdiff"

    dataset: DataFrame | None = None
    SUMMARY: ClassVar[type[FineTuningSummary]] = FineTuningSummary

    def __init__(self, pipelineModel: Any, originalModel: Any, summary: FineTuningSummary):
        super().__init__()
        self.pipelineModel, self.originalModel, self.summary = pipelineModel, originalModel, summary
        self._setDefaults()

    def copy(self, extra: Any = None) -> Self:
        """A copy without the rows of the fit; see `Holder.copy`."""
        new: Self = super().copy(extra)
        new.dataset = None
        return new

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The Params that are set and the summary, ready for JSON, and both pipelines by name, as `write` saves
        them.
        """
        values = {"params": self.params_set(), "summary": dataclasses.asdict(self.summary)}
        return values, {"pipelineModel": self.pipelineModel, "originalModel": self.originalModel}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "FineTunerModel":
        """A model with the values and the pipelines that `saved_parts` returned; its uid is set afterwards.

        If the original was kept, `pipelineModel` and `originalModel` are the same object, as after the fit.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.
        """
        summary = cls.SUMMARY(**values["summary"])
        original = stage("originalModel")
        plain = original if summary.decision == "kept original" else stage("pipelineModel")
        return cls(plain, original, summary)._set(**values["params"])  # type: ignore[no-any-return]


def _has_name(loss: Any) -> bool:
    """True if this callable can be found by its name `module:qualname`."""
    try:
        return named_callable(callable_name(loss)) is loss
    except ValueError:
        return False


FineTuner.MODEL = FineTunerModel


def _names(settings: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(settings))


class ExtendedTuner(FineTuner):
    """A FineTuner with further settings and another procedure."""

    WHY_REFUSED: ClassVar[Mapping[str, str]] = {"tune": "only FineTuner has it"}
    """Options of fine-tuning that this estimator does not support, and the reasons."""
    DESCRIBE: ClassVar[Callable[..., RunPlan]]
    """Function (fitted pipeline, options, settings, rows) that returns the plan of a run; runs no Spark job."""
    PROCEDURE: ClassVar[Callable[..., Outcome]]
    """Function (fitted or unfitted pipeline, options, settings, sources, phases) that runs the procedure."""

    def options(self) -> Options:
        """The options, set or default; if `numFolds` is not set, it is "auto" here, the division that shows smaller gains."""
        found = super().options()
        return found if self.isSet("numFolds") else dataclasses.replace(found, numFolds="auto")

    def _run(self, given: Any, options: Options, sources: Sequence[Source], phases: Phases) -> Outcome:
        if not isinstance(given, Pipeline):  # raises errors before anything is fitted
            self.DESCRIBE(plain(given), options, self.settings(), sources[0].df)
        return self.PROCEDURE(given, options, self.settings(), sources, phases)

    def _convert_options(self, given: Mapping[str, Any]) -> dict[str, Any]:
        own, why = _names(self.SETTINGS), self.WHY_REFUSED
        known = {*FIELDS, *own} - {*why}
        problems = [
            f"{name} is no option of {type(self).__name__}: {why[name]}"
            if name in why
            else f"unknown option {name!r}. {did_you_mean(str(name), known)}"
            for name, value in given.items()
            if name not in known and (value or name not in why)
        ]
        found = dict[str, Any]()
        for kind, names in ((Options, FIELDS), (self.SETTINGS, own)):
            try:
                found |= convert_options(kind, {name: value for name, value in given.items() if name in names})
            except InputError as e:
                problems.append(str(e))
        refuse(problems)
        return found

    def settings(self) -> Any:
        """The settings beyond the options of fine-tuning, set or default, as an instance of `SETTINGS`."""
        names = _names(self.SETTINGS)
        return self.SETTINGS.of({p.name: v for p, v in self._paramMap.items() if p.name in names})

    def explain(self, dataset: DataFrame) -> RunPlan:
        """The plan of `fit` on these rows: what `fit` would try, what it would not try, and why. `print` and notebooks
        show it, `toDict()` returns it. Runs no Spark job.

        Raises:
            InputError: the pipeline is not fitted, or the pipeline or an option cannot be used.
        """
        given = self._require_pipeline()
        check_dataframe("the dataset of explain()", dataset)
        if isinstance(given, Estimator):
            raise InputError(
                f"{given.uid} isn't fitted, so its columns are not known yet: fit it, and call explain() with the fitted pipeline"
            )
        return self.DESCRIBE(plain(given), self.options(), self.settings(), dataset)

    def cost(self, dataset: DataFrame) -> Cost:
        """Raise InputError: the cost is not known in advance, because a run chooses what to try by its earlier results.

        Raises:
            InputError: always.
        """
        own = type(self).__name__
        raise InputError(
            f"the cost of {own} is not known before: what it tries depends on what it finds. explain(df) tells what it may try, "
            "and FineTuner's cost(df) what one training takes"
        )

    def saved_params(self) -> dict[str, Any]:
        """The options and the settings that are set, by name, ready for JSON."""
        return super().saved_params() | {n: v for n, v in self.settings().asdict().items() if self.isSet(n)}
