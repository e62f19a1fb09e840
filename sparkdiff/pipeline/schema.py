"""The schema of a pipeline's columns before any row is read, which Spark shows by transforming an empty DataFrame. Runs
no job.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, functions as F
from pyspark.sql.types import ArrayType, DoubleType, StringType, StructField, StructType

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.graph import Graph, Version, Vertex
from sparkdiff.stages.inputs import UNKNOWN_SLOT

SchemaOrRows = StructType | DataFrame | None
"""The schema of the data, the data themselves (Spark then reads the width of vectors), or nothing."""


def _with_one_slot(field: StructField) -> StructField:
    """The field; for a vector of unknown width with attributes of one slot, because an assembler requires some."""
    metadata = field.metadata or {}
    if not isinstance(field.dataType, VectorUDT) or "ml_attr" in metadata:
        return field
    attributes = {"num_attrs": 1, "attrs": {"numeric": [{"idx": 0, "name": UNKNOWN_SLOT}]}}
    return StructField(field.name, field.dataType, field.nullable, {**metadata, "ml_attr": attributes})


KINDS = (DoubleType(), VectorUDT(), StringType(), ArrayType(StringType()), ArrayType(DoubleType()))
GUESSES: tuple[StructField, ...] = (
    *(_with_one_slot(StructField("", kind)) for kind in KINDS),
    StructField("", VectorUDT()),
)
"""Types to try for a source column of unknown type. The last one is a vector without attributes, because some stages
refuse a vector whose attributes show another width than in the fit.
"""


def fields_by_name(schema: StructType, casefold: Callable[[str], str]) -> dict[str, StructField]:
    """Fields of a schema by their casefolded names; also the fields of structs, as `struct.field`, unless a column has
    that name.
    """
    nested: dict[str, StructField] = {}
    for field in schema.fields:
        if isinstance(field.dataType, StructType):
            inner = fields_by_name(field.dataType, casefold)
            nested |= {f"{casefold(field.name)}.{name}": found for name, found in inner.items()}
    return nested | {casefold(f.name): f for f in schema.fields}


def known_fields(graph: Graph, wanted: Collection[Version], data: SchemaOrRows) -> dict[Version, StructField]:
    """The schema fields of these column versions, as far as they are known.

    Args:
        data: if None, source columns are assumed to be numbers, vectors, strings or arrays, depending on their first
            reader, without categories.
    """
    writers = {p for _, p in wanted if p >= 0}
    needed = writers | graph.ancestors(writers)
    readers = (
        {v: vertex.position for vertex in reversed(graph.vertices) for v in vertex.sources} if data is None else {}
    )
    first = {readers[v] for v in wanted if v[1] == -1 and v in readers}
    found: dict[Version, StructField] = {}

    def note(frame: DataFrame, writer: int) -> None:
        fields = fields_by_name(frame.schema, graph.casefold)
        found.update({v: fields[v[0]] for v in set(wanted) - set(found) if v[1] == writer and v[0] in fields})

    try:
        frame = frame_of(data)
        note(frame, -1)
        for i in sorted(needed | first | graph.ancestors(first)):
            vertex = graph.vertices[i]
            if not isinstance(data, DataFrame) and not is_plain(vertex.stage):
                break  # the behaviour of a stage that is not Spark's without rows is unknown
            lacking = _lacking(vertex, frame, graph.casefold) if data is None else []
            try:
                with jvm.suppress_error_logs():
                    guessed, frame = _after(vertex.stage, frame, lacking)
            except jvm.SparkError:
                if i in needed:
                    raise
                continue  # it would only have shown the types of its inputs
            if lacking:
                note(guessed.select(*map(col_by_name, lacking)), -1)
            note(frame, i)
        if data is None:
            found |= {v: StructField(v[0], DoubleType()) for v in set(wanted) - set(found) if v[1] == -1}
    except (InputError, *jvm.SparkError):
        pass  # Spark can't know before it sees rows, or will report the error then
    return found


def width_in(field: StructField | None) -> int | None:
    """Number of entries that a column's metadata declare; None if they declare none."""
    attributes = ((field.metadata if field else None) or {}).get("ml_attr") or {}
    names = [a.get("name", "") for kind in (attributes.get("attrs") or {}).values() for a in kind]
    unknown = any(name.endswith(UNKNOWN_SLOT) for name in names)
    told = None if unknown else attributes.get("num_attrs", len(names) or None)
    return None if told is None else int(told)


def is_plain(stage: Any) -> bool:
    """True if a stage is one of Spark's own stages, or represents a hidden stage of Spark."""
    return type(stage).__module__.startswith(("pyspark.ml.", "sparkdiff."))


def frame_of(data: SchemaOrRows) -> DataFrame:
    """The data themselves if they are a DataFrame; for a schema, an empty DataFrame with this schema."""
    if isinstance(data, DataFrame):
        return data
    fields = [] if data is None else [_with_one_slot(f) for f in data.fields]
    return jvm.session().createDataFrame([], StructType(fields))


def _with(frame: DataFrame, names: Iterable[str], like: StructField) -> DataFrame:
    """The frame with additional columns of nulls, with the type and metadata of `like`."""
    empty = F.lit(None).cast(like.dataType)
    return frame.withColumns({n: empty.alias(n, metadata=like.metadata or {}) for n in names})


def _lacking(vertex: Vertex, frame: DataFrame, casefold: Callable[[str], str]) -> list[str]:
    """Source columns that the stage reads and the frame lacks."""
    there = set(map(casefold, frame.columns))
    return [c for c, v in zip(vertex.inputs, vertex.sources, strict=True) if v[1] == -1 and casefold(c) not in there]


def _after(stage: Any, frame: DataFrame, lacking: Sequence[str]) -> tuple[DataFrame, DataFrame]:
    """The frame with the columns that it lacks, in the first of the types GUESSES that the stage accepts, and the
    stage's output for this frame.
    """
    for guess in GUESSES if lacking else GUESSES[:1]:
        with_them = _with(frame, lacking, guess) if lacking else frame
        try:
            out = stage.transform(with_them)
            out.schema  # noqa: B018  # Spark Connect raises errors only here
            return with_them, out
        except jvm.SparkError:
            if not lacking or guess is GUESSES[-1]:
                raise
    raise AssertionError("there is a last guess")


def check_columns(graph: Graph, schema: StructType, also: Iterable[str | None] = ()) -> None:
    """Raise InputError if a stage reads a column that neither the data nor a stage has, or a name that several columns
    share.

    Args:
        also: further columns, which training reads; None among them is ignored.
    """
    known = set(fields_by_name(schema, graph.casefold))
    of_name: dict[str, list[str]] = {}
    for spelled in schema.names:
        of_name.setdefault(graph.casefold(spelled), []).append(spelled)

    def check_alone(reader: str, column: str) -> None:
        if len(same := of_name.get(graph.casefold(column), [])) > 1:
            names = ", ".join(map(repr, same))
            raise InputError(f"{reader} {column!r}, but {len(same)} columns match, {names}: rename all but one")

    for column in also:
        if column is not None:
            check_alone("training reads", column)
    read = {name for v in graph.vertices for name, _ in v.sources} | {graph.casefold(c) for c in also if c is not None}
    for vertex in graph.vertices:
        if vertex.opaque:
            return
        passed = graph.passes_over(vertex, read)
        for (name, producer), column in zip(vertex.sources, vertex.inputs, strict=True):
            if (name, producer) in passed:
                continue
            if producer < 0 and name not in known:
                raise InputError(
                    f"{vertex.uid} reads column {column!r}, which is not in the data. "
                    f"{did_you_mean(column, schema.names)}"
                )
            if producer < 0:
                check_alone(f"{vertex.uid} reads", column)
