"""Parity: the outputs of Spark's own transform and of the network, compared column by column. Spark's outputs are the
reference.
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_type
from sparkdiff.pipeline.column_names import check_rows, col_by_name, unused_prefix
from sparkdiff.pipeline.column_tensors import read_plain, write_plain
from sparkdiff.pipeline.graph import Graph, Version, in_front_of, null_of
from sparkdiff.pipeline.indexer_labels import label_notes
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.network import Network, seeing, translate
from sparkdiff.pipeline.schema import check_columns
from sparkdiff.report import Displayable, Section, SectionTable, StrongLine, as_html
from sparkdiff.stages.base import NULL, columns_of
from sparkdiff.stages.predictor import Predictor
from sparkdiff.store.files import room
from sparkdiff.tensors.rows import Rows, SparseRows, dense, width

TOLERANCE = 1e-9
SINGLE = 1e-6
"""Tolerance for stages whose weights Spark stores in float32, and for later stages."""
CHUNK = 1 << 18
"""Number of stored entries of the widest column that are compared at a time (2 MiB of doubles; the comparison makes a
dozen temporary tensors of this size).
"""
PROBE = 16
"""Number of rows that are read to find the widths of the columns."""


@dataclasses.dataclass(frozen=True, repr=False)
class Parity(Displayable):
    """The differences between the network's outputs and Spark's.

    Attributes:
        maxAbsDiff: largest absolute difference per column.
        maxRelDiff: largest difference divided by max(1, abs(Spark's value)) per column; inf if only one of them is
            NaN or infinite, or if they are infinite with different signs.
        labelDisagreements: number of rows in which a label or index column differs, summed over these columns.
        rows: number of compared rows.
        ok: whether every maxRelDiff is within the tolerance (1e-9; 1e-6 after float32 stages), and labels differ only
            in rows whose margin is within the tolerance of the decision boundary.
        notes: notes on labels of StringIndexers that no row can have, because this Java prints their numbers
            differently.
    """

    __module__ = "sparkdiff"

    maxAbsDiff: dict[str, float]
    maxRelDiff: dict[str, float]
    labelDisagreements: int
    rows: int
    ok: bool
    notes: list[str] = dataclasses.field(default_factory=list)

    def _headline(self) -> str:
        worst = max(self.maxRelDiff, key=lambda c: self.maxRelDiff[c], default="")
        return (
            f"{'ok' if self.ok else 'MISMATCH'}: {self.rows:,} rows, {len(self.maxRelDiff)} columns, largest relative difference "
            f"{max(self.maxRelDiff.values(), default=0.0):.1e} ({worst}), {self.labelDisagreements} labels differ"
        )

    def _sections(self) -> Iterator[Section]:
        yield "\n".join((self._headline(), *self.notes))

    def _repr_html_(self) -> str | None:
        rows = [(c, f"{a:.1e}", f"{self.maxRelDiff[c]:.1e}") for c, a in self.maxAbsDiff.items()]
        head = ("column", "largest difference", "relative")
        return as_html([StrongLine(self._headline()), *([SectionTable([head, *rows])] if rows else []), *self.notes])


@jvm.interruptible()
def verify(model: Any, df: DataFrame, network: Network | None = None) -> Parity:
    """Run Spark's stages and the network on the same rows and compare all columns that both write.

    Args:
        model: a fitted pipeline or stage.
        df: rows for the comparison; they are written to a temporary folder.
        network: the network to compare instead of `translate(model)`.

    Raises:
        InputError: nothing is translated, a column is missing in the data, or there are no rows.

    Examples:
        >>> import sparkdiff
        >>> found = sparkdiff.verify(model, df)
        >>> print(found)
        ok: 600 rows, ... columns, largest relative difference ..., 0 labels differ
        >>> found.ok
        True
    """
    check_rows("the rows of verify()", df)
    if network is not None:
        check_type("network", network, Network, "the result of translate(model)")
    network = seeing(network, model, df) if network is not None else translate(model, schema=df)
    stages = [stage for _, stage in flatten(model)]
    if not network.outputCols:
        raise InputError(
            f"no stage of {model.uid} that writes a column is translated, so there is no column to compare; see sparkdiff.plan"
        )
    check_columns(network.graph, df.schema)
    last, disk = max(network.positions), Path(tempfile.gettempdir())
    try:
        with (
            room("the rows to compare", disk, "make room"),
            jvm.temporary("sparkdiff-verify-", None) as folder,
        ):
            held = run_in_spark(df, {i: stages[i] for i in range(last + 1)}, network, folder / "rows")
            parity = compare(network, folder / "rows", held)
    except InputError as e:
        if notes := _notes(network.graph, df):
            raise InputError("\n".join((str(e), *notes))) from e
        raise
    return dataclasses.replace(parity, notes=_notes(network.graph, df, counted=True))


def _notes(graph: Graph, df: DataFrame, *, counted: bool = False) -> list[str]:
    notes = label_notes(graph, df, counted=counted)
    return [f"{graph.vertices[i].uid}: {note}" for i, found in notes.items() for note in found]


def run_in_spark(
    df: DataFrame,
    stages: Mapping[int, Any],
    network: Network,
    where: Path,
    recovered: Mapping[tuple[int, Version], str] | None = None,
) -> list[Version]:
    """Run `stages` (by position in the network's graph) in Spark on `df`, and write the columns for `compare` to a new
    folder.

    Args:
        df: rows with the columns that the stages read.
        stages: the fitted stages to run, by position.
        network: the network whose inputs and outputs are written.
        where: the folder to write, which does not exist yet.
        recovered: names of columns of `df` that replace an input of a stage, by (stage, input). The prepared columns,
            which were computed from this input, are in `df` too.

    Returns:
        The column versions in the folder, where the i-th is named v<i>.

    Raises:
        InputError: Spark failed on the rows.
    """
    graph, outputs = network.graph, outputs_of(network)
    held: dict[Version, str] = {}
    there = {graph.casefold(c) for c in df.columns}
    made = [
        i
        for i in stages
        if i in network.positions and not set(map(graph.casefold, graph.vertices[i].prepared)) <= there
    ]
    moments = {*stages, *map(in_front_of, made)}

    hidden = unused_prefix("__sparkdiff_v", (*df.columns, *(o for vertex in graph.vertices for o in vertex.outputs)))

    def hold(df: DataFrame, producer: int) -> DataFrame:
        # A later stage may overwrite the column, so each version is kept aside as it appears.
        new = [v for v in (*network.reads, *outputs) if (v[1] if v[1] in moments else -1) == producer and v not in held]
        held.update({v: f"{hidden}{len(held) + i}" for i, v in enumerate(new)})
        return (
            df.withColumns({held[v]: col_by_name(graph.name(v), in_struct=graph.in_struct(v)) for v in new})
            if new
            else df
        )

    with jvm.as_input_error(f"Spark failed while running {', '.join(s.uid for s in stages.values())}"):
        df = hold(df, -1)
        for i in sorted(stages):
            for stage in graph.vertices[i].preparation() if i in made else []:
                df = stage.transform(df)
            df = hold(df, in_front_of(i)) if i in made else df
            for v, column in ((v, c) for (of, v), c in (recovered or {}).items() if of == i):
                df = df.withColumn(graph.name(v), F.col(column))
            df = hold(dataclasses.replace(graph.vertices[i], stage=stages[i]).transform(df), i)
        write_plain(df, list(held.values()), where)
    return list(held)


def outputs_of(network: Network) -> list[Version]:
    """Columns that the translated stages write."""
    return [v for i in network.positions for v in network.graph.versions(i)]


def compare(network: Network, where: Path, held: Sequence[Version]) -> Parity:
    """Run the network on the inputs that `run_in_spark` wrote to a folder, and compare its outputs with Spark's.

    Raises:
        InputError: there are no rows.
    """
    found, rows, outputs = Differences(network), PROBE, outputs_of(network)
    for probe in itertools.islice(read_plain(where, PROBE, network.exact), 1):
        rows = _rows_at_once(network, _versions(probe, held), outputs)
    for batch in read_plain(where, rows, network.exact):
        found.add(_versions(batch, held), outputs)
    return found.parity()


def _versions(batch: Mapping[str, Rows], held: Sequence[Version]) -> dict[Version, Rows]:
    """Columns that `run_in_spark` wrote, and their null flags."""
    values = {v: batch[f"v{i}"] for i, v in enumerate(held)}
    return values | {null_of(v): batch[f"v{i}{NULL}"] for i, v in enumerate(held) if f"v{i}{NULL}" in batch}


def _network_inputs(network: Network, spark: Mapping[Version, Rows]) -> dict[Version, Rows]:
    """Those of the columns `spark` that the network reads."""
    return {v: c for v, c in spark.items() if v in network.reads or v in network.flags}


def differences(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Absolute difference of each entry, and the difference divided by max(1, abs(Spark's value)); inf if only one is
    NaN or infinite.
    """
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    difference = torch.where(same, 0.0, (ours - theirs).abs())
    difference = torch.where(difference.isnan() | ~theirs.isfinite() & ~same, torch.inf, difference)
    return difference, torch.where(same, 0.0, difference / theirs.abs().clamp_min(1).nan_to_num(1.0, 1.0, 1.0))


@torch.no_grad()
def _rows_at_once(network: Network, spark: dict[Version, Rows], outputs: list[Version]) -> int:
    values = _network_inputs(network, spark)
    network.run(values, outputs)
    seen = [*values.values(), *spark.values()]
    widest = max(x.values.numel() / max(1, len(x)) if isinstance(x, SparseRows) else width(x) for x in seen)
    return max(PROBE, min(16384, int(CHUNK / max(1, widest))))


def _entries(ours: Rows, theirs: Rows) -> tuple[Tensor, Tensor]:
    """Two tensors of the numbers to compare: both batches as dense tensors or, for two sparse batches of the same
    width, only the entries that at least one of them stores, (m,) each.
    """
    if not (isinstance(ours, SparseRows) and isinstance(theirs, SparseRows)) or ours.width != theirs.width:
        return dense(ours), dense(theirs)
    places = [x.rows() * x.width + x.indices for x in (ours, theirs)]
    if torch.equal(*places):
        return ours.values, theirs.values
    every, found = torch.cat(places).unique(return_inverse=True)
    parts = zip((ours, theirs), found.split([len(p) for p in places]), strict=True)
    first, second = (x.values.new_zeros(len(every)).index_put((place,), x.values) for x, place in parts)
    return first, second


class Differences:
    """The largest differences so far between the network's and Spark's outputs, updated batch by batch."""

    def __init__(self, network: Network):
        self.network = network
        self.abs: dict[str, float] = {}
        self.rel: dict[str, float] = {}
        self.disagreements = self.unexplained = self.exceeding = self.rows = 0
        self.single = network.graph.float32_positions()

    def tolerance(self, position: int) -> float:
        """Largest relative difference that is accepted in the outputs of the stage at this position: 1e-6 if Spark
        stores its weights, or those of a stage that it depends on, in float32; else 1e-9.
        """
        return SINGLE if position in self.single else TOLERANCE

    @torch.no_grad()
    def add(self, spark: dict[Version, Rows], outputs: list[Version]) -> None:
        """Run the network on a batch, and add the differences between its outputs and Spark's.

        Args:
            spark: the columns of the batch: the inputs of the network, and Spark's outputs.
            outputs: the column versions to compare; at least one.

        Raises:
            InputError: a column of the network has another shape than Spark's, or an input is missing.
        """
        network, graph = self.network, self.network.graph
        values = _network_inputs(network, spark)
        network.run(values, outputs)
        self.rows += len(spark[outputs[0]])
        for v in outputs:
            name, vertex = graph.name(v), graph.vertices[v[1]]
            if v[0] in map(graph.casefold, network.module(v[1]).labels(vertex.stage)):
                ours, theirs = dense(values[v]), dense(spark[v])
                self._labels(v, values, (ours != theirs) & ~(ours.isnan() & theirs.isnan()))
                continue
            ours, theirs = _entries(values[v], spark[v])
            if theirs.ndim == 2 and not theirs.shape[1]:  # vectors that are all null have no width
                theirs = torch.full_like(ours, torch.nan)
            if ours.shape != theirs.shape:
                raise InputError(
                    f"{vertex.uid}: Spark's {name!r} has shape {tuple(theirs.shape)}, the network's {tuple(ours.shape)}"
                )
            difference, relative = differences(ours, theirs)
            self.abs[name] = max(self.abs.get(name, 0.0), difference.max().item() if difference.numel() else 0.0)
            self.rel[name] = max(self.rel.get(name, 0.0), relative.max().item() if relative.numel() else 0.0)
            self.exceeding += int((relative > self.tolerance(v[1])).sum())

    def _labels(self, version: Version, values: dict[Version, Rows], differ: Tensor) -> None:
        differ = differ.any(1) if differ.ndim == 2 else differ  # the leaves of several trees
        self.disagreements += int(differ.sum())
        if not bool(differ.any()):
            return
        graph, (name, position) = self.network.graph, version
        module, vertex = self.network.module(position), graph.vertices[position]
        near = None
        if isinstance(module, Predictor) and name in map(graph.casefold, columns_of(vertex.stage, ("predictionCol",))):
            near = module.boundary(module.margin(*(values[r] for r in vertex.reads)))
        self.unexplained += int((differ if near is None else differ & ~(near <= self.tolerance(position))).sum())

    def parity(self) -> Parity:
        """The result for all batches so far.

        Raises:
            InputError: there were no rows.
        """
        if not self.rows:
            raise InputError("there are no rows to compare: check how the data are read and filtered")
        ok = not self.unexplained and not self.exceeding
        return Parity(self.abs, self.rel, self.disagreements, self.rows, ok)
