"""The numbers that a pipeline itself gives to the classes, with a StringIndexer. A fit on other rows may number the
classes differently.
"""

from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from pyspark.ml.feature import StringIndexerModel

from sparkdiff.errors import InputError
from sparkdiff.pipeline.column_names import casefolding
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.stages.base import columns_of


def classes_of(model: Any, column: str | None) -> tuple[str, ...]:
    """Classes that a StringIndexer of a fitted pipeline (or of its RFormula) numbers 0, 1, ... in a column, in this
    order; empty if no StringIndexer writes the column.
    """
    casefold, found = casefolding(), tuple[str, ...]()
    for stage in (stage for _, stage in flatten(model) if isinstance(stage, StringIndexerModel)):
        written = zip(columns_of(stage, ("outputCol", "outputCols")), stage.labelsArray, strict=False)
        found = next((tuple(classes) for name, classes in written if casefold(name) == casefold(column or "")), found)
    return found


def check_same_classes(
    first: Sequence[str], other: Sequence[str], column: str | None, where: str, first_where: str = "the first fold"
) -> None:
    """Raise InputError if two fits of a pipeline, with the classes `first` and `other`, number the classes differently.

    Args:
        where, first_where: names of the rows of the second and of the first fit, for the message.
    """
    for k, (one, two) in enumerate(zip_longest(first, other)):
        if one != two:
            raise InputError(
                f"class {k} of labelCol={column!r} is {one!r} in {first_where}, but {two!r} in {where}: number the classes by a "
                "StringIndexer with stringOrderType='alphabetAsc' (in front of an RFormula, which has none for its label), and "
                "leave out classes that a fold lacks"
            )
