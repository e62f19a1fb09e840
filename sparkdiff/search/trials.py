"""Evaluation of trials, batch by batch, with the code that `CrossValidator` compares settings with; stages that no
trial changes are fitted once.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyspark.ml import Pipeline
from pyspark.ml.evaluation import Evaluator
from pyspark.sql import DataFrame, functions as F

from sparkdiff import jvm
from sparkdiff.data.row_hashes import COPY, coin, with_copies
from sparkdiff.data.splits import below
from sparkdiff.errors import SparkdiffError, WriteError
from sparkdiff.pipeline.nesting import inside
from sparkdiff.search.alternatives import Alternatives, with_choices
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.splitting import DividedRows
from sparkdiff.search.study import Trial, TrialOutcome
from sparkdiff.tuning.cached_rows import RowsStore
from sparkdiff.tuning.cross_validation import outcomes, why_not_at_once
from sparkdiff.tuning.fits import GridTask, leaves_of
from sparkdiff.tuning.folds import Folds
from sparkdiff.tuning.solvers.problem import solve_by_kind

FAILURES = (
    SparkdiffError,
    *jvm.SparkError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    AssertionError,
    ArithmeticError,
    RuntimeError,
)
"""Errors of a setting that can't be fitted: the trial fails, and the search continues. A WriteError or an OSError ends
it."""
HELD = "__sparkdiff_held"
TOGETHER, FEW = 100, 8
"""Numbers of trials in a batch: if a batch is solved at once, and if each trial is a fit of its own."""


class SeveralEvaluators(Evaluator):
    """Several evaluators as one, whose metric is a tuple."""

    def __init__(self, evaluators: Sequence[Any]):
        super().__init__()
        self.evaluators = evaluators

    def _evaluate(self, dataset: DataFrame) -> Any:
        with jvm.persist_rows(dataset) as rows:
            return tuple(evaluator.evaluate(rows) for evaluator in self.evaluators)


@dataclass
class Trials:
    """Evaluation of trials on the rows of a search.

    Attributes:
        resource: the Param that a pruner increases from rung to rung; None: the resource is training rows.
    """

    space: SearchSpace
    rows: DividedRows
    evaluators: Sequence[Any]
    parallelism: int
    resource: Any = None
    held: list[DataFrame] = field(default_factory=list)

    @property
    def evaluator(self) -> Any:
        return self.evaluators[0] if len(self.evaluators) == 1 else SeveralEvaluators(self.evaluators)

    def evaluate(self, trials: Sequence[Trial], resource: float | None = None) -> list[TrialOutcome]:
        """The outcome of each trial, fitted to the training rows and judged on the validation rows.

        Args:
            resource: the resource of each trial: a share of the training rows, or the value of a Param; None: the full
                resource.
        """
        group = partial(self._group, resource=resource)
        return solve_by_kind(trials, lambda trial: self.space.structure(trial.configuration), group)

    def _group(self, trials: Sequence[Trial], resource: float | None) -> list[TrialOutcome]:
        """The outcomes of trials with the same stages."""
        start = time.perf_counter()
        settings = [self.space.setting(trial.configuration) for trial in trials]
        try:
            metrics = self._metrics(settings[0][0], [params for _, params in settings], resource)
        except WriteError:
            raise
        except FAILURES as e:
            if len(trials) > 1:  # one of them failed: evaluate each alone
                return [outcome for trial in trials for outcome in self._group([trial], resource)]
            return [TrialOutcome(None, jvm.cause(e), time.perf_counter() - start)]
        seconds = (time.perf_counter() - start) / len(trials)
        return [_outcome(metric, seconds) for metric in metrics]

    def _metrics(self, estimator: Any, maps: Sequence[Mapping[Any, Any]], resource: float | None) -> list[Any]:
        folds = self._folds
        if resource is not None and self.resource is not None:
            maps = [{**params, self.resource: round(resource)} for params in maps]
        elif resource is not None and resource < 1:
            folds = self._share(resource)
        head = self._shared_stages
        tail = Pipeline(stages=self._leaves(estimator)[head:]) if head else estimator
        task = GridTask.of(tail, maps, self.evaluator)
        return outcomes(task, folds, self.parallelism, keeps=False)[0].metrics

    # Parts that no trial changes
    # ------------------------------------------------------------------------------------------

    def _leaves(self, estimator: Any) -> list[Any]:
        parents = {dimension.param.parent for dimension in self.space.dimensions if dimension.param is not None}
        return leaves_of(estimator, lambda pipeline: pipeline.uid in parents)

    @cached_property
    def _shared_stages(self) -> int:
        """Number of stages before the first one that trials change; the last stage is never counted."""
        leaves = self._leaves(self.space.estimator)
        parents = {dimension.param.parent for dimension in self.space.dimensions if dimension.param is not None}
        for i, leaf in enumerate(leaves[:-1]):
            if isinstance(leaf, Alternatives) or parents & inside(leaf).keys():
                return i
        return len(leaves) - 1

    @cached_property
    def _folds(self) -> Folds:
        """The training and validation rows, transformed by the stages that no trial changes."""
        train, validation = self.rows.part("train"), self.rows.part("validation")
        if self._shared_stages:
            model = Pipeline(stages=self._leaves(self.space.estimator)[: self._shared_stages]).fit(train)
            train, validation = model.transform(train).cache(), model.transform(validation).cache()
            self.held += [train, validation]
        return _one_fold(train, validation, RowsStore(Path(self.scratch.name), {}))

    @cached_property
    def scratch(self) -> TemporaryDirectory[str]:
        """Folder of the written rows that reach linear last stages, kept while trials run."""
        return TemporaryDirectory(prefix=".search-", dir=jvm.scratch_folder(), ignore_cleanup_errors=True)

    def _share(self, share: float) -> Folds:
        """The folds with a share of the training rows, by a hash: a larger share contains all rows of a smaller one."""
        ((_, validation),) = self._folds.pairs
        train = self._rows_with_copies
        return _one_fold(train.where(below(coin(train), share, "share")).drop(COPY), validation)

    @cached_property
    def _rows_with_copies(self) -> DataFrame:
        ((train, _),) = self._folds.pairs
        return with_copies(train)

    def close(self) -> None:
        """Release memory and temporary files."""
        for rows in self.held:
            rows.unpersist()
        self.scratch.cleanup()

    def chunk(self) -> int:
        """Number of trials that are evaluated together if they learn nothing from each other."""
        task = GridTask.of(with_choices(self.space.estimator, {}), [{}], self.evaluator)
        return max(FEW if why_not_at_once(task) else TOGETHER, self.parallelism)


def _one_fold(train: DataFrame, validation: DataFrame, kept: RowsStore | None = None) -> Folds:
    both = train.withColumn(HELD, F.lit(-1)).unionByName(validation.withColumn(HELD, F.lit(0)))
    return Folds(both, F.col(HELD), 1, lambda: [(train, validation)], drawn=False, kept=kept)


def _outcome(metric: Any, seconds: float) -> TrialOutcome:
    values = metric if isinstance(metric, tuple) else (metric,)
    if any(math.isnan(value) for value in values):
        return TrialOutcome(None, "the metric is NaN", seconds)
    return TrialOutcome(tuple(map(float, values)), "", seconds)
