"""Choice of one of several alternative stages at each place of a pipeline, by training a mixture of their features.

The features of every alternative are written once. A linear model reads the features of all alternatives together.
Gates, which are trained along with the model's penalties on the validation rows, choose the alternative
(`hypergradients.choose_alternatives`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.sql import DataFrame, functions as F
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import col_by_name
from sparkdiff.pipeline.column_tensors import fetch_columns
from sparkdiff.tuning.cached_rows import InputColumns, classes_told
from sparkdiff.tuning.column_groups import ColumnPart, parts_of, widths_of
from sparkdiff.tuning.fits import leaves_of
from sparkdiff.tuning.group_penalties import LARGEST, MOST, SINGLES, linear_estimator
from sparkdiff.tuning.hypergradients import ChosenAlternatives, choose_alternatives, linear_model
from sparkdiff.tuning.hypergradients.gates import STEPS
from sparkdiff.tuning.solvers import Chunk

NEAR = 1e-6
"""Tolerance for rounding differences between two fits of the same stage, as a share of a column's largest number."""
HELD, DATA = "__sparkdiff_held", "__sd_data"
"""Temporary columns: a mark (0 for validation rows, -1 for training rows), and a struct of all columns of the data."""


@dataclass(frozen=True)
class Variant:
    """A pipeline with one alternative per place.

    Attributes:
        column: index of the variant's feature column among those of all variants.
        parts: the columns that make up the feature vector, with their numbers of slots (entries).
    """

    column: int
    parts: tuple[tuple[ColumnPart, int], ...]

    def slots(self, which: Sequence[int]) -> list[int]:
        """The slot numbers of the parts with these indices."""
        starts = [0, *accumulate(width for _, width in self.parts)]
        return [slot for i in which for slot in range(starts[i], starts[i + 1])]

    def without(self, others: Sequence["Variant"]) -> list[int]:
        """Indices of this variant's parts that at least one of the others lacks."""
        return [i for i, part in enumerate(self.parts) if not all(part in other.parts for other in others)]


def soft_choice(
    variants: Mapping[str, Sequence[Any]],
    train: DataFrame,
    validation: DataFrame,
    *,
    singles: Sequence[float] = SINGLES,
    steps: int = STEPS,
    fits: Sequence[float] = (),
) -> ChosenAlternatives:
    """Choose the alternative of each place by training.

    Args:
        variants: name of a place -> one estimator for each alternative at this place; all other places have their first
            alternative.
        fits: penalties to try for the last stage after the chosen alternatives; empty: any of `singles`.

    Raises:
        InputError: the last stage isn't linear, two places change the same features, or a place changes features
            without a Param that names them. The message names the stage or the places.
    """
    names, some = [*variants], [*variants.values()]
    estimators = [some[0][0], *(one for place in some for one in place[1:])]
    last = leaves_of(estimators[0], lambda _pipeline: False)[-1]
    asked = linear_estimator(last)
    fitted = [_fit_before_last(estimator, train) for estimator in estimators]
    both = train.withColumn(HELD, F.lit(-1.0)).unionByName(validation.withColumn(HELD, F.lit(0.0)))
    known = [_variant(k, model, asked.reads.features, train) for k, model in enumerate(fitted)]
    rest = iter(known[1:])
    places = [[known[0], *(next(rest) for _ in place[1:])] for place in some]
    fixed, blocks = _blocks(known[0], names, places)
    chunk, x, classes = _read(both, fitted, asked.reads)
    for name, place, block in zip(names, places, blocks, strict=True):
        _check_others(x, name, place, block[0])
    pieces, group, numbers = _columns(x, known[0], fixed, places, blocks)
    features = torch.cat(pieces, 1)
    _check(features)
    chunk = Chunk(features, chunk.label, chunk.weight, chunk.offset, chunk.fold)
    kind = type(last).__name__
    classes = _classes(chunk.label, classes, asked.reads.label) if kind == "LogisticRegression" else 0
    model = linear_model(kind, lambda: iter([chunk]), asked.setting, group, classes)
    found = choose_alternatives(model, numbers, singles, steps, fits=fits) if model is not None else None
    if found is None:
        raise InputError(
            f"method='hypergradient': no fit of {last.uid} on the features of all alternatives converges; are all "
            "features and labels finite?"
        )
    return found


def _check_others(x: Sequence[Tensor], name: str, place: Sequence[Variant], changed: Sequence[int]) -> None:
    """Check that alternatives change only the features that their Params name.

    Args:
        changed: the parts of the first alternative that the others may change.

    Raises:
        InputError: another part changes as well. This happens with stages such as an SQLTransformer, whose Params don't
            name the columns that it reads and writes.
    """
    base = place[0]
    for i in (i for i in range(len(base.parts)) if i not in changed):
        own = x[base.column][:, base.slots([i])]
        for other in place[1:]:
            found = x[other.column][:, other.slots([other.parts.index(base.parts[i])])]
            if bool(((found - own).abs() > NEAR * own.abs().amax(0)).any()):
                raise InputError(
                    f"method='hypergradient' cannot be used: {name} also affects {base.parts[i][0].column!r}, through a stage "
                    "whose Params do not name the columns that it reads and writes; use another method"
                )


def _check(features: Tensor) -> None:
    count, width = features.shape
    if width > MOST:
        raise InputError(
            f"method='hypergradient': the alternatives have {width:,} features in all, and at most {MOST:,} are possible: "
            "leave some out, or use another method"
        )
    if count * width > LARGEST:
        raise InputError(
            f"method='hypergradient': {count:,} rows x {width} features of all alternatives do not fit into memory: pass a "
            "sample of the rows"
        )


def _classes(label: Tensor, told: int, name: str) -> int:
    """The number of classes.

    Raises:
        InputError: a label isn't a class (a whole number from 0 to `MOST`). The message names such a label.
    """
    wrong = label[~((label >= 0) & (label == label.floor()) & (label <= MOST))]
    if len(wrong):
        raise InputError(
            f"labelCol={name!r} holds {float(wrong[0]):g}, but classes are whole numbers from 0 to {MOST:,}: index the labels"
        )
    return max(told, int(label.max()) + 1)


def _fit_before_last(estimator: Any, train: DataFrame) -> Any:
    *before, _ = leaves_of(estimator, lambda _pipeline: False)
    return Pipeline(stages=before).fit(train) if before else PipelineModel([])


def _variant(column: int, model: Any, features: str, train: DataFrame) -> Variant:
    parts, rows = parts_of(features, model.stages), model.transform(train)
    widths = widths_of([part.column for part in parts], rows)
    return Variant(column, tuple((part, widths[part.column]) for part in parts))


def _blocks(
    base: Variant, names: Sequence[str], places: Sequence[Sequence[Variant]]
) -> tuple[list[int], list[list[list[int]]]]:
    """Indices of the parts that no place changes, and for each place and alternative the indices of the parts that the
    place changes.

    Raises:
        InputError: a part of the features is changed at two places, or a place changes nothing.
    """
    blocks = [[one.without(place) for one in place] for place in places]
    taken: dict[int, str] = {}
    for name, place in zip(names, blocks, strict=True):
        if not any(place):
            raise InputError(f"method='hypergradient': {name} changes no features of the last stage")
        for part in place[0]:
            if part in taken:
                raise InputError(
                    f"method='hypergradient': {taken[part]} and {name} both change {base.parts[part][0].column!r}, and a "
                    "mixture of alternatives needs places that change different columns: take another method"
                )
            taken[part] = name
    return [i for i in range(len(base.parts)) if i not in taken], blocks


def _read(rows: DataFrame, fitted: Sequence[Any], reads: InputColumns) -> tuple[Chunk, list[Tensor], int]:
    """All rows with the first variant's features, the features of each variant, and the number of classes in the
    metadata (0 if unknown); takes one job.
    """
    # A stage may overwrite a column that it reads, so each variant gets the original columns.
    base, kept, classes = rows.columns, ["__sd_label", "__sd_weight", "__sd_offset"], 0
    rows = rows.withColumn(DATA, F.struct(*map(col_by_name, base)))
    for k, model in enumerate(fitted):
        out = model.transform(rows)
        new = [col_by_name(reads.features).alias(f"__sd_x{k}")]
        if k == 0:
            classes = classes_told(out.schema, reads.label) or 0
            new += [
                col_by_name(reads.label).cast("double").alias("__sd_label"),
                (col_by_name(reads.weight).cast("double") if reads.weight else F.lit(1.0)).alias("__sd_weight"),
                (col_by_name(reads.offset).cast("double") if reads.offset else F.lit(0.0)).alias("__sd_offset"),
            ]
        old = [*(kept if k else []), *(f"__sd_x{j}" for j in range(k))]
        rows = out.select(*(F.col(DATA).getField(c).alias(c) for c in base), DATA, *old, *new)
    names = [*kept, HELD, *(f"__sd_x{k}" for k in range(len(fitted)))]
    columns = fetch_columns(rows.select(*names), names)
    if not columns:
        raise InputError("method='hypergradient': there are no rows")
    label, weight, offset, fold = columns[:4]
    chunk = Chunk(columns[4], label, weight, offset if reads.offset else None, fold.long())
    return chunk, columns[4:], classes


def _columns(
    x: Sequence[Tensor],
    base: Variant,
    fixed: Sequence[int],
    places: Sequence[Sequence[Variant]],
    blocks: Sequence[Sequence[Sequence[int]]],
) -> tuple[list[Tensor], Tensor, list[list[list[int]]]]:
    """Blocks of feature columns, one per unchanged part and per alternative with features; for each column its group,
    which is the number of its block; and for each place and alternative a list with the alternative's group, empty if
    the alternative has no features.
    """
    pieces: list[Tensor] = []
    group: list[Tensor] = []
    numbers: list[list[list[int]]] = []

    def add(variant: Variant, parts: Sequence[int]) -> list[int]:
        slots = variant.slots(parts)
        if not slots:
            return []
        pieces.append(x[variant.column][:, slots])
        group.append(torch.full((len(slots),), len(group)))
        return [len(group) - 1]

    for part in fixed:
        add(base, [part])
    for place, alternatives in zip(places, blocks, strict=True):
        numbers.append([add(variant, parts) for variant, parts in zip(place, alternatives, strict=True)])
    return pieces, torch.cat(group), numbers
