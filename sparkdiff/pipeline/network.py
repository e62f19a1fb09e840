"""The translated part of a pipeline as one torch module."""

import copy
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

import torch
from pyspark.ml import PipelineModel
from pyspark.sql.types import StructType
from torch import Tensor, nn

from sparkdiff.errors import InputError, check_dataframe, did_you_mean
from sparkdiff.pipeline.cut import analyse
from sparkdiff.pipeline.graph import LEAVES, Graph, Version, null_of
from sparkdiff.pipeline.schema import SchemaOrRows
from sparkdiff.stages.assembling import VectorAssembler
from sparkdiff.stages.base import StageModule
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.indexing import OneHotEncoder
from sparkdiff.stages.inputs import FieldReader
from sparkdiff.stages.predictor import Predictor
from sparkdiff.stages.selecting import VectorSizeHint
from sparkdiff.tensors.rows import NEVER, Rows, SparseRows, shape, width


class Network(nn.Module):
    """The translated stages of a pipeline, float64, keyed by Spark's column names.

    `network(columns)` takes the `inputCols` and returns the `outputCols`. A numeric or boolean scalar column is
    `(n,)`, a vector `(n, d)`, sparse vectors `torch.sparse_csr`; null is NaN. If a stage distinguishes null from NaN
    (Bucketizer, an Imputer whose missingValue is not NaN, OneHotEncoder, TargetEncoder), a boolean column `"<name> is
    null"` may mark the nulls. Outputs of stages whose weights Spark stores in float32 (ALS, Word2Vec) are float32;
    later stages compute with these values, as in Spark.

    Attributes:
        inputCols: columns that a call needs; a call for only some output columns needs only what these depend on.
        outputCols: columns that the translated stages write.
        reference: PipelineModel that computes the input columns from the data; None if the data have all of them.
    """

    def __init__(self, graph: Graph, positions: Sequence[int]):
        super().__init__()
        self.graph, self.positions = graph, tuple(positions)
        self.exact = note_readers(graph, self.positions)
        self.stages = nn.ModuleDict({str(i): graph.modules[i] for i in positions})
        self._schedules: dict[tuple[tuple[Version, ...], frozenset[Version]], list[int]] = {}
        inside = set(positions)
        self.reads = list(dict.fromkeys(v for i in positions for v in graph.vertices[i].reads if v[1] not in inside))
        self.flags = [null_of(v) for v in graph.nulls_read(positions)]
        self.writes: dict[str, Version] = {}  # casefolded name -> its last version
        for i in positions:
            self.writes.update({v[0]: v for v in graph.versions(i)})
        self.inputCols = tuple(dict.fromkeys(graph.name(v) for v in self.reads))
        self.outputCols = tuple(graph.name(v) for v in self.writes.values())

    @property
    def reference(self) -> PipelineModel | None:
        """The fitted stages that compute the input columns from the data in Spark, as one PipelineModel; None if the
        data have all of them.
        """
        graph, reference, stages = self.graph, set(self.graph.reference()), []
        for i in sorted({*reference, *self.positions}):
            stages += graph.vertices[i].preparation() if i in self.positions else []
            stages += [graph.vertices[i].stage] if i in reference else []
        return PipelineModel(stages) if stages else None

    def made_dense(self) -> int:
        """Largest number of features of a stage that makes sparse rows dense; 0 if there is none."""
        return max((m.fitted_width() for i in self.positions if (m := self.module(i)).makes_dense), default=0)

    def module(self, position: int) -> StageModule:
        """The torch module of a translated stage.

        Args:
            position: number of the stage among the leaf stages of the pipeline, from 0, as in `Plan.stages`.

        Raises:
            KeyError: the stage at this position is not translated.
        """
        return self.stages[str(position)]  # type: ignore[return-value]

    def trees(self) -> dict[int, Trees]:
        """Tree stages by position."""
        return {i: m for i in self.positions if isinstance(m := self.module(i), Trees)}

    @property
    def head(self) -> Predictor:
        """The predictor whose outputs enter the loss."""
        return self.module(self.graph.head.position)  # type: ignore[return-value]

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of its numbers, float64 unless the network was moved to another one."""
        return next((x.dtype for x in self._tensors() if x.is_floating_point()), torch.float64)

    @property
    def device(self) -> torch.device:
        """Device of its parameters and buffers; the CPU if it has none."""
        return next((x.device for x in self._tensors()), torch.device("cpu"))

    def _tensors(self) -> Iterator[Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    def forward(self, columns: Mapping[str, Tensor], outputCols: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Compute output columns from input columns.

        Args:
            columns: tensors by column name, in the forms that the class's docstring lists. Numbers are converted to
                `dtype`; columns that no stage reads are ignored.
            outputCols: names of the columns to compute, or a single name; None: all.

        Returns:
            The columns by name: (n,) for a scalar column, (n, d) for a vector column, torch.sparse_csr for sparse
            vectors.

        Raises:
            InputError: a column is missing, is no tensor of a known form, or has another length or width than needed;
                no translated stage writes a column of `outputCols`; or a stage cannot compute on the values.
        """
        wanted = self.versions_of(outputCols)
        values = self.given(columns)
        lengths = {self.graph.name(v): len(x) for v, x in values.items()}
        if len(set(lengths.values())) > 1:
            raise InputError(
                f"columns must have the same length, got {', '.join(f'{n} in {c!r}' for c, n in lengths.items())}"
            )
        self._check_widths(values)
        self.run(values, wanted, explain=True)
        return {self.graph.name(v): _outside(values[v], self.module(v[1]).float32) for v in wanted}

    def given(self, columns: Mapping[str, Any]) -> dict[Version, Rows]:
        """Columns of a call as versions; columns that no stage reads are ignored."""
        casefold, named = self.graph.casefold, {}
        if not isinstance(columns, Mapping):
            raise InputError(f"a network takes tensors by column name, got {type(columns).__name__}")
        for name, column in columns.items():
            named[casefold(name)] = column
        found = {v: _inside(named[v[0]], v[0], self.dtype) for v in self.reads if v[0] in named}
        return found | {v: _flags(named[v[0]], v[0]) for v in self.flags if v[0] in named}

    def _check_widths(self, values: Mapping[Version, Rows]) -> None:
        """Raise InputError if a stage has one parameter entry per feature and gets vectors of another width."""
        for i in self.positions:
            vertex, module = self.graph.vertices[i], self.module(i)
            x = values.get(vertex.reads[0]) if vertex.reads else None
            if x is None or (len(vertex.reads) > 1 and isinstance(x, Tensor) and x.ndim == 1):  # one scalar of several
                continue
            for name, axis in module.feature_axis.items():
                if width(x) != (wanted := attrgetter(name)(module).shape[axis]):
                    column = self.graph.name(vertex.reads[0])
                    raise InputError(
                        f"{vertex.uid} needs {wanted} entries per row in column {column!r}, got {width(x)}"
                    )

    def run(self, values: dict[Version, Rows], wanted: Iterable[Version], *, explain: bool = False) -> None:
        """Compute the requested versions and everything that they depend on, into `values`.

        Args:
            values: the known column versions, to which the computed ones are added.
            wanted: the requested versions.
            explain: whether to report an error of torch with the stage and the shapes.

        Raises:
            InputError: an input is missing; the message names the stage that needs it.
        """
        for i in self.schedule(wanted, values):
            vertex, routed = self.graph.vertices[i], values.get((LEAVES, i))
            module = self.module(i)
            if isinstance(routed, Tensor) and isinstance(module, Trees):
                self._store_outputs(i, module.routed_outputs(routed), values)
                continue
            missing = [v for v in vertex.reads if v not in values]
            if missing:
                name = self.graph.name(missing[0])
                raise InputError(
                    f"{vertex.uid} needs column {name!r}, which was not passed. {did_you_mean(name, self.inputCols)}"
                )
            try:
                out = module(*(values[v] for v in vertex.reads), **self.null_flags(module, vertex.reads, values))
            except (RuntimeError, IndexError) as e:
                if not explain or isinstance(e, torch.OutOfMemoryError):
                    raise
                shapes = ", ".join(f"{self.graph.name(v)!r} {shape(values[v])}" for v in vertex.reads)
                raise InputError(f"{vertex.uid} can't compute on columns of these shapes: {shapes} ({e})") from e
            self._store_outputs(i, out, values)

    def null_flags(
        self, module: StageModule, reads: Sequence[Version], values: Mapping[Version, Rows]
    ) -> dict[str, Any]:
        """The keyword argument `nulls` with the null flags of the inputs, for a stage that takes it. A flag is None for
        an input in which null and NaN are not distinguished.
        """
        return {"nulls": [self.null_flag(v, values) for v in reads]} if module.takes_nulls else {}

    def null_flag(self, v: Version, values: Mapping[Version, Rows]) -> Tensor | None:
        """Mask (n,) of the null rows of a column; None if null and NaN are not distinguished, and for vectors."""
        if v[1] not in self.positions:
            return values.get(null_of(v))  # type: ignore[return-value]  # flags are tensors
        column, source = values[v], self.graph.null_from(v)
        if not isinstance(column, Tensor) or column.ndim != 1:
            return None
        if source is not None:
            offset, null = values.get(source), self.null_flag(source, values) if source in values else None
            return null if null is not None or not isinstance(offset, Tensor) else offset.isnan()
        return column.isnan() if self.module(v[1]).writes_null else torch.zeros_like(column, dtype=torch.bool)

    def _store_outputs(self, i: int, out: Any, values: dict[Version, Rows]) -> None:
        values.update(zip(self.graph.versions(i), self.module(i).as_stored(out), strict=True))

    def route(self, values: dict[Version, Rows], wanted: Iterable[Version]) -> None:
        """Compute the leaf indices of these versions (LEAVES, position) and everything that they depend on, into
        `values`.
        """
        for v in wanted:
            reads = self.graph.vertices[v[1]].reads
            self.run(values, [r for r in reads if r not in values])
            values[v] = self.trees()[v[1]].route(values[reads[0]])

    def schedule(self, wanted: Iterable[Version], given: Iterable[Version] = ()) -> list[int]:
        """Positions to compute, in order; stored, because they are the same for every batch."""
        key = tuple(wanted), frozenset(given)
        if key not in self._schedules:
            needed: set[int] = set()
            stack = [v for v in key[0] if v not in key[1]]
            while stack:
                _, i = stack.pop()
                if i in self.positions and i not in needed:
                    needed.add(i)
                    if (LEAVES, i) not in key[1]:
                        stack += [v for v in self.graph.vertices[i].reads if v not in key[1]]
            self._schedules[key] = sorted(needed)
        return self._schedules[key]

    def clone(self) -> "Network":
        """The same network with its own parameters; the Spark stages are shared."""
        other = Network(self.graph, self.positions)
        other.stages = copy.deepcopy(self.stages)
        return other

    def without_spark(self) -> "Network":
        """A network that shares the parameters of this one but lacks the Spark stages, so that it can be sent to
        another process.
        """
        other = Network(self.graph.without_spark(), self.positions)
        other.stages = self.stages
        return other

    def margin(self, values: dict[Version, Rows]) -> Tensor:
        """Margin of the head from column versions, as in training."""
        routed = values.get((LEAVES, self.graph.head.position))
        if isinstance(routed, Tensor) and isinstance(self.head, Trees):
            return self.head.margin_from_sums(self.head.leaf_sums(routed))
        reads = self.graph.head.margin_reads
        self.run(values, [v for v in reads if v not in values])
        null_flags = self.null_flags(self.head, self.graph.head.reads, values)
        return self.head.margin(*(values[v] for v in reads), **null_flags)

    def versions_of(self, outputCols: Iterable[str] | None) -> list[Version]:
        """Versions of these output columns; of all if None.

        Raises:
            InputError: no translated stage writes one of them.
        """
        if outputCols is None:
            return list(self.writes.values())
        wanted = []
        for c in [outputCols] if isinstance(outputCols, str) else outputCols:
            if self.graph.casefold(c) not in self.writes:
                raise InputError(f"no translated stage writes column {c!r}. {did_you_mean(c, self.outputCols)}")
            wanted.append(self.writes[self.graph.casefold(c)])
        return wanted


def _inside(column: Any, name: str, dtype: torch.dtype) -> Rows:
    if isinstance(column, SparseRows):
        return column
    if not isinstance(column, Tensor):
        raise InputError(f"column {name!r} must be a torch tensor, got {type(column).__name__}")
    if column.layout not in (torch.strided, torch.sparse_csr) or column.is_complex():
        kind = column.layout if column.layout != torch.strided else column.dtype
        raise InputError(f"column {name!r} must be a strided or CSR tensor of real numbers, got {kind}")
    if column.ndim not in (1, 2):
        raise InputError(f"column {name!r} must be (n,) or (n, d), got shape {tuple(column.shape)}")
    if column.layout == torch.sparse_csr:
        return SparseRows.from_csr(column.to(dtype))
    return column.to(dtype)


def _flags(column: Any, name: str) -> Tensor:
    if not isinstance(column, Tensor) or column.ndim != 1:
        shape = tuple(column.shape) if isinstance(column, Tensor) else type(column).__name__
        raise InputError(f"column {name!r} must be a boolean tensor (n,), got {shape}")
    return column.bool()


def _outside(column: Rows, single: bool) -> Tensor:
    out = column.to_csr() if isinstance(column, SparseRows) else column
    return out.float() if single else out


def translate(model: Any, *, schema: SchemaOrRows = None) -> Network:
    """Translate a fitted pipeline (or one fitted stage) into a torch module with Spark's own parameters.

    `requires_grad` is True exactly for the parameters that `plan(model)` calls trainable.

    Args:
        model: a fitted `PipelineModel` or one fitted stage.
        schema: the schema of the data, or the data themselves. Without them, source columns are assumed to have no
            categories (`ml_attr` metadata decide the computation of a few stages; the plan names them).

    Raises:
        InputError: the pipeline is not fitted.

    Examples:
        >>> import sparkdiff
        >>> import torch
        >>> network = sparkdiff.translate(model)
        >>> network.inputCols
        ('age', 'months', 'visits', 'basket', 'calls')
        >>> customers = {name: torch.tensor([1.0, 2.0]).double() for name in network.inputCols}  # two rows
        >>> network(customers)["probability"].shape
        torch.Size([2, 2])
    """
    if schema is not None and not isinstance(schema, StructType):
        check_dataframe("schema, if not a StructType,", schema)
    graph = analyse(model, data=schema).graph
    return Network(graph, list(graph.modules))


def seeing(network: Network, model: Any, data: SchemaOrRows) -> Network:
    """A network that shares the parameters of `network`, but in which stages that depend on the data's attributes are
    translated again for these data.
    """
    waiting = [
        i
        for i in network.positions
        if (s := network.graph.vertices[i].stage)
        and isinstance(m := network.module(i), FieldReader)
        and m.wants_fields(s)
    ]
    if not waiting:
        return network
    graph = analyse(model, data=data).graph
    if not graph.modules.keys() >= set(network.positions):
        return network
    other = Network(graph, network.positions)
    other.stages.update({str(i): network.module(i) for i in network.positions if i not in waiting})
    for i in waiting:
        made = other.module(i).unfrozen_as(network.module(i))
        for p, q in zip(made.parameters(), network.module(i).parameters(), strict=True):
            p.data = q.data
    return other


def moving_positions(network: Network) -> set[int]:
    """Stages whose outputs change with a trainable parameter."""
    moving: set[int] = set()
    for i in network.positions:
        reads_moving = any(p in moving for _, p in network.graph.vertices[i].reads)
        if reads_moving or any(p.requires_grad for p in network.module(i).parameters()):
            moving.add(i)
    return moving


def fixed_versions(network: Network) -> list[Version]:
    """Column versions that moving stages read from other stages or from outside the network."""
    moving = moving_positions(network)
    read = [v for i in network.positions if i in moving for v in network.graph.vertices[i].reads]
    return [v for v in dict.fromkeys(read) if v[1] not in moving]


def routed_versions(network: Network) -> list[Version]:
    """Leaf indices, as versions (LEAVES, position), of the tree stages that train, if these indices depend on no
    trainable parameter and so do not change in training.
    """
    moving = moving_positions(network)
    return [
        (LEAVES, i)
        for i, m in network.trees().items()
        if i in moving and m.routes_fixed and all(v[1] not in moving for v in network.graph.vertices[i].reads)
    ]


def note_readers(graph: Graph, positions: Collection[int], later: Collection[int] = ()) -> float:
    """Set `refusing` and `exact_beyond` of each of these stages to what the readers of its vectors require.

    Every stage of Spark except an assembler that keeps NaN refuses the null vector that a OneHotEncoder makes from null; a
    few stages distinguish zeros that Spark stores from zeros that it doesn't store.

    Args:
        graph: the graph with these stages.
        positions: the stages, which alone run in the network.
        later: stages that Spark runs on what the network writes. They may distinguish stored zeros of any vector.

    Returns:
        `exact_beyond` for vectors from outside the network: if a number is larger in magnitude than this, the vectors
            must stay dense or sparse as Spark stores them.
    """
    exact: dict[Version, float] = {v: -1.0 for i in later for v in graph.vertices[i].sources}
    refusing: dict[Version, str] = {}  # the uid of the first stage that refuses null
    for i in sorted(graph.modules.keys() & positions, reverse=True):
        module, vertex = graph.modules[i], graph.vertices[i]
        versions = graph.versions(i)
        if isinstance(module, OneHotEncoder):
            module.refusing = {n: refusing[v] for n, v in zip(module.names, versions, strict=True) if refusing.get(v)}
        module.exact_beyond = min((exact.get(v, NEVER) for v in versions), default=NEVER)
        passed = NEVER if module.storage or module.makes_dense else module.exact_beyond
        uid = "" if isinstance(module, VectorAssembler) and module.keep else vertex.uid
        if isinstance(module, VectorSizeHint) and not module.checks:  # it passes the column on
            uid = refusing.get(versions[0], "")
        for place, v in enumerate(vertex.reads):
            exact[v] = min(exact.get(v, NEVER), passed, module.tells_zeros_beyond(place))
            refusing[v] = uid or refusing.get(v, "")
    return min(exact.values(), default=NEVER)
