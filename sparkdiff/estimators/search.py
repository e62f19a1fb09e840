"""`Search` and `SearchModel`: a search over a space as a pyspark.ml Estimator, and the Model that it returns."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from pyspark.ml import Estimator, Model
from pyspark.ml.evaluation import Evaluator
from pyspark.ml.param import Param, Params
from pyspark.ml.util import MLWritable
from pyspark.sql import DataFrame
from typing_extensions import Self, Unpack

from sparkdiff import jvm
from sparkdiff.errors import InputError, kind_of
from sparkdiff.estimators.option_params import CheckedParams, with_params
from sparkdiff.estimators.option_types import SearchMembers, SearchOptions
from sparkdiff.evaluation.model_saving import check_what_is_saved
from sparkdiff.history.run_records import keeping
from sparkdiff.pipeline.column_names import check_rows
from sparkdiff.pipeline.nesting import Holder, flatten
from sparkdiff.report import Events, Phases, SummarizedModel, check_callbacks, is_progress_shown
from sparkdiff.report.fit_observer import fit_with_observer
from sparkdiff.search.distributions import PLAIN, Distribution, as_distribution, from_dict
from sparkdiff.search.search_options import FIELDS, OTHERS, Settings
from sparkdiff.search.search_progress import SearchProgress, watch
from sparkdiff.search.search_run import SearchTask, run_search
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.search_summary import SearchSummary


@with_params(OTHERS | FIELDS, setters=True)
class Search(Estimator, CheckedParams, jvm.Persistent, SearchMembers):  # type: ignore[type-arg]
    """An Estimator that searches settings of another Estimator, and compares the winner with the default on rows that no
    trial has seen.

    Args:
        estimator: any Estimator: a stage, a Pipeline, a FineTuner; `sparkdiff.alternatives(...)` in a Pipeline is a
            choice of stages.
        space: {Param of a stage: `uniform`, `loguniform`, `integer`, `choice`, or a list of values}.
        evaluator: the metric; with a list of evaluators the search is for the Pareto front, and the first evaluator
            chooses the winner and decides whether it ships.
        current: the fitted model that the winner is to replace; by default the winner is compared with a fit of the
            estimator with its own settings.
        callbacks: instances of subclasses of `sparkdiff.Events`, which receive each phase, each trial and the decision.
            They are not saved.
        **params: see `sparkdiff.search.search_options.Settings`, or `Search().explainParams()`.

    `fit(df)` returns a `SearchModel` whose `bestModel` is plain Spark ML.

    Raises:
        InputError: an option is unknown, of a wrong type or out of bounds. The message names all such options.

    Examples:
        >>> import sparkdiff
        >>> from pyspark.ml.evaluation import BinaryClassificationEvaluator
        >>> pca, head = pipeline.getStages()[2:]
        >>> space = {pca.k: sparkdiff.integer(3, 5), head.regParam: sparkdiff.loguniform(1e-5, 0.1)}
        >>> search = sparkdiff.Search(pipeline, space=space, evaluator=BinaryClassificationEvaluator(), numTrials=2)
        >>> found = search.fit(df)
        >>> found.summary.decision  # print(found.summary) shows the reason; found.trials has a row per trial
        'winner'
        >>> found.bestModel.write().overwrite().save(f"{folder}/churn-best")  # plain Spark ML
    """

    __module__ = "sparkdiff"

    OBJECTS = OTHERS

    def __init__(
        self,
        estimator: Any = None,
        *others: Any,
        space: Mapping[Any, Any] | None = None,
        evaluator: Any = None,
        current: Any = None,
        callbacks: Sequence[Events] = (),
        **params: Unpack[SearchOptions],
    ):
        if others:
            raise InputError(
                f"Search takes only the estimator without a name, but got {', '.join(map(kind_of, others))} as well: "
                "Search(pipeline, space={...}, evaluator=...)"
            )
        check_callbacks(callbacks)
        super().__init__()
        self.callbacks = callbacks
        self.job: dict[str, str] = {}  # the command and the output of a job, for the store of runs
        self._setDefault(**{name: getattr(Settings(), name) for name in FIELDS}, space={})
        self.setParams(estimator=estimator, space=space, evaluator=evaluator, current=current, **params)
        self.settings().check_together()

    def _set(self, **values: Any) -> Any:
        options = {name: value for name, value in values.items() if name not in OTHERS}
        found = Settings.of(options)
        if "estimator" in values and not isinstance(values["estimator"], Estimator):
            raise InputError(f"estimator must be an Estimator, got {kind_of(values['estimator'])}")
        if "space" in values:
            values["space"] = _space(values["space"])
        if "evaluator" in values:
            _evaluators(values["evaluator"])
        if "current" in values:
            flatten(values["current"])  # refuses unfitted stages
        return super()._set(**values | {name: getattr(found, name) for name in options})

    def copy(self, extra: Any = None) -> Self:
        """A copy with the same uid. Params of other objects are set on its estimator and evaluators."""
        new: Any = super().copy({p: v for p, v in (extra or {}).items() if p.parent == self.uid})
        others = {p: v for p, v in (extra or {}).items() if p.parent != self.uid}
        if new.isSet("estimator"):
            new._set(estimator=new.getOrDefault("estimator").copy(others))
        if new.isSet("evaluator"):
            given = new.getOrDefault("evaluator")
            copies = [e.copy(others) if hasattr(e, "uid") else e for e in _evaluators(given)]  # else no Params
            new._set(evaluator=copies if isinstance(given, (list, tuple)) else copies[0])
        return new  # type: ignore[no-any-return]

    def settings(self) -> Settings:
        """The resolved options."""
        return Settings.of({p.name: v for p, v in self._paramMap.items() if p.name in FIELDS})

    @jvm.interruptible()
    def _fit(self, dataset: DataFrame) -> "SearchModel":
        return fit_with_observer(
            self,
            lambda more: self._run_search(dataset, [*self.callbacks, *more]),
            dataset,
            alone=not self.job,  # a job compares what it writes
            check=lambda found: check_what_is_saved(
                found.pipelineModel, lambda: dataset, jvm.scratch_folder, found.summary
            ),
        )

    def _run_search(self, dataset: DataFrame, callbacks: Sequence[Events]) -> "SearchModel":
        task = self.task()
        check_rows("the dataset of fit()", dataset)
        if not jvm.in_process(dataset.sparkSession):
            raise InputError("Search does not run over Spark Connect: it needs a session in this process")
        phases, s = Phases(is_progress_shown(task.settings.verbosity), callbacks), task.settings
        with keeping(s.storeDir, s.tags, s.redact, jvm.scratch_folder) as keep:
            shipped, summary, front = run_search(task, dataset, phases)
            keep(summary, shipped, task.current, dataclasses.asdict(s), None, **self.job)
        phases.on_decision(summary)
        return self._copyValues(SearchModel(shipped, summary, front))  # type: ignore[no-any-return]

    def task(self) -> SearchTask:
        """The task of the search, checked before any job.

        Raises:
            InputError: a Param is missing or its value can't be used. The message names the Param and its value.
        """
        for name in ("estimator", "evaluator"):
            if not self.isSet(name):
                raise InputError(f"Search has no {name}: set it with Search({name}=...)")
        get = self.getOrDefault
        space = SearchSpace.of(get("estimator"), get("space"))
        current = get("current") if self.isSet("current") else None
        return SearchTask.of(space, _evaluators(get("evaluator")), self.settings(), current)

    @staticmethod
    def watch(runDir: str) -> SearchProgress:
        """Progress of the search in this folder, while it runs in any process: best so far, time to go.

        Raises:
            InputError: no search has begun there.
        """
        return watch(runDir)

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options and the space, ready for JSON, and the estimator, the evaluators and the current model by name,
        as `write` saves them.

        Raises:
            InputError: a stage is not MLWritable; or the space holds a value that is neither a number, a text, a
                boolean nor None, nor a list of these.
        """
        held: dict[str, Any] = {name: self.getOrDefault(name) for name in OTHERS if self.isSet(name)}
        space = [[p.parent, p.name, _distribution_dict(p, d)] for p, d in held.pop("space", {}).items()]
        several = isinstance(held.get("evaluator"), (list, tuple))
        evaluators = _evaluators(held.pop("evaluator")) if "evaluator" in held else []
        stages = {**held, **{f"evaluator-{i}": e for i, e in enumerate(evaluators)}}
        for name, stage in stages.items():
            if not isinstance(stage, MLWritable):
                raise InputError(
                    f"{name.partition('-')[0]} {type(stage).__name__} can't be saved: it is not MLWritable"
                )
        params = {name: self.getOrDefault(name) for name in FIELDS if self.isSet(name)}
        return {"params": params, "space": space, "stages": sorted(stages), "several": several}, stages

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "Search":
        """A search with the values and the stages that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.

        Raises:
            InputError: an option is unknown or has a wrong value; the message names all such options.
        """
        stages = {name: stage(name) for name in values["stages"]}
        numbers = sorted(int(name.partition("-")[2]) for name in stages if name.startswith("evaluator-"))
        evaluators = [stages.pop(f"evaluator-{number}") for number in numbers]
        new = cls(**stages, **values["params"])
        if evaluators:
            new._set(evaluator=evaluators if values["several"] else evaluators[0])
        return new._set(space={_param(p, n): from_dict(d) for p, n, d in values["space"]})  # type: ignore[no-any-return]


def _space(given: Any) -> dict[Any, Distribution]:
    if not isinstance(given, Mapping):
        raise InputError(
            f"space must be a dict of Params, got {kind_of(given)}: space={{head.regParam: uniform(0, 1)}}"
        )
    if wrong := [key for key in given if not isinstance(key, Param)]:
        raise InputError(
            f"space has the key {wrong[0]!r}, but its keys are Params of stages, as in space={{head.regParam: uniform(0, 1)}}; "
            "names are for YAML"
        )
    return {param: as_distribution(f"{param.name} of {param.parent}", value) for param, value in given.items()}


def _evaluators(given: Any) -> list[Any]:
    found = [*given] if isinstance(given, (list, tuple)) else [given]
    for evaluator in found:
        if not isinstance(evaluator, Evaluator):
            raise InputError(
                f"evaluator must be an Evaluator of pyspark.ml.evaluation, or a list of them, got {kind_of(evaluator)}"
            )
    if not found:
        raise InputError("evaluator is an empty list: give one Evaluator or more")
    return found


class SearchModel(SummarizedModel, Holder, Model, jvm.Persistent):  # type: ignore[type-arg]
    """The result of a search.

    Attributes:
        pipelineModel, bestModel: the plain model that ships: the winner, or the default or current one if that was
            kept.
        summary: decision, reason, optimism.
        front: numbers of the trials on the Pareto front: no other trial is as good in all metrics and better in one.
        dataset: the rows of the fit; None for a loaded model.
    """

    __module__ = "sparkdiff"

    dataset: DataFrame | None = None

    def __init__(self, pipelineModel: Any, summary: SearchSummary, front: list[int]):
        super().__init__()
        self.pipelineModel, self.summary, self.front = pipelineModel, summary, front

    @property
    def records(self) -> list[dict[str, Any]]:
        """A dict per trial; `trials` has them as a pandas DataFrame."""
        return self.summary.records

    @property
    def bestModel(self) -> Any:
        """The plain model that ships; the same object as `pipelineModel`."""
        return self.pipelineModel

    @property
    def trials(self) -> pd.DataFrame:
        """A row per trial: number, state, metrics, seconds, and its decisions, by name."""
        return pd.DataFrame(self.records)

    @property
    def paretoFront(self) -> "pd.DataFrame":
        """The trials on the Pareto front: no other trial is as good in all metrics and better in one. With one metric,
        the best trials.
        """
        trials = self.trials
        return trials[trials["trial"].isin(self.front)].reset_index(drop=True)

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The summary, the records of the trials and the Pareto front, ready for JSON, and the plain model by name, as
        `write` saves them.
        """
        values = {"summary": self.summary.toDict(), "records": self.records, "front": self.front}
        return values, {"pipelineModel": self.pipelineModel}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "SearchModel":
        """A model with the values and the plain model that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.
        """
        summary = SearchSummary(**values["summary"], records=values["records"])
        return cls(stage("pipelineModel"), summary, values["front"])


def _distribution_dict(param: Param[Any], distribution: Distribution) -> dict[str, Any]:
    for value in distribution.ends():
        inner = value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(one, PLAIN) for one in inner):
            raise InputError(f"space of {param.name} of {param.parent} holds {kind_of(value)}, which cannot be saved")
    return distribution.toDict()


def _param(parent: str, name: str) -> Any:
    """A Param of a stage, given by uid; Params with the same uid and name are equal."""
    found: Any = Param(Params._dummy(), name, "")  # type: ignore[no-untyped-call]
    found.parent = parent
    return found
