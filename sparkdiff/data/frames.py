"""The rows that a cache is written from: checked, divided into splits and slices, after the stages in Spark."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.data import splits, stage_rows
from sparkdiff.data.fingerprint import Request
from sparkdiff.data.layout import check_number
from sparkdiff.data.row_hashes import row_hashes
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.schema import check_columns as check_stage_columns


def check_request(request: Request) -> None:
    cut, graph = request.cut, request.cut.graph
    for source in request.sources:
        splits.check_columns(source.data, request.options)
        splits.check_names(cut.made)
        check_stage_columns(graph, source.df.schema, (request.labelCol, request.weightCol))
        names = {graph.casefold(c) for c in (*source.df.columns, *cut.made)}  # what opaque stages make isn't known here
        head = graph.head
        for lost in (c for c in head.lossInputs if not cut.opaque and graph.casefold(c) not in names):
            raise InputError(
                f"the loss of {head.uid} reads column {lost!r}, which is not in the data. "
                f"{did_you_mean(lost, source.df.columns)}"
            )
        for option, column in (("labelCol", request.labelCol), ("weightCol", request.weightCol)):
            if column is not None and not cut.opaque and graph.casefold(column) not in names:
                known = (*source.df.columns, *cut.made)
                raise InputError(f"{option}={column!r} is not a column of the data. {did_you_mean(column, known)}")
            check_number(option, column, source.df, graph.casefold)


def frames_of(request: Request) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The rows of each source, divided into splits and slices, after the stages in Spark; and the values of the slices.

    Raises:
        InputError: Spark failed on the rows.
    """
    divided, values = _divided(request)
    with jvm.blamed(failure_of(request)):
        return [request.cut.transform(df) for df in divided], values


def _divided(request: Request) -> tuple[list[DataFrame], dict[str, tuple[Any, ...]]]:
    """The rows of each source, divided into splits and slices; and the values of the slices."""
    o = request.options
    by = [f"{n}={v!r}" for n in ("validationIndicatorCol", "groupCol", "timeCol", "guardCols") if (v := getattr(o, n))]
    with jvm.blamed(f"Spark failed while it split the rows ({', '.join(by) or 'by a hash of all columns'})"):
        dealt, values = splits.with_slices(splits.with_splits(request.sources, o, request.boundaries), o)
        if request.keyed:
            # Not the hash that splits, which skips nulls: rows that differ in where a null is would be the same row.
            keys = [row_hashes(s.data)[0] for s in request.sources]
            dealt = [df.withColumn(splits.ROW, key) for df, key in zip(dealt, keys, strict=True)]
        for df in dealt:
            df.schema  # noqa: B018  # Spark Connect analyses nothing before
        return dealt, values


@contextlib.contextmanager
def made_frames(request: Request, where: Path) -> Iterator[stage_rows.Made]:
    """The frames and values of `frames_of`, from rows that an earlier run has kept beside the caches, if there are any."""
    if not request.options.reuseStages:
        yield stage_rows.Made(*frames_of(request))
        return
    with jvm.blamed(failure_of(request)), stage_rows.frames_after(request, where, lambda: _divided(request)) as made:
        yield made


def failure_of(request: Request) -> str:
    """The first words of the error where Spark fails on the rows."""
    return (
        "Spark failed while it ran the stages before training "
        f"({', '.join(['reading the data', *(v.uid for v in request.cut.stages)])})"
    )
