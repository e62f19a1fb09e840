"""Flags that several commands share, and functions that load the models and rows that these flags name."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from sparkdiff.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

Text = Optional[str]  # noqa: UP045 - typer reads it at run time
Model = Annotated[str, typer.Argument(help="Folder of a saved PipelineModel, of a saved stage, or of a run.")]
Names = Annotated[
    Optional[list[str]],  # noqa: UP045 - typer reads it at run time
    typer.Option(help="Uid, class name or output column of a stage; may be repeated."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

# The flags of all commands that take rows. Commands that run jobs also take each setting as section.key=value.
Data = Annotated[Text, typer.Option(help="Path of the rows.")]
Format = Annotated[
    str,
    typer.Option(
        help="Format of the rows, such as parquet or csv; by default that of the file's name, else Spark's default."
    ),
]
ReaderOptions = Annotated[
    str, typer.Option(help="Options of Spark's reader as a JSON object; the key schema sets the schema.")
]
Label = Annotated[Text, typer.Option(help="Label column (fineTuner.labelCol).")]
Group = Annotated[Text, typer.Option(help="Group column: rows of a group belong together (fineTuner.groupCol).")]
Time = Annotated[Text, typer.Option(help="Time column: the latest rows are held out (fineTuner.timeCol).")]
Output = Annotated[Text, typer.Option(help="Folder to write (output.path).")]


def load_models_and_rows(
    models: Sequence[str],
    module: str,
    command: str = "",
    data: str | None = None,
    format: str = "",
    options: str = "{}",
) -> tuple[list[tuple[str, Any]], Any]:
    """Check that the models and rows exist, start Spark, and load each model and, if `data` is set, the rows.

    Args:
        module: name of a module to import while Spark starts.
        command: name of the command, for messages.
        data, format, options: path, format and reader options of the rows, see `source_of`.

    Returns:
        (path, model) of each model; and the rows, or None.
    """
    from sparkdiff.data import loading

    folder = Path.cwd()
    paths = [loading.model_path(model, folder) for model in models]
    if data is None and (format or options != "{}"):
        raise InputError(f"{'--format' if format else '--options'} says how to read rows: name them by --data")
    given = {} if data is None else {command: source_of(data, format, options)}
    loading.check_there(paths, given, folder, {})
    spark = loading.start_session({}, module, loading.size_of(given, folder))
    fitted = [(path, loading.load_model(path)) for path in paths]
    return fitted, loading.load_data(spark, given[command], folder, command) if given else None


def source_of(path: str, format: str = "", options: str = "{}") -> dict[str, Any]:
    """The rows that a command's flags name, as an entry of a job's section `data`; `options` is a JSON object.

    What is not set is inferred (see `with_inferred_format`).
    """
    from sparkdiff.data import loading

    try:
        given = dict(json.loads(options))
    except (ValueError, TypeError) as e:
        raise InputError(f'--options must be a JSON object such as {{"header": true}}. Got {options!r} instead') from e
    schema = given.pop("schema", None)
    return loading.with_inferred_format({"path": path, "format": format or None, "schema": schema, "options": given})


def schema_of(given: str) -> "StructType":
    from pyspark.sql.types import StructType

    from sparkdiff import jvm

    try:
        if given.lstrip().startswith("{"):
            return StructType.fromJson(json.loads(given))
        return jvm.session().createDataFrame([], given).schema
    except (*jvm.SparkError, ValueError, KeyError, TypeError) as e:
        raise InputError(
            f"--schema must be DDL such as 'a double, b string', or JSON of a StructType. Got {given!r} instead: {jvm.cause(e)}"
        ) from e
