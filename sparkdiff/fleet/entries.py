"""The pipelines of a fleet and their rows, as the caller names them."""

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.ml import Transformer
from pyspark.sql import DataFrame

from sparkdiff import jvm
from sparkdiff.errors import InputError, kind_of
from sparkdiff.job.loading import CSV, format_of, load_data, load_model, model_path
from sparkdiff.machine import paths
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import Holder, plain
from sparkdiff.store.digests import hash_of

OWN = ("name", "model", "data")
"""Keys of an entry that are no options."""
PATH = (str, os.PathLike)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A pipeline that may be tuned.

    Attributes:
        model: fitted.
        path: where it lies; None where the caller passed the pipeline itself.
        given: options of the fine-tuning by name, and `options` with the others at their defaults.
    """

    name: str
    model: Any
    path: str | None
    rows: DataFrame
    given: Mapping[str, Any]
    options: Options

    def content(self) -> str | None:
        """Its content hash, by which a store of runs knows it; None if it cannot be saved."""
        where = self.path
        if where is not None and isinstance(self.model, Holder):
            where = paths.inside(where, "pipelineModel")
        return hash_of(plain(self.model), where, None)


def entries_of(fleet: Any, common: Mapping[str, Any]) -> list[Entry]:
    """The entries of a fleet.

    Args:
        fleet: mappings with the keys `model` (a fitted pipeline, or the path of a saved one) and `data` (a DataFrame, or the
            path of a file), if wanted `name`, and options of `FineTuner`; or a DataFrame of Spark or pandas with such columns.
        common: options of all entries; an entry's own come first.

    Raises:
        InputError: it is no fleet; a model or rows cannot be loaded; or an option is unknown or wrong. Names the entry.
    """
    found = [*_mappings(fleet)]
    if not found:
        raise InputError("the fleet is empty: pass at least one mapping with the keys model and data")
    tables = dict[str, DataFrame]()  # one for all entries that name a path, so that its rows are drawn once
    out = [_entry(number, given, common, tables) for number, given in enumerate(found)]
    names = [entry.name for entry in out]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{', '.join(twice)}: two entries of the fleet have this name; give each a name of its own (the command "
            "takes each model once)"
        )
    return out


def _mappings(fleet: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(fleet, DataFrame):
        yield from (row.asDict() for row in fleet.collect())
    elif hasattr(fleet, "to_dict") and hasattr(fleet, "columns"):
        yield from fleet.to_dict("records")
    elif isinstance(fleet, Sequence) and all(isinstance(entry, Mapping) for entry in fleet):
        yield from fleet
    else:
        raise InputError(
            "a fleet is a list of mappings with the keys model and data, or a DataFrame with these columns; got "
            f"{type(fleet).__name__}"
        )


def _entry(number: int, given: Mapping[str, Any], common: Mapping[str, Any], tables: dict[str, DataFrame]) -> Entry:
    own = {k: v for k, v in given.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}
    name = str(own.get("name") or (name_of(own["model"]) if "model" in own else f"entry {number}"))
    if missing := [key for key in ("model", "data") if key not in own]:
        raise InputError(f"{name}: the fleet's entry {number} has no {' and no '.join(missing)}")
    options = {**common, **{k: v for k, v in own.items() if k not in OWN}}
    try:
        checked = Options.of(options)
        path = model_path(os.fspath(own["model"]), Path.cwd()) if isinstance(own["model"], PATH) else None
        model = own["model"] if path is None else load_model(path)
        rows = own["data"] if isinstance(own["data"], DataFrame) else _rows(own["data"], tables)
    except InputError as e:
        raise InputError(f"{name}: {e}") from e
    if not isinstance(model, Transformer):
        raise InputError(f"{name}: {type(model).__name__} is no fitted pipeline: pass the result of its fit()")
    return Entry(name, model, path, rows, options, checked)


def name_of(model: Any) -> str:
    """A short name: the last part of a path, or the uid."""
    if not isinstance(model, PATH):
        return str(getattr(model, "uid", type(model).__name__))
    parts = [part for part in os.fspath(model).rstrip("/").split("/") if part]
    return parts[-2] if len(parts) > 1 and parts[-1] == "model" else parts[-1]


def _rows(data: Any, tables: dict[str, DataFrame]) -> DataFrame:
    if not isinstance(data, PATH):
        raise InputError(
            f"data must be a Spark DataFrame or the path of a file, got {kind_of(data)}; make a DataFrame of a table by "
            "spark.createDataFrame(table)"
        )
    path = os.fspath(data)
    if path not in tables:
        form = format_of(path)
        given = {"path": path, "format": form, "options": CSV if form == "csv" else {}}
        tables[path] = load_data(jvm.session(), given, Path.cwd(), "triage")
    return tables[path]
