"""Spark's fits in a search, run in threads: in each fold one fit for every distinct combination of a stage, its Params,
and the fitted stages before it.
"""

import contextvars
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from multiprocessing.pool import ThreadPool
from typing import Any

from pyspark import inheritable_thread_target
from pyspark.ml import Estimator, Pipeline, PipelineModel, Transformer
from pyspark.sql import DataFrame

from sparkdiff.errors import InputError, kind_of
from sparkdiff.pipeline.nesting import inside
from sparkdiff.tuning import shared_fits, trie

TAKES_SESSION = "session" in str(inspect.signature(inheritable_thread_target)).lower()
"""True if PySpark's wrapper for threads takes a session; in 3.5 it takes none."""


def leaves_of(estimator: Any, whole: Callable[[Any], bool]) -> list[Any]:
    """The leaf stages of an estimator: pipelines are replaced by their stages, unless `whole` is True for them. A
    subclass of Pipeline is a leaf, because it may do more.

    Raises:
        InputError: a stage is neither an Estimator nor a Transformer, or a Pipeline has no stages.
    """
    if not isinstance(estimator, (Estimator, Transformer)):
        raise InputError(f"{kind_of(estimator)} is not a pipeline stage: it is neither an Estimator nor a Transformer")
    if type(estimator) is not Pipeline or whole(estimator):
        return [estimator]
    if not estimator.isDefined("stages"):
        raise InputError(
            f"{estimator.uid} has no stages, so there is nothing to fit: set them, as in Pipeline(stages=[...])"
        )
    return [leaf for stage in estimator.getOrDefault("stages") for leaf in leaves_of(stage, whole)]


def is_sparks(stage: Any) -> bool:
    """True if a stage's class is from pyspark.ml: it takes only its own Params and those of stages that it holds."""
    return type(stage).__module__.startswith("pyspark.ml.")


@dataclass(frozen=True)
class GridTask:
    """The task of a search: an estimator, its leaf stages, and the grid over them as a trie."""

    estimator: Any
    stages: tuple[Any, ...]
    maps: Sequence[Mapping[Any, Any]]
    evaluator: Any
    root: trie.Fit

    @staticmethod
    def of(estimator: Any, maps: Sequence[Mapping[Any, Any]], evaluator: Any) -> "GridTask":
        """Make the task.

        Raises:
            InputError: the grid is empty, is not a list of dicts of Params, or sets a Param that belongs to no stage.
        """
        trie.check_maps(maps)
        parents = {param.parent for params in maps for param in params}
        stages = leaves_of(estimator, lambda pipeline: pipeline.uid in parents) or [estimator]
        held, given = inside(estimator), inside([value for params in maps for value in params.values()])
        takers = {param.parent for params in maps for param, value in params.items() if inside(value)}
        # The stages that each stage holds, or may hold later: a map of the grid may set a Pipeline's `stages`, and
        # Params of these new stages.
        holds = [{**inside(stage), **(given if inside(stage).keys() & takers else {})} for stage in stages]
        foreign = [not all(map(is_sparks, own.values())) for own in holds]
        known = {**held, **given, **inside(evaluator)}  # Spark ignores Params of the evaluator
        trie.check(maps, known, any(foreign))
        unknown = frozenset(parents - held.keys() - given.keys())
        uids = [frozenset(own) | (unknown if open_ else frozenset()) for own, open_ in zip(holds, foreign, strict=True)]
        return GridTask(estimator, tuple(stages), maps, evaluator, trie.grow(uids, maps))

    def estimates(self, position: int) -> bool:
        return isinstance(self.stages[position], Estimator)

    @cached_property
    def last(self) -> int:
        """The position of the last stage that is an Estimator; -1 if there is none."""
        return max((i for i in range(len(self.stages)) if self.estimates(i)), default=-1)

    @property
    def fits_at_once(self) -> int:
        """Number of fits of a fold that can run at the same time: the fits of the stage that has the most."""
        found: Counter[int] = Counter()
        for place in self.ways_to_fits():
            position = place.after[0].position
            found[position] += len(shared_fits.groups(self.stages[position], place.after))
        return max(found.values(), default=1)

    def ways_to_fits(self) -> Iterator[trie.Fit]:
        """The nodes of the trie whose next stage is an Estimator."""
        places = (self.root, *self.root.below())
        return (place for place in places if place.after and self.estimates(place.after[0].position))

    @property
    def sparks_fits(self) -> int:
        """Number of fits that Spark's own class makes of these stages in a fold."""
        return len(self.maps) * sum(map(self.estimates, range(len(self.stages))))

    def model_from_stages(self, fitted: Sequence[Any]) -> Any:
        """The model that the estimator's `fit` would return, made from these fitted leaf stages."""
        rest = iter(fitted)

        def of(stage: Any) -> Any:
            whole = type(stage) is not Pipeline or any(stage is leaf for leaf in self.stages)
            return next(rest) if whole else PipelineModel([of(part) for part in stage.getOrDefault("stages")])

        return of(self.estimator)


def for_threads(rows: DataFrame) -> Callable[..., Any]:
    """Wrapper for functions that other threads run on these rows: they run with a copy of this thread's context and of
    its job group and other local properties of Spark.
    """
    inherits: Any = inheritable_thread_target(rows.sparkSession) if TAKES_SESSION else inheritable_thread_target
    return lambda work: partial(contextvars.copy_context().run, inherits(work))


@dataclass
class Branch:
    """A path in the trie of fits, from its root to some stage, in one fold: the fold's rows as the stages on the path
    transform them, and these stages, fitted.
    """

    fit: trie.Fit
    train: DataFrame
    validation: DataFrame
    models: tuple[Any, ...] = ()


@dataclass
class FoldMetrics:
    """The metric of each setting on a fold, and the setting's model if models are kept."""

    metrics: list[float]
    models: list[Any]


@dataclass
class FoldFits:
    """The fits of one fold.

    Attributes:
        keeps: whether the models are kept.
        tails: (these fits, a branch that ends before the last stage) -> (last fit, metric, fitted last stage or None) for
            each fit of the last stage. None if Spark makes all these fits.
        held: rows that are cached until the fold ends.
    """

    task: GridTask
    threads: ThreadPool
    keeps: bool
    tails: Callable[["FoldFits", Branch], Iterable[tuple[trie.Fit, float, Any]]] | None = None
    held: list[DataFrame] = field(default_factory=list)

    def run(self, train: DataFrame, validation: DataFrame) -> FoldMetrics:
        """The metrics of all settings on the rows of `validation`, with models fitted to `train`."""
        out = FoldMetrics([0.0] * len(self.task.maps), [None] * len(self.task.maps) if self.keeps else [])
        try:
            branches = [Branch(self.task.root, self.cache(train), self.cache(validation))]
            for position in range(len(self.task.stages) - 1):
                steps = [step for branch in branches for step in self.steps(branch, position)]
                branches = [*self.at_once(steps, train)]
            for fit, metric, model in self.ends(branches):
                for setting in fit.settings:
                    out.metrics[setting] = metric
                    if self.keeps:
                        out.models[setting] = model
        finally:
            for rows in self.held:
                rows.unpersist()
        return out

    def ends(self, branches: Sequence[Branch]) -> Iterator[tuple[trie.Fit, float, Any]]:
        """The last fit of each path, its metric, and its model if models are kept."""
        if self.tails is not None:
            for branch in branches:
                for fit, metric, stage in self.tails(self, branch):
                    yield fit, metric, self.task.model_from_stages([*branch.models, stage]) if self.keeps else None
            return
        position = len(self.task.stages) - 1

        def fit_and_evaluate(step: Callable[[], Branch]) -> tuple[trie.Fit, float, Any]:
            branch = step()
            metric = self.task.evaluator.evaluate(branch.validation)
            return branch.fit, metric, self.task.model_from_stages(branch.models) if self.keeps else None

        steps = [step for branch in branches for step in self.steps(branch, position)]
        ends = [lambda step=step: fit_and_evaluate(step) for step in steps]  # type: ignore[misc]
        yield from self.at_once(ends, branches[0].train)

    def at_once(self, steps: Sequence[Callable[[], Any]], rows: DataFrame) -> Iterator[Any]:
        """Run the steps in the thread pool and yield results as they finish; `rows` are the rows that they read."""
        inherit = for_threads(rows)
        yield from self.threads.imap_unordered(lambda step: step(), [inherit(step) for step in steps])

    def steps(self, branch: Branch, position: int) -> list[Callable[[], Branch]]:
        """Functions that compute the next branches; call each once, from any thread."""
        stage, children = self.task.stages[position], branch.fit.after
        if not self.task.estimates(position):
            return [lambda fit=fit: self.beyond(branch, fit, stage.copy(fit.params)) for fit in children]  # type: ignore[misc]
        if shared_fits.knows(stage):
            found = shared_fits.models(stage, children, branch.train)
            return [lambda fit=fit, model=model: self.beyond(branch, fit, model()) for fit, model in found]  # type: ignore[misc]
        models = stage.fitMultiple(branch.train, [fit.params for fit in children])

        def fit_next() -> Branch:
            index, model = next(models)
            return self.beyond(branch, children[index], model)

        return [fit_next] * len(children)

    def beyond(self, branch: Branch, fit: trie.Fit, model: Any) -> Branch:
        """The branch extended by `model`, its next fitted stage.

        As in Spark, only validation rows are transformed with the Params of the grid's map.
        """
        train, validation = branch.train, model.transform(branch.validation, fit.params)
        if fit.position < self.task.last:
            train = model.transform(train)
            written_once = self.tails is not None and fit.position == len(self.task.stages) - 2
            if fit.readers(self.task.estimates) > 1 and not written_once:
                train, validation = self.cache(train), self.cache(validation)
        return Branch(fit, train, validation, (*branch.models, model))

    def cache(self, rows: DataFrame) -> DataFrame:
        """The rows, cached until the fold ends; rows that the caller has already cached stay so."""
        if rows.storageLevel.useMemory or rows.storageLevel.useDisk:
            return rows
        self.held.append(rows.cache())
        return self.held[-1]
