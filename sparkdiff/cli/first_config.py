"""A first YAML file for a job, generated from a saved pipeline; the settings that users change first are in it as
comments.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pyspark.sql.types import DataType, DateType, IntegralType, StringType, StructType, TimestampType

from sparkdiff.errors import InputError
from sparkdiff.pipeline.cut import analyse
from sparkdiff.pipeline.graph import Graph
from sparkdiff.pipeline.plan import Plan, plan_of
from sparkdiff.stages.base import columns_of

GROUPS = ("id", "user", "customer", "device", "session", "group", "account")
"""Words in column names that suggest that rows with equal values belong together, so that the column may be a
`groupCol`.
"""


def first_config(
    model: Any,
    path: Path,
    source: Mapping[str, Any],
    file: Path,
    label: str | None = None,
    schema: StructType | None = None,
) -> str:
    """The text of the YAML file.

    Args:
        model: the fitted pipeline.
        path: the pipeline's folder.
        source: the rows, as an entry of the section `data`; empty: a placeholder is written.
        file: the file that will be written; paths in the text are relative to its folder.
        label: the label column; None: the pipeline's own.
        schema: the schema of the rows.

    Raises:
        InputError: nothing in the pipeline trains, or the label is neither in the data nor an output of a stage.
    """
    analysis = analyse(model, data=schema)
    graph, plan = analysis.graph, plan_of(analysis, {})
    if not any(s.trainable for s in plan.stages):
        why = "; ".join(
            dict.fromkeys(f"{s.uid}: {s.reason}" for s in plan.stages if s.numParameters or s.role == "referenced")
        )
        raise InputError(f"nothing in {path} would train, so there is nothing to configure ({why})")
    label = label or next(iter(columns_of(graph.head.stage, ("labelCol",))), None)
    if schema is not None and label is not None and not _is_there(label, graph, schema):
        known = ", ".join(schema.names)
        raise InputError(f"the label column {label!r} is not in the data, which have {known}: name it with --label")
    here, name = file.parent, path.parent.name if path.name == "model" else path.name
    model_there = os.path.relpath(path, here)
    return "\n".join(
        [
            f"# Fine-tunes {model_there}. Run it: sparkdiff finetune --config {file.name}",
            f"# {_trains(plan)} `sparkdiff plan {model_there}` says why.",
            "# Paths start at this file's folder. `sparkdiff options` lists all options.",
            "",
            f"pipeline: {_yaml_line(model_there)}",
            "",
            *_data(graph, source, here),
            "",
            *_options(label, schema),
            "",
            "# A new folder, for the plain Spark pipeline and the summary.",
            f"output: {_yaml_line(f'runs/{name}')}",
            "",
        ]
    )


def _is_there(label: str, graph: Graph, schema: StructType) -> bool:
    """True if the label is a column of the data or an output of a stage."""
    return graph.casefold(label) in {*map(graph.casefold, schema.names), *graph.writers}


def _trains(plan: Plan) -> str:
    names = list(dict.fromkeys(s.stageClass for s in plan.stages if s.trainable))
    return f"{', '.join(names)} would train, {sum(s.numParameters for s in plan.stages if s.trainable):,} parameters."


def _data(graph: Graph, source: Mapping[str, Any], here: Path) -> list[str]:
    read = sorted({graph.name(v) for vertex in graph.vertices for v in vertex.sources if v[1] < 0})
    shown = ", ".join(read[:20]) + (f" and {len(read) - 20} more" if len(read) > 20 else "")
    data = source.get("path")
    path = "rows.parquet" if data is None else os.path.relpath(data, here) if "://" not in data else data
    lines = [
        f"# The pipeline reads the columns {shown}.",
        "data:",
        "  train:",
        f"    path: {_yaml_line(path)}" + ("          # put the path of your rows here" if data is None else ""),
        f"    format: {source['format']}"
        if source.get("format")
        else "    # format: parquet          # by default Spark's own",
    ]
    return [
        *lines,
        *(f"    {key}: {_yaml_line(source[key])}" for key in ("options", "schema") if source.get(key)),
        "  # validation: {path: other.parquet}     # else a part of `train` is held out",
        "  # test: {path: other.parquet}",
    ]


def _options(label: str | None, schema: StructType | None) -> list[str]:
    fields = schema.fields if schema is not None else []
    groups = [f.name for f in fields if _may_group(f.name, f.dataType)]
    times = [f.name for f in fields if isinstance(f.dataType, (DateType, TimestampType))]
    return [
        "fineTuner:",
        *([f"  labelCol: {_yaml_line(label)}"] if label is not None else []),
        f"  # groupCol: {_example(groups, 'user')}   # if rows of one value belong together: they are held out together",
        f"  # timeCol: {_example(times, 'day')}    # if rows have an order in time: the latest are held out",
        "  # loss: auto                            # what training minimises; auto is the loss of the pipeline's own predictor",
        "  # metric: logLoss                       # what decides; by default the loss",
        "  # weightCol: weight",
        "  # maxEpochs: 120",
        "  # maxSeconds: 600                       # of training",
        "  # recipe: fast                          # one candidate in place of four",
        "  seed: 0",
    ]


def _may_group(name: str, kind: DataType) -> bool:
    words = name.lower().replace("-", "_").split("_")
    return isinstance(kind, (IntegralType, StringType)) and any(
        w in GROUPS or name.lower().endswith("id") for w in words
    )


def _example(names: Sequence[str], otherwise: str) -> str:
    return _yaml_line(names[0]) if names else otherwise


def _yaml_line(value: Any) -> str:
    """A text, or a mapping of texts, as YAML on one line."""
    return (
        yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=10_000)
        .removesuffix("\n")
        .removesuffix("...")
        .strip()
    )
