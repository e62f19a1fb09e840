"""Pipelines drawn at random, and every way out of sparkdiff compared with Spark's own transform on them.

    python -m tests.parity.random_pipelines --seeds 0:200

`verify`, a Scorer (each row alone, and all at once), the exported ONNX file, `TorchTransformer` and what `compact` makes of a
pipeline must say what Spark says, and refuse what Spark refuses. A way refuses a pipeline by name for known reasons only.
A pipeline on which a way differs is made smaller while it still differs, and printed as code. The exit code is 1 where
anything differs, and where 200 pipelines or more miss a class, a value of a Param or an edge (`tests.support.drawn_pipelines`).

Any range of numbers can be run, so that a run can go on where another ended.
"""

import argparse
import collections
import inspect
import math
import os
import pickle
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.linalg import SparseVector, Vector
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import IntegerType, LongType, StructType

import sparkdiff
from sparkdiff import InputError, Scorer, TorchTransformer
from sparkdiff.jvm import SparkError
from sparkdiff.pipeline import parity
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.serving.onnx import export
from sparkdiff.stages.base import REGISTRY, class_name
from tests import conftest
from tests.support import acceptances, onnx_parity
from tests.support.drawn_pipelines import (
    AT_ONCE,
    EDGES,
    OWN,
    Case,
    Item,
    Made,
    Stage,
    drawn,
    edges_in,
    language_of,
    needed_items,
    row_code,
    speaking,
    switches,
    type_code,
)
from tests.support.scoring import refuses, same

SINGLE = ("ALSModel", "Word2VecModel")
"""Stages that Spark computes in float32."""
TEXT_STAGES = (
    "StringIndexerModel",
    "Tokenizer",
    "RegexTokenizer",
    "StopWordsRemover",
    "NGram",
    "HashingTF",
    "CountVectorizerModel",
    "FeatureHasher",
    "IndexToString",
    "RFormulaModel",
)
"""Those that a Scorer computes and that aren't translated."""
KNOWN: dict[str, tuple[str, ...]] = {
    "verify": ("so there is no column to compare",),
    "Scorer": (
        *acceptances.KNOWN["Scorer"],
        "is decimal(8,2): Spark rounds surrogates",
        "handleInvalid='skip' drops rows",
        "coldStartStrategy='drop'",
        "rounding decides the density",
        "are decided when data are seen",  # behind a VectorIndexer of vectors of which the schema doesn't tell the width
        "it changes columns that it does not name",
        "by the rules of the JVM's language",
    ),
    "ONNX": ("no stage of this pipeline is translated", "no operator Erf", "MultilayerPerceptron"),
    "TorchTransformer": (
        "no stage of this pipeline is translated",
        "behind it writes a column that it reads or writes",
    ),
    "compact": (),
}
"""What the refusals of a pipeline say that are documented, by way."""
WAYS = tuple(KNOWN)


class Difference(NamedTuple):
    """What a way says otherwise than Spark.

    Attributes:
        kind: what differs, without values, so that two differences can be told to be of one kind.
        rows: places of the rows that differ; empty where that isn't known.
    """

    way: str
    stage: str
    kind: str
    told: str
    rows: tuple[int, ...] = ()

    def key(self) -> tuple[str, str, str]:
        return self.way, self.stage, self.kind


@dataclass
class Truth:
    """What Spark says of the rows of a case.

    Attributes:
        columns: those that its transform gives.
        kept: by the row's place what Spark computes of it; rows that it refuses or drops are missing.
        refused: places of the rows on which it fails, and of those of which a DCT gets an infinite entry: what Spark computes
            of these depends on the order of its additions, so that each way refuses them by name.
        writers: the class that wrote a column last.
    """

    model: Any
    case: Case
    frame: DataFrame
    columns: StructType
    kept: dict[int, dict[str, Any]]
    refused: list[int]
    writers: dict[str, str]
    tolerance: float
    exported: "OnnxFile | None" = None
    proofs: tuple[Any, Any] | None = None

    def file(self) -> "OnnxFile":
        if self.exported is None:
            self.exported = OnnxFile.of(self)
        return self.exported

    def rows(self, places: Sequence[int]) -> DataFrame:
        return self.frame.where(self.frame["id"].isin([self.case.rows[i]["id"] for i in places]))

    def labels(self) -> set[str]:
        """Labels that formulas make, which no way out is asked for; one that is unseen fails in Spark."""
        return {stage.getLabelCol() for stage in self.model.stages if type(stage).__name__ == "RFormulaModel"}

    def answers(self, rows: DataFrame) -> DataFrame:
        return self.model.transform(rows).drop(*self.labels())

    def written(self) -> list[str]:
        """Columns that stages write, in the order in which they do, without those labels."""
        labels = self.labels()
        return [name for name in self.writers if name not in labels]


# Spark ----------------------------------------------------------------------------------------------------------------


class Incomparable(Exception):
    """There is no row of which Spark could say anything."""


def fitted(case: Case, spark: SparkSession) -> Any:
    """The pipeline, fitted stage by stage, as Pipeline does."""
    frame, stages = case.frame(spark, case.train), []
    for stage in case.stages:
        made = stage.made()
        made = made.fit(frame) if hasattr(made, "fit") else made
        frame = made.transform(frame)
        stages.append(made)
    return PipelineModel(stages)


def truth_of(model: Any, case: Case, spark: SparkSession) -> Truth:
    """What Spark says of each row.

    Raises:
        Incomparable: no row is left, or an assembler finds none from which it could read a width.
    """
    if not case.rows:
        raise Incomparable
    frame, places = case.frame(spark, case.rows), {row["id"]: i for i, row in enumerate(case.rows)}
    single = any(type(stage).__name__ in SINGLE for _, stage in flatten(model))
    try:
        columns, writers = written_by(model, frame)
    except SparkError as e:
        if "empty dataframe while inferring lengths" in str(e):
            raise Incomparable from e
        raise
    truth = Truth(model, case, frame, columns, {}, [], writers, 1e-6 if single else 1e-9)
    if any(type(stage).__name__ == "ALSModel" for stage in model.stages):  # whose joins shuffle
        by_halves(truth, list(range(len(case.rows))), places)
    else:
        row_by_row(truth, spark, places)
    ties = rows_at_split_points(model, truth.kept) | rows_that_trees_ignore(model, truth.kept)
    if ties:  # docs/serving.md
        return truth_of(model, replace(case, rows=[row for i, row in enumerate(case.rows) if i not in ties]), spark)
    for column in [stage.getInputCol() for _, stage in flatten(model) if type(stage).__name__ == "DCT"]:
        vectors = {i: row[column] for i, row in truth.kept.items() if isinstance(row.get(column), Vector)}
        truth.refused += [i for i, v in vectors.items() if np.isinf(v.toArray()).any()]
    truth.kept = {i: truth.kept[i] for i in sorted(truth.kept) if i not in truth.refused}
    return truth


def rows_at_split_points(model: Any, rows: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Places of the rows that are at a tree's split point or a VectorIndexer's category within the rounding of a DCT, PCA or
    Word2Vec.
    """
    stages = [stage for _, stage in flatten(model)]
    if not {type(stage).__name__ for stage in stages} & {"DCT", "PCAModel", "Word2VecModel"}:
        return set()
    points: list[tuple[str, int, float]] = []
    for stage in stages:
        if hasattr(stage, "toDebugString"):
            splits = re.findall(r"feature (\d+) <= (-?[\d.E-]+)\)", stage.toDebugString)
            points += [(stage.getFeaturesCol(), int(j), float(t)) for j, t in splits]
        elif type(stage).__name__ == "VectorIndexerModel":
            points += [(stage.getInputCol(), j, x) for j, values in stage.categoryMaps.items() for x in values]
    found = set()
    for i, row in rows.items():
        known = [(row[c][j], point) for c, j, point in points if row[c] is not None]
        found |= {i} if any(abs(x - point) <= 1e-12 * max(1.0, abs(point)) for x, point in known) else set()
    return found


def rows_that_trees_ignore(model: Any, rows: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Places of the rows whose vector is null and reaches trees without any split, which don't read it. We refuse them."""
    trees = [stage for _, stage in flatten(model) if hasattr(stage, "toDebugString")]
    columns = {tree.getFeaturesCol() for tree in trees if " <= " not in tree.toDebugString}
    return {i for i, row in rows.items() if any(row[c] is None for c in columns)}


def row_by_row(truth: Truth, spark: SparkSession, place_of: Mapping[int, int]) -> None:
    """Note what Spark says: of one plan in which each row is a partition of its own, a job for all, or one for each."""
    rows = truth.case.rows
    out = truth.answers(truth.case.frame(spark, rows, len(rows)))
    pickled = out._jdf.javaToPython()
    assert pickled.getNumPartitions() == len(rows)

    def of(wanted: Sequence[int]) -> None:
        numbers = spark.sparkContext._gateway.new_array(spark._jvm.int, len(wanted))
        for i, partition in enumerate(wanted):
            numbers[i] = partition
        for part in pickled.collectPartitions(numbers):
            for row in (row for batch in part for row in pickle.loads(bytes(batch))):
                truth.kept[place_of[row["id"]]] = row.asDict(recursive=False)

    try:
        of(range(len(rows)))
    except SparkError:
        for i in range(len(rows)):
            try:
                of([i])
            except SparkError:
                truth.refused.append(i)


def by_halves(truth: Truth, places: list[int], place_of: Mapping[int, int]) -> None:
    """Note what Spark says of these rows; where it fails, of each half."""
    try:
        found = truth.answers(truth.rows(places)).collect()
        truth.kept |= {place_of[row["id"]]: row.asDict(recursive=False) for row in found}
    except SparkError:
        if len(places) == 1:
            truth.refused += places
            return
        middle = len(places) // 2
        by_halves(truth, places[:middle], place_of)
        by_halves(truth, places[middle:], place_of)


def written_by(model: Any, frame: DataFrame) -> tuple[StructType, dict[str, str]]:
    """The schema behind a pipeline, and by column the class of the stage that wrote or rewrote it last."""
    found: dict[str, str] = {}
    for stage in model.stages:
        before = {field.name: field for field in frame.schema}
        frame = stage.transform(frame)
        told = {
            value
            for param, value in stage._paramMap.items()
            if param.name in ("outputCol", "outputCols")
            for value in (value if isinstance(value, list) else [value])
        }
        for column in frame.schema:
            if column.name in told or column.name not in before or before[column.name] != column:
                found.pop(column.name, None)
                found[column.name] = type(stage).__name__
    return frame.schema, {name: kind for name, kind in found.items() if name in frame.columns}


# Comparing ------------------------------------------------------------------------------------------------------------


def named_value(value: Any) -> str:
    """What a value is."""
    if value is None:
        return "null"
    if isinstance(value, float):
        return "NaN" if math.isnan(value) else "infinity" if math.isinf(value) else "number"
    return "number" if isinstance(value, (int, np.number)) else type(value).__name__


def difference_of(ours: Any, theirs: Any) -> str:
    """How two values differ, in words."""
    if isinstance(theirs, (Vector, np.ndarray)) and isinstance(ours, (Vector, np.ndarray)):
        a, b = (x.toArray() if isinstance(x, Vector) else x for x in (ours, theirs))
        if a.shape != b.shape:
            return "another width"
        at = np.flatnonzero(
            ~((np.abs(a - b) <= 1e-9 * np.maximum(1, np.abs(b))) | (a == b) | (np.isnan(a) & np.isnan(b)))
        )
        ours, theirs = (float(a[at[0]]), float(b[at[0]])) if len(at) else (0.0, 0.0)
    return f"{named_value(ours)} in place of {named_value(theirs)}"


def agrees(ours: Any, theirs: Any, tolerance: float, nulls: bool = False) -> bool:
    """Whether values agree; null is null in both unless `nulls` says that NaN may stand for it."""
    if isinstance(theirs, bool) or (not nulls and (ours is None) != (theirs is None)):
        return bool(ours == theirs)
    return same(ours, theirs, tolerance)


def compared(
    way: str, how: str, truth: Truth, found: Mapping[int, Mapping[str, Any]], names: Sequence[str], nulls: bool = False
) -> Iterator[Difference]:
    """Differences in these columns; of each row in the first column that differs."""
    wrong: dict[str, list[int]] = {}
    for i, spark in truth.kept.items():
        if i not in found:
            yield Difference(way, "", f"{how}: no row", f"row {i} is missing", (i,))
            return
        for name in names:
            if not agrees(found[i][name], spark[name], truth.tolerance, nulls) and not documented(way, truth, i):
                wrong.setdefault(name, []).append(i)
                break
    order = {name: at for at, name in enumerate(names)}
    for name in sorted(wrong, key=order.__getitem__)[:1]:
        i = wrong[name][0]
        ours, theirs = found[i][name], truth.kept[i][name]
        kind = f"{how}: {difference_of(ours, theirs)}"
        told = f"{how}, column {name!r} of row {i}: {ours!r}, and Spark's is {theirs!r}"
        yield Difference(way, truth.writers.get(name, "a column of the data"), kind, told, tuple(wrong[name]))


def documented(way: str, truth: Truth, i: int) -> bool:
    """Whether the docs tell this difference: in a row with an infinite entry that a way multiplies where Spark skips zeros, or
    that `compact` folds through a PCA or a DCT; for a file, which reads dense vectors, also in a sparse one with NaN or behind a
    stage that was fitted on such numbers, and in any that a VectorIndexer reads.
    """
    if way not in ("compact", "ONNX"):
        return False
    values = [truth.case.rows[i][name] for name in truth.case.read()]
    if way == "ONNX" and truth.file().refusal is None:  # some of what the file reads Spark computes
        values += [truth.kept.get(i, {}).get(column.name) for column in truth.file().described.inputs]
    numbers = numbers_in(values)
    classes = {type(stage).__name__ for _, stage in flatten(truth.model)}
    if way == "compact":
        return bool(classes & {"PCAModel", "DCT"}) and bool(np.isinf(numbers).any())
    fitted_on = numbers_in(row[name] for row in truth.case.train for name in truth.case.read())
    odd = bool(np.isnan(numbers).any()) or not bool(np.isfinite(fitted_on).all())
    sparse = any(isinstance(v, SparseVector) for v in values)
    return bool(np.isinf(numbers).any()) or (sparse and ("VectorIndexerModel" in classes or odd))


def numbers_in(values: Iterable[Any]) -> list[float]:
    """The entries of vectors, and the doubles."""
    return [
        float(x)
        for v in values
        for x in ([v] if isinstance(v, float) else v.toArray() if isinstance(v, Vector) else ())
    ]


# The ways out ---------------------------------------------------------------------------------------------------------


class Exported(onnx_parity.InOnnx):
    """A network whose outputs come of a file that `export` wrote."""

    def __init__(self, network: Any, written: Any, session: Any):
        super().__init__(network)
        self.written, self.session = written, session


@dataclass
class OnnxFile:
    """What `export` wrote of a pipeline, or why it refuses it."""

    described: Any = None
    written: Any = None
    session: Any = None
    refusal: Exception | None = None

    @classmethod
    def of(cls, truth: Truth) -> "OnnxFile":
        made: list[Any] = []

        class Recorded(export.OnnxGraph):
            def __init__(self, *given: Any):
                super().__init__(*given)
                made.append(self)

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            try:
                with patch.object(export, "OnnxGraph", Recorded):
                    described = sparkdiff.export(truth.model, path, schema=truth.frame)
            except Exception as e:
                return cls(refusal=e)
            settings = onnx_parity.onnxruntime.SessionOptions()
            settings.intra_op_num_threads, settings.log_severity_level = 1, 3
            opened = onnx_parity.onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])
        return cls(described, made[0], opened)

    def compare(self, network: Any, where: Path, held: Any) -> Any:
        """The parity of its outputs, or what went wrong."""
        try:
            return onnx_parity.COMPARE(Exported(network, self.written, self.session), where, held)  # type: ignore[arg-type]
        except Exception as e:
            return e


def verified(truth: Truth, places: list[int]) -> tuple[Any, Any]:
    """What `verify` says of these rows, and what is said of the file that `export` writes."""
    file, of_file = truth.file(), []

    def compare(network: Any, where: Path, held: Any) -> Any:
        of_file.append(file.compare(network, where, held) if file.refusal is None else file.refusal)
        return onnx_parity.COMPARE(network, where, held)

    with patch.object(parity, "compare", compare):
        found = sparkdiff.verify(truth.model, truth.rows(places))
    return found, of_file[0]


def by_verify(truth: Truth) -> Iterator[Difference]:
    if truth.kept:
        truth.proofs = verified(truth, list(truth.kept))
        yield from parities("verify", truth, truth.proofs[0])


def parities(way: str, truth: Truth, found: Any) -> Iterator[Difference]:
    """What a report of parity says."""
    if found.ok:
        return
    wrong = [name for name, x in found.maxRelDiff.items() if not x <= truth.tolerance]
    stage = truth.writers.get(wrong[0], "?") if wrong else "?"
    many = "infinity" if wrong and math.isinf(found.maxRelDiff[wrong[0]]) else "a number" if wrong else "labels"
    yield Difference(way, stage, f"differs by {many}", f"columns {wrong}: {found}")


def by_onnx(truth: Truth) -> Iterator[Difference]:
    file = truth.file()
    if file.refusal is not None:
        raise file.refusal
    inputs = file.described.inputs
    if truth.kept and any(column.kind == "text" for column in inputs):
        # It indexes a formula's texts itself; `verify` runs Spark for that, and has no texts to feed it.
        if not file.described.sparkStages:
            out = onnx_parity.run(file.session, arrays(inputs, [truth.case.rows[i] for i in truth.kept]))
            whole = {
                name
                for name in out
                if name in truth.columns.names and truth.columns[name].dataType in (IntegerType(), LongType())
            }
            found = {
                i: {n: int(v[k]) if n in whole and not np.isnan(v[k]) else v[k] for n, v in out.items()}
                for k, i in enumerate(truth.kept)
            }
            for i, spark in truth.kept.items():  # a number that is null is NaN in a file
                nulls = [n for n, value in found[i].items() if np.ndim(value) == 0 and spark.get(n, 0) is None]
                found[i] |= {n: None for n in nulls if np.isnan(found[i][n])}
            yield from compared(
                "ONNX", "of the data", truth, found, [n for n in truth.written() if n in out], nulls=True
            )
    elif truth.kept:
        _, found = truth.proofs or verified(truth, list(truth.kept))
        finite = [i for i in truth.kept if not documented("ONNX", truth, i)]
        if not (isinstance(found, parity.Parity) and found.ok) and len(finite) < len(truth.kept):
            found = verified(truth, finite)[1] if finite else None
        if isinstance(found, AssertionError):
            yield Difference("ONNX", "", str(found), str(found))
        elif isinstance(found, Exception):
            raise found
        elif found is not None:
            yield from parities("ONNX", truth, found)
    rows = [] if file.described.sparkStages or not inputs else truth.refused
    if rows and len(file.described.stages) == len(flatten(truth.model)):
        out = onnx_parity.run(file.session, arrays(inputs, [truth.case.rows[i] for i in rows]))
        marks = out.get(export.REFUSED, np.zeros(len(rows), bool))
        missed = [
            i for i, is_marked in zip(rows, marks, strict=True) if not is_marked and not documented("ONNX", truth, i)
        ]
        if missed:
            i = missed[0]
            yield Difference("ONNX", "", "does not mark a row that Spark refuses", f"row {i} is not marked", (i,))


def arrays(inputs: Sequence[Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """A file's inputs of rows of the data."""
    found = {}
    for column in inputs:
        name = column.name.removesuffix(" is null").removesuffix(" of the data")
        values = [row[name] for row in rows]
        if column.kind == "flag":
            found[column.name] = np.array([v is None for v in values])
        elif column.kind == "text":
            found[column.name] = np.array(["" if v is None else v for v in values], object)
        else:
            found[column.name] = np.array(
                [v.toArray() if isinstance(v, Vector) else math.nan if v is None else float(v) for v in values]
            )
    return found


def by_scorer(truth: Truth) -> Iterator[Difference]:
    schema, rows = truth.frame.schema, truth.case.rows
    scorer = Scorer(truth.model, schema=schema, outputCols=truth.written())
    usual = Scorer(truth.model, schema=schema)
    taken, names = list(truth.kept), scorer.outputCols
    others = [i for i in range(len(rows)) if i not in truth.kept]
    answered = [i for i in others if not refuses(scorer, rows[i])]
    if answered:
        yield Difference("Scorer", "", "answers a row that Spark refuses or drops", f"rows {answered}", tuple(answered))
    alone = {}
    for i in taken:
        try:
            alone[i] = scorer.predict(rows[i])
        except InputError as e:
            why = re.sub(r"\d+", "", str(e).partition(": ")[2])[:40]
            yield Difference(
                "Scorer", stage_in(truth, str(e)), f"refuses a row that Spark takes: {why}", f"row {i}: {e}", (i,)
            )
            return
    yield from compared("Scorer", "alone", truth, alone, names, nulls=True)
    if taken:
        batch = dict(zip(taken, scorer.predict([rows[i] for i in taken]), strict=True))
        yield from compared("Scorer", "in a batch", truth, batch, names, nulls=True)
        batch = dict(zip(taken, usual.predict([rows[i] for i in taken]), strict=True))
        yield from compared("Scorer", "usual columns in a batch", truth, batch, usual.outputCols, nulls=True)


def stage_in(truth: Truth, text: str) -> str:
    """The class of the stage that a text names."""
    return next((type(stage).__name__ for _, stage in flatten(truth.model) if stage.uid in text), "")


def by_torch(truth: Truth) -> Iterator[Difference]:
    transformer = TorchTransformer(truth.model, device="cpu")
    kept = truth.rows(list(truth.kept)) if truth.kept else truth.frame  # an assembler reads the first row
    ours, theirs = transformer.transform(kept), truth.columns
    if ours.columns != theirs.names:
        yield Difference("TorchTransformer", "", "other columns", f"{ours.columns}, and Spark's are {theirs.names}")
        return
    for a, b in zip(ours.schema, theirs, strict=True):
        if (a.dataType, a.metadata) != (b.dataType, b.metadata):
            told = f"{a.name}: {a.dataType.simpleString()} {a.metadata}, and Spark's is {b.dataType.simpleString()} {b.metadata}"
            yield Difference("TorchTransformer", truth.writers.get(a.name, ""), "another type or metadata", told)
            return
    if truth.kept:
        found = by_place(truth, ours.drop(*truth.labels()).collect())
        yield from compared("TorchTransformer", "in a batch", truth, found, [*truth.written(), *truth.case.types])
    # A worker that fails is lost, and another one imports torch anew: not for each pipeline.
    for i in truth.refused[: len(truth.refused) % 2]:
        try:
            answers = transformer.transform(truth.rows([i])).drop(*truth.labels()).collect()
        except SparkError:
            continue
        if (
            answers
        ):  # none where a stage drops the row and the one that would refuse it runs last (docs/torch_transformer.md)
            yield Difference("TorchTransformer", "", "answers a row that Spark refuses", f"row {i}", (i,))


def by_place(truth: Truth, rows: Sequence[Any]) -> dict[int, dict[str, Any]]:
    places = {row["id"]: i for i, row in enumerate(truth.case.rows)}
    return {places[row["id"]]: row.asDict(recursive=False) for row in rows}


def by_compact(truth: Truth) -> Iterator[Difference]:
    new = sparkdiff.compact(truth.model, schema=truth.frame.schema)
    if new is truth.model or not truth.kept:
        return
    kept = truth.rows(list(truth.kept))
    ours, theirs = new.transform(kept), set(truth.columns.names)
    promised = {*truth.case.types, *sparkdiff.compact_plan(truth.model, schema=truth.frame.schema).keepCols} & theirs
    if lost := sorted(promised - set(ours.columns)):
        yield Difference("compact", "", "loses a column", f"columns {lost}")
        return
    names = [*(n for n in truth.written() if n in ours.columns), *(n for n in truth.case.types if n in ours.columns)]
    yield from compared("compact", "in a batch", truth, by_place(truth, ours.drop(*truth.labels()).collect()), names)


ASKED: dict[str, Callable[[Truth], Iterator[Difference]]] = {
    "verify": by_verify,
    "Scorer": by_scorer,
    "ONNX": by_onnx,
    "TorchTransformer": by_torch,
    "compact": by_compact,
}


def asked(truth: Truth, way: str) -> tuple[list[Difference], str | None]:
    """What a way says otherwise than Spark, and why it refuses the pipeline."""
    try:
        return list(ASKED[way](truth)), None
    except InputError as e:
        if any(known in str(e) for known in KNOWN[way]):
            return [], str(e)
        why = re.sub(r"\w+?\d+(_each)?\b", "a stage", str(e))
        return [Difference(way, stage_in(truth, str(e)), f"refuses: {why[:90]}", str(e))], None
    except Exception as e:
        told = f"{type(e).__name__}: {e}"
        return [Difference(way, stage_in(truth, told), f"fails: {type(e).__name__}", told[:2000])], None


# Making it smaller ----------------------------------------------------------------------------------------------------

TRIES, SECONDS = 60, 120


def smaller(case: Case, found: Difference, spark: SparkSession) -> tuple[Case, Difference]:
    """The smallest pipeline, rows and columns on which the same way still differs in the same manner."""
    end, tries = time.monotonic() + SECONDS, 0

    def still(candidate: Case) -> Difference | None:
        try:
            truth = truth_of(fitted(candidate, spark), candidate, spark)
        except Exception:  # what is left fits no more
            return None
        differences, _ = asked(truth, found.way)
        return next((d for d in differences if d.kind == found.kind), None)

    again = True
    while again:
        again = False
        for candidate in candidates(case, found):
            if tries >= TRIES or time.monotonic() > end:
                return case, found
            tries += 1
            if (now := still(candidate)) is not None:
                case, found, again = candidate, now, True
                break
    return case, found


def candidates(case: Case, found: Difference) -> Iterator[Case]:
    """Smaller cases, those first that leave out most."""
    if len(found.rows) and len(case.rows) > 1:
        yield replace(case, rows=[case.rows[found.rows[0]]])
    if len(case.rows) > 1:
        middle = len(case.rows) // 2
        yield replace(case, rows=case.rows[:middle])
        yield replace(case, rows=case.rows[middle:])
    for i in reversed(range(len(case.stages))):
        yield replace(case, stages=case.stages[:i] + case.stages[i + 1 :])
    needed = {"id", *case.read()}
    if needed < set(case.types):
        yield replace(case, types={name: kind for name, kind in case.types.items() if name in needed})
    for i, stage in enumerate(case.stages):
        for name in stage.params:
            less = Stage(stage.kind, stage.uid, {n: v for n, v in stage.params.items() if n != name})
            if not name.endswith(("Col", "Cols")) and name not in ("seed", "maxIter", "numFeatures"):
                yield replace(case, stages=(*case.stages[:i], less, *case.stages[i + 1 :]))
            value = stage.params[name]
            if isinstance(value, list) and name == "inputCols" and "outputCols" not in stage.params and len(value) > 1:
                for at in range(len(value)):
                    fewer = Stage(stage.kind, stage.uid, {**stage.params, name: value[:at] + value[at + 1 :]})
                    yield replace(case, stages=(*case.stages[:i], fewer, *case.stages[i + 1 :]))
    if 1 < len(case.rows) <= 6:
        for i in range(len(case.rows)):
            yield replace(case, rows=case.rows[:i] + case.rows[i + 1 :])
    if len(case.train) > 6:
        yield replace(case, train=case.train[: len(case.train) // 2])


IN_ONNX = """described, frame = sparkdiff.export(model, "model.onnx", schema=rows), rows
for stage in model.stages:
    frame = stage.transform(frame) if stage.uid in described.sparkStages else frame
asked, inputs = frame.collect(), {{}}
for column in described.inputs:
    values = [row[column.name.removesuffix(" is null").removesuffix(" of the data")] for row in asked]
    if column.kind == "flag":
        inputs[column.name] = np.array([x is None for x in values])
    elif column.kind == "text":
        inputs[column.name] = np.array(["" if x is None else x for x in values], object)
    else:
        inputs[column.name] = np.array([nan if x is None else x.toArray() if hasattr(x, "toArray") else float(x) for x in values])
session = onnxruntime.InferenceSession("model.onnx")
print(dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs))))"""
CALLS = {
    "verify": "print(sparkdiff.verify(model, rows))",
    "Scorer": "scorer = sparkdiff.Scorer(model, schema=rows.schema, outputCols={written})\n"
    "asked = [row.asDict(recursive=True) for row in rows.collect()]\n"
    "print([scorer.predict(row) for row in asked])\nprint(scorer.predict(asked))",
    "ONNX": IN_ONNX,
    "TorchTransformer": 'sparkdiff.TorchTransformer(model, device="cpu").transform(rows).show(truncate=False)',
    "compact": "sparkdiff.compact(model, schema=rows.schema).transform(rows).show(truncate=False)",
}
HEAD = """from decimal import Decimal
from math import inf, nan
from unittest.mock import patch

import numpy as np
import onnxruntime
from pyspark.ml import Pipeline, Transformer
from pyspark.ml.linalg import DenseVector, Vectors, VectorUDT
from pyspark.ml.param.shared import HasInputCol, HasOutputCol
from pyspark.ml.util import DefaultParamsReadable, DefaultParamsWritable, Identifiable
from pyspark.sql import DataFrame, SparkSession, functions as F
from pyspark.sql.types import *

import sparkdiff
"""


def code_of(case: Case, found: Difference, written: Sequence[str]) -> str:
    """A program that shows the difference."""
    kinds = {stage.kind for made in case.stages for stage in made.all()}
    spark = sorted((kind.__module__, kind.__name__) for kind in kinds if kind not in OWN)
    lines = [HEAD, *(f"from {module} import {name}" for module, name in spark), ""]
    own = [kind for kind in kinds if kind in OWN]
    for kind in [own[0].__mro__[1], *own] if own else []:
        lines += ["", inspect.getsource(kind)]
    lines += ["", "def named(uid, cls, **params):", '    """A stage with this uid."""']
    lines += [
        '    with patch.object(Identifiable, "_randomUID", return_value=uid):',
        "        return cls(**params)",
        "",
        "",
    ]
    lines += ['spark = SparkSession.builder.master("local[2]").getOrCreate()']
    if case.language != "en":
        lines += [
            "locale = spark._jvm.java.util.Locale",
            f"locale.setDefault(locale.forLanguageTag({case.language!r}))",
        ]
    lines += ["schema = StructType()"]
    lines += [f"schema = schema.add({name!r}, {type_code(kind)})" for name, kind in case.types.items()]
    for name, rows in (("train", case.train), ("rows", case.rows)):
        lines += [f"{name} = spark.createDataFrame([", *row_code(rows, case.types), "], schema).coalesce(1)"]
    lines += ["stages = [", *(f"    {stage.code()}," for stage in case.stages), "]"]
    lines += ["model = Pipeline(stages=stages).fit(train)", "model.transform(rows).show(truncate=False)  # or it fails"]
    return "\n".join([*lines, CALLS[found.way].format(written=list(written)), f"# {found.told}"])


# The run --------------------------------------------------------------------------------------------------------------


@dataclass
class Run:
    """What a range of pipelines has shown."""

    covered: set[Any] = field(default_factory=set)
    known: set[tuple[Any, ...]] = field(default_factory=set)
    found: collections.Counter[tuple[str, str, str]] = field(default_factory=collections.Counter)
    taken: collections.Counter[tuple[str, str]] = field(default_factory=collections.Counter)
    seconds: collections.Counter[str] = field(default_factory=collections.Counter)
    pipelines: int = 0
    rows: int = 0
    refused: int = 0
    stages: int = 0
    again: int = 0

    @contextmanager
    def timing(self, what: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[what] += time.monotonic() - start

    def note(self, made: Made, truth: Truth) -> None:
        """What this pipeline has covered."""
        case = made.case
        self.covered |= {("class", class_name(stage)) for _, stage in flatten(truth.model)}
        self.covered |= {("class", class_name(stage)) for stage in truth.model.stages}
        for stage in (s for top in case.stages for s in top.all()):
            self.covered.add((stage.kind, "", None))
            self.covered |= {
                (stage.kind, n, v)
                for n, v in stage.params.items()
                if isinstance(v, (bool, str)) and not n.endswith("Col")
            }
        seen = {
            name: {row[name] for row in case.train}
            for name in case.read()
            if case.types[name] in ("double", "string", "int")
        }
        self.covered |= {("edge", e) for e in edges_in(case, [case.rows[i] for i in truth.kept], seen)}
        self.rows += len(truth.kept)
        self.refused += len(truth.refused)


def needed(items: Sequence[Item]) -> set[Any]:
    """What 200 pipelines must have covered."""
    classes = {name for name in REGISTRY if name.startswith(("pyspark.", "sparkdiff."))}
    classes |= {f"pyspark.ml.feature.{name}" for name in TEXT_STAGES}
    return {*items, *(("class", name) for name in classes), *(("edge", e) for e in EDGES)}


def say(text: str) -> None:
    print(text, flush=True)


def run(spark: SparkSession, seeds: range, out: Callable[[str], None] = say) -> bool:
    """Whether all pipelines of this range agree with Spark in every way, and cover what they must."""
    known, done, start = switches(), Run(), time.monotonic()
    items = needed_items(known)
    for seed in seeds:
        with speaking(spark, language_of(seed, known)):
            pipeline(spark, seed, known, done, out)
        if not done.pipelines % 5:
            out(f"--- {done.pipelines} pipelines, {time.monotonic() - start:.0f} s")
    out(summary(done, time.monotonic() - start))
    missing = needed(items) - done.covered
    told = sorted(str(x) for x in missing)
    out(f"covered: {len(needed(items)) - len(missing)} of {len(needed(items))} classes, values of Params and edges")
    if missing and len(seeds) >= AT_ONCE:
        out(f"not covered, though {AT_ONCE} pipelines in a row should: {', '.join(told)}")
    rare = done.again <= 0.1 * done.stages or len(seeds) < AT_ONCE
    if not rare:
        out("more than a tenth of the stages had to be drawn again")
    return not done.found and rare and not (missing and len(seeds) >= AT_ONCE)


def pipeline(spark: SparkSession, seed: int, known: Any, done: Run, out: Callable[[str], None]) -> None:
    """Draw and compare one pipeline."""
    with done.timing("drawing and fitting"):
        made = drawn(spark, seed, known, SparkError)
        model = PipelineModel(made.stages)
    done.stages, done.again, done.pipelines = done.stages + made.drawn, done.again + made.again, done.pipelines + 1
    try:
        with done.timing("Spark"):
            truth = truth_of(model, made.case, spark)
    except Incomparable:
        done.taken["Spark", "no row to compare"] += 1
        return
    done.note(made, truth)
    for way in WAYS:
        with done.timing(way):
            differences, refusal = asked(truth, way)
        done.taken[way, "taken" if refusal is None else acceptances.headline(refusal)] += 1
        for difference in differences:
            done.found[difference.key()] += 1
            if difference.key() in done.known:
                continue
            done.known.add(difference.key())
            with done.timing("making smaller"):
                case, small = smaller(made.case, difference, spark)
            kinds = tuple(sorted(stage.kind.__name__ for stage in case.stages))
            again = (small.way, small.kind, kinds) in done.known
            done.known.add((small.way, small.kind, kinds))
            out(f"=== pipeline {seed}: {small.way} {small.stage}: {small.kind}")
            if not again:
                out(code_of(case, small, truth_of(fitted(case, spark), case, spark).written()))


def summary(done: Run, seconds: float) -> str:
    mean = (seconds - done.seconds["making smaller"]) / max(1, done.pipelines)
    parts = ", ".join(f"{what} {took / max(1, done.pipelines):.2f}" for what, took in done.seconds.items())
    lines = [
        "",
        f"{done.pipelines} pipelines, {done.rows} rows that Spark takes, {done.refused} that it refuses",
        f"{mean:.2f} s a pipeline ({parts}); {done.again} of {done.stages} stages drawn again",
        *(f"{times:5} {way}: {why}" for (way, why), times in sorted(done.taken.items())),
        *(f"{times:5} DIFFER: {' | '.join(key)}" for key, times in done.found.most_common()),
    ]
    return "\n".join(lines)


def session() -> Iterator[SparkSession]:
    """The session of the tests (tests/conftest.py)."""
    os.environ.setdefault("JDK_JAVA_OPTIONS", conftest.QUICK)
    factory = pytest.TempPathFactory(None, 0, "none", trace=lambda *told: None, _ispytest=True)  # type: ignore[arg-type]
    for _ in conftest.prompt.__wrapped__():
        yield from conftest.spark.__wrapped__(None, factory)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", default="0:200", help="the first number, and the one behind the last: 0:200")
    first, _, last = parser.parse_args(given).seeds.partition(":")
    for spark in session():
        spark.sparkContext.setLogLevel("OFF")
        return 0 if run(spark, range(int(first), int(last))) else 1
    return 1


if __name__ == "__main__":
    sys.exit(main())
