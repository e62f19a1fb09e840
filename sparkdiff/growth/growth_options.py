"""Kinds of parts (stages that growth adds), and the options that only growth has: the source of Params, checks and help.

This module imports no torch, because a job's settings are checked before torch is imported.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparkdiff.options import OptionGroup, convert_all, option, refuse


@dataclasses.dataclass(frozen=True)
class PartKind:
    """Description of a kind of parts, for a plan.

    Attributes:
        does: text on what the parts of this kind add to the margin.
        stages: classes of the MLlib stages that these parts may add, in pipeline order.
    """

    does: str
    stages: tuple[str, ...]


GATE = ("LinearRegressionModel", "IsotonicRegressionModel", "Bucketizer")
"""Further stages of parts that multiply features. They make these products add nothing in rows with infinite or NaN
features."""
KINDS: Mapping[str, PartKind] = {
    "units": PartKind("hidden units of the features", ("MultilayerPerceptronClassificationModel",)),
    "crosses": PartKind(
        "effects of pairs of values of two columns", ("Bucketizer", "OneHotEncoderModel", "Interaction")
    ),
    "shapes": PartKind(
        "curves and steps of single columns",
        ("Bucketizer", "OneHotEncoderModel", "VectorAssembler", "IsotonicRegressionModel"),
    ),
    "effects": PartKind(
        "an effect of each entity, and slopes of its own by the features",
        ("OneHotEncoderModel", *GATE, "ElementwiseProduct", "VectorAssembler", "Interaction"),
    ),
    "embeddings": PartKind(
        "learned coordinates of a category's values, alone or times the features",
        ("OneHotEncoderModel", "PCAModel", *GATE, "VectorAssembler", "Interaction"),
    ),
    "trees": PartKind("boosted trees of the columns", ("VectorAssembler", "GBTRegressionModel")),
}
"""Kinds of parts, in the order in which they are proposed; `parts.KINDS` has the module of each kind."""
GAPS = ("VectorAssembler", "LinearRegressionModel", "Bucketizer")
"""Further stages of parts for columns that lack values in some rows. They turn null into NaN, which gets its own bucket."""


@dataclasses.dataclass(frozen=True)
class GrowthSettings(OptionGroup):
    """Options of one growth. `GrowthSettings.of` creates them, and raises one error for all problems."""

    # fmt: off
    parts: tuple[str, ...] = option(tuple(KINDS), f"kinds of parts to try: {', '.join(KINDS)}", items="kinds of parts", choices=tuple(KINDS))
    rounds: int = option(6, "largest number of rounds; in each one part joins at most", low=1)
    entityCols: tuple[str, ...] = option((), "columns that name users, items or shops, whose effects may be learned; the pipeline need not read them", items="column names")
    maxServingCost: float | None = option(None, "largest cost of serving the result, as a multiple of what the pipeline costs now, by a table of costs per stage; if unset, no limit", kind=float, low=1)
    complexity: float = option(0.1, "strength of the penalty on a part's complexity: a part joins if it gains more than this times sqrt(log(1 + its parameters) / training rows) times the size of what it adds", low=0)
    maxLoss: float = option(0.005, "share of the original's metric that a part has to gain to join, and that may be lost where a part is dropped at the end; 0 drops none", low=0, high=1)
    dropColumns: bool = option(False, "whether a last stage drops the columns that growth adds, from Spark 4.0 on; if not, it puts them behind all others")
    # fmt: on

    @staticmethod
    def of(given: Mapping[str, Any]) -> "GrowthSettings":
        """Options from names and values.

        Raises:
            InputError: a key is unknown, or a value has a wrong type or is out of bounds. The message names all of them.
        """
        values, problems = convert_all(given, FIELDS, "Grower")
        refuse(problems)
        return GrowthSettings(**values)


FIELDS = {field.name: field for field in dataclasses.fields(GrowthSettings)}
