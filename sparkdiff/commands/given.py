"""The models and rows that commands name, loaded."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparkdiff.errors import InputError

if TYPE_CHECKING:
    from pyspark.sql.types import StructType


def loaded(
    models: Sequence[str], module: str, command: str = "", data: str | None = None, format: str = "", options: str = ""
) -> tuple[list[tuple[str, Any]], Any]:
    """The path and the content of each model, and the rows, if any; whether they exist is checked before Spark starts.

    Args:
        module: to be imported while Spark starts.
    """
    from sparkdiff.job import loading

    folder = Path.cwd()
    paths = [loading.model_path(model, folder) for model in models]
    given = {} if data is None else {command: source_of(data, format, options)}
    loading.check_there(paths, given, folder, {})
    spark = loading.start_session({}, module, loading.size_of(given, folder))
    fitted = [(path, loading.load_model(path)) for path in paths]
    return fitted, loading.load_data(spark, given[command], folder, command) if given else None


def source_of(path: str, format: str, options: str) -> dict[str, Any]:
    """The data of a command, in the form of a job's `data` section."""
    try:
        given = dict(json.loads(options))
    except (ValueError, TypeError) as e:
        raise InputError(f'--options must be a JSON object such as {{"header": true}}. Got {options!r} instead') from e
    return {"path": path, "format": format, "schema": given.pop("schema", None), "options": given}


def read_as(path: str, format: str, options: str) -> tuple[str, str]:
    """The format and the reader's options of rows; those that the name of the file tells, if none are given."""
    from sparkdiff.job import loading

    form = format or loading.format_of(path)
    return form, json.dumps(loading.CSV) if form == "csv" and options == "{}" else options


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
