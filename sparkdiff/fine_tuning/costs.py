"""The expected cost of a fine-tuning run, found without running it: Spark jobs, bytes of the cache, and seconds of each
phase.

Nothing is written.
"""

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.fingerprint import Request
from sparkdiff.data.rehearsal import Range, Rehearsal, Sample, rehearse
from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.errors import InputError
from sparkdiff.evaluation.row_checks import training_labels
from sparkdiff.evaluation.scores import score
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.fine_tuning.task import Task
from sparkdiff.pipeline.network import Network
from sparkdiff.report import DisplayableFields, Section, SectionTable, StrongLine
from sparkdiff.training.loop import train
from sparkdiff.training.preparation import resolve_objectives, start_of
from sparkdiff.training.training_run import Training

EPOCHS = 2
"""Number of epochs of the training run on a sample: the first epoch includes preparation, the last one is timed."""


@dataclasses.dataclass(frozen=True, repr=False)
class Cost(DisplayableFields):
    """The expected cost of a fine-tuning run; `str` and `print` show it. Each range is (smallest, largest) expected
    value.

    Attributes:
        rows: number of rows of the data with a weight other than 0, whose share is estimated from the first rows.
        jobs: range of the number of Spark jobs, by phase; None over Spark Connect, where the numbers are not available.
        cacheBytes: size of the cache's files; right within a factor of 1.3 if the first rows are like the others.
        seconds: range of the seconds, by phase.
        candidates, maxEpochs: number of candidates (copies of the parameters that train side by side), and largest
            number of epochs; 0 candidates if training fails on the first rows.
        notes: sentences on how the figures were found, and what they leave out.

    Examples:
        >>> import sparkdiff
        >>> cost = sparkdiff.FineTuner(pipeline=model, labelCol="label").cost(df)
        >>> print(cost)
        phase       Spark jobs  expected time
        cache ...
        600 rows: ... Spark jobs, a cache of ...
        >>> cost.rows
        600
    """

    __module__ = "sparkdiff"

    rows: int
    jobs: Mapping[str, Range] | None
    cacheBytes: int
    seconds: Mapping[str, Range]
    candidates: int
    maxEpochs: int
    notes: tuple[str, ...]

    @property
    def totalJobs(self) -> Range | None:
        """Range of the number of Spark jobs of all phases; None if `jobs` is None."""
        return None if self.jobs is None else _sum(self.jobs)

    @property
    def totalSeconds(self) -> Range:
        """Seconds of all phases."""
        return _sum(self.seconds)

    def toDict(self) -> dict[str, Any]:
        """All values, including the totals."""
        return super().toDict() | {"totalJobs": self.totalJobs, "totalSeconds": self.totalSeconds}

    def _headline(self) -> str:
        jobs = "" if self.jobs is None else f"{_count(_sum(self.jobs))} Spark jobs, "
        return f"{jobs}a cache of {_size(self.cacheBytes)}, {_duration(self.totalSeconds)}"

    def _sections(self) -> Iterator[Section]:
        jobs = {phase: "?" if self.jobs is None else _count(self.jobs.get(phase, (0, 0))) for phase in self.seconds}
        rows = [(phase, jobs[phase], _duration(seconds)) for phase, seconds in self.seconds.items()]
        yield SectionTable([("phase", "Spark jobs", "expected time"), *rows])
        yield StrongLine(f"{self.rows:,} rows: {self._headline()}")
        yield from self.notes


def cost_of(task: Task, df: DataFrame) -> Cost:
    """The expected cost of fine-tuning on these rows: counts the rows, runs Spark on some of them, and trains on the
    first.

    Raises:
        InputError: the rows or the options can't be used.
    """
    if task.options.numFolds or task.options.tune == "threshold":
        raise InputError(
            "the cost is that of one training: leave numFolds out, and multiply the time by the folds and one more; leave tune "
            "out, too, which trains nothing as 'threshold'"
        )
    found = rehearse(Request(task.cut, [Source(df)], task.options, task.labelCol, task.weightCol))
    share = {s: n / found.sample.rows * found.rows for s, n in found.sample.splits.items()}
    notes = [
        f"bytes and training rest on the first {found.sample.rows:,} rows, Spark's time on two of its runs: right where these "
        "rows are like the others and nothing else uses this machine",
        "a cache of the same rows and stages is used again: then there is nothing to write",
        "loading the model, saving the result, and comparing what is saved with what is in memory are not in it",
    ]
    if not task.options.rowsAreNew:
        notes.append(
            "finding out whether the pipeline has seen these rows takes one or two fits by Spark and a cache for each, which are "
            "not in it; rowsAreNew=True spares them"
        )
    pace, candidates = None, 0
    try:
        pace, candidates = _measure_pace(task, found.sample, int(share[VALIDATION]))
    except InputError as e:
        notes.append(
            f"the time of training, and of the network in other phases, is missing, as the first rows do not train: {e}"
        )
    jobs = None
    if found.jobs is not None:
        jobs = {"cache": found.jobs, "verify": (1, 1), "train": (0, 0), "write back": (0, 1)}
    return Cost(
        found.rows,
        jobs,
        found.bytes,
        _seconds(task, found, share, pace),
        candidates,
        task.options.maxEpochs,
        tuple(notes),
    )


@dataclasses.dataclass(frozen=True)
class _Pace:
    """Seconds of training all candidates per training row and epoch, of measuring them per validation row and epoch,
    and of one forward pass of the network per row.
    """

    train: float
    validate: float
    forward: float


def _seconds(task: Task, found: Rehearsal, share: Mapping[str, float], pace: _Pace | None) -> dict[str, Range]:
    """Range of the seconds of each phase: (if training stops as early as possible, if it runs to maxEpochs or maxSeconds)."""
    o, job = task.options, found.jobSeconds
    if pace is None:
        return {"cache": found.seconds, "verify": (0.3 * job, 4 * job), "write back": (0.1 * job, 4 * job)}
    passed = found.rows * pace.forward
    epoch = share[TRAIN] * pace.train + share[VALIDATION] * pace.validate
    limit = float("inf") if o.maxSeconds is None else o.maxSeconds
    least, most = (min(n * epoch, limit) for n in (min(o.patience, o.maxEpochs), o.maxEpochs))
    return {
        "cache": found.seconds,
        "verify": (0.3 * job + passed, 4 * job + 3 * passed),
        "train": (0.5 * least, 1.5 * most + 1),
        "write back": (0.1 * job, 4 * job + 3 * passed),
    }


def _measure_pace(task: Task, sample: Sample, validation: int) -> tuple[_Pace, int]:
    """The pace of training on the sample, and the number of candidates.

    Args:
        task: the run whose network and options are measured.
        sample: a few of its rows in memory; their stream is closed afterwards.
        validation: number of validation rows of all the data, on which the number of candidates depends.
    """
    o = dataclasses.replace(task.options, maxEpochs=EPOCHS, maxSeconds=None)
    network = Network(task.cut.graph, task.cut.live)
    with sample.stream as stream:
        data = Data(stream, sample.columns, rows=rows_at_once(network, stream))
        label = training_labels(sample.stats, o)
        objective, metric = resolve_objectives(o, network, label)
        begun = time.perf_counter()
        original = score(network, data, VALIDATION, metric)
        forward = (time.perf_counter() - begun) / sample.splits[VALIDATION]
        start = start_of(network, data, label, o, validation)
        training = Training(network, start.recipes, o, start.units, original, start.stats)
        times: dict[int, list[float]] = {}
        train(training, data, objective, metric, lambda t: times.setdefault(t.epoch, []).append(time.perf_counter()))
    # The last time of an epoch is reported with the number of the next one.
    last = max(times)  # EPOCHS + 1, unless all candidates stop before
    steps, end = times[last - 1], times[last][-1]
    validate = (end - steps[-1]) / sample.splits[VALIDATION]
    return _Pace((steps[-1] - steps[0]) / sample.splits[TRAIN], validate, forward), len(start.recipes)


def _sum(ranges: Mapping[str, Range]) -> Range:
    return sum(low for low, _ in ranges.values()), sum(high for _, high in ranges.values())


def _count(found: Range) -> str:
    low, high = map(int, found)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _size(number: int) -> str:
    return f"about {number / 1e9:,.1f} GB" if number >= 1e9 else f"about {number / 1e6:,.1f} MB"


def _duration(found: Range) -> str:
    """A range of seconds in readable units."""
    low, high = found
    for unit, size in (("h", 3600), ("min", 60)):
        if low >= 2 * size:
            return f"{low / size:.1f} to {high / size:.1f} {unit}"
    return f"{low:.0f} to {high:.0f} s"
