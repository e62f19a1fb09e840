"""The plain model of a result in MLflow's flavour for Spark, with its signature and an input example."""

import importlib
import warnings
from collections.abc import Mapping
from typing import Any

from pyspark.ml.functions import vector_to_array
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame

from sparkdiff.pipeline.names import named
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.translation import translated

ARTIFACT = "model"
"""The folder of the model among the artifacts of a run."""
ROWS, WIDEST = 5, 1000
"""Rows of an input example, and the length of vectors above which there is none."""


def log_model(
    package: Any, model: Any, rows: DataFrame | None, tmpdir: str | None, name: str | None, metadata: Mapping[str, str]
) -> Any:
    signature, example = None, None
    if rows is not None:
        try:
            signature, example = _signature(model, rows)
        except package.exceptions.MlflowException as e:  # a type of columns that it has no name for
            if name is not None:
                raise
            warnings.warn(f"the model has no signature in MLflow: {e}", RuntimeWarning, stacklevel=3)
    return package.spark.log_model(
        model, ARTIFACT, signature=signature, input_example=example, dfs_tmpdir=tmpdir, registered_model_name=name,
        # Known; to infer them MLflow would start another Spark.
        pip_requirements=package.spark.get_default_pip_requirements(),
        metadata={f"sparkdiff.{key}": value for key, value in metadata.items()},
    )  # fmt: skip


def _signature(model: Any, rows: DataFrame) -> tuple[Any, Any]:
    """The columns that a model reads and its prediction, as MLflow's signature; and a few rows, None where vectors are wide."""
    inputs = rows.select(*map(named, _inputs(model, rows))).limit(ROWS)
    last = next((s for _, s in reversed(flatten(model)) if s.hasParam("predictionCol")), None)
    outputs = model.transform(inputs)
    outputs = outputs.select(named(last.getPredictionCol())) if last is not None else outputs
    signature = importlib.import_module("mlflow.models").infer_signature(inputs, outputs)
    vectors = [f.name for f in inputs.schema if isinstance(f.dataType, VectorUDT)]
    shown = inputs.select(*[vector_to_array(named(c)).alias(c) if c in vectors else named(c) for c in inputs.columns])
    found = shown.toPandas()
    wide = any(len(value) > WIDEST for c in vectors for value in found[c] if value is not None)
    return signature, None if wide or found.empty else found


def _inputs(model: Any, rows: DataFrame) -> list[str]:
    """The columns of the rows that a model reads; all of them where a stage may read any."""
    graph = translated(model, rows)
    if any(v.opaque for v in graph.vertices):
        return rows.columns
    read = {name for v in graph.vertices for name, _ in v.sources}
    needed = {
        name for v in graph.vertices for name, writer in {*v.sources} - graph.passes_over(v, read) if writer == -1
    }
    return [column for column in rows.columns if graph.casefold(column) in needed]
