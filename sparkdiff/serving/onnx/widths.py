"""Widths of the vectors that an exported file reads: from the stages, the schema, or the first row of the data."""

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame
from pyspark.sql.types import ArrayType, StructField

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.schema import SchemaOrRows, known_fields, width_in
from sparkdiff.stages.embedding import Word2Vec
from sparkdiff.stages.indexing import VectorIndexer


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
