"""A fitted pipeline that answers single requests, and batches, without Spark and without a JVM."""

import itertools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyspark.ml.linalg import SparseVector
from torch import Tensor

import sparkdiff
from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_tensors import WIDE, to_arrow
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.serving.scorer import scorer_files
from sparkdiff.serving.scorer.compiling import compile_schedule, warm
from sparkdiff.serving.scorer.few_rows import steps
from sparkdiff.serving.scorer.requests import fields_of, table_of
from sparkdiff.serving.scorer.schedule import NOWHERE, OutputColumn, Schedule, Values
from sparkdiff.serving.scorer.text.base import as_objects
from sparkdiff.tensors.rows import SparseRows

ROWS = 8192
"""Number of rows that are computed at a time."""


class Scorer:
    """Scorer of a fitted pipeline: computes its outputs from rows outside Spark, without a session, a JVM or a job.

    docs/serving.md lists the stages that it accepts and refuses. Its outputs equal Spark's, also for null, NaN, unseen categories
    and text of any language. A row on which Spark fails raises InputError with stage, column and value.

    A scorer holds no state of a request, so any number of threads may call it. torch uses the number of threads set by
    `torch.set_num_threads`; for a server with many threads, 1 is best.

    Args:
        model: a fitted pipeline or stage.
        schema: the schema of the data, or the data themselves. Without a schema, numbers have the type of the Python
            value: an `int` is a bigint, a `float` a double. The type matters only where numbers become text or are hashed
            (StringIndexer, FeatureHasher and HashingTF over numbers), and for the stages named in `assumptions`.
        outputCols: columns to return; by default those of the predictors and of the stages behind them, or without a
            predictor those that no stage reads.
        javaVersion: the version of Java, such as "17" or "21.0.8", whose text of doubles and floats StringIndexer and
            FeatureHasher use; by default that of the session. From 19 on, Java prints some numbers differently.

    Attributes:
        inputCols: columns that a row must have; None stands for null.
        outputCols: columns that `predict` returns.
        assumptions: assumptions about the data, made because no schema was passed.

    Raises:
        InputError: the pipeline is not fitted, a stage cannot be computed without Spark (the message names it, with the
            reason and how to fix it), no stage writes one of `outputCols`, Spark refuses the schema's type of a column, or
            there is no such `javaVersion`.

    Examples:
        >>> import sparkdiff
        >>> scorer = sparkdiff.Scorer(model, schema=df.schema)
        >>> sorted(scorer.predict({"age": 31, "months": 3, "visits": 4, "basket": 20.0, "calls": 5}))
        ['prediction', 'probability', 'rawPrediction']
        >>> len(scorer.predict(df.toPandas()))
        600
        >>> scorer.save(f"{folder}/churn-scorer")  # Scorer.load needs neither Spark nor Java
    """

    __module__ = "sparkdiff"

    def __init__(
        self,
        model: Any,
        schema: SchemaOrRows = None,
        outputCols: Iterable[str] | None = None,
        *,
        javaVersion: str | None = None,
    ):
        self._origin = jvm.origin() | ({} if javaVersion is None else {"javaVersion": javaVersion})
        self._take(compile_schedule(model, schema, outputCols, self._origin.get("javaVersion")))

    def _take(self, schedule: Schedule) -> None:
        schedule.check()
        self._schedule = schedule
        self.inputCols = tuple(entry.source.name for entry in schedule.entries)
        self.outputCols = tuple(output.name for output in schedule.outputs)
        self.assumptions = schedule.assumptions
        warm(schedule)
        self._steps = steps(schedule)

    def predict(self, rows: Any) -> Any:
        """The output columns of these rows.

        Args:
            rows: a dict (one row), a list of dicts, a pandas DataFrame, or an Arrow table or batch; a pyspark Row counts as a
                dict. A vector is a list, a numpy array (d,), a pyspark vector, or a dict as in Spark's JSON; a struct is a dict
                within the dict. In pandas, missing values in a column of objects are null, and NaN in a column of floats is NaN,
                unless the column has no float type in the schema.

        Returns:
            The same kind: a dict, a list of dicts, a DataFrame with the index of the rows, a table or batch. Vectors are numpy
            arrays (d,) of doubles, or pyspark's SparseVector if they are wide and sparse; in Arrow, fixed-size lists or Spark's
            own structs.

        Raises:
            InputError: a column is missing, or Spark would fail on a row; the message names stage, column and value.
        """
        rows = fields_of(rows)
        with torch.inference_mode():
            if isinstance(rows, Mapping):
                values = self._schedule.of_row(rows, self._steps)
                return {o.name: _column(result_objects, o, values, 1)[0] for o in self._schedule.outputs}
            return self._predict_table(rows)

    def _predict_table(self, rows: Any) -> Any:
        schedule = self._schedule
        table = table_of(rows, schedule.casefold)
        n = table.rows
        in_arrow, in_pandas = isinstance(rows, (pa.Table, pa.RecordBatch)), hasattr(rows, "iloc")
        columns: dict[str, list[Any]] = {o.name: [] for o in schedule.outputs}
        if n == 0:
            for entry in schedule.entries:
                table.read(entry.source, schedule.casefold)  # columns must exist even without rows
        if in_arrow and n == 0:
            return _as_arrow(rows, self._empty(rows))
        for begin in range(0, n, ROWS):
            part = rows.slice(begin, ROWS) if in_arrow else (rows.iloc if in_pandas else rows)[begin : begin + ROWS]
            values = schedule.of_table(table_of(part, schedule.casefold), self._steps)
            for o in schedule.outputs:
                columns[o.name] += (
                    [_column(result_arrow, o, values, len(part))]
                    if in_arrow
                    else _column(result_objects, o, values, len(part))
                )
        if in_arrow:
            return _as_arrow(rows, columns)
        if in_pandas:
            import pandas as pd

            return pd.DataFrame(columns, index=rows.index)
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def _empty(self, rows: Any) -> dict[str, list[Any]]:
        """Columns of a table without rows; vectors have their type if the rows' types determine their width."""
        schedule = self._schedule
        try:
            values = schedule.of_table(table_of(rows, schedule.casefold), self._steps)
            return {o.name: [_column(result_arrow, o, values, 0)] for o in schedule.outputs}
        except (InputError, ValueError, RuntimeError, IndexError):
            return {o.name: [pa.nulls(0, arrow_type(o.kind))] for o in schedule.outputs}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the scorer to a new folder, from which `load` recreates it without Spark: JSON and arrays, no code.

        Raises:
            InputError: the folder exists, or it is not on this machine's file systems.
            SparkdiffError: the folder cannot be written, or a registered custom stage holds a value that cannot be
                stored.
        """
        scorer_files.save(self._schedule, sparkdiff.__version__, self._origin, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, maxBytes: int = 1 << 30) -> "Scorer":
        """Scorer from a folder that `save` wrote. Starts no JVM, and runs no code from the folder.

        Args:
            path: the folder, on this machine's file systems.
            maxBytes: largest memory that the scorer's description and its arrays may take.

        Raises:
            InputError: the folder holds no scorer, or the scorer is damaged, needs more than `maxBytes`, or was written
                by a sparkdiff with another major or minor version.
        """
        made = cls.__new__(cls)
        made._origin = scorer_files.load(sparkdiff.__version__, path, maxBytes, made._take)
        return made

    def __repr__(self) -> str:
        return f"Scorer({', '.join(self.inputCols)} -> {', '.join(self.outputCols)}: {len(self._schedule.steps)} steps)"


def _column(convert: Callable[..., Any], output: OutputColumn, values: Values, rows: int) -> Any:
    """A computed column as objects or in Arrow, as `convert` makes it.

    Raises:
        InputError: the values are no column of these rows, because the scorer comes from a file that was changed.
    """
    try:
        found = convert(values[output.place], None if output.null == NOWHERE else values[output.null], output.kind)
        if len(found) != rows:
            raise ValueError(f"{len(found)} values for {rows} rows")
    except MemoryError:
        raise
    except Exception as e:  # values of another form than the schedule says
        raise InputError(
            f"column {output.name!r} cannot be returned ({e}): the scorer is damaged, save it again"
        ) from e
    return found


def _as_arrow(rows: Any, columns: Mapping[str, list[Any]]) -> Any:
    arrays = {name: concatenation(parts) for name, parts in columns.items()}
    return type(rows).from_arrays(list(arrays.values()), names=list(arrays))


def result_objects(column: Any, null: Tensor | None, kind: str) -> list[Any]:
    """A computed column as Python objects: numbers, numpy arrays (d,), sparse vectors, text."""
    if isinstance(column, list):
        return column
    if isinstance(column, SparseRows):
        ends = itertools.pairwise(column.offsets.tolist())
        indices, stored = column.indices.numpy(), column.values.numpy()
        return [
            stored[a:b] if b - a == column.width else SparseVector(column.width, indices[a:b], stored[a:b])
            for a, b in ends
        ]
    if column.ndim == 2:
        return list(column.numpy())
    return as_objects(column, null, "double" if kind == "float" else kind)


def result_arrow(column: Any, null: Tensor | None, kind: str) -> pa.Array:
    """A computed column as Arrow: numbers, lists of doubles, Spark's own form of wide sparse vectors, text."""
    if isinstance(column, list):
        return pa.array(column, arrow_type(kind))
    if isinstance(column, SparseRows):
        if column.width > WIDE:
            return to_arrow(column)
        column = column.to_dense()
    if column.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(column.reshape(-1).numpy()), column.shape[1])
    array = pa.array(column.numpy(), mask=None if null is None else null.numpy())
    return array.cast(arrow_type(kind), safe=kind != "bigint")


def arrow_type(kind: str) -> pa.DataType:
    """Arrow type of a computed column that is no vector, given the column's type in Spark."""
    known = {
        "int": pa.int32(),
        "bigint": pa.int64(),
        "float": pa.float32(),
        "string": pa.string(),
        "array<string>": pa.list_(pa.string()),
    }
    return known.get(kind, pa.float64())


def concatenation(parts: Sequence[pa.Array]) -> pa.Array:
    """Concatenation of the parts of a computed column; dense parts get Spark's own form if other parts are sparse."""
    if len({part.type for part in parts}) > 1:
        parts = [_spark_form(part) if pa.types.is_fixed_size_list(part.type) else part for part in parts]
    return pa.concat_arrays(parts)


def _spark_form(part: pa.Array) -> pa.Array:
    flat = np.array(part.flatten(), dtype=np.float64)
    return to_arrow(torch.from_numpy(flat).view(len(part), part.type.list_size))
