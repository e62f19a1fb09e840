"""What is cheap to know of a pipeline before it is fine-tuned: its plan, and on up to 2,000 rows its loss, its gradient, the
curvature along the gradient, and what a step and three epochs of one candidate gain on rows held out.

No cache is written and nothing is compared with Spark: these are facts to forecast by, and decide nothing.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from pyspark.sql import DataFrame
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.data import soft_labels
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.rehearsal import SAMPLE, Sample, sampled
from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation.checks import training_labels
from sparkdiff.evaluation.data import Data, rows_at_once, scalar
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.fine_tuning.task import Task
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.pipeline.network import Network
from sparkdiff.report import share_of
from sparkdiff.training.distributed.worker import objectives
from sparkdiff.training.loop import one_thread_for_small_steps, train
from sparkdiff.training.ongoing import Training
from sparkdiff.training.parameters import flattened, load, trained
from sparkdiff.training.preparation import Start, start_of
from sparkdiff.training.recipes import Recipe

Facts = dict[str, float]
"""Facts by name; NaN where one cannot be told."""
FACTS = "sparkdiff.facts"
"""The tag of a run in the store that holds its facts, as JSON."""
DRAWN = 0.95
"""Of the rows of a sample, those to expect: a few more fit."""
DRAWN_NOISE = 0.1
"""By so much the number of rows that are drawn may differ from this by chance: four standard errors."""
EPOCHS = 3
"""Of the training on the sample."""
RATE = 10
"""Its learning rate, in multiples of the option's: the fastest of the default candidates."""
STEP = 1e-3
"""In natural units, the step over which the gradient's change gives the curvature."""
HEADS = {
    "LogisticRegressionModel": "linear", "LinearRegressionModel": "linear", "GeneralizedLinearRegressionModel": "linear",
    "LinearSVCModel": "linear", "NaiveBayesModel": "bayes", "MultilayerPerceptronClassificationModel": "perceptron",
}  # fmt: skip
"""Kinds of the predictor that trains; classes with Tree, Forest or GBT in their name are `trees`, others `other`."""


class Drawn(NamedTuple):
    """Up to SAMPLE rows of a table, in Spark's memory, and how many rows the table has."""

    few: DataFrame
    rows: int


class Samples:
    """The rows that are drawn of each table: once for all pipelines that are fine-tuned on it."""

    def __init__(self) -> None:
        self._drawn = dict[tuple[int, int], tuple[DataFrame, Drawn]]()  # with the table, so that its id is no other's
        self._held = list[DataFrame]()

    def of(self, df: DataFrame, seed: int) -> Drawn:
        """Those of a table; a DataFrame is the same table only where it is the same object."""
        key = (id(df), seed)
        if key not in self._drawn:
            self._drawn[key] = df, self._draw(df, seed)
        return self._drawn[key][1]

    def _draw(self, df: DataFrame, seed: int) -> Drawn:
        count = df.count()
        # Not the table itself, which the caller may have persisted, and which a fine-tuning would find persisted.
        few = (df if count <= SAMPLE else df.sample(DRAWN * SAMPLE / count, seed=seed)).limit(SAMPLE)
        with contextlib.suppress(*jvm.SparkError):  # a serverless session keeps no rows: they are read again
            self._held.append(few.persist())
        return Drawn(few, count)

    def close(self) -> None:
        for few in self._held:
            few.unpersist()
        self._drawn.clear()
        self._held.clear()


def training_facts(task: Task, df: DataFrame, rows: int) -> Facts:
    """Those of the facts that only training rows tell, by a Spark job or two: the plan, the gradient and the curvature. Who
    chooses by them what is tested on the rows that are held out has not looked at these.

    Args:
        rows: how many `df` has.

    Raises:
        InputError: as `measured`.
    """
    small = rows <= SAMPLE
    few = df if small else df.sample(DRAWN * SAMPLE / rows, seed=task.options.seed)
    with _probe(task, few, None if small else rows) as (probe, sample, of):
        return finite(_of_plan(task, of, sample, probe.start) | probe.gradient()[0])


def measured(task: Task, df: DataFrame, samples: Samples) -> tuple[Facts, str]:
    """The facts of a pipeline and the rows that would tune it, and the name of the metric, by a few Spark jobs on up to 2,000
    rows that are drawn from all of them.

    Raises:
        SampleError: the rows that were drawn do not tell them; all rows may.
        InputError: the rows or the options cannot be used; as `FineTuner.fit` of these rows would.
    """
    if soft_labels.given([Source(df)], task.labelCol):
        raise InputError(
            f"labelCol={task.labelCol!r} is a vector of class probabilities, which triage does not take: run FineTuner on it"
        )
    few, rows = samples.of(df, task.options.seed)
    if rows <= SAMPLE:
        return _measured(task, few, None)
    try:
        return _measured(task, few, rows)
    except InputError as e:
        raise SampleError(f"about {DRAWN * SAMPLE:,.0f} of its {rows:,} rows do not tell what all would: {e}") from e


class SampleError(InputError):
    """The rows that were drawn do not tell the facts."""


def _measured(task: Task, df: DataFrame, drawnFrom: int | None) -> tuple[Facts, str]:
    """See `measured`; the rows were drawn from so many, if not None."""
    with _probe(task, df, drawnFrom) as (probe, sample, rows):
        original = score(probe.network, probe.data, VALIDATION, probe.metric)
        gradient, step = probe.gradient()
        facts = (
            _of_plan(task, rows, sample, probe.start)
            | {"metric": original.value, "metricSign": original.sign}
            | gradient
            | probe.stepped(step, original)
            | _timed(probe, original, sample.splits[TRAIN])
        )
        return facts, probe.metric.name


@contextlib.contextmanager
def _probe(task: Task, df: DataFrame, drawnFrom: int | None) -> Iterator[tuple["_Probe", Sample, int]]:
    """The sample in a network, and about how many rows with a weight there are in all; see `_measured`."""
    sample = sampled(Request(task.cut, [Source(df)], task.options, task.labelCol, task.weightCol))
    network = Network(task.cut.graph, task.cut.live)
    with sample.stream as stream:
        data = Data(stream, sample.columns, rows=rows_at_once(network, stream))
        label = training_labels(sample.stats)
        objective, metric = objectives(task.options, network, label)
        rows = sample.rows if drawnFrom is None else _of_weight(sample.rows, drawnFrom)
        start = start_of(network, data, label, task.options, _held(sample, rows))
        with one_thread_for_small_steps(len(start.units.unit) * task.options.batchSize):
            yield _Probe(task, network, data, objective, metric, start), sample, rows


def _held(sample: Sample, rows: int) -> int:
    return round(rows * sample.splits[VALIDATION] / sample.rows)


def _of_weight(sample: int, rows: int) -> int:
    """About how many rows have a weight: all, unless clearly fewer than were drawn are in the sample."""
    share = sample / (DRAWN * SAMPLE)
    return rows if share > 1 - DRAWN_NOISE else round(rows * share)


def _timed(probe: "_Probe", original: Score, rows: int) -> Facts:
    """The facts of the training on the sample, its processor seconds per row and epoch, and how many epochs a run may take: as
    many again as it waits for a better one.
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
        "rows": float(rows), "heldOut": float(_held(sample, rows)), "parameters": float(parameters),
        "candidates": float(len(start.recipes)),
        "stages": float(len(stages)), "trainedStages": float(len(trains)),
        "width": float(sum(c.width for c in sample.stream.columns)),
        "entries": sample.entries,
        "trainedBeforeHead": float(len(trains) > 1), "regParam": float(strength), **kind_of(type(head).__name__),
    }  # fmt: skip


def kind_of(stageClass: str) -> Facts:
    """Which kind of predictor a class is: {head: 1 or 0}."""
    trees = any(word in stageClass for word in ("Tree", "Forest", "GBT"))
    kind = "trees" if trees else HEADS.get(stageClass, "other")
    return {f"head:{name}": float(name == kind) for name in (*dict.fromkeys(HEADS.values()), "trees", "other")}


@dataclasses.dataclass(frozen=True)
class _Probe:
    """The sample in a network, and what a training on it would start from."""

    task: Task
    network: Network
    data: Data
    objective: Objective
    metric: Metric
    start: Start

    def gradient(self) -> tuple[Facts, Tensor | None]:
        """The gradient at the original in natural units and the curvature along it, by the training rows; and the best step along
        it (p,), None where there is none.

        `gradientSignal` is its squared norm over what the noise between batches lets one expect: about 1 on new rows at an
        optimum, near 0 on the rows that fitted the model. `quadraticGain` is the decrease that the two promise for the best
        step, as a share of the loss.
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

    def stepped(self, step: Tensor | None, original: Score) -> Facts:
        """What a step (p,) gains on the rows held out, as a share of the original's metric, and its z."""
        if step is None:
            return {"stepGain": math.nan, "stepZ": math.nan}
        gain, z = self._gained(self._network_at(step), original) if bool(step.any()) else (0.0, 0.0)
        return {"stepGain": gain, "stepZ": z}

    def _network_at(self, u: Tensor) -> Network:  # (p,)
        network, flat = self.network.clone(), flattened(self.network)
        out = flat[None].clone()
        self.start.units.parameters(flat, u[None], out)
        load(network, out[0])
        return network

    def _at(self, u: Tensor) -> tuple[float, Tensor]:
        """At u (p,), the mean loss of the training rows, and the gradient by u of each of their batches (batches, p)."""
        network = self._network_at(u)
        parameters, zero = [p for _, p in trained(network)], torch.zeros_like(u)[None]
        start, here, total, weights, parts = flattened(self.network), flattened(network), 0.0, 0.0, []
        for batch in self.data.stream.batches(TRAIN, batchSize=self.task.options.batchSize, epoch=1):
            label, weight = scalar(batch, "label"), scalar(batch, "weight")
            margin = network.margin(self.data.values(batch))
            assert self.objective.rows is not None
            sums = (self.objective.rows(margin, label, weight) * weight).sum()
            found = torch.autograd.grad(sums, parameters, allow_unused=True)
            flat = torch.cat([
                (torch.zeros_like(p) if g is None else g).flatten() for g, p in zip(found, parameters, strict=True)
            ])  # fmt: skip
            by_u = zero.clone()
            self.start.units.by_u(start, u[None], here[None], flat[None], by_u)
            parts.append(by_u[0] / weight.sum())
            total, weights = total + float(sums.detach()), weights + float(weight.sum())
        return total / weights, torch.stack(parts)

    def _gained(self, network: Network, original: Score) -> tuple[float, float]:
        """The gain on the rows held out, as a share of the original's metric, and its z."""
        try:
            now = score(network, self.data, VALIDATION, self.metric)
        except InputError:  # the step left where the loss is finite
            return math.nan, math.nan
        return gain_and_z(original.blocks - now.blocks, original)

    def training(self, original: Score) -> Facts:
        """Gains on the rows held out after the first epoch and after the last one of a training on the sample; and what the
        first one's z is, by which a gain that is kept is told best.
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
    """The gain as a share of the original's metric, and the sum of the blocks' gains over its standard error.

    Args:
        gains: by block, (B,).
    """
    held = original.weights > 0
    own, weights = gains[held], original.weights[held]
    total = float(own.sum())
    spread = float((own - weights * total / float(weights.sum())).square().sum())
    gain = share_of(total, float(original.blocks.sum()))
    return gain, total / math.sqrt(spread) if spread > 0 else 0.0


def finite(facts: Mapping[str, Any]) -> Facts:
    """The facts that are finite numbers."""
    return {k: float(v) for k, v in facts.items() if v is not None and math.isfinite(v)}
