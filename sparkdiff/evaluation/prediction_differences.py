"""Differences between the predictions, or all outputs, of two fitted pipelines on the same rows.

Spark counts the differences between predictions in one pass.
"""

import contextlib
import dataclasses
import json
import math
import reprlib
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import pandas as pd
from pyspark.ml.feature import StringIndexerModel
from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import Column, DataFrame, Row, functions as F
from pyspark.sql.types import ArrayType, DoubleType, FloatType, NumericType, StructField

from sparkdiff import jvm
from sparkdiff.data.row_hashes import COPY, coin, hash_arguments, with_copies
from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import casefolding, col_by_name, read_by_name, refuse_stream, unused_prefix
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.schema import check_columns
from sparkdiff.pipeline.translation import translated_graph
from sparkdiff.stages.base import columns_of

QUANTILES = (0.5, 0.9, 0.99)
FIRST = 1_000
"""Number of rows on which all outputs are compared; rows with values at which an output jumps are added to them."""
LABELS = 100
"""Largest number of labels of a StringIndexer for which a row each is added."""
TABLE = "the table"
"""Key for differences of the table as a whole, in place of a column's name."""


@dataclasses.dataclass(frozen=True)
class LabelFlips:
    """Number and share of rows on which the pipelines differ in a column of labels, or of other values without a
    distance.
    """

    column: str
    rows: int
    flips: int
    share: float


@dataclasses.dataclass(frozen=True)
class NumberChanges:
    """Changes in a column of numbers; the change of a vector is that of the entry that changed most.

    `undefined` is the number of rows without a finite change (null, NaN or infinite on one side, or vectors of
    different size). These rows are included in `changed` and in no other figure; if all rows are undefined, the other
    figures are None.
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
    """Differences between the predictions of two pipelines on the same rows.

    Attributes:
        sampled: number of rows on which the pipelines ran.
        rows: number of rows that both returned; less than `sampled` if a stage drops rows (handleInvalid='skip').
        outputs: descriptions, by column, of the differences in all output columns on the first 1,000 rows; see
            `compare_outputs`.
    """

    sampled: int
    rows: int
    labels: tuple[LabelFlips, ...]
    numbers: tuple[NumberChanges, ...]
    onlyInOld: tuple[str, ...]
    onlyInNew: tuple[str, ...]
    outputs: dict[str, str]


@jvm.interruptible()
def predictions(old: Any, new: Any, df: DataFrame, sample: int | None = None) -> PredictionDifference:
    """Run both pipelines on the same rows, in one pass, and count in Spark how their predictions differ.

    The compared columns are the prediction and probability columns that both pipelines write; if there are none, the
    outputs of the last stages. On the first 1,000 rows, all outputs are compared bit by bit.

    Args:
        df: rows with the columns that both pipelines read.
        sample: largest number of rows to use; the rows with the smallest hashes are used, so that each call uses the
            same.

    Raises:
        InputError: the data lack a column or have no row, no column can be compared, or Spark failed on the rows.
    """
    refuse_stream(df)
    graphs = translated_graph(old, df), translated_graph(new, df)
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
    with jvm.as_input_error("Spark failed while running the two pipelines"):
        found, labels = _count_differences((old, new), graphs, df, [(ours[c], theirs[c]) for c in both])
        dropping = any(vertex.drops_rows for graph in graphs for vertex in graph.vertices)
        sampled = df.count() if dropping else found["rows"]
        outputs, _ = compare_outputs(old, new, df)
    if not found["rows"]:
        raise InputError("there are no rows to compare: check how the data are read and filtered")
    rows, names = found["rows"], {f"d{i}": theirs[c] for i, c in enumerate(both)}
    counts = {name: found[f"{name}_flips"] for name, is_label in zip(names, labels, strict=True) if is_label}
    return PredictionDifference(
        sampled,
        rows,
        tuple(LabelFlips(names[d], rows, n, n / rows) for d, n in counts.items()),
        tuple(_numbers(names[d], found, d) for d in names if d not in counts),
        tuple(ours[c] for c in ours if c not in theirs),
        tuple(theirs[c] for c in theirs if c not in ours),
        outputs,
    )


def find_output_changes(old: Any, new: Any, df: DataFrame, may_change: Collection[str]) -> tuple[list[str], list[str]]:
    """Find the differences between the outputs of two pipelines, except those that certain stages are allowed to cause.

    The order, types and nullability of the common columns are compared. Columns that depend on none of the stages
    `may_change` must also exist in the new pipeline, with the same metadata and, on the first rows, the same values.
    Values are compared only if the stage that writes the column is another object in the new pipeline, or if some stage
    doesn't declare which columns it reads; so usually no job runs. Added columns are no difference.

    Args:
        df: rows that both pipelines can read.
        may_change: uids of the stages of the old pipeline whose outputs may change; all columns that depend on these
            outputs may change, too.

    Returns:
        A sentence for each difference; a sentence for each column that can't be compared.
    """
    graph, stages = translated_graph(old, df), {stage.uid: stage for _, stage in flatten(new)}
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
        differences += [f"{whose} {fact}" for fact in _facts(field, after[name], metadata=stays)]
        if stays and (opaque or (writer is not None and stages.get(origin.uid) is not origin)):
            doubtful[name] = whose
    if [name for name in before if name in after] != [name for name in after if name in before]:
        differences.append(f"{old.uid}: its columns {', '.join(before)} stand in another order")
    try:
        found, known = compare_outputs(old, new, df, [*doubtful]) if doubtful else ({}, {})
    except (InputError, *jvm.SparkError) as e:
        return differences, [f"{whose} can't be compared: {jvm.cause(e)}" for whose in doubtful.values()]
    differences += [f"{doubtful.get(name, f'{new.uid}: {name}')} {what}" for name, what in found.items()]
    return differences, [
        f"{doubtful.get(name, name)} can't be compared: it has other values each time"
        for name in known.get("leftOut", ())
    ]


def compare_outputs(
    old: Any, new: Any, df: DataFrame, only: Collection[str] | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Run two pipelines on the same raw rows, and compare all output columns: order, types, nullability and metadata,
    and the values bit by bit. NaN equals NaN, and -0.0 is not 0.0.

    A stage may drop, repeat or reorder rows, and an SQLTransformer may drop columns. So rows are matched by an added row
    number if both pipelines pass it through, else by their values.

    Args:
        df: raw rows. The pipelines run on the first 1,000 rows, and on copies of one row with values at which a stage's
            output jumps.
        only: the columns to compare; None: all.

    Returns:
        The differences as text, by column or `TABLE`; and {"rows", "columns", "leftOut"}: the numbers of compared rows
        and columns, and the columns that were left out because they differ between two runs of the old pipeline, like
        columns of `rand()`.

    Raises:
        Exception: the old pipeline fails on the rows; an error of Spark or of a custom stage.
    """
    return compare_loaded(old, lambda: new, df, only)


def compare_loaded(
    old: Any, load: Callable[[], Any], df: DataFrame, only: Collection[str] | None = None
) -> tuple[dict[str, str], dict[str, Any]]:
    """Compare all outputs as `compare_outputs` does.

    Args:
        load: function that returns the new pipeline; called once the old one has run.
    """
    key = unused_prefix("__sparkdiff_key", df.columns)
    rows = df.limit(FIRST).withColumn(key, F.monotonically_increasing_id())
    for missing in (True, False):
        # A stage may reject a value at which another one jumps, most often a missing one.
        with contextlib.suppress(Exception):
            return _compare(old, load, _with_edges(old, rows, key, missing=missing), key, only)
    return _compare(old, load, rows, key, only)


def _compare(
    old: Any, load: Callable[[], Any], rows: DataFrame, key: str, only: Collection[str] | None
) -> tuple[dict[str, str], dict[str, Any]]:
    with jvm.persist_rows(rows):
        first = _hashes(old, rows, key, only)
        new = load()
        try:
            second = _hashes(new, rows, key, only)
        except Exception as e:  # a custom stage may raise anything
            return {TABLE: f"can't be computed: {jvm.message(e)}"}, {}
        found = _differences(first, second, key)
        again = _differences(first, _hashes(old, rows, key, only), key) if found else {}
        found = _differences(first, second, key, without=again) if again else found
    columns, out = [name for name in first[0] if name != key], [name for name in again if name != TABLE]
    return found, {"rows": len(first[1]), "columns": len(columns) - len(out), "leftOut": out}


def _with_edges(model: Any, rows: DataFrame, key: str, *, missing: bool) -> DataFrame:
    """The rows, and copies of the first row; in each copy, one raw column has a value at which the output of a stage
    that reads the column jumps.

    Args:
        missing: whether null and NaN are among these values.
    """
    graph, edges = translated_graph(model, rows), list[tuple[str, Any]]()
    for name in read_by_name(rows):
        # Readers are found by the column's name alone: a custom stage may overwrite the column before, but seldom does.
        readers = [(v, i) for v in graph.vertices for i, (c, _) in enumerate(v.sources) if c == graph.casefold(name)]
        indexers = [(v.stage, place) for v, place in readers if isinstance(v.stage, StringIndexerModel)]
        edges += [(name, label) for stage, place in indexers for label in stage.labelsArray[place][:LABELS]]
        edges += [(name, None) for stage, _ in indexers if stage.getHandleInvalid() != "error"]
        if isinstance(rows.schema[name].dataType, (DoubleType, FloatType)):  # a Bucketizer's bounds are no integers
            critical = [v.module.critical_values()[place : place + 1] for v, place in readers if v.module is not None]
            edges += [(name, str(value)) for values in critical for own in values for value in own]
    edges = [(name, value) for name, value in edges if missing or value not in (None, "nan")]
    kinds = {name: rows.schema[name].dataType for name, _ in edges}
    texts = json.dumps([{"column": name, "text": text} for name, text in edges[:FIRST]])
    entries, edge = F.from_json(F.lit(texts), "array<struct<column:string,text:string>>"), F.col(f"{key}_edge")
    changed = {c: F.when(edge["column"] == c, edge["text"].cast(k)).otherwise(col_by_name(c)) for c, k in kinds.items()}
    first = rows.limit(1).withColumn(f"{key}_edge", F.explode(entries))
    return rows.union(first.withColumns(changed).drop(f"{key}_edge")) if edges else rows


_Hashes = tuple[dict[str, StructField], pd.DataFrame]
"""Fields of the output columns of a pipeline, by name, and the hashes of their values."""


def _hashes(model: Any, rows: DataFrame, key: str, only: Collection[str] | None) -> _Hashes:
    """Run a pipeline and hash its outputs in Spark, so that wide vectors need not be collected.

    Args:
        only: the columns to compare; None: all.
    """
    out = model.transform(rows)
    places = [f"c{i}" for i in range(len(out.columns))]
    # A name may occur twice.
    names = [f"{c} ({n + 1})" if (n := out.columns[:i].count(c)) else c for i, c in enumerate(out.columns)]
    found = [x for x in zip(names, places, out.schema.fields, strict=True) if only is None or x[0] in {key, *only}]
    hashes = [F.xxhash64(*hash_arguments(F.col(p), field.dataType, signs=True)).alias(p) for _, p, field in found]
    values = out.toDF(*places).select(*hashes).toPandas()
    return {name: field for name, _, field in found}, values.set_axis([name for name, _, _ in found], axis=1)


def _differences(first: _Hashes, second: _Hashes, key: str, without: Collection[str] = ()) -> dict[str, str]:
    """The differences as text, by column or `TABLE`; columns in `without` are skipped."""
    (fields, mine), (others, theirs) = first, second
    keys = [key] if key in fields and key in others else []
    names = [name for name in fields if name in others and name not in {key, *without}]
    found, orders = dict[str, str](), [[name for name in x if name != key] for x in (fields, others)]
    for name, columns in {TABLE: keys or names, **{name: [*keys, name] for name in names}}.items():
        if not columns or (name in without and keys):
            continue
        facts = _facts(fields[name], others[name]) if name != TABLE else []
        if name == TABLE and orders[0] != orders[1]:
            facts = [f"has the columns {', '.join(orders[1])}, not {', '.join(orders[0])}"]
        one, other = (pd.util.hash_pandas_object(x[columns], index=False).value_counts() for x in (mine, theirs))
        n = math.ceil(one.sub(other, fill_value=0).abs().sum() / 2)
        facts += [f"has other values in {n:,} of {len(mine):,} rows"] * (n > 0)
        found |= {name: " and ".join(facts)} if facts else {}
    return found


def _facts(old: StructField, new: StructField, *, metadata: bool = True) -> list[str]:
    """The differences between two columns in type, nullability and, with `metadata`, metadata, as text."""
    facts = ("dataType", "nullable", *(["metadata"] * metadata))
    pairs = [(fact, getattr(old, fact), getattr(new, fact)) for fact in facts]
    return [f"has {fact} {reprlib.repr(b)}, not {reprlib.repr(a)}" for fact, a, b in pairs if a != b]


def _count_differences(
    models: tuple[Any, Any], graphs: tuple[Graph, Graph], df: DataFrame, pairs: Sequence[tuple[str, str]]
) -> tuple[Row, list[bool]]:
    """Counts of the differences in each pair of columns (old, new), from one pass over the rows; and for each pair,
    True if it holds labels.
    """
    old, new = models
    columns = read_by_name(df)
    hidden = unused_prefix(
        "__sparkdiff_", (*df.columns, *(c for g in graphs for vertex in g.vertices for c in vertex.outputs))
    )
    casefold = casefolding()
    nominal = _labels(graphs[0]) | _labels(graphs[1])
    # The old pipeline may overwrite what the new one reads, so the row is kept aside.
    row = F.struct(*(col_by_name(c).alias(f"c{i}") for i, c in enumerate(columns)))
    out = old.transform(df.withColumn(f"{hidden}row", row))
    _check_kept([f"{hidden}row", *(a for a, _ in pairs)], out, old)
    labels = [casefold(a) in nominal or _is_nominal(out, a) for a, _ in pairs]
    keep = [F.col(f"{hidden}row")[f"c{i}"].alias(c, metadata=df.schema[c].metadata) for i, c in enumerate(columns)]
    held = [col_by_name(a).alias(f"{hidden}{i}") for i, (a, _) in enumerate(pairs)]
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
    """The columns to compare, by casefolded name: predictions and probabilities; if there are none, the last stage's
    outputs.
    """
    found = [c for vertex in graph.vertices for c in columns_of(vertex.stage, ("predictionCol", "probabilityCol"))]
    if not found and graph.vertices:
        found = list(graph.vertices[-1].outputs)
    return {graph.casefold(c): c for c in found if graph.casefold(c) in graph.writers}


def _labels(graph: Graph) -> set[str]:
    """Casefolded names of the columns that hold classes or clusters."""
    out = set()
    for vertex in graph.vertices:
        classes = type(vertex.stage).__module__ in ("pyspark.ml.classification", "pyspark.ml.clustering")
        own = vertex.module.labels(vertex.stage) if vertex.module is not None else ()
        out |= {graph.casefold(c) for c in (*own, *(columns_of(vertex.stage, ("predictionCol",)) if classes else ()))}
    return out


def _is_nominal(df: DataFrame, column: str) -> bool:
    return _field(df, column).metadata.get("ml_attr", {}).get("type") == "nominal"


def _field(df: DataFrame, column: str) -> StructField:
    return df.select(col_by_name(column)).schema.fields[0]


def _check_kept(columns: Iterable[str], df: DataFrame, model: Any) -> None:
    casefold = casefolding()
    gone = {casefold(c) for c in columns} - {casefold(c) for c in df.columns}
    if gone:
        raise InputError(
            f"{model.uid} drops columns (an SQLTransformer without `*`?), so its predictions cannot be matched "
            "with those of the other pipeline row by row; compare without data"
        )


def _change(df: DataFrame, old: str, new: str, is_label: bool) -> tuple[bool, Column]:
    """(True, column that is true where the value differs) for labels and other values without a distance; (False, column
    of absolute changes) for numbers.
    """
    types = [_field(df, c).dataType for c in (old, new)]
    a, b = col_by_name(old), col_by_name(new)
    kinds = [
        VectorUDT
        if isinstance(t, VectorUDT)
        else ArrayType
        if isinstance(t, ArrayType)
        else NumericType
        if isinstance(t, NumericType)
        else None
        for t in types
    ]
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
        column,
        found["rows"],
        found[f"{name}_changed"] + undefined,
        undefined,
        finite_or_none(found[f"{name}_mean"]),
        finite_or_none(found[f"{name}_max"]),
        quantiles,
    )


def finite_or_none(value: Any) -> float | None:
    """The value as a float; None if it is not finite."""
    return None if value is None or not math.isfinite(value) else float(value)
