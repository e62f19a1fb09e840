"""The best settings of a pipeline within a budget, found on the training rows alone.

Unlike `sparkdiff.Search`, this search doesn't decide whether a model ships: the caller decides on rows that are not
read here. A part of the training rows, divided by a hash or by time, fits the trials; the other training rows choose
among the trials; the chosen setting is fitted to all training rows.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data.splits import Source
from sparkdiff.pipeline.unfitted_form import UnfittedForm, refit
from sparkdiff.search.samplers import SamplingPlan
from sparkdiff.search.search_options import Settings
from sparkdiff.search.search_run import SearchTask, best_of, records
from sparkdiff.search.search_space import SearchSpace
from sparkdiff.search.settings_space import first_settings
from sparkdiff.search.splitting import DividedRows, assign_splits
from sparkdiff.search.study import Study, Trial, lock_search_folder
from sparkdiff.search.trials import Trials

CHOOSE = 0.25
"""Share of the training rows that chooses among trials; divided by group or time if there are such columns."""
SHARE = 4
"""A batch should take at most 1/SHARE of the time that is left."""


@dataclass(frozen=True)
class TunedSetting:
    """One of the best settings.

    Attributes:
        model: the plain pipeline that Spark fitted with this setting to all training rows, with the original's uids.
        settings: {name like "PCA.k": value}.
        number: number of its trial; trial 0 has the original setting.
        metric: metric of its trial, on training rows to which the trial was not fitted.
    """

    model: Any
    settings: Mapping[str, Any]
    number: int
    metric: float


@dataclass(frozen=True)
class TunedSettings:
    """The result of a search within a budget.

    Attributes:
        best: the best distinct settings, the best one first.
        current: metric of the original setting, on the same rows; None if it could not be fitted.
        trials, failed: number of trials, and how many of them could not be fitted.
        seconds: time of all trials, including trials before a kill and restart.
        stopped: the limit that ended the search: "trials" or "seconds".
        records: a dict per trial, like `SearchModel.records`.
    """

    best: tuple[TunedSetting, ...]
    current: float | None
    trials: int
    failed: int
    seconds: float
    stopped: str
    records: list[dict[str, Any]]


def tune_within_budget(
    form: UnfittedForm,
    space: Mapping[Any, Any],
    evaluator: Any,
    rows: DataFrame,
    *,
    groupCol: str | None = None,
    timeCol: str | None = None,
    numTrials: int = 30,
    maxSeconds: float | None = None,
    seed: int = 0,
    keep: int = 1,
    folder: Path | None = None,
) -> TunedSettings:
    """Find the best settings of a pipeline within a budget; the first trials are those of `first_settings`.

    The same seed finds the same settings, bit for bit if no `maxSeconds` is given. A search that is started again with
    the same folder, rows and space repeats no finished trial, and ends at the same trial if the clock has ended it
    before; with more trials or seconds it continues.

    Args:
        form: the unfitted form of a fitted pipeline.
        space: {Param of a stage of form.estimator: distribution}, such as `settings_space(form)`.
        evaluator: an Evaluator of Spark's, which chooses among trials.
        rows: the training rows; a part of them fits the trials, the rest chooses among the trials.
        groupCol, timeCol: columns by which the rows that choose are separated from the rows that fit.
        maxSeconds: time limit: no trial begins if the trial and the fit of the best setting to all training rows might
            not end in time.
        keep: number of settings that are fitted to all training rows and returned.
        folder: folder of the study; None keeps the study in memory.

    Raises:
        InputError: an argument can't be used, no trial could be fitted, or the winner can't be fitted to all training
            rows.
    """
    begun = time.monotonic()
    form.check()
    settings = Settings.of(
        {
            "numTrials": numTrials,
            "validationFraction": CHOOSE,
            "groupCol": groupCol,
            "timeCol": timeCol,
            "seed": seed,
            "maxSeconds": maxSeconds,
            "numFolds": 0,
            "rowsAreNew": True,  # only the caller knows which stages stay as fitted, and which rows these have seen
        }
    )
    task = SearchTask.of(SearchSpace.of(form.estimator, space), [evaluator], settings, None)
    with ExitStack() as stack:
        if folder is not None:
            stack.enter_context(lock_search_folder(folder, task.request(rows)))
        inner = assign_splits([Source(rows)], settings)
        stack.enter_context(jvm.persist_rows(inner.rows))
        study, stopped = _run_trials(task, inner, folder, begun)
    return _fit_best_settings(form, task, study, stopped, rows, keep)


def _run_trials(task: SearchTask, rows: DividedRows, folder: Path | None, begun: float) -> tuple[Study, str]:
    """The study with its trials, and the limit that ended them.

    Args:
        begun: time at which the clock was started.
    """
    s = task.settings
    trials = Trials(task.space, rows, task.evaluators, s.parallelism)
    plan = SamplingPlan(s.sampler, task.space, s.seed, s.numTrials, s.parallelism, trials.chunk(), task.larger)
    study = Study(plan, folder, first_settings(task.space))
    with closing(trials):
        while batch := [t for t in study.next() if t.state == "running"]:
            known = [t for t in study.trials() if t.state != "running"]
            if known and _is_over(study, known, s.maxSeconds, time.monotonic() - begun):
                return study, "seconds"
            few = batch[: _size(known, s.maxSeconds)]
            for trial, found in zip(few, trials.evaluate(few), strict=True):
                study.tell(trial.number, found)
        return study, "trials"


def _is_over(study: Study, known: Sequence[Trial], limit: float | None, elapsed: float) -> bool:
    """True if another trial and the fit to all training rows might not end in time.

    A decision by the clock is stored in the study, so that it is repeated after a restart.
    """
    if limit is None:
        return False
    name = f"trials in {limit:g} s"
    if study.study.user_attrs.get(name) == len(known):
        return True
    over = max(sum(t.seconds for t in known), elapsed) + 2 * _usual(known) > limit
    if over:
        study.study.set_user_attr(name, len(known))
    return over


def _size(known: Sequence[Trial], limit: float | None) -> int | None:
    """Number of trials to evaluate together; None: all of the batch. With a time limit, the first two run alone, to learn the
    time of one.
    """
    if limit is None:
        return None
    if len(known) < 2:
        return 1
    return max(1, int((limit - sum(t.seconds for t in known)) / SHARE / max(_usual(known), 1e-9)))


def _usual(known: Sequence[Trial]) -> float:
    """Typical seconds of a trial: the median without the first one, which also prepares what later trials reuse. If
    only the first trial is known, half of its time.
    """
    return statistics.median(t.seconds for t in known[1:]) if known[1:] else known[0].seconds / 2


def _fit_best_settings(
    form: UnfittedForm, task: SearchTask, study: Study, stopped: str, data: DataFrame, keep: int
) -> TunedSettings:
    known = [t for t in study.trials() if t.state != "running"]
    best_of(study)  # raises the reason if there is none
    sign = -1.0 if task.larger[0] else 1.0
    order = sorted((t for t in known if t.state == "complete"), key=lambda t: (sign * t.values[0], t.number))
    distinct = {repr(sorted(t.configuration.items())): t for t in reversed(order)}
    chosen = sorted(distinct.values(), key=order.index)[:keep]
    first = next((t for t in known if t.number == 0 and t.state == "complete"), None)
    return TunedSettings(
        best=tuple(
            TunedSetting(
                refit(form, data, task.space.setting(t.configuration)[1]), t.configuration, t.number, t.values[0]
            )
            for t in chosen
        ),
        current=first.values[0] if first else None,
        trials=len(known),
        failed=sum(t.state == "failed" for t in known),
        seconds=sum(t.seconds for t in known),
        stopped=stopped,
        records=records(known, task),
    )
