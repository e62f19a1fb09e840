"""Cheap facts about a pipeline and its rows, measured before a fine-tuning, and facts about its earlier run from a store of
runs.

The first describe the pipeline's plan and, on a sample of up to 2,000 rows, the loss, the gradient, the curvature along the
gradient, and the gains on held-out rows after one step along the gradient, and after the first and the last of three
epochs of training one candidate.

No cache is written, and the network is not compared with Spark, because the facts serve forecasts only and decide
nothing. The natural unit of a parameter is its typical scale; vectors u (p,) below are shifts of the trained parameters
from the original's, in natural units.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from pyspark.sql import DataFrame
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.data import soft_labels
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.rehearsal import SAMPLE, Sample, cache_sample
from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation.row_checks import training_labels
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.split_batches import Data, rows_at_once, scalar
from sparkdiff.fine_tuning.task import Task
from sparkdiff.history.run_table import json_object
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.pipeline.network import Network
from sparkdiff.report import share_of
from sparkdiff.training.loop import one_thread_for_small_steps, train
from sparkdiff.training.parameters import load, parameter_vector, trainable_parameters
from sparkdiff.training.preparation import Start, resolve_objectives, start_of
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.training_run import Training

Facts = dict[str, float]
"""Facts by name; NaN if unknown."""
FACTS = "sparkdiff.facts"
"""Name of the tag of a run in the store that holds the facts, as JSON."""
DRAWN = 0.95
"""Expected size of a sample as a share of `SAMPLE`. It is less than 1 so that the random size seldom exceeds `SAMPLE`."""
DRAWN_NOISE = 0.1
"""Random difference to expect at most between the size of a sample and its expected size, as a share of the latter: four
standard errors."""
EPOCHS = 3
"""Number of epochs of the training on the sample."""
RATE = 10
"""Learning rate of the training on the sample, as a multiple of the option `learningRate`. The fastest of the default
candidates has the same rate."""
STEP = 1e-3
"""Length, in natural units, of the step over which the gradient is differenced to measure the curvature."""
HEADS = {
    "LogisticRegressionModel": "linear",
    "LinearRegressionModel": "linear",
    "GeneralizedLinearRegressionModel": "linear",
    "LinearSVCModel": "linear",
    "NaiveBayesModel": "bayes",
    "MultilayerPerceptronClassificationModel": "perceptron",
}
"""Class name of a predictor -> its kind. Names with Tree, Forest or GBT are of the kind `trees`, others `other`."""


class TableSample(NamedTuple):
    """A sample of up to `SAMPLE` rows of a table, persisted if the session can do so, and the number of rows of the table."""

    few: DataFrame
    rows: int


class Samples:
    """Cache of samples of tables. Each table is sampled once per seed, for all pipelines that are to be fine-tuned on it."""

    def __init__(self) -> None:
        self._drawn = dict[
            tuple[int, int], tuple[DataFrame, TableSample]
        ]()  # keeps the table alive, so that its id stays unique
        self._held = list[DataFrame]()

    def of(self, df: DataFrame, seed: int) -> TableSample:
        """The sample of a table. Two DataFrames count as the same table only if they are the same object."""
        key = (id(df), seed)
        if key not in self._drawn:
            self._drawn[key] = df, self._draw(df, seed)
        return self._drawn[key][1]

    def _draw(self, df: DataFrame, seed: int) -> TableSample:
        count = df.count()
        # Don't persist the table itself: the caller may have persisted it, and a later fine-tuning would find it persisted.
        few = (df if count <= SAMPLE else df.sample(DRAWN * SAMPLE / count, seed=seed)).limit(SAMPLE)
        with contextlib.suppress(*jvm.SparkError):  # a serverless session cannot persist rows: they are read again
            self._held.append(few.persist())
        return TableSample(few, count)

    def close(self) -> None:
        for few in self._held:
            few.unpersist()
        self._drawn.clear()
        self._held.clear()


def training_facts(task: Task, df: DataFrame, rows: int) -> Facts:
    """The facts about the plan, the gradient and the curvature, measured by one or two Spark jobs on training rows only.

    They do not depend on the held-out rows, so a choice that is based on these facts can be tested on the held-out rows.

    Args:
        df: the rows.
        rows: number of rows of `df`.

    Raises:
        InputError: the rows that were drawn, or the options, can't be used.
    """
    small = rows <= SAMPLE
    few = df if small else df.sample(DRAWN * SAMPLE / rows, seed=task.options.seed)
    with _probe(task, few, None if small else rows) as (probe, sample, of):
        return finite(_of_plan(task, of, sample, probe.start) | probe.gradient()[0])


def measure_facts(task: Task, df: DataFrame, samples: Samples) -> tuple[Facts, str]:
    """All facts about a pipeline and the rows for its fine-tuning, and the name of the metric.

    A few Spark jobs measure them on a sample of up to 2,000 rows.

    Raises:
        SampleError: the sample can't be used; all rows together may be usable.
        InputError: labelCol is a vector of class probabilities; or the rows or the options can't be used, and
            `FineTuner.fit` on these rows would raise the same error.
    """
    if soft_labels.has_vector_labels([Source(df)], task.labelCol):
        raise InputError(
            f"labelCol={task.labelCol!r} is a vector of class probabilities, which triage does not take: run FineTuner on it"
        )
    few, rows = samples.of(df, task.options.seed)
    if rows <= SAMPLE:
        return _measure_on_sample(task, few, None)
    try:
        return _measure_on_sample(task, few, rows)
    except InputError as e:
        raise SampleError(
            f"on a sample of about {DRAWN * SAMPLE:,.0f} of its {rows:,} rows: {e}; with all rows it may work"
        ) from e


class SampleError(InputError):
    """Error raised if the facts can't be measured on the sampled rows."""


def _measure_on_sample(task: Task, df: DataFrame, drawnFrom: int | None) -> tuple[Facts, str]:
    """All facts and the name of the metric, see `measure_facts`.

    Args:
        df: the sample, or the whole table if that is small.
        drawnFrom: number of rows of the table from which `df` was sampled; None if `df` is the whole table.
    """
    with _probe(task, df, drawnFrom) as (probe, sample, rows):
        original = score(probe.network, probe.data, VALIDATION, probe.metric)
        gradient, step = probe.gradient()
        facts = (
            _of_plan(task, rows, sample, probe.start)
            | {"metric": original.value, "metricSign": original.sign}
            | gradient
            | probe.step_facts(step, original)
            | _time_training(probe, original, sample.splits[TRAIN])
        )
        return facts, probe.metric.name


@contextlib.contextmanager
def _probe(task: Task, df: DataFrame, drawnFrom: int | None) -> Iterator[tuple["_Probe", Sample, int]]:
    """Context that loads the sample into a network; yields the probe with the network, the sample, and the approximate
    number of rows of the table whose weight is not 0.

    Args:
        df, drawnFrom: see `_measure_on_sample`.
    """
    sample = cache_sample(Request(task.cut, [Source(df)], task.options, task.labelCol, task.weightCol))
    network = Network(task.cut.graph, task.cut.live)
    with sample.stream as stream:
        data = Data(stream, sample.columns, rows=rows_at_once(network, stream))
        label = training_labels(sample.stats, task.options)
        objective, metric = resolve_objectives(task.options, network, label)
        rows = sample.rows if drawnFrom is None else _of_weight(sample.rows, drawnFrom)
        start = start_of(network, data, label, task.options, _held_out_count(sample, rows))
        with one_thread_for_small_steps(len(start.units.unit) * task.options.batchSize):
            yield _Probe(task, network, data, objective, metric, start), sample, rows


def _held_out_count(sample: Sample, rows: int) -> int:
    return round(rows * sample.splits[VALIDATION] / sample.rows)


def _of_weight(sample: int, rows: int) -> int:
    """Approximate number of a table's rows whose weight is not 0: all, unless the sample has clearly fewer such rows than
    the rows that were to be drawn.

    Args:
        sample: number of sampled rows whose weight is not 0.
        rows: number of rows of the table.
    """
    share = sample / (DRAWN * SAMPLE)
    return rows if share > 1 - DRAWN_NOISE else round(rows * share)


def _time_training(probe: "_Probe", original: Score, rows: int) -> Facts:
    """Facts from a training on the sample: its gains, its CPU seconds per row and epoch, and the expected number of epochs of a
    full run, which is twice the patience, but at most maxEpochs.

    Args:
        rows: number of training rows of the sample.
    """
    began, o = time.process_time(), probe.task.options
    found = probe.training(original)
    each = (time.process_time() - began) / (EPOCHS * rows)
    return found | {"secondsPerRow": each, "epochs": float(min(o.maxEpochs, 2 * o.patience))}


def _of_plan(task: Task, rows: int, sample: Sample, start: Start) -> Facts:
    stages = task.plan.stages
    head = task.roles.graph.head.stage
    trains = [s for s in stages if s.trainable]
    parameters = sum(int(s.numParameters or 0) for s in trains)
    strength = head.getOrDefault("regParam") if head.hasParam("regParam") else 0.0
    return {
        "rows": float(rows),
        "heldOut": float(_held_out_count(sample, rows)),
        "parameters": float(parameters),
        "candidates": float(len(start.recipes)),
        "stages": float(len(stages)),
        "trainedStages": float(len(trains)),
        "width": float(sum(c.width for c in sample.stream.manifest.columns)),
        "entries": sample.entries,
        "trainedBeforeHead": float(len(trains) > 1),
        "regParam": float(strength),
        **kind_of(type(head).__name__),
    }


def kind_of(stageClass: str) -> Facts:
    """Facts about the kind of a predictor class: `head:<kind>` is 1 for its kind, and 0 for all other kinds."""
    trees = any(word in stageClass for word in ("Tree", "Forest", "GBT"))
    kind = "trees" if trees else HEADS.get(stageClass, "other")
    return {f"head:{name}": float(name == kind) for name in (*dict.fromkeys(HEADS.values()), "trees", "other")}


@dataclasses.dataclass(frozen=True)
class _Probe:
    """The sample and the pipeline's network, with everything that a training on the sample needs."""

    task: Task
    network: Network
    data: Data
    objective: Objective
    metric: Metric
    start: Start

    def gradient(self) -> tuple[Facts, Tensor | None]:
        """Facts about the gradient at the original's parameters and the curvature along the gradient, from the training rows.

        `gradientSignal` is the squared norm of the gradient, divided by the value expected from the noise between batches.
        At an optimum it is about 1 on new rows, and near 0 on the rows to which the model was fitted. `quadraticGain` is
        the decrease of the loss, as a share of the loss, that the quadratic approximation predicts for the best step.

        Returns:
            The facts, and the best step along the gradient (p,) in natural units; None if the step is unknown.
        """
        names = ("gradientSignal", "quadraticGain")
        if self.objective.rows is None or not len(self.start.units.unit):
            return dict.fromkeys(names, math.nan), None
        zero = torch.zeros_like(self.start.units.unit)
        loss, parts = self._at(zero)
        mean = parts.mean(0)
        noise = float(parts.var(0).sum() / len(parts)) if len(parts) > 1 else math.nan
        squared = float(mean @ mean)
        if not squared:
            return dict.fromkeys(names, 0.0), zero
        if not math.isfinite(squared):
            return dict.fromkeys(names, math.nan), None
        signal = squared / noise if noise else math.nan
        direction = mean / math.sqrt(squared)
        _, moved = self._at(-STEP * direction)
        curvature = float((mean - moved.mean(0)) @ direction) / STEP
        if curvature <= 0:
            return dict(zip(names, (signal, math.nan), strict=True)), None
        promised = share_of(squared / (2 * curvature), loss)
        return dict(zip(names, (signal, promised), strict=True)), -mean / curvature

    def step_facts(self, step: Tensor | None, original: Score) -> Facts:
        """Facts about a step (p,): its gain on the held-out rows, as a share of the original's metric, and the gain's z-score."""
        if step is None:
            return {"stepGain": math.nan, "stepZ": math.nan}
        gain, z = self._gain_of(self._network_at(step), original) if bool(step.any()) else (0.0, 0.0)
        return {"stepGain": gain, "stepZ": z}

    def _network_at(self, u: Tensor) -> Network:  # (p,)
        network, flat = self.network.clone(), parameter_vector(self.network)
        out = flat[None].clone()
        self.start.units.parameters(flat, u[None], out)
        load(network, out[0])
        return network

    def _at(self, u: Tensor) -> tuple[float, Tensor]:
        """Mean loss of the training rows at the shift u (p,), and the gradient of each batch's mean loss with respect to u,
        (batches, p).
        """
        network = self._network_at(u)
        parameters, zero = [p for _, p in trainable_parameters(network)], torch.zeros_like(u)[None]
        start, here, total, weights, parts = parameter_vector(self.network), parameter_vector(network), 0.0, 0.0, []
        for batch in self.data.stream.batches(TRAIN, batchSize=self.task.options.batchSize, epoch=1):
            label, weight = scalar(batch, "label"), scalar(batch, "weight")
            margin = network.margin(self.data.values(batch))
            assert self.objective.rows is not None
            sums = (self.objective.rows(margin, label, weight) * weight).sum()
            found = torch.autograd.grad(sums, parameters, allow_unused=True)
            flat = torch.cat(
                [(torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)]
            )
            by_u = zero.clone()
            self.start.units.by_u(start, u[None], here[None], flat[None], by_u)
            parts.append(by_u[0] / weight.sum())
            total, weights = total + float(sums.detach()), weights + float(weight.sum())
        return total / weights, torch.stack(parts)

    def _gain_of(self, network: Network, original: Score) -> tuple[float, float]:
        """The gain of a network on the held-out rows, as a share of the original's metric, and the gain's z-score."""
        try:
            now = score(network, self.data, VALIDATION, self.metric)
        except InputError:  # the step led to where the loss is not finite
            return math.nan, math.nan
        return gain_and_z(original.blocks - now.blocks, original)

    def training(self, original: Score) -> Facts:
        """Gains on the held-out rows after the first and the last epoch of a training on the sample, and their z-scores.

        Of all facts, the z-score of the first epoch best predicts whether a gain will be accepted.
        """
        o = dataclasses.replace(self.task.options, maxEpochs=EPOCHS, patience=EPOCHS, maxSeconds=None)
        recipe = Recipe(RATE * o.learningRate, o.regAnchor, o.optimizer)
        units, stats = self.start.units, self.start.stats
        training = Training(self.network, [recipe], o, units, original, stats)
        train(training, self.data, self.objective, self.metric)
        out = dict[str, float]()
        for name, gains in (("first", training.gains[0]), ("last", training.gains[-1])):
            gain, z = gain_and_z(gains, original)
            out |= {f"{name}EpochGain": gain, f"{name}EpochZ": z}
        return out


def gain_and_z(gains: Tensor, original: Score) -> tuple[float, float]:
    """The gain as a share of the original's metric, and its z-score: the sum of the gains divided by its standard error.

    Args:
        gains: (B,) sum of weight * gain in each block of the guard (a group of held-out rows).
        original: the original's metric on the same blocks.
    """
    held = original.weights > 0
    own, weights = gains[held], original.weights[held]
    total = float(own.sum())
    spread = float((own - weights * total / float(weights.sum())).square().sum())
    gain = share_of(total, float(original.blocks.sum()))
    return gain, total / math.sqrt(spread) if spread > 0 else 0.0


def finite(facts: Mapping[str, Any]) -> Facts:
    """Those of the facts that are finite numbers."""
    return {k: float(v) for k, v in facts.items() if v is not None and math.isfinite(v)}


HISTORY_COLUMNS = (
    "verb",
    "model",
    "parent",
    "kept",
    "gain",
    "metric",
    "metricDirection",
    "after",
    "coreSeconds",
    "tags",
    "finished",
    "options",
)
"""Columns of a store of runs that triage reads."""


def earlier_run_facts(
    runs: Sequence[Mapping[str, Any]], content: str | None, metric: float, name: str, options: Mapping[str, Any]
) -> Facts:
    """Facts about the last run that returned a model with this content; empty if there is no such run. Searches don't count.

    The facts are `known` (1), `lastTuned` (1 if the last run tuned the model, 0 if it kept its original), `lastGain` (the
    gain of the last run) and `drift` (the difference between the metric now and at the end of the last run, as a share of
    the latter; positive if the metric is worse now). `drift` is left out if the last run measured another metric, or the
    same metric with other parameters.

    Args:
        runs: runs of the store, the oldest first.
        content: hash of the content of the model; None if unknown.
        metric, name: value and name of the metric of the model on new rows.
        options: the options with which the metric was measured.
    """
    made = [run for run in runs if content is not None and run["model"] == content and run["verb"] != "search"]
    if not made:
        return {}
    last = made[-1]
    tuned = not last["kept"]
    out = {"known": 1.0, "lastTuned": float(tuned), "lastGain": float(last["gain"] or 0.0) if tuned else 0.0}
    same = last["metric"] == name and _params(json_object(last["options"])) == _params(options)
    if last["after"] and same:
        worse = (metric - last["after"]) / abs(last["after"])
        out["drift"] = worse if last["metricDirection"] == "smaller" else -worse
    return out


def _params(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those parameters in the options that may affect the metric."""
    given = [options.get(name) for name in ("lossParams", "metricParams")]
    return {k: v for params in given if isinstance(params, Mapping) for k, v in params.items()}
