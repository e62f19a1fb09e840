"""Checks that the labels fit the loss or the metric, and that a split of the rows has labels to learn from."""

from collections.abc import Mapping
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.objectives.objective import LossOrMetric
from sparkdiff.stages.base import LabelStats
from sparkdiff.stages.predictor import Predictor

LARGEST = 1e70
"""Upper bound of the labels' largest absolute value; the inverse is its lower bound, unless it is 0. The fourth power must
neither overflow nor underflow.
"""


def check_label(
    bound: LossOrMetric, head: Predictor, y: LabelStats, column: str, fractional: float | None = None
) -> None:
    """Raise InputError if a label is outside the domain of the loss, the metric or the classes of the predictor.

    Args:
        fractional: a label that is not a whole number; None if there is none.
    """
    power = bound.power

    def refuse(value: float, rule: str) -> None:
        raise InputError(
            f"label column {column!r} holds {value!r}, but {bound.name} on {type(head).__name__} needs {rule}"
        )

    if head.classes or bound.name in ("areaUnderROC", "areaUnderPR"):
        last = max(head.classes, 2) - 1
        rule = f"class indices 0 to {last}{_index_hint(column, y, last, fractional)}"
        if y.low < 0 or y.high > last:
            refuse(y.low if y.low < 0 else y.high, rule)
        if fractional is not None:
            refuse(fractional, rule)
    elif bound.name == "weibull" and y.low <= 0:
        refuse(y.low, "times > 0; drop such rows")
    elif bound.name in ("logLoss", "brier") and (y.low < 0 or y.high > 1):
        refuse(y.low if y.low < 0 else y.high, f"labels from 0 to 1{_index_hint(column, y, 1, fractional)}")
    elif power is not None and power < 2 and y.low < 0:
        refuse(y.low, "labels >= 0; drop such rows or choose another loss")
    elif power is not None and power >= 2 and y.low <= 0:
        refuse(y.low, "labels > 0; drop such rows or choose another loss")
    largest = max(abs(y.low), abs(y.high))
    if largest > LARGEST or 0 < largest < 1 / LARGEST:
        raise InputError(
            f"label column {column!r} has values from {y.low!r} to {y.high!r}, for which squared losses "
            "overflow or underflow; clean the column, or scale it and fit the pipeline again"
        )


def _index_hint(column: str, y: LabelStats, last: int, fractional: float | None) -> str:
    """A hint on how to convert the labels to class indices 0 to `last`."""
    if fractional is not None:
        return "; drop such rows"
    if (y.low, y.high) == (1, last + 1):
        return f": the labels seem to start at 1, so use {column} - 1, or index them with a StringIndexer"
    if (y.low, y.high, last) == (-1, 1, 1):
        return f": the labels seem to be -1 and 1, so use ({column} + 1) / 2, or index them with a StringIndexer"
    return ": index the labels with a StringIndexer, or drop such rows"


def one_label(split: str, y: Mapping[str, Any], column: str, *, ranks: bool = False) -> str | None:
    """A message if all rows of a split have the same label, so that always predicting this label is best; else None.

    Args:
        y: the label statistics of the split in the manifest of the cache.
        ranks: whether the rows are pairs of users and items, where often only chosen pairs are kept.
    """
    if not y["rows"] or y["low"] != y["high"]:
        return None
    pairs = " (for implicit feedback: pairs that were not chosen, with 0)" if ranks else ""
    return (
        f"label column {column!r} holds {y['low']!r} in all {y['rows']:,} {split} rows of weight > 0, so "
        f"always predicting it would be best: add rows with other labels{pairs}, or change the split"
    )


def no_event(split: str, y: Mapping[str, Any]) -> str | None:
    """A message if all rows of a split are censored (no event was observed), so that predicting the longest possible
    time is best; else None.
    """
    for column, (_, high) in y.get("beside", {}).items():
        if high == 0:
            return (
                f"censorCol={column!r} holds 0 in all {y['rows']:,} {split} rows of weight > 0, so no event "
                "was observed and the longest prediction would be best: add rows with 1, or change the split"
            )
    return None
