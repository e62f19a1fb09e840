"""Export of the translated stages of a fitted pipeline, those with a torch module, to one ONNX file that computes in
double.
"""

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, StructField

import sparkdiff
from sparkdiff import jvm
from sparkdiff.errors import InputError, SparkdiffError, did_you_mean, requires_extra
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.graph import Version, Vertex, null_of
from sparkdiff.pipeline.network import Network, note_readers, translate
from sparkdiff.pipeline.schema import SchemaOrRows, known_fields, width_in
from sparkdiff.report import DisplayableFields, Section, SectionTable, StrongLine
from sparkdiff.serving.onnx import predictors  # noqa: F401  # the writers of its stages, and of trees
from sparkdiff.serving.onnx.graph import IR_VERSION, ML_OPSET, OPSET, GraphWriter, NotExportableError, Value
from sparkdiff.serving.onnx.stages import WRITERS
from sparkdiff.stages.base import NULL
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.formula import AttributeRewriting
from sparkdiff.stages.indexing import VectorIndexer
from sparkdiff.store import files

RUNTIME = "onnxruntime>=1.20"
"""Versions of onnxruntime that support OPSET and the trees of ML_OPSET in double."""
LIMITS = {
    "GeneralizedLinearRegressionModel": "`link` probit",
    "OneVsRestModel": "models that are MultilayerPerceptrons",
}
"""Settings with which a stage cannot be exported to ONNX, by class; for the documentation."""
REFUSED = "refused by Spark"
"""Name of the output that marks rows on which Spark would fail."""


@dataclasses.dataclass(frozen=True)
class ExportedColumn:
    """An input or output of the file.

    Attributes:
        kind: "number" (n,), "vector" (n, width), "text" (n,), which holds strings, or "flag" (n,), which is boolean.
        width: entries per row.
    """

    __module__ = "sparkdiff"

    name: str
    kind: str
    width: int


@dataclasses.dataclass(frozen=True, repr=False)
class ExportedModel(DisplayableFields):
    """Description of an exported file. The file's metadata hold the same description, as JSON under the key
    `sparkdiff`, next to the versions of Spark and Java and the time zone of the session that wrote the file.

    Attributes:
        path: the file.
        inputs: the file's inputs; a null is passed as NaN, unless the input has a flag input `"<name> is null"`.
        outputs: the file's outputs, all in double but `"refused by Spark"`.
        stages: uids of the stages that the file computes.
        sparkStages: uids of the stages that Spark must run first, to compute the file's inputs from the data.
        refuses: reasons why Spark would fail on rows that the boolean output `"refused by Spark"` marks; if empty, there is no
            such output.
        opset, mlOpset: versions of the ONNX operators, and of the ai.onnx.ml operators.
        runtime: the versions of onnxruntime that can run the file.
    """

    __module__ = "sparkdiff"

    path: str
    inputs: tuple[ExportedColumn, ...]
    outputs: tuple[ExportedColumn, ...]
    stages: tuple[str, ...]
    sparkStages: tuple[str, ...]
    refuses: tuple[str, ...]
    opset: int = OPSET
    mlOpset: int = ML_OPSET
    runtime: str = RUNTIME

    def _sections(self) -> Iterator[Section]:
        every = (*(("input", c) for c in self.inputs), *(("output", c) for c in self.outputs))
        yield SectionTable(
            [("", "column", "kind", "entries"), *((k, c.name, c.kind, str(c.width)) for k, c in every)], left=[0, 1, 2]
        )
        before = f"; Spark runs before: {', '.join(self.sparkStages)}" if self.sparkStages else ""
        yield StrongLine(f"{self.path}: {', '.join(self.stages)} for {self.runtime} (opset {self.opset}){before}")


def export(
    model: Any,
    path: str | os.PathLike[str],
    *,
    outputCols: Sequence[str] | None = None,
    schema: SchemaOrRows = None,
    widths: Mapping[str, int] | None = None,
) -> ExportedModel:
    """Write the translated stages of a fitted pipeline to an ONNX file.

    All numbers are doubles. The inputs are the columns that the translated stages read from the data or from stages that stay in
    Spark; vectors are dense. Every number of rows is allowed. ONNX cannot fail on a row: a boolean output `"refused by Spark"`
    marks the rows on which Spark's transform would fail.

    Args:
        model: a fitted `PipelineModel` or stage.
        path: path of the file, on this machine; an existing file is replaced.
        outputCols: the columns to compute; by default those that no later translated stage reads.
        schema: the schema of the data, or the data themselves, which tell the widths of vectors if no stage does.
        widths: entries per row of vectors, by column, if neither the stages nor the schema determine them.

    Raises:
        InputError: `path` is a folder or not on this machine, no stage is translated, a stage cannot be exported to ONNX
            (the message names it and says how to fix it), no stage writes one of `outputCols`, the width of a vector is
            unknown, `widths` names no input or contradicts a stage, or the extra `onnx` is not installed.
        SparkdiffError: the file cannot be written.

    Examples:
        >>> import onnxruntime
        >>> import sparkdiff
        >>> described = sparkdiff.export(model, f"{folder}/churn.onnx", outputCols=["probability"])
        >>> rows = df.select([column.name for column in described.inputs]).toPandas()
        >>> session = onnxruntime.InferenceSession(described.path)
        >>> session.run(["probability"], {name: rows[name].to_numpy() for name in rows})[0].shape
        (600, 2)
    """
    place = local_file(path)
    network = translate(model, schema=schema)
    if not network.outputCols:
        raise InputError("no stage of this pipeline is translated: see sparkdiff.plan(model) for the reasons")
    wanted = wanted_of(network, outputCols)
    positions = network.schedule(wanted)
    reads = [v for v in network.reads if any(v in network.graph.vertices[i].reads for i in positions)]
    written = OnnxGraph(
        network, wanted, widths_of(network, reads, schema, dict(widths or {})), formula_indexers(network, reads)
    )
    described = dataclasses.replace(written.description, path=str(path))
    content = written.file(described)
    try:
        with files.room("the ONNX file", place, "free some space, or choose another folder"):
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(place, content)
    except OSError as e:
        raise SparkdiffError(f"the ONNX file cannot be written to {place}: {e}; choose another folder") from e
    return described


def formula_indexers(network: Network, reads: Sequence[Version]) -> dict[Version, Vertex]:
    """StringIndexerModels inside RFormulaModels, by the index column that the file would read.

    The formula drops that column, so data cannot have it, and the file must compute it from the text.
    """
    every = network.graph.vertices
    made = {v: every[v[1]] for v in reads if v[1] >= 0 and every[v[1]].stageClass == "StringIndexerModel"}
    return {v: vertex for v, vertex in made.items() if network.graph.formula_of(vertex) is not None}


def local_file(path: str | os.PathLike[str]) -> Path:
    given = os.fspath(path)
    place = files.local_path("path", given)
    if place.is_dir():
        raise InputError(
            f"path={given!r} is a folder: name a file in it, such as {os.path.join(given, 'model.onnx')!r}"
        )
    return place


def wanted_of(network: Network, outputCols: Sequence[str] | None) -> list[Version]:
    """Versions of the columns to compute."""
    if outputCols is None:
        vertices = network.graph.vertices
        read = {v for i in network.positions for v in vertices[i].reads}
        # A formula drops all columns that it makes of its terms except the vector of features.
        dropped = {
            i
            for i in network.positions
            if network.graph.formula_of(vertices[i]) and not isinstance(network.module(i), AttributeRewriting)
        }
        return [v for v in network.writes.values() if v not in read and v[1] not in dropped]
    return network.versions_of(outputCols)


# The graph --------------------------------------------------------------------------------------------------------------


class OnnxGraph:
    """The ONNX graph that computes some columns of a network.

    Args:
        indexers: StringIndexerModels that the file replaces, by the version of their index column.

    Attributes:
        shown: names of the graph's inputs and outputs in the file, by version.
        described: description of the file, without a path.
    """

    def __init__(
        self,
        network: Network,
        wanted: Sequence[Version],
        widths: Mapping[Version, int | None],
        indexers: Mapping[Version, Vertex] | None = None,
    ):
        self.network, self.wanted, self.widths, self.indexers = network, list(wanted), widths, indexers or {}
        with requires_extra("onnx", "writing ONNX"):
            self.writer = GraphWriter()
        self.infos: dict[str, list[Any]] = {"input": [], "output": []}
        self.columns: dict[str, list[ExportedColumn]] = {"input": [], "output": []}
        self.values: dict[Version, Value] = {}
        self.shown: dict[Version, str] = {}
        self.positions = network.schedule(wanted)
        note_readers(network.graph, self.positions)
        for i in self.positions:
            self._add(i)
        for version in self.wanted:
            self.shown[version] = self._show(self._free_name(version), self.values[version])
        if self.writer.refused:
            marks = [value for value, _ in self.writer.refused]
            self._show(REFUSED, self.writer.beside(marks).any().number())

    def _free_name(self, version: Version) -> str:
        """Name of a column in the file; if another version of the column has the name already, with the uid of this one's
        writer, or "of the data".
        """
        graph, name = self.network.graph, self.network.graph.name(version)
        taken = {column.name for columns in self.columns.values() for column in columns}
        if name not in taken:
            return name
        writer = version[1] if version[1] >= -1 else -2 - version[1]
        return f"{name} of {graph.vertices[writer].uid}" if writer >= 0 else f"{name} of the data"

    @property
    def description(self) -> ExportedModel:
        graph = self.network.graph
        reference = () if self.network.reference is None else tuple(s.uid for s in self.network.reference.stages)
        indexed = {vertex.position for vertex in self.indexers.values()}
        made = (graph.ancestors(self.positions) | set(self.positions)) - indexed
        formulas = {v.uid: uid for v in graph.vertices if (uid := graph.formula_of(v)) is not None}
        before = tuple(dict.fromkeys(formulas.get(uid, uid) for uid in reference if self._is_before(uid, made)))
        return ExportedModel(
            "",
            tuple(self.columns["input"]),
            tuple(self.columns["output"]),
            tuple(graph.vertices[i].uid for i in sorted({*self.positions, *indexed})),
            before,
            tuple(dict.fromkeys(why for _, why in self.writer.refused)),
        )

    def _is_before(self, uid: str, made: Collection[int]) -> bool:
        """True if the stage `uid` must run in Spark before the file: it is among `made`, the stages that the file
        depends on.

        Plain stages that prepare an input are no vertices of the graph, and always run before.
        """
        vertices = [v for v in self.network.graph.vertices if v.uid == uid]
        return not vertices or any(v.position in made for v in vertices)

    def file(self, described: ExportedModel) -> bytes:
        """Content of the file, after onnx's checks."""
        onnx = self.writer.onnx
        graph = onnx.helper.make_graph(
            self.writer.nodes, "sparkdiff", self.infos["input"], self.infos["output"], self.writer.constants
        )
        opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid("ai.onnx.ml", ML_OPSET)]
        made = onnx.helper.make_model(
            graph,
            opset_imports=opsets,
            ir_version=IR_VERSION,
            producer_name="sparkdiff",
            producer_version=sparkdiff.__version__,
        )
        onnx.helper.set_model_props(made, {"sparkdiff": described.toJSON(), **jvm.origin()})
        onnx.checker.check_model(made)
        return bytes(made.SerializeToString())

    def _add(self, i: int) -> None:
        """Write the nodes of a stage."""
        vertex, module = self.network.graph.vertices[i], self.network.module(i)
        xs = [self._read(v) for v in vertex.reads]
        nulls = [self._null(v) if module.takes_nulls else None for v in vertex.reads]
        write = WRITERS.get(type(module))
        try:
            if write is None:
                raise NotExportableError(f"{type(module).__name__} has no form in ONNX")
            out = write(self.writer, module, xs, nulls)
        except NotExportableError as e:
            columns = ", ".join(map(repr, vertex.outputs))
            raise InputError(
                f"{vertex.uid} ({vertex.stageClass}) cannot be exported: {e}. Export what does not need {columns} "
                "(outputCols), or predict with Spark"
            ) from e
        if module.storage and module.exact_beyond < float("inf"):
            out = tuple(x if x.scalar else x.stored_as(module.storage) for x in out)
        self.values.update(zip(self.network.graph.versions(i), out, strict=True))

    def _read(self, version: Version) -> Value:
        if version in self.indexers and version not in self.values:
            self.values[version] = self._index(self.indexers[version])
        if version not in self.values:
            name, width = self._free_name(version), self.widths[version]
            self.shown[version] = name
            self.values[version] = self._input(name, "vector" if width is not None else "number", width or 1)
        return self.values[version]

    def _index(self, vertex: Vertex) -> Value:
        """Index that a StringIndexerModel assigns to a text; the text becomes an input of the file."""
        [text], g, labels = vertex.sources, self.writer, vertex.stage.labelsArray[0]
        if text not in self.values:
            self.shown[text] = self._free_name(text)
            self.values[text] = self._input(self.shown[text], "text", 1)
        null, last = self._null(text), float(len(labels))
        assert null is not None
        index = g.node(
            "LabelEncoder",
            [self.values[text]],
            1,
            "int64",
            domain="ai.onnx.ml",
            keys_strings=labels,
            values_int64s=range(len(labels)),
            default_int64=len(labels),
        ).double()
        if vertex.stage.getHandleInvalid() != "keep":
            formula, name = self.network.graph.formula_of(vertex), self.network.graph.name(text)
            g.refuse(index.equals(last) | null, f"{formula}: null or a text in {name!r} that it was not fitted on")
        return g.where(null, last, index).number()

    def _null(self, version: Version) -> Value | None:
        """Flags of the rows of a column that are null; None if no row can be null, and for vectors."""
        if version[1] in self.network.positions:
            module, value = self.network.module(version[1]), self.values[version]
            if (source := self.network.graph.null_from(version)) is not None:
                return self._null(source)
            return value.isnan() if module.writes_null and value.scalar else None
        if version in self.indexers:
            return None
        flag = null_of(version)
        if flag not in self.values:
            if not self.values[version].scalar:
                return None
            self.shown[flag] = self.shown[version] + NULL
            self.values[flag] = self._input(self.shown[flag], "flag", 1)
        return self.values[flag]

    def _input(self, name: str, kind: str, width: int) -> Value:
        g = self.writer
        numpy = {"flag": "bool", "text": "object"}.get(kind, "float64")
        shape = ["rows", width] if kind == "vector" else ["rows"]
        self.infos["input"].append(g.onnx.helper.make_tensor_value_info(name, g.type_of(numpy), shape))
        self.columns["input"].append(ExportedColumn(name, kind, width))
        value = Value(g, name, width, numpy)
        return value if kind == "vector" else g.node("Unsqueeze", [value, g.whole([1])], 1, numpy).number()

    def _show(self, name: str, value: Value) -> str:
        g = self.writer
        kind = "flag" if value.kind == "bool" else "number" if value.scalar else "vector"
        inputs = [value.name, g.whole([1]).name] if value.scalar else [value.name]
        g.nodes.append(g.onnx.helper.make_node("Squeeze" if value.scalar else "Identity", inputs, [name]))
        shape = ["rows"] if value.scalar else ["rows", value.width]
        self.infos["output"].append(g.onnx.helper.make_tensor_value_info(name, g.type_of(value.kind), shape))
        self.columns["output"].append(ExportedColumn(name, kind, value.width))
        return name


__all__ = ["ExportedColumn", "ExportedModel", "export"]


def widths_of(
    network: Network, reads: Sequence[Version], data: SchemaOrRows, given: Mapping[str, Any]
) -> dict[Version, int | None]:
    """Number of entries of the vectors in each input column; None for a column of numbers.

    Raises:
        InputError: the width of a vector is unknown, or a width in `given` names no input, is no positive whole number, or
            contradicts a stage.
    """
    casefold = network.graph.casefold
    inputs = {v[0]: network.graph.name(v) for v in network.reads}
    for name, width in given.items():
        if casefold(name) not in inputs:
            hint = did_you_mean(name, inputs.values())
            raise InputError(
                f"widths: column {name!r} is no input of the file: no translated stage reads it from the data. {hint}"
            )
        if not isinstance(width, Integral) or width < 1:
            raise InputError(
                f"widths={{{name!r}: {width!r}}} must be a whole number of at least 1, the entries per row"
            )
    told = {casefold(name): int(width) for name, width in given.items()}
    fields = known_fields(network.graph, {v for v in reads if v[1] >= -1}, data)
    out: dict[Version, int | None] = {}
    for version in reads:
        if version[1] < -1:
            out[version] = prepared_width(network, version)
        elif is_vector(fields.get(version)) or (version[0] in told and (data is None or version not in fields)):
            known, fitted = told.get(version[0]), fitted_width(network, version)
            if known and fitted and known != fitted:
                name = network.graph.name(version)
                raise InputError(
                    f"widths={{{name!r}: {known}}}, but a stage that reads it was fitted on {fitted} entries: leave it out"
                )
            out[version] = known or fitted or width_in(fields.get(version)) or measure_width(network, version, data)
        else:
            out[version] = None
    return out


def is_vector(field: StructField | None) -> bool:
    return field is not None and isinstance(field.dataType, (VectorUDT, ArrayType))


def fitted_width(network: Network, version: Version) -> int | None:
    """Width of the vectors on which a reader of the column was fitted; None if no reader determines it."""
    for i in network.positions:
        vertex, module = network.graph.vertices[i], network.module(i)
        if version not in vertex.reads or vertex.reads[0] != version:
            continue
        if isinstance(module, VectorIndexer):
            return module.size
        alone = len(vertex.reads) == 1 or type(module).__name__ in ("GeneralizedLinearRegression",)
        if alone and (width := module.fitted_width()):
            return width
        # For an IsotonicRegressionModel it is always 1.
        if hasattr(vertex.stage, "numFeatures") and vertex.stageClass != "IsotonicRegressionModel":
            return int(vertex.stage.numFeatures)
    return None


def prepared_width(network: Network, version: Version) -> int | None:
    """Number of entries of a column that plain Spark stages prepare for a translated stage; None if it holds numbers.

    Only a Word2VecModel's shares of words are vectors, with one entry per word of the vocabulary.
    """
    i = -2 - version[1]
    module, vertex = network.module(i), network.graph.vertices[i]
    first = network.graph.casefold(vertex.prepared[0]) == version[0]
    return len(module.words) if isinstance(module, Word2Vec) and first else None


def measure_width(network: Network, version: Version, data: SchemaOrRows) -> int:
    """Number of entries of the column's first vector in the data that is not null; runs a Spark job.

    Raises:
        InputError: no data are available, or all are null.
    """
    name = network.graph.name(version)
    if isinstance(data, DataFrame):
        frame = data if network.reference is None or version[1] == -1 else network.reference.transform(data)
        column = col_by_name(name, in_struct=network.graph.in_struct(version))
        with jvm.as_input_error(f"Spark failed while reading column {name!r}"):
            row = frame.select(column).where(column.isNotNull()).head()
        if row is not None:
            return len(np.asarray(row[0].toArray() if hasattr(row[0], "toArray") else row[0]))
    raise InputError(
        f"how many entries the vectors in column {name!r} have is unknown: pass the data (schema=df), or widths={{{name!r}: ...}}"
    )
