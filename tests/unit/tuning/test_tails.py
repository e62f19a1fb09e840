"""Rows that reach a linear last stage: read as they were written, and left to Spark where it has a way of its own."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml.linalg import VectorUDT
from pyspark.sql.types import DoubleType, StringType, StructField, StructType
from torch import Tensor

from sparkdiff.pipeline.column_tensors import VECTOR, to_arrow, write_columns
from sparkdiff.pipeline.schema import width_in
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.tuning import cached_rows, linear_last_stages
from sparkdiff.tuning.cached_rows import CachedRows, InputColumns, RowFindings, cannot_read, classes_told, look
from sparkdiff.tuning.linear_last_stages import _margins
from sparkdiff.tuning.solvers import Setting

ROWS = 12
FOLD = torch.arange(ROWS) % 3


def cache(folder: Path, offset: bool = False, **changed: Any) -> CachedRows:
    """Three features, two classes and three folds, in two files."""
    columns: dict[str, Any] = {
        "v0": torch.arange(3 * ROWS, dtype=torch.float64).view(ROWS, 3),
        "v1": (torch.arange(ROWS) // 3 % 2).double(),
        "v2": torch.ones(ROWS, dtype=torch.float64),
        "v3": FOLD.double(),
        "v4": torch.zeros(ROWS, dtype=torch.float64),
        "v5": torch.ones(ROWS, dtype=torch.float64),
        "v6": torch.full((ROWS,), 0.5, dtype=torch.float64),
    } | changed
    folder.mkdir(exist_ok=True)
    for i, part in enumerate((slice(0, 5), slice(5, ROWS))):
        rows = torch.arange(ROWS)[part]
        taken = {n: c.take(rows) if isinstance(c, SparseRows) else c[part] for n, c in columns.items()}
        write_columns(taken, folder / f"part-{i}.parquet")
    return CachedRows(folder, offset)


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_come_back_in_order_from_memory_or_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(cached_rows, "HELD", 0)
        monkeypatch.setattr(cached_rows, "PIECE", 3 * 8 * 2)
    found = cache(tmp_path / "rows", offset=True)
    assert (found.count, found.width, found.stored) == (ROWS, 3, 3 * ROWS)
    for _ in range(2):
        chunks = [*found.chunks()]
        assert len(chunks) == (2 if in_memory else 7)
        assert (found.held is not None) == in_memory
        assert torch.equal(torch.cat([c.x for c in chunks])[:, 0], torch.arange(ROWS).double() * 3)
        assert torch.equal(torch.cat([c.fold for c in chunks]), FOLD)
        offsets: list[Tensor] = [c.offset for c in chunks if c.offset is not None]
        assert torch.cat(offsets).eq(0.5).all()


def test_sparse_rows_are_made_dense(tmp_path: Path) -> None:
    entry = torch.arange(ROWS)
    rows = SparseRows(entry % 3, torch.ones(ROWS, dtype=torch.float64), torch.arange(ROWS + 1), 3)
    found = cache(tmp_path / "rows", v0=rows)
    x = torch.cat([c.x for c in found.chunks()])
    assert torch.equal(x, torch.nn.functional.one_hot(entry % 3).double())


def test_wide_sparse_rows_stay_sparse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the files to the margins."""
    entry, values = torch.arange(2 * ROWS), torch.arange(2 * ROWS, dtype=torch.float64) - 3
    rows = SparseRows(entry % 2 * 590 + entry // 8, values, 2 * torch.arange(ROWS + 1), 600)
    label = (torch.arange(ROWS) // 3 % 2).double()
    found = cache(tmp_path / "rows", v0=rows, v1=label)
    assert found.sparse and found.fits and found.stored == 2 * ROWS
    with monkeypatch.context() as small:  # what is made dense is made so a few rows at a time
        small.setattr(cached_rows, "PIECE", 8 * 600 * 2)
        chunks = [*found.chunks()]
        assert max(len(c.x) for c in chunks) == 2 and torch.equal(torch.cat([c.x for c in chunks]), rows.to_dense())
    assert look(found, "LogisticRegression", [Setting(0.1)], 3, None) == RowFindings("", 2)
    whole = found.whole().x
    assert isinstance(whole, SparseRows) and torch.equal(whole.to_dense(), rows.to_dense())
    [[*models]] = linear_last_stages._solutions("LogisticRegression", [Setting(0.1)], found, 3, 2).values()
    monkeypatch.setattr(cached_rows, "NARROW", 1000)
    narrow = CachedRows(found.folder, False)
    assert not narrow.sparse
    [[*expected]] = linear_last_stages._solutions("LogisticRegression", [Setting(0.1)], narrow, 3, 2).values()
    for one, other in zip(models, expected, strict=True):
        assert one.converged and other.converged
        torch.testing.assert_close(one.coefficients, other.coefficients, rtol=0, atol=1e-7)
    fits: Any = [object()]
    solved = {(fits[0], fold): model for fold, model in enumerate(models)}
    margins = [_margins(solved, dict.fromkeys(range(3), fits), rows) for rows in (found, narrow)]
    for fold in range(3):
        for one, other in zip(margins[0][fold], margins[1][fold], strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("kind", "family", "changed", "problem"),
    [
        ("LogisticRegression", "auto", {}, ""),
        ("LogisticRegression", "auto", {"v1": torch.arange(ROWS) / 2.0}, "labels are no classes"),
        ("LogisticRegression", "auto", {"v1": (FOLD == 1).double()}, "a class is missing where a fold trains"),
        ("LogisticRegression", "auto", {"v1": torch.zeros(ROWS).double()}, "a class is missing"),
        ("LinearRegression", "", {"v0": torch.full((ROWS, 3), torch.nan).double()}, "rows hold nulls"),
        ("LinearRegression", "", {"v2": -torch.ones(ROWS).double()}, "negative weights"),
        ("LinearRegression", "", {"v3": torch.zeros(ROWS).double()}, "a fold has no rows"),
        ("LinearRegression", "", {}, ""),
        ("GeneralizedLinearRegression", "gamma", {}, "outside the family's range"),
        ("GeneralizedLinearRegression", "poisson", {}, ""),
        ("GeneralizedLinearRegression", "binomial", {"v1": 2.0 + FOLD}, "outside the family's range"),
    ],
)
def test_what_a_first_look_leaves_to_spark(
    tmp_path: Path, kind: str, family: str, changed: dict[str, Tensor], problem: str
) -> None:
    seen = look(cache(tmp_path / "rows", **changed), kind, [Setting(family=family)], 3, None)
    assert problem in seen.problem and bool(problem) == bool(seen.problem)
    assert seen.classes == (2 if kind == "LogisticRegression" and not problem else 0)


@pytest.mark.parametrize("in_memory", [True, False])
def test_null_vectors_and_mixed_widths_are_left_to_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool
) -> None:
    if not in_memory:
        monkeypatch.setattr(cached_rows, "HELD", 0)
    two = to_arrow(torch.ones(5, 2, dtype=torch.float64))
    for number, (file, last, problem) in enumerate(
        (
            (0, pa.nulls(5, VECTOR), "rows hold nulls"),
            (1, pa.nulls(ROWS - 5, VECTOR), "rows hold nulls"),
            (0, two, "a vector column holds vectors of 2 and of 3 entries, so Spark decides what to do"),
        )
    ):
        folder = tmp_path / str(number)
        cache(folder)
        path = folder / f"part-{file}.parquet"
        pq.write_table(pq.read_table(path).set_column(0, "v0", last), path)
        seen = look(CachedRows(folder, False), "LogisticRegression", [Setting()], 3, None)
        assert seen.problem.startswith(problem)


def test_metadata_with_too_few_classes_leave_rows_to_spark(tmp_path: Path) -> None:
    rows = cache(tmp_path / "rows")
    assert look(rows, "LogisticRegression", [Setting()], 3, 2) == RowFindings("", 2)
    assert look(rows, "LogisticRegression", [Setting()], 3, 1).problem.startswith("the label's metadata name 1 classes")
    assert look(rows, "LogisticRegression", [Setting()], 3, 3).problem.startswith("a class is missing")


def test_columns_that_are_left_to_spark() -> None:
    schema = StructType(
        [
            StructField("x", VectorUDT()),
            StructField("y", DoubleType()),
            StructField("s", StringType()),
            StructField("kind", DoubleType(), True, {"ml_attr": {"type": "nominal", "vals": ["a", "b", "c"]}}),
        ]
    )
    assert cannot_read(schema, InputColumns("x", "y", "", "")) == ""
    assert cannot_read(schema, InputColumns("y", "y", "", "")).startswith("y is no column of vectors")
    assert cannot_read(schema, InputColumns("x", "s", "", "")).startswith("s is no column of numbers")
    assert cannot_read(schema, InputColumns("x", "y", "w", "")).startswith("w is no column of numbers")
    assert cannot_read(schema, InputColumns("x", "y", "", ""), ["prediction", "s"]).startswith("s is there already")
    assert classes_told(schema, "kind") == 3
    assert classes_told(schema, "y") is None


def test_the_width_is_told_by_metadata() -> None:
    def told(metadata: dict[str, Any]) -> int | None:
        return width_in(StructField("x", VectorUDT(), True, metadata))

    assert told({}) is None
    assert told({"ml_attr": {"num_attrs": 262144}}) == 262144
    assert told({"ml_attr": {"attrs": {"numeric": [{"idx": 0}, {"idx": 2}], "binary": [{"idx": 1}]}}}) == 3
