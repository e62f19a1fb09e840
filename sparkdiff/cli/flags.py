"""Classes of commands, flags that several commands share, and functions that load the models and rows that these flags name."""

import functools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from typer.core import TyperCommand, TyperGroup

from sparkdiff.cli.job_options import check_flags
from sparkdiff.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql.types import StructType

Text = Optional[str]  # noqa: UP045 - typer reads it at run time
Model = Annotated[str, typer.Argument(help="Folder of a saved PipelineModel, of a saved stage, or of a run.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]

Words = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Argument(
        metavar="MODEL|SECTION.KEY=VALUE",
        help="Folder of a saved model or of a run, or module:function of an unfitted Pipeline; and settings, which override "
        "flags and file: `sparkdiff options` lists them.",
        show_default=False,
    ),
]
Config = Annotated[Text, typer.Option(help="YAML file of the job.")]

# The flags of all commands that take rows.
Data = Annotated[
    Text, typer.Option(help="Path of the rows: a file, a folder, a glob or a URL (.csv, .json, .orc, .parquet, ...).")
]
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


class _UntypedSwitches:
    """The part of commands and groups that shows no type behind a switch."""

    def get_params(self, ctx: Any) -> list[Any]:
        found: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for switch in (parameter for parameter in found if getattr(parameter, "is_flag", False)):
            switch.metavar = ""
        return found


class CommandGroup(_UntypedSwitches, TyperGroup):
    """A group of commands."""


class Command(_UntypedSwitches, TyperCommand):
    """A command that answers the name of a setting, given as a flag, with its spelling."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = [flag for parameter in self.get_params(ctx) for flag in (*parameter.opts, *parameter.secondary_opts)]
        check_flags(args, known, takes_overrides="words" in {parameter.name for parameter in self.params})
        return super().parse_args(ctx, args)


def load_models_and_rows(
    models: Sequence[str],
    module: str,
    command: str = "",
    data: str | None = None,
    format: str = "",
    options: str = "",
) -> tuple[list[tuple[str, Any]], Any]:
    """Check that the models and rows exist, start Spark, and load each model and, if `data` is set, the rows.

    Args:
        module: name of a module to import while Spark starts.
        command: name of the command, for messages.
        data, format, options: path, format and reader options of the rows, see `loading.source_of`.

    Returns:
        (path, model) of each model; and the rows, or None.
    """
    from sparkdiff.data import loading

    folder = Path.cwd()
    paths = [loading.model_path(model, folder) for model in models]
    given = {command: loading.source_of(data, format, options)} if data is not None or format or options else {}
    loading.check_there(paths, given, folder, {})
    spark = loading.start_session({}, module, loading.size_of(given, folder))
    fitted = [(path, loading.load_model(path)) for path in paths]
    say = functools.partial(print, file=sys.stderr)  # stdout may be one JSON object
    rows = loading.load_data(spark, given[command], folder, command, fitted[0][1], say) if given else None
    return fitted, rows


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
