"""Schedule of the steps from a row's columns to a pipeline's outputs, compiled once, so that a request only runs them.

The values of a request are a list; the place of a value is its index in that list.
"""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.serving.scorer.requests import (
    WHOLE,
    DictRows,
    InputColumn,
    RequestTable,
    as_type,
    is_twofold,
    objects,
    short_repr,
    spelling_of,
    value_of,
)
from sparkdiff.serving.scorer.text.base import BadValueError, TextStage, as_objects
from sparkdiff.stages.base import StageModule
from sparkdiff.tensors.rows import Rows, shape, width

NOWHERE = -1
"""The place of a value that is not needed or does not exist."""
PLACES = {"reads": 0, "writes": 0, "place": 0} | dict.fromkeys(
    ("numbers", "null", "objects", "nulls", "flags", "passed"), NOWHERE
)
"""Names of the attributes of a schedule's parts that hold places, and the least allowed value of each."""
Values = list[Any]
"""Computed values, by place: tensors, sparse rows, null flags (n,), lists."""


@dataclass(frozen=True)
class InputPlaces:
    """A column that a request must have, and the places of its numbers, its null flags and its Python objects."""

    source: InputColumn
    numbers: int = NOWHERE
    null: int = NOWHERE
    objects: int = NOWHERE

    def put(self, column: Any, values: Values) -> None:
        if self.numbers != NOWHERE:
            values[self.numbers], null = column.numbers(self.source)
            if self.null != NOWHERE:
                values[self.null] = null
        if self.objects != NOWHERE:
            values[self.objects] = objects(column, self.source)


@dataclass(frozen=True)
class ScheduledStage:
    """A stage, or a part of one, with its columns and the places of the values that it reads and writes."""

    uid: str
    columns: tuple[str, ...]
    reads: tuple[int, ...]
    writes: tuple[int, ...]


@dataclass(frozen=True)
class TorchStep(ScheduledStage):
    """A step that runs the torch module of a translated stage.

    Attributes:
        nulls: place of each input's null flags; None if the stage doesn't use them.
        flags: place of each output's null flags, if the outputs can be null.
        passed: the place of the null flags that all outputs take over from one input; NOWHERE if an output is null where
            it is NaN.
        wanted, or_more: number of entries that a row of the first input must have (0 for any), and whether it may have
            more.
    """

    module: StageModule
    nulls: tuple[int, ...] | None = None
    flags: tuple[int, ...] = ()
    wanted: int = 0
    or_more: bool = False
    passed: int = NOWHERE

    def run(self, values: Values) -> None:
        given = [values[i] for i in self.reads]
        if self.wanted:
            self.check(given[0])
        # A value without a place for flags is never null: its NaN is NaN.
        nulls = [
            torch.zeros(len(x), dtype=torch.bool) if i == NOWHERE else values[i]
            for x, i in zip(given, self.nulls or (), strict=False)
        ]
        out = self.module.as_stored(self.module.forward(*given, **({} if self.nulls is None else {"nulls": nulls})))
        for i, column in zip(self.writes, out, strict=True):
            values[i] = column
        for i, column in zip(self.flags, out, strict=False):
            if i != NOWHERE and isinstance(column, Tensor):  # sparse rows are never null
                values[i] = column.isnan() if self.passed == NOWHERE else values[self.passed]

    def check(self, x: Rows) -> None:
        if isinstance(x, Tensor) and x.ndim == 1:
            raise InputError(f"{self.uid}: column {self.columns[0]!r} holds null or a number, and it reads vectors")
        found = width(x)
        if found != self.wanted and not (self.or_more and found > self.wanted):
            least = "at least " if self.or_more else ""
            raise InputError(
                f"{self.uid} needs {least}{self.wanted} entries per row in column {self.columns[0]!r}, got {found}"
            )


@dataclass(frozen=True)
class TextStep(ScheduledStage):
    """A step that runs a part of a stage in plain Python."""

    stage: TextStage

    def run(self, values: Values) -> None:
        given = [values[i] for i in self.reads]
        try:
            out = self.stage.run(*given)
        except BadValueError as e:
            named = [c for c, column in zip(self.columns, given, strict=True) if any(v is e.value for v in column)]
            columns = " or ".join(map(repr, named or self.columns))
            raise InputError(f"{self.uid}: column {columns} holds {short_repr(e.value)}, {e}") from None
        for i, column in zip(self.writes, out, strict=True):
            values[i] = column


@dataclass(frozen=True)
class ObjectsStep(ScheduledStage):
    """A step that converts computed numbers to Python objects for a stage in Python; `kind` is their type in Spark."""

    null: int
    kind: str

    def run(self, values: Values) -> None:
        null = None if self.null == NOWHERE else values[self.null]
        column = values[self.reads[0]]
        if not isinstance(column, Tensor) or column.ndim != 1:
            raise InputError(f"{self.uid} reads numbers or text, and column {self.columns[0]!r} holds vectors")
        values[self.writes[0]] = as_objects(column, null, self.kind)


Step = TorchStep | TextStep | ObjectsStep


@dataclass(frozen=True)
class OutputColumn:
    """A returned column: its name, its place, the place of its null flags, and its type in Spark."""

    name: str
    place: int
    null: int
    kind: str


@dataclass(frozen=True)
class Schedule:
    """Compiled form of a pipeline: all that is needed to answer a request.

    Attributes:
        places: the number of values, i.e. of places.
        sensitive: True if column names are case-sensitive.
        assumptions: assumptions about the data, made because no schema was passed.
        dropping: uids of the stages that raise an error here on rows that they drop in Spark.
    """

    entries: tuple[InputPlaces, ...]
    steps: tuple[Step, ...]
    outputs: tuple[OutputColumn, ...]
    places: int
    sensitive: bool
    assumptions: tuple[str, ...]
    dropping: frozenset[str] = frozenset()

    @property
    def casefold(self) -> Callable[[str], str]:
        return str if self.sensitive else str.lower

    def check(self) -> None:
        """Raise InputError for a step of another class, a column without a path, an invalid place, or more places than
        the schedule's parts use (the schedule may come from a file).
        """
        if other := [
            *(type(step).__name__ for step in self.steps if type(step) not in get_args(Step)),
            *(repr(entry.source.name) for entry in self.entries if not entry.source.path),
        ]:
            raise InputError(f"{other[0]} is no step or column of a saved scorer")
        named = [("places", self.places - 1, NOWHERE)] + [
            (f"{group}.{i}.{key}", place, PLACES[key])
            for group in ("entries", "steps", "outputs")
            for i, part in enumerate(getattr(self, group))
            for key, held in vars(part).items()
            if key in PLACES and not (key == "nulls" and held is None)
            for place in (held if isinstance(held, tuple) else (held,))
        ]
        for where, place, least in named:
            if type(place) is not int or not least <= place < min(self.places, len(named)):
                raise InputError(
                    f"{where} is {short_repr(place)}, which is no index of the {min(self.places, len(named))} values in use"
                )

    def of_table(self, table: RequestTable, steps: Iterable[Any]) -> Values:
        """Values that the steps compute for these rows."""
        values: Values = [None] * self.places
        casefold = self.casefold
        for entry in self.entries:
            entry.put(table.read(entry.source, casefold), values)
        return run(steps, values, self.dropping)

    def of_row(self, row: Mapping[str, Any], steps: Iterable[Any]) -> Values:
        """Values that the steps compute for one row; like `of_table`, but faster: one tensor holds all plain numbers."""
        values: Values = [None] * self.places
        found: list[float] = []
        places: list[int] = []
        if not self.sensitive and is_twofold(row, str.lower):
            for entry in self.entries:
                spelling_of(entry.source.path[0], list(row), self.casefold)
        for entry in self.entries:
            source = entry.source
            try:
                v = row[source.name] if len(source.path) == 1 else value_of(row, source, self.casefold)
            except KeyError:
                v = value_of(row, source, self.casefold)
            kind = type(v)
            plain = (
                v is None
                or (kind is float and source.kind in FLOATS)
                or (kind is int and -(top := WHOLE.get(source.kind, LONG)) - 1 <= v <= top)
            )
            own = source.vectors or source.kind == "float" or (source.kind and entry.objects != NOWHERE)
            if (
                own and entry.numbers == NOWHERE and not source.vectors and (plain or kind is str)
            ):  # the common case, without a table
                values[entry.objects] = [as_type(v, source, source.kind)]
                continue
            if (not plain and kind is not str) or own:
                entry.put(DictRows([row], self.casefold).read(source, self.casefold), values)
                continue
            if entry.objects != NOWHERE:
                values[entry.objects] = [v]
            if entry.numbers != NOWHERE:
                if not plain:
                    raise source.bad(v, "which is no number but str")
                found.append(math.nan if v is None else v)
                places.append(entry.numbers)
                if entry.null != NOWHERE:
                    values[entry.null] = NULL if v is None else THERE
        if found:
            columns = torch.tensor(list(map(float, found)), dtype=torch.float64).unsqueeze(1).unbind()
            for place, column in zip(places, columns, strict=True):
                values[place] = column
        return run(steps, values, self.dropping)


def run(steps: Iterable[Any], values: Values, dropping: Collection[str] = ()) -> Values:
    """Run the steps one after the other.

    Args:
        dropping: see `Schedule`.

    Raises:
        InputError: a stage fails on these values. The message names the stage, and the shapes of its inputs if torch
            fails.
    """
    for step in steps:
        try:
            step.run(values)
        except InputError as e:
            if step.uid not in dropping:
                raise
            what = str(e).split(", which ")[0].split(", and handleInvalid")[0]
            raise InputError(
                f"{what}: Spark drops such a row (handleInvalid='skip'), and a request has an answer for each row; leave it out"
            ) from None
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as e:  # the attributes of a stage from a file may cause any error
            shapes = ", ".join(
                f"{c!r} {'nothing' if values[i] is None else shape(values[i])}"
                for c, i in zip(step.columns, step.reads, strict=False)
            )
            raise InputError(f"{step.uid} can't compute on columns of these shapes: {shapes} ({e})") from e
    return values


FLOATS = frozenset(("", "double", "float"))
"""Types that accept any float unchanged; "" is the type of a column without a schema."""
LONG = (1 << 63) - 1
"""Largest bigint. Integers beyond it may be too large even for a double."""
NULL, THERE = torch.tensor([True]), torch.tensor([False])
