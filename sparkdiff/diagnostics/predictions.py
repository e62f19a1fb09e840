"""How the predictions, or all outputs, of two fitted pipelines differ on the same rows, counted by Spark in one pass."""

import dataclasses
import reprlib
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Row, functions as F
from pyspark.sql.types import ArrayType, NumericType, StructField

from sparkdiff import jvm
from sparkdiff.data.row_hashes import COPY, coin, with_copies
from sparkdiff.errors import InputError
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.names import casefolding, named, read_by_name, refuse_stream, unused
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.schema import check_columns
from sparkdiff.pipeline.translation import translated
from sparkdiff.stages.base import columns_of

QUANTILES = (0.5, 0.9, 0.99)
FIRST = 1_000
"""Rows in which all outputs are compared."""


@dataclasses.dataclass(frozen=True)
class LabelFlips:
    """How often a column of labels (or of other values without a distance) differs."""

    column: str
    rows: int
    flips: int
    share: float


@dataclasses.dataclass(frozen=True)
class NumberChanges:
    """How far a column of numbers moved; for a vector, the entry that moved most.

    `undefined` rows have no finite change (null, NaN or infinite on one side, vectors of different size). They count as
    changed, and in no other figure; without any other row these are None.
    """

    column: str
    rows: int
    changed: int
    undefined: int
    meanAbsChange: float | None
    maxAbsChange: float | None
    quantiles: dict[str, float | None]


@dataclasses.dataclass(frozen=True)
class PredictionDifference:
    """The predictions of both pipelines on the same rows. `rows` < `sampled` where a stage drops rows (handleInvalid='skip')."""

    sampled: int
    rows: int
    labels: tuple[LabelFlips, ...]
    numbers: tuple[NumberChanges, ...]
    onlyInOld: tuple[str, ...]
    onlyInNew: tuple[str, ...]


def predictions(old: Any, new: Any, df: DataFrame, sample: int | None = None) -> PredictionDifference:
    """Run both pipelines on the same rows, in one pass, and count in Spark how their predictions differ.

    Compares the prediction and probability columns that both write; if there are none, the outputs of the last
    stages.

    Args:
        df: rows with the columns that both pipelines read.
        sample: the largest number of rows; those with the smallest hashes are taken, the same each time.

    Raises:
        InputError: the data lack a column or have no row, no column can be compared, or Spark failed on the rows.
    """
    refuse_stream(df)
    graphs = translated(old, df), translated(new, df)
    for graph in graphs:
        check_columns(graph, df.schema)
    ours, theirs = map(_outputs, graphs)
    both = [c for c in ours if c in theirs]
    if not both:
        raise InputError(
            f"the pipelines have no common output column to compare: {', '.join(ours.values()) or 'none'} and "
            f"{', '.join(theirs.values()) or 'none'}"
        )
    if sample is not None:
        dealt = with_copies(df)
        df = dealt.orderBy(coin(dealt)).limit(sample).drop(COPY)
    with jvm.blamed("Spark failed while running the two pipelines"):
        found, labels = _counted((old, new), graphs, df, [(ours[c], theirs[c]) for c in both])
        dropping = any(vertex.drops_rows for graph in graphs for vertex in graph.vertices)
        sampled = df.count() if dropping else found["rows"]
    if not found["rows"]:
        raise InputError("there are no rows to compare")
    rows, names = found["rows"], {f"d{i}": theirs[c] for i, c in enumerate(both)}
    counts = {name: found[f"{name}_flips"] for name, is_label in zip(names, labels, strict=True) if is_label}
    return PredictionDifference(
        sampled, rows, tuple(LabelFlips(names[d], rows, n, n / rows) for d, n in counts.items()),
        tuple(_numbers(names[d], found, d) for d in names if d not in counts),
        tuple(ours[c] for c in ours if c not in theirs), tuple(theirs[c] for c in theirs if c not in ours),
    )  # fmt: skip


def changed_outputs(old: Any, new: Any, df: DataFrame, may_change: Collection[str]) -> tuple[list[str], list[str]]:
    """Find the differences between the outputs of two pipelines, beyond those that certain stages may cause.

    Compares the columns, their order, types and nullability. Where no such stage is in front of a column, compares the
    metadata too, and the values of the first rows; the values only if the stage that writes it is another object now, or if
    there are stages that don't declare what they read, so that most often no job runs. Added columns are no difference.

    Args:
        df: rows that both pipelines read.
        may_change: uids of the stages of the old pipeline that may change, and with them what reads their outputs.

    Returns:
        A sentence for each difference; one for each column that can't be compared.
    """
    graph, stages = translated(old, df), {stage.uid: stage for _, stage in flatten(new)}
    changing = {v.position for v in graph.vertices if v.uid in may_change}
    reached = changing | {v.position for v in graph.vertices if graph.above[v.position] & changing}
    opaque = {v.position for v in graph.vertices if v.opaque and v.position > min(changing, default=v.position)}
    before, after = ({f.name: f for f in model.transform(df).schema.fields} for model in (old, new))
    differences, doubtful = list[str](), dict[str, str]()
    for name, field in before.items():
        writer = graph.writers.get(graph.casefold(name))
        origin = old if writer is None else graph.vertices[writer].stage
        whose = f"{origin.uid}: column {name!r}"
        stays = reached.isdisjoint(opaque if writer is None else {writer})
        if name not in after:
            differences += [f"{whose} is gone"] * stays
            continue
        for fact in ("dataType", "nullable", *(["metadata"] * stays)):
            one, other = getattr(field, fact), getattr(after[name], fact)
            differences += [f"{whose} has {fact} {reprlib.repr(other)}, not {reprlib.repr(one)}"] * (one != other)
        if stays and (opaque or (writer is not None and stages.get(origin.uid) is not origin)):
            doubtful[name] = whose
    if [name for name in before if name in after] != [name for name in after if name in before]:
        differences.append(f"{old.uid}: its columns {', '.join(before)} stand in another order")
    try:
        found = _rows_apart(old, new, graph, df.limit(FIRST), [*doubtful])
        again = _rows_apart(old, old, graph, df.limit(FIRST), [*found])
    except (InputError, *jvm.SparkError) as e:
        return differences, [f"{whose} can't be compared: {jvm.cause(e)}" for whose in doubtful.values()]
    differences += [f"{doubtful[name]} has other values in {found[name]}" for name in found if name not in again]
    return differences, [f"{doubtful[name]} can't be compared: it has other values each time" for name in again]


def _rows_apart(old: Any, new: Any, graph: Graph, df: DataFrame, names: Sequence[str]) -> dict[str, str]:
    """In how many rows these columns differ, in words; without those that don't."""
    if not names:
        return {}
    found, labels = _counted((old, new), (graph, graph), df, [(name, name) for name in names])
    apart = [
        found[f"d{i}_flips"] if is_label else _numbers("", found, f"d{i}").changed for i, is_label in enumerate(labels)
    ]
    return {name: f"{n:,} of {found['rows']:,} rows" for name, n in zip(names, apart, strict=True) if n}


def _counted(
    models: tuple[Any, Any], graphs: tuple[Graph, Graph], df: DataFrame, pairs: Sequence[tuple[str, str]]
) -> tuple[Row, list[bool]]:
    """Counts of the differences in each pair of columns, from one pass over the rows; and which of the pairs are labels."""
    old, new = models
    columns = read_by_name(df)
    hidden = unused(
        "__sparkdiff_", (*df.columns, *(c for g in graphs for vertex in g.vertices for c in vertex.outputs))
    )
    casefold = casefolding()
    nominal = _labels(graphs[0]) | _labels(graphs[1])
    # The old pipeline may overwrite what the new one reads, so the row is kept aside.
    row = F.struct(*(named(c).alias(f"c{i}") for i, c in enumerate(columns)))
    out = old.transform(df.withColumn(f"{hidden}row", row))
    _check_kept([f"{hidden}row", *(a for a, _ in pairs)], out, old)
    labels = [casefold(a) in nominal or _is_nominal(out, a) for a, _ in pairs]
    keep = [F.col(f"{hidden}row")[f"c{i}"].alias(c, metadata=df.schema[c].metadata) for i, c in enumerate(columns)]
    held = [named(a).alias(f"{hidden}{i}") for i, (a, _) in enumerate(pairs)]
    out = new.transform(out.select(*keep, *held))
    _check_kept([*(f"{hidden}{i}" for i in range(len(pairs))), *(b for _, b in pairs)], out, new)
    labels = [known or _is_nominal(out, b) for known, (_, b) in zip(labels, pairs, strict=True)]
    changes = [_change(out, f"{hidden}{i}", b, labels[i]) for i, (_, b) in enumerate(pairs)]
    kinds = [c.alias(f"d{i}") for i, (_, c) in enumerate(changes)]
    counts = [a for i, (is_label, _) in enumerate(changes) for a in _aggregates(f"d{i}", is_label)]
    found = out.select(*kinds).agg(F.count(F.lit(1)).alias("rows"), *counts).first()
    assert found is not None  # an aggregate without groups is one row
    return found, [is_label for is_label, _ in changes]


def _outputs(graph: Graph) -> dict[str, str]:
    """The columns to compare, by their casefolded names: predictions and probabilities, else what the last stage writes."""
    found = [c for vertex in graph.vertices for c in columns_of(vertex.stage, ("predictionCol", "probabilityCol"))]
    if not found and graph.vertices:
        found = list(graph.vertices[-1].outputs)
    return {graph.casefold(c): c for c in found if graph.casefold(c) in graph.writers}


def _labels(graph: Graph) -> set[str]:
    """Folded names of the columns that hold classes or clusters."""
    out = set()
    for vertex in graph.vertices:
        classes = type(vertex.stage).__module__ in ("pyspark.ml.classification", "pyspark.ml.clustering")
        own = vertex.module.labels(vertex.stage) if vertex.module is not None else ()
        out |= {graph.casefold(c) for c in (*own, *(columns_of(vertex.stage, ("predictionCol",)) if classes else ()))}
    return out


def _is_nominal(df: DataFrame, column: str) -> bool:
    return _field(df, column).metadata.get("ml_attr", {}).get("type") == "nominal"


def _field(df: DataFrame, column: str) -> StructField:
    return df.select(named(column)).schema.fields[0]


def _check_kept(columns: Iterable[str], df: DataFrame, model: Any) -> None:
    casefold = casefolding()
    gone = {casefold(c) for c in columns} - {casefold(c) for c in df.columns}
    if gone:
        raise InputError(
            f"{model.uid} drops columns (an SQLTransformer without `*`?), so its predictions cannot be matched "
            "with those of the other pipeline row by row; compare without data"
        )


def _change(df: DataFrame, old: str, new: str, is_label: bool) -> tuple[bool, Column]:
    """(True, whether the label flipped) or (False, by how much the number moved)."""
    types = [_field(df, c).dataType for c in (old, new)]
    a, b = named(old), named(new)
    kinds = [VectorUDT if isinstance(t, VectorUDT) else ArrayType if isinstance(t, ArrayType) else NumericType
             if isinstance(t, NumericType) else None for t in types]  # fmt: skip
    if is_label or kinds[0] is not kinds[1] or None in kinds:
        if types[0] != types[1] and not (kinds[0] is kinds[1] is NumericType):
            a, b = a.cast("string"), b.cast("string")
        return True, ~a.eqNullSafe(b)
    if kinds[0] is NumericType:
        return False, _distance(a.cast("double"), b.cast("double"))
    a, b = (vector_to_array(c) if kinds[0] is VectorUDT else c.cast("array<double>") for c in (a, b))
    largest = F.array_max(F.zip_with(a, b, _distance))
    empty = F.when(F.size(a) == 0, F.lit(0.0)).otherwise(largest)
    return False, F.when(a.isNull() & b.isNull(), F.lit(0.0)).when(F.size(a) == F.size(b), empty)


def _distance(a: Column, b: Column) -> Column:
    return F.when(a.eqNullSafe(b), F.lit(0.0)).otherwise(F.coalesce(F.abs(b - a), F.lit(float("nan"))))


def _aggregates(name: str, is_label: bool) -> list[Column]:
    d = F.col(name)
    if is_label:
        return [F.coalesce(F.sum(d.cast("long")), F.lit(0)).alias(f"{name}_flips")]
    finite = F.when(~F.isnan(d) & (d < float("inf")), d)  # Spark: NaN is larger than anything
    return [
        F.count(finite).alias(f"{name}_finite"),
        F.count(F.when(finite > 0, 1)).alias(f"{name}_changed"),
        F.avg(finite).alias(f"{name}_mean"),
        F.max(finite).alias(f"{name}_max"),
        F.percentile_approx(finite, list(QUANTILES), 10_000).alias(f"{name}_quantiles"),
    ]


def _numbers(column: str, found: Any, name: str) -> NumberChanges:
    undefined = found["rows"] - found[f"{name}_finite"]
    values = found[f"{name}_quantiles"] or [None] * len(QUANTILES)
    quantiles = {f"{q:g}": finite_or_none(v) for q, v in zip(QUANTILES, values, strict=True)}
    return NumberChanges(
        column, found["rows"], found[f"{name}_changed"] + undefined, undefined, finite_or_none(found[f"{name}_mean"]),
        finite_or_none(found[f"{name}_max"]), quantiles,
    )  # fmt: skip


def finite_or_none(value: Any) -> float | None:
    """The value as a float; None if it is not finite."""
    return None if value is None or not np.isfinite(value) else float(value)
