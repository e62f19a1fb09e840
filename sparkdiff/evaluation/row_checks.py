"""Checks of the cached rows and their labels, before training and after it."""

import math
from collections.abc import Mapping
from typing import Any

import torch

from sparkdiff.data.splits import REFERENCE, SPLITS, TRAIN, VALIDATION
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.guard import MIN_UNITS
from sparkdiff.evaluation.scores import Score, Tally, score
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.label_checks import no_event, one_label
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.affine import MatrixProduct
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor
from sparkdiff.tensors.rows import SparseRows

FOLDED = 1e-6
"""Largest relative difference between the metric of a candidate as measured in training (in affine form) and the metric
of the network itself.
"""
ROUNDED = 1e-2
"""The same limit if the candidates were measured on float32 rows."""
TIED = 1e-11
"""Two margins count as equal if they differ by at most this multiple of the largest margin, because such differences
come from the order of additions.
"""
Stats = Mapping[str, Mapping[str, Any]]
"""Statistics of the labels per split, from the manifest of a cache."""


def training_labels(stats: Stats, options: Options, *, reference: bool = False, divided: bool = True) -> LabelStats:
    """Statistics of the labels of the training rows.

    Args:
        divided: whether the validation rows are a part of the rows passed, not rows that the user chose.

    Raises:
        InputError: there are no training or validation rows, or, with `reference`, too few reference rows.
    """
    for split, least in {TRAIN: 1, VALIDATION: 1, **({REFERENCE: MIN_UNITS} if reference else {})}.items():
        rows = stats[split]["rows"]
        if rows < least:
            o, none = options, not any(stats[s]["rows"] for s in (TRAIN, VALIDATION))
            ways = (
                ("add rows to referenceData", split == REFERENCE),
                ("all rows have weight 0, so none would count: check weightCol", none),
                (
                    f"validationIndicatorCol={o.validationIndicatorCol!r} must be true for some rows and false for others",
                    o.validationIndicatorCol,
                ),
                (
                    f"groupCol={o.groupCol!r} has too few values, as no group is split: set one of {MIN_UNITS} or more, or none",
                    o.groupCol,
                ),
                ("add rows, or set numFolds=5, so that all rows decide", divided and o.tune == "weights"),
                ("add rows", True),
            )
            raise InputError(
                f"{rows} {split} rows of weight > 0, but at least {least} are needed: {next(way for way, holds in ways if holds)}"
            )
    s = stats[TRAIN]
    return LabelStats(s["mean"], s["std"], s["low"], s["high"], torch.tensor(s["classes"], dtype=torch.int64))


def all_labels(stats: Stats) -> tuple[LabelStats, float | None]:
    """Range of the labels over all splits, and one label that is not a whole number, if there is one."""
    parts = [s for s in stats.values() if s["rows"]]
    low, high = min(s["low"] for s in parts), max(s["high"] for s in parts)
    fractional = next((s["fractional"] for s in parts if s["fractional"] is not None), None)
    return LabelStats(0.0, 0.0, low, high, torch.empty(0, dtype=torch.int64)), fractional


def check_varies(stats: Stats, options: Options, head: Predictor, labelCol: str | None) -> list[str]:
    """Check for splits in which all rows have the same label or are censored, and return warnings about them.

    Raises:
        InputError: this is true of the training rows, or of enough validation rows for a test, and training or the
            guard compares with their labels. A user's own loss may not use labels; and test and reference rows cannot
            cause an acceptance.
    """
    if labelCol is None:
        return []
    own = callable(options.loss)
    compares = {TRAIN: not own, VALIDATION: options.metric is not None or not own}
    found = [
        (split, why)
        for split in SPLITS
        for why in (one_label(split, stats[split], labelCol, ranks=head.ranks), no_event(split, stats[split]))
        if why is not None
    ]
    for split, why in found:
        few = split == VALIDATION and stats[split]["rows"] < MIN_UNITS  # too few rows for a test, whatever their labels
        if head.labelled and compares.get(split, False) and not few:
            raise InputError(why)
    return [why for _, why in found]


def check_finite(
    scores: Mapping[str, Score], metric: Metric, uid: str, labels: LabelStats | None, *, own: bool = False
) -> None:
    """Raise InputError if the original's metric is undefined, NaN or infinite, or if the squares of its block sums, which
    the guard needs, overflow.

    Args:
        uid: the uid of the original.
        labels: label statistics over all splits, None without a label.
        own: whether the metric is the caller's loss function.
    """
    for split, found in scores.items():
        if not found.broken and metric.needs and not math.isfinite(found.mean):
            raise InputError(f"metric={metric.name!r} is undefined on the {split} rows: it needs {metric.needs}")
        decides = split in (VALIDATION, REFERENCE)
        if math.isnan(found.mean) and own:
            raise InputError(
                f"the loss {metric.name} of the predictions of {uid} is NaN on {found.broken} {split} rows: look in the "
                "function for 0 / 0, or the logarithm or root of a negative number"
            )
        if math.isnan(found.mean):
            raise InputError(
                f"the mean {metric.name} of {uid} on the {split} rows is nan: on {found.broken} of them its prediction or its "
                f"{metric.name} is not finite, as with a model that was fitted on one class only, whose intercept is infinite; "
                "fit it again on rows of all classes, or clean or scale the features"
            )
        if not math.isfinite(found.mean) or (decides and not math.isfinite(float(found.blocks.square().sum()))):
            square = ", whose square overflows" if math.isfinite(found.mean) else ""
            between = "" if labels is None else f"the labels ({labels.low!r} to {labels.high!r})"
            far = f"some predictions are too far from {between}; " * bool(between)
            raise InputError(
                f"the mean {metric.name} of {uid} on the {split} rows is {found.value}{square}: {far}"
                "clean or scale the features, or choose another metric or smaller lossParams"
            )


@torch.no_grad()
def check_repeats(metric: Metric, network: Network, data: Data) -> None:
    """Raise InputError if the caller's loss function, whose values the guard tests, gives different values when it is
    called twice with the same rows.
    """
    assert metric.rows is not None
    for batch, label, weight, _ in data.batches(VALIDATION):
        margin = network.margin(data.values(batch))
        first, second = (metric.rows(margin, label, weight) for _ in range(2))
        if not torch.allclose(first, second, rtol=FOLDED, atol=1e-12, equal_nan=True):
            raise InputError(
                f"the loss {metric.name} gave other values when it was called again with the same rows, so gains cannot be "
                "measured by it: leave random numbers out of the function, or name a metric"
            )
        return


def trained_score(uid: str, options: Options, best: float, metric: Metric, network: Network, data: Data) -> Score:
    """Compute the metric of the trained network on the validation rows, and check it before the network is returned.

    Raises:
        ParityError: see `check_trained`.
    """
    tuned = score(network, data, VALIDATION, metric)
    check_trained(uid, best, tuned, metric, network, data, single=options.precision == "float32")
    return tuned


def check_trained(
    uid: str, best: float, tuned: Score, metric: Metric, network: Network, data: Data, *, single: bool = False
) -> None:
    """Raise ParityError if the trained network doesn't have the metric for which its candidate was chosen.

    In training, candidates are measured in their affine form. Its rounding differences change a metric by far less than
    a millionth, except for the ranks of tied margins. If the `affine_form` of a stage differed from its `forward`, a
    candidate could be chosen for a gain that the network itself doesn't have.

    Args:
        best: the metric as a loss (smaller is better), as measured in training.
        tuned: the score of the network on the validation rows.
        single: whether the rows were float32 in training; a check before training has limited the error of this.
    """
    room = (ROUNDED if single else FOLDED) * max(abs(best), abs(tuned.mean), 1e-12)
    low, high = tuned.mean, tuned.mean
    if not abs(tuned.mean - best) <= room and metric.ranks and math.isfinite(tuned.mean):
        low, high = measure_tie_range(network, data, metric)
    if not low - room <= best <= high + room:
        raise ParityError(
            f"{uid}: the trained network has {metric.name} {tuned.value!r} on the validation rows, "
            f"but training measured {tuned.sign * best!r}, so nothing was changed: the `affine_form` of a "
            "stage does not match its `forward`; report this as a bug"
        )


@torch.no_grad()
def measure_tie_range(network: Network, data: Data, metric: Metric) -> tuple[float, float]:
    """Smallest and largest value, as a loss, that a metric of ranks can have on the validation rows if rows whose
    margins are equal up to rounding may have any order.
    """
    assert metric.value is not None
    tally = Tally(metric, network.head)
    for batch, label, weight, block in data.batches(VALIDATION):
        tally.add(network.margin(data.values(batch)), label, weight, block)
    [column], label, weight, _ = tally.rows(data.team)
    order = column.argsort()
    apart = column[order].diff() > TIED * column.abs().max()
    rank = torch.empty_like(column)
    rank[order] = torch.cat([apart.new_zeros(1), apart]).cumsum(0).to(rank.dtype)
    # The area under the PR curve is largest if rows of class 1 come first, one by one, and smallest if they come last,
    # all at once: precision is concave in the number of rows found.
    first, last = (rank + side * label / 4 for side in (1, -1))
    alone = torch.empty_like(column)
    alone[first.argsort()] = torch.arange(len(column), device=column.device).to(column.dtype)
    ends = [metric.sign * float(metric.value(score, label, weight)) for score in (alone, last)]
    return min(ends), max(ends)


@torch.no_grad()
def check_stored(network: Network, data: Data) -> None:
    """Raise InputError if training or validation rows hold NaN or infinity in a feature whose coefficient Spark doesn't
    store. Spark and the network skip such a coefficient. But training changes it from 0, and then it is multiplied, so
    that the prediction for these rows is NaN.
    """
    skipped = [m.unstored_mask() for m in network.head.modules() if isinstance(m, MatrixProduct)]
    if not any(s is not None and bool(s.any()) for s in skipped):
        return
    [features] = network.graph.head.reads[:1]
    for split in (TRAIN, VALIDATION):
        for batch, *_ in data.batches(split):
            values = data.values(batch)
            network.run(values, [features])
            x = values[features]
            bad = (~(x.values if isinstance(x, SparseRows) else x).isfinite()).nonzero()
            if len(bad):
                entry = int(x.indices[bad[0, 0]]) if isinstance(x, SparseRows) else int(bad[0, -1])
                where = f"entry {entry} of column {network.graph.name(features)!r}"
                raise InputError(
                    f"{network.graph.head.uid}: {where} is NaN, null or infinite in rows to train on. Its coefficient is one "
                    "of those that the fit left out, but training gives it a value: impute the column before the pipeline, or "
                    "drop these rows"
                )
