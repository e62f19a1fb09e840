"""A Transformer that computes the translated stages of a fitted pipeline with torch, in Arrow batches on the executors."""

import atexit
import dataclasses
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from pyspark.errors import PySparkException
from pyspark.ml import Transformer
from pyspark.ml.linalg import VectorUDT
from pyspark.ml.param import Param, Params, TypeConverters
from pyspark.ml.util import MLWriter
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import DoubleType, StructField, StructType

from sparkdiff import jvm
from sparkdiff.errors import InputError, check_dataframe
from sparkdiff.jvm.stores import store_url
from sparkdiff.machine import atomic_files, package, paths
from sparkdiff.pipeline.column_names import casefolding, col_by_name, unused_prefix
from sparkdiff.pipeline.column_tensors import physical
from sparkdiff.pipeline.graph import Version, in_front_of
from sparkdiff.pipeline.nesting import Holder, flatten, plain
from sparkdiff.pipeline.network import Network, note_readers, translate
from sparkdiff.pipeline.schema import check_columns, fields_by_name, width_in
from sparkdiff.pipeline.spark_inference import BatchTransform

LOG = logging.getLogger("sparkdiff.serving")
DEVICES = ("auto", "cpu", "cuda", "spark")
SAMPLE, COPIES, TURNS = 4096, 8, 3
"""Largest number of rows taken for measuring, number of copies of them in one measurement, and number of measurements."""
FEWEST = 100
"""Smallest number of rows to measure; with fewer rows, measurements are noise."""


# The DataFrame ------------------------------------------------------------------------------------------------------------


def by_torch(model: Any, df: DataFrame, device: str) -> DataFrame:
    """The pipeline's transform of `df`, in which torch computes the translated stages. Lazy.

    Raises:
        InputError: no stage is translated, a column is missing, or a stage that runs in Spark after torch may read or
            write a column that a later stage has overwritten by then.
    """
    network = translate(model, schema=df)
    if not network.outputCols:
        raise InputError("no stage of this pipeline is translated to torch: see sparkdiff.plan(model) for the reasons")
    check_columns(network.graph, df.schema)
    columns = model.transform(df).columns
    reference, in_torch = network.graph.reference(), {*network.positions}
    rest = [v.position for v in network.graph.vertices if v.position not in {*reference, *in_torch}]
    early = stages_in_place(network, reference, rest)
    before, after = sorted([*reference, *early]), [i for i in rest if i not in early]
    check_order(network, before, after)
    # A stage that runs last may drop a column that it reads, or give it another type.
    without = df
    for vertex in network.graph.vertices:
        anew = [c for c in vertex.removes if network.graph.casefold(c) in vertex.rewritten]
        without = without.drop(*anew) if vertex.position in after else vertex.stage.transform(without)
    expected = fields_by_name(without.schema, network.graph.casefold)
    frame, held = in_front(df, network, before)
    out = with_torch_columns(frame, network, before, held, expected, device)
    for i in after:
        out = network.graph.vertices[i].transform(out, is_last=True)
    return out.select(*map(col_by_name, columns))


def stages_in_place(network: Network, reference: Collection[int], rest: Sequence[int]) -> set[int]:
    """Positions, among `rest`, of the stages that must run in front of torch, because a later stage overwrites one of their
    columns, or because such a stage reads them; and of stages of one's own, which may read columns that they don't declare.

    The others run behind torch, where Spark computes their columns only if somebody reads them.
    """
    graph, early, last = network.graph, set[int](), max(reference, default=0)
    may = [i for i in rest if i < last and not graph.ancestors([i]) & {*network.positions}]
    while more := {
        i
        for i in {*may} - early
        if graph.vertices[i].custom
        or i in graph.ancestors(early)
        or overwriting(network, i, {*reference, *early}) is not None
    }:
        early |= more
    return early


def overwriting(network: Network, i: int, before: Collection[int]) -> int | None:
    """Position of the first stage behind stage `i`, in torch or among `before`, that may overwrite a column that it reads or
    writes; None if there is none.
    """
    vertex = network.graph.vertices[i]
    names = [*(name for name, _ in vertex.sources), *map(network.graph.casefold, vertex.outputs)]
    later = sorted(j for j in {*before, *network.positions} if j > i)
    return next((j for j in later if not vertex.declares_all or network.graph.writes(j, names)), None)


def check_order(network: Network, before: Sequence[int], after: Sequence[int]) -> None:
    """Raise InputError if a stage that Spark runs last may read or write a column that a later stage has overwritten."""
    for i in after:
        if (j := overwriting(network, i, before)) is not None:
            own, other = (network.graph.vertices[k].uid for k in (i, j))
            raise InputError(
                f"{own} stays in Spark, and {other} behind it writes a column that it reads or writes: give that one an output "
                "column of its own, or set device='spark'"
            )


def in_front(df: DataFrame, network: Network, before: Sequence[int]) -> tuple[DataFrame, dict[Version, str]]:
    """The rows after the stages that Spark runs first, and the names of the columns that hold the network's inputs.

    An input is copied to a hidden column of its own if a later stage overwrites it, or if it is a field of a struct or
    neither double nor vector.
    """
    graph = network.graph
    hidden = unused_prefix("__sparkdiff_v", (*df.columns, *(o for vertex in graph.vertices for o in vertex.outputs)))
    held: dict[Version, str] = {}

    def hold(frame: DataFrame, producer: int) -> DataFrame:
        fields = fields_by_name(frame.schema, graph.casefold)
        for version in (v for v in network.reads if v[1] == producer and v not in held):
            name, inside = graph.name(version), graph.in_struct(version)
            field = fields[version[0]]
            overwritten = any(j > producer and graph.writes(j, [version[0]]) for j in before)
            if isinstance(field.dataType, (DoubleType, VectorUDT)) and not inside and not overwritten:
                held[version] = field.name
            else:
                held[version] = f"{hidden}{len(held)}"
                column = physical(field, col_by_name(name, in_struct=inside)).alias(
                    held[version], metadata=field.metadata or {}
                )
                frame = frame.withColumn(held[version], column)
        return frame

    frame = hold(df, -1)
    for i in sorted({*before, *network.positions}):
        if i in network.positions and (stages := graph.vertices[i].preparation()):
            for stage in stages:
                frame = stage.transform(frame)
            frame = hold(frame, in_front_of(i))
        if i in before:
            frame = hold(graph.vertices[i].transform(frame), i)
    return frame, held


def with_torch_columns(
    frame: DataFrame,
    network: Network,
    before: Sequence[int],
    held: dict[Version, str],
    expected: dict[str, StructField],
    device: str,
) -> DataFrame:
    """The rows with the columns that torch computes, with Spark's types and metadata."""
    graph = network.graph
    made = [
        v
        for v in network.writes.values()
        if v[0] in expected and not any(j > v[1] and graph.writes(j, [v[0]]) for j in before)
    ]
    new = {v[0] for v in made}
    hidden = {name for name in held.values() if graph.casefold(name) not in expected}
    fields, places = frame.schema.fields, {graph.casefold(c): i for i, c in enumerate(frame.columns)}
    at = {v: places[graph.casefold(name)] for v, name in held.items()}  # SQL may spell a name in another case
    kept = [i for i, f in enumerate(fields) if graph.casefold(f.name) not in new and f.name not in hidden]
    stays, comes = [fields[i] for i in kept], [(graph.name(v), expected[v[0]]) for v in made]
    # Under plain names: mapInArrow finds no column whose name has dots or backticks.
    schema = StructType(
        [
            *(StructField(f"c{i}", f.dataType, f.nullable) for i, f in zip(kept, stays, strict=True)),
            *(StructField(f"made{k}", field.dataType, field.nullable) for k, (_, field) in enumerate(comes)),
        ]
    )
    shipped, computed = network.without_spark(), {*before, *network.positions}
    later = [vertex.position for vertex in graph.vertices if vertex.position not in computed]
    shipped.exact = note_readers(shipped.graph, shipped.positions, later)
    task = BatchTransform(
        shipped,
        at,
        kept,
        made,
        {v: arrow_name(expected[v[0]]) for v in made},
        schema.names,
        device,
        {v: width for v, i in at.items() if (width := width_in(fields[i])) is not None},
    )
    ship(frame.sparkSession)
    out = frame.toDF(*(f"c{i}" for i in range(len(fields)))).mapInArrow(task, schema)
    names = [*((f.name, f.metadata) for f in stays), *((name, field.metadata) for name, field in comes)]
    return out.select(
        *(
            col_by_name(safe).alias(name, metadata=metadata or {})
            for safe, (name, metadata) in zip(schema.names, names, strict=True)
        )
    )


def check_types(df: DataFrame) -> None:
    """Raise InputError if Arrow does not support the type of a column."""
    for field in df.schema:
        try:
            to_arrow_type(field.dataType)
        except PySparkException as e:
            raise InputError(
                f"column {field.name!r} is {field.dataType.simpleString()}, which Arrow does not carry to torch: drop or cast "
                "it, or set device='spark'"
            ) from e


def check_names(columns: Sequence[str]) -> None:
    """Raise InputError if columns share a name, which Spark itself allows as long as no stage reads them."""
    fold = casefolding()
    for name in columns:
        if len(same := [c for c in columns if fold(c) == fold(name)]) > 1:
            names = ", ".join(map(repr, same))
            raise InputError(f"{len(same)} columns match {name!r}, {names}: rename all but one, or set device='spark'")


def arrow_name(field: StructField) -> str:
    """pyarrow's name of the type of a column of numbers."""
    names = {"bigint": "int64", "int": "int32", "smallint": "int16", "tinyint": "int8", "float": "float"}
    return names.get(field.dataType.simpleString(), "double")


_SHIPPED: set[str] = set()


def ship(spark: SparkSession) -> None:
    """Send this package to the executors, once per application (with Spark Connect, per session). In local mode they
    import the driver's, so nothing is sent.
    """
    local = jvm.in_process(spark)
    if local and str(spark.sparkContext.master).startswith("local["):
        return
    key = spark.sparkContext.applicationId if local else str(getattr(spark, "session_id", id(spark)))
    if key in _SHIPPED:
        return
    folder = Path(tempfile.mkdtemp(prefix="sparkdiff-package-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    first = folder / "package.zip"
    package.write_zip(first)
    file = first.rename(folder / f"sparkdiff-{hashlib.sha256(first.read_bytes()).hexdigest()[:12]}.zip")
    if local:
        spark.sparkContext.addPyFile(str(file))
    else:
        spark.addArtifacts(str(file), pyfile=True)
    _SHIPPED.add(key)


# Which is faster ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DeviceChoice:
    """Measurements of `measure`, and the chosen device.

    Attributes:
        device: "cpu" or "cuda" for torch; "spark" for MLlib's own transform.
        seconds: by device, the shortest time of several measurements.
        rows: number of rows in each measurement; 0 if nothing was measured.
        reason: why the device was chosen, as text.
    """

    __module__ = "sparkdiff"

    device: str
    seconds: dict[str, float]
    rows: int
    reason: str


def choose_device(model: Any, df: DataFrame) -> tuple[DeviceChoice, bool]:
    """Fastest device on copies of some of the rows, and whether the choice may be kept for other data; runs jobs."""
    with jvm.persist_rows(df.limit(SAMPLE)) as rows:
        if (number := rows.count()) < FEWEST:
            few = f"MLlib computes all stages this time: {number} rows are too few to measure"
            return DeviceChoice("spark", {}, 0, few), False
        many = reduce(DataFrame.unionAll, [rows] * COPIES)
        try:
            frames = {"spark": model.transform(many), "cpu": by_torch(model, many, "cpu")}
            if torch.cuda.is_available():
                frames["cuda"] = by_torch(model, many, "cuda")
            seconds = measure_seconds(frames)
        except InputError as e:
            return DeviceChoice("spark", {}, 0, f"MLlib computes all stages: {e}"), True
        except jvm.SparkError as e:  # such as a type that Arrow does not support; if MLlib fails, it fails again later
            why = f"MLlib computes all stages this time, as measuring failed: {jvm.cause(e)}"
            return DeviceChoice("spark", {}, 0, why), False
        best = min(seconds, key=lambda device: seconds[device])
        told = ", ".join(f"{device} {took:.3g} s" for device, took in seconds.items())
        who = "MLlib's own transform is fastest and is used" if best == "spark" else f"torch on {best} is fastest"
        return DeviceChoice(best, seconds, COPIES * number, f"{who} ({told})"), True


def measure_seconds(frames: dict[str, DataFrame]) -> dict[str, float]:
    """Shortest time in seconds to compute each frame; the frames are measured round-robin, after a warm-up round."""
    seconds: dict[str, float] = {}
    for turn in range(TURNS + 1):
        for device, frame in frames.items():
            start = time.perf_counter()
            frame.write.format("noop").mode("overwrite").save()
            if turn:
                seconds[device] = min(seconds.get(device, float("inf")), time.perf_counter() - start)
    return seconds


# The Transformer ----------------------------------------------------------------------------------------------------------


class TorchTransformer(Holder, Transformer, jvm.Persistent):
    """A fitted pipeline whose translated stages are computed with torch, on the executors, in Arrow batches.

    `transform` returns the columns of the pipeline's own transform, with the same types, `nullable` and metadata; other stages
    run in Spark. Vectors are equal, but may be stored dense where Spark's are sparse, or the other way round. The executors need
    torch; sparkdiff need not be installed there.

    Attributes:
        pipelineModel: the plain pipeline.
        choice: measurements and choice for `device="auto"`; None before the first measurement, and as long as none was
            kept.

    Examples:
        >>> import sparkdiff
        >>> scorer = sparkdiff.TorchTransformer(model, device="cpu")
        >>> scored = scorer.transform(df)
        >>> scored.columns == model.transform(df).columns
        True
        >>> scored.write.mode("overwrite").parquet(f"{folder}/scored")
        >>> scorer.write().overwrite().save(f"{folder}/churn-by-torch")
    """

    __module__ = "sparkdiff"

    device: Param[str] = Param(
        Params._dummy(),
        "device",
        "auto: the fastest, measured on a few thousand rows of the first DataFrame; cpu or cuda: torch there; "
        "spark: MLlib's own transform",
        typeConverter=TypeConverters.toString,
    )

    def __init__(self, model: Any, *, device: str = "auto"):
        """
        Args:
            model: a fitted `PipelineModel`; it is never changed.
            device: "auto", "cpu", "cuda" or "spark".

        Raises:
            InputError: the pipeline is not fitted, or there is no such device.
        """
        super().__init__()
        self.pipelineModel = plain(model)
        flatten(self.pipelineModel)
        self.choice: DeviceChoice | None = None
        self._setDefault(device="auto")
        self.setDevice(device)

    def setDevice(self, value: str) -> "TorchTransformer":
        """Set the device, and return this transformer.

        Args:
            value: "cpu" or "cuda" for torch, "spark" for MLlib's own transform, or "auto" for the fastest of them.

        Raises:
            InputError: there is no such device.
        """
        if value not in DEVICES:
            raise InputError(f"device={value!r} must be one of {', '.join(map(repr, DEVICES))}")
        return self._set(device=value)

    def getDevice(self) -> str:
        """The device that is set, "auto" by default; `choice` has the one on which "auto" has settled."""
        return self.getOrDefault(self.device)

    def measure(self, dataset: DataFrame) -> DeviceChoice:
        """Measure which device is fastest on rows of this DataFrame, and use that device from now on if device="auto".

        With fewer than 100 rows, or if Spark fails while measuring, the choice is "spark" for this time only.
        """
        check_dataframe("the rows of measure()", dataset)
        if dataset.isStreaming:
            raise InputError(
                "a stream cannot be measured: set device to 'cpu', 'cuda' or 'spark', or call measure() on a table"
            )
        choice, lasting = choose_device(self.pipelineModel, dataset)
        self.choice = choice if lasting else self.choice
        LOG.info("TorchTransformer: %s", choice.reason)
        return choice

    def _transform(self, dataset: DataFrame) -> DataFrame:
        device = self.getDevice()
        if device not in DEVICES:  # a Param of transform(df, params)
            raise InputError(f"device={device!r} must be one of {', '.join(map(repr, DEVICES))}")
        if device == "auto":
            device = (self.choice or self.measure(dataset)).device
        if device == "spark":
            return self.pipelineModel.transform(dataset)  # type: ignore[no-any-return]
        try:
            return by_torch(self.pipelineModel, dataset, device)
        except jvm.SparkError:
            check_types(dataset)
            check_names(self.pipelineModel.transform(dataset).columns)
            raise

    def write(self) -> MLWriter:
        """A writer that saves the transformer; on this machine's file system, it is saved completely or not at all."""
        return _Writer(self)  # type: ignore[no-untyped-call]

    def saved_parts(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """The device and the measured choice, ready for JSON, and the plain pipeline by name, as `write` saves them."""
        choice = None if self.choice is None else dataclasses.asdict(self.choice)
        return {"device": self.getDevice(), "choice": choice}, {"pipelineModel": self.pipelineModel}

    @classmethod
    def from_parts(cls, values: Mapping[str, Any], stage: jvm.Load) -> "TorchTransformer":
        """A transformer with the values and the pipeline that `saved_parts` returned; its uid is set afterwards.

        Args:
            values: the saved values, read from JSON.
            stage: loads a saved stage, given its name.
        """
        new = cls(stage("pipelineModel"), device=values["device"])
        new.choice = None if values["choice"] is None else DeviceChoice(**values["choice"])
        return new


class _Writer(jvm.Writer):
    def save(self, path: str) -> None:
        """Save the transformer; on this machine's file system under another name first, which is then renamed, so that it
        is saved completely or not at all.
        """
        place = paths.local(path)
        # Spark writes the path here if it names local files, or if Spark's default file system is the local one.
        here = path.lower().startswith("file:") or store_url("path", "model") is None
        if place is None or not jvm.in_process(self.sparkSession) or not here:
            super().save(path)
            return
        final = Path(os.path.abspath(str(place)))
        if os.path.lexists(final) and not self.shouldOverwrite:
            raise InputError(f"{path!r} exists already: use write().overwrite(), or choose another folder")
        with atomic_files.new_folder(final) as part:
            self.saveImpl(f"file://{part}")
            if final.is_dir() and not final.is_symlink():
                shutil.rmtree(final)
            else:
                final.unlink(missing_ok=True)


__all__ = ["DeviceChoice", "TorchTransformer"]
