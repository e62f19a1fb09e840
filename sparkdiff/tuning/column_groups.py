"""Groups of a feature vector's slots (entries) by the data columns that they come from, as the fitted stages show."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pyspark.ml.feature import (
    ElementwiseProduct,
    MaxAbsScalerModel,
    MinMaxScalerModel,
    RobustScalerModel,
    StandardScalerModel,
    VectorAssembler,
)
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.schema import width_in
from sparkdiff.stages.base import columns_of

BY_SLOT = (ElementwiseProduct, MaxAbsScalerModel, MinMaxScalerModel, RobustScalerModel, StandardScalerModel)
"""Stages that write each slot from the same slot of their input."""


@dataclass(frozen=True)
class Groups:
    """The group of each slot of a vector.

    Attributes:
        names: names of the groups.
        of_slot: (d,), for each slot the index of its group in `names`.
    """

    names: tuple[str, ...]
    of_slot: Tensor


@dataclass(frozen=True)
class ColumnPart:
    """A column that is part of a vector.

    Attributes:
        stages: uids of all stages that make the column or that its slots pass through on their way into the vector.
    """

    column: str
    stages: frozenset[str]


def parts_of(column: str, stages: Sequence[Any], behind: frozenset[str] = frozenset()) -> list[ColumnPart]:
    """The columns that make up the vector `column`, in their order; `behind` are uids of later stages that it went through."""
    for place in reversed(range(len(stages))):
        stage, before = stages[place], stages[:place]
        if column not in written_by(stage):
            continue
        if type(stage) is VectorAssembler:
            return [part for name in stage.getInputCols() for part in parts_of(name, before, behind | {stage.uid})]
        if type(stage) in BY_SLOT:
            return parts_of(stage.getInputCol(), before, behind | {stage.uid})
        break
    return [ColumnPart(column, behind | upstream(column, stages))]


def upstream(column: str, stages: Sequence[Any]) -> frozenset[str]:
    """Uids of the stage that makes a column and of all earlier stages that its inputs come from."""
    for place in reversed(range(len(stages))):
        stage = stages[place]
        if column in written_by(stage):
            return frozenset({stage.uid}).union(*(upstream(name, stages[:place]) for name in read_by(stage)))
    return frozenset()


def read_by(stage: Any) -> list[str]:
    """The columns that a stage reads, as far as its Params name them."""
    written = written_by(stage)
    names = [p.name for p in stage.params if p.name.endswith(("Col", "Cols")) and stage.isDefined(p)]
    found = [stage.getOrDefault(name) for name in names]
    columns = [c for one in found for c in (one if isinstance(one, (list, tuple)) else [one])]
    return [c for c in columns if c not in written]


def written_by(stage: Any) -> tuple[str, ...]:
    """The columns that a stage adds, as far as its Params name them."""
    return columns_of(stage, ("outputCol", "outputCols", "predictionCol", "probabilityCol", "rawPredictionCol"))


def widths_of(columns: Sequence[str], rows: DataFrame) -> dict[str, int]:
    """Number of slots of each column: from the schema, else from the first row without nulls in the columns whose
    width the schema doesn't tell.

    Raises:
        InputError: no row has a value in all of these columns.
    """
    own = rows.select(*(F.col(name).alias(f"c{i}") for i, name in enumerate(columns))).schema  # as Spark finds them
    found = {
        name: (width_in(field) or 0) if isinstance(field.dataType, VectorUDT) else 1
        for name, field in zip(columns, own.fields, strict=True)
    }
    if unknown := [name for name, size in found.items() if not size]:
        first = rows.select(*map(F.col, unknown)).dropna().head()
        if first is None:
            raise InputError(f"no row has a value in {' and '.join(unknown)}, so their number of slots is not known")
        found |= {name: len(vector) for name, vector in zip(unknown, first, strict=True)}
    return found


def groups_of(asked: Any, column: str, stages: Sequence[Any], rows: DataFrame, width: int) -> Groups:
    """The groups of a vector's slots.

    Args:
        asked: "columns": a group for each column that is part of the vector, or for each slot if there is only one such
            column (as without VectorAssembler); or a dict of name -> columns or slot numbers: the slots of
            a column that are in no group form their own group.
        rows: rows with all columns that the stages write.

    Raises:
        InputError: a group can't be made. The message says why.
    """
    parts = [part.column for part in parts_of(column, stages)]
    widths = widths_of(parts, rows)
    slots = [part for part in parts for _ in range(widths[part])]
    if len(slots) != width:
        raise InputError(
            f"{column!r} has {width} slots, but its columns {', '.join(parts)} have {len(slots)} in all: give "
            "groups={name: [indices of slots], ...}"
        )
    if asked == "columns":
        return _groups_from_names([f"{column}[{i}]" for i in range(width)] if len(parts) == 1 else slots)
    if not isinstance(asked, Mapping) or not asked:
        raise InputError(f"groups must be 'columns' or a dict of name -> columns or indices of slots, got {asked!r}")
    names, taken = list(slots), dict[int, str]()
    for name, members in ((str(name), members) for name, members in asked.items()):
        for member in [members] if isinstance(members, (str, int, np.integer)) else members:
            for slot in _slots(name, member, slots):
                if taken.get(slot, name) != name:
                    raise InputError(f"groups: {taken[slot]!r} and {name!r} both have {member!r}")
                taken[slot] = names[slot] = name
    for name in {*taken.values()} & {*slots}:
        if any(slots[i] == name and i not in taken for i in range(len(slots))):
            raise InputError(
                f"groups: {name!r} is a column of the features that its group does not have: choose another name"
            )
    if len({*map(str, asked)}) < len(asked):
        raise InputError(f"groups: two names are the same text: {', '.join(map(repr, asked))}")
    return _groups_from_names(names)


def _slots(name: str, member: Any, slots: Sequence[str]) -> list[int]:
    if isinstance(member, str):
        found = [i for i, column in enumerate(slots) if column == member]
        if not found:
            raise InputError(
                f"groups: {name!r} has the column {member!r}, which is no part of the features. "
                f"{did_you_mean(member, {*slots})}"
            )
        return found
    if isinstance(member, bool) or not isinstance(member, (int, np.integer)) or not 0 <= member < len(slots):
        raise InputError(f"groups: {name!r} has {member!r}; a slot is a number from 0 to {len(slots) - 1}")
    return [int(member)]


def _groups_from_names(names: Sequence[str]) -> Groups:
    order = {name: i for i, name in enumerate(dict.fromkeys(names))}
    return Groups(tuple(order), torch.tensor([order[name] for name in names]))
