"""Statistics of the labels and weights that a cache holds."""

import math
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkdiff.data.fingerprint import Request
from sparkdiff.data.layout import USUAL, tables
from sparkdiff.data.stream.order import NEGLIGIBLE
from sparkdiff.errors import InputError

NO_TIME = "null or NaN or an infinite value"


def weight_range(folder: Path, shards: list[list[dict[str, Any]]], request: Request) -> tuple[int | None, float]:
    """Exponent of the power of two by which the weights of a split are to be divided (None: the weights stay
    unchanged), and the smallest weight that counts.

    After the division the largest weight is less than 1, so that sums of weights times losses, and the squares of these
    sums, do not overflow because of the weights. Weights below NEGLIGIBLE times the largest weight change no digit of
    such a sum.
    """
    least, largest = math.inf, 0.0
    for table in tables(folder, shards, ["weight"]):
        weight = table["weight"]
        _refuse(
            weight,
            "weightCol",
            request.weightCol,
            "weight",
            lambda c: pc.and_(pc.is_finite(c), pc.greater_equal(c, 0.0)),
            ">= 0",
        )
        least = min(least, pc.min(weight.filter(pc.greater(weight, 0.0))).as_py() or math.inf)
        largest = max(largest, pc.max(weight).as_py() or 0.0)
    exponent = math.frexp(largest)[1]
    negligible = math.ldexp(NEGLIGIBLE, exponent)
    usual = abs(exponent) <= USUAL and not least < negligible
    return None if usual else exponent, 0.0 if usual else negligible


def label_stats(
    folder: Path, shards: list[list[dict[str, Any]]], request: Request, negligible: float
) -> dict[str, Any]:
    """Statistics of the labels of one split. Raises InputError for rows with an unusable label, group or time, or
    without a validation indicator.
    """
    o = request.options
    no_time = f"timeCol={o.timeCol!r} holds {NO_TIME}"
    if (nowhere := folder / "split=__HIVE_DEFAULT_PARTITION__").exists():
        rows = sum(pq.read_metadata(path).num_rows for path in nowhere.rglob("*.parquet"))
        null_indicator = f"validationIndicatorCol={o.validationIndicatorCol!r} holds null"
        raise InputError(
            f"{null_indicator if o.validationIndicatorCol else no_time} in {rows} rows, which therefore belong to "
            "neither side; fill the column or drop these rows"
        )
    return stats_of(tables(folder, shards, ["label", "weight", "block", *_beside(request)]), request, negligible)


def _beside(request: Request) -> dict[str, str]:
    """The columns that only the loss reads: name in the cache -> name in Spark."""
    return {f"c{i}": c.name for i, c in enumerate(request.cut.columns) if c.loss}


def stats_of(rows: Iterable[pa.Table], request: Request, negligible: float = 0.0) -> dict[str, Any]:
    """Statistics of the labels of some rows. Raises InputError for rows with an unusable label, group or time."""
    o, beside = request.options, _beside(request)
    null_group, no_time = f"groupCol={o.groupCol!r} holds null", f"timeCol={o.timeCol!r} holds {NO_TIME}"
    n = mean = m2 = 0.0
    low, high = float("inf"), float("-inf")
    counts: Counter[float] = Counter()
    fractional = None
    ranges: dict[str, list[float]] = {}
    for table in rows:
        label, weight = table["label"], table["weight"]
        _refuse(label, "labelCol", request.labelCol, "label", lambda c: pc.is_finite(c), "a finite number")
        if table["block"].null_count:
            raise InputError(f"{null_group if o.groupCol else no_time}; fill the column or drop these rows")
        counted = pc.and_(pc.greater(weight, 0.0), pc.greater_equal(weight, negligible))
        used = label.filter(counted)
        if not len(used):
            continue
        for name, column in beside.items():
            values = table[name].filter(counted)
            least, most = ranges.get(column, [math.inf, -math.inf])
            if values.null_count < len(values):
                ranges[column] = [min(least, pc.min(values).as_py()), max(most, pc.max(values).as_py())]
        if fractional is None and len(broken := used.filter(pc.not_equal(pc.floor(used), used))):
            fractional = broken[0].as_py()
        n += len(used)
        size, there = len(used), pc.mean(used).as_py()
        delta = there - mean
        mean += delta * size / n
        m2 += pc.variance(used).as_py() * size + delta * delta * size * (n - size) / n
        low, high = min(low, pc.min(used).as_py()), max(high, pc.max(used).as_py())
        if len(counts) <= 1000:  # labels with more distinct values are no classes
            counts.update({entry["values"]: entry["counts"] for entry in pc.value_counts(used).to_pylist()})
    whole = len(counts) <= 1000 and all(v >= 0 and float(v).is_integer() for v in counts)
    classes = [counts.get(float(k), 0) for k in range(int(high) + 1)] if n and whole and high <= 1000 else []
    return {
        "rows": int(n),
        "mean": mean,
        "std": (m2 / (n - 1)) ** 0.5 if n > 1 else 0.0,
        "beside": ranges,
        "fractional": fractional,
        "low": low if n else None,
        "high": high if n else None,
        "classes": classes,
    }


def _refuse(column: pa.ChunkedArray, option: str, name: str | None, what: str, good: Any, rule: str) -> None:
    bad = column.filter(pc.invert(pc.fill_null(good(column), False)))
    if len(bad):
        first = bad[0].as_py()
        way = "check its sign, or clip it at 0" if rule == ">= 0" and (first or 0) < 0 else "drop or fill these rows"
        raise InputError(
            f"{option}={name!r} holds {first!r} in {len(bad)} or more rows; a {what} must be {rule}: {way}"
        )
