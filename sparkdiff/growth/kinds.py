"""The names of the kinds of parts, and what each adds to a pipeline.

Imports no torch, because a job's settings are checked before torch is imported.
"""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """What a reader of a plan is told about a kind of parts.

    Attributes:
        does: what its parts add to the margin.
        stages: classes of the MLlib stages that they may add, in the order in which these stand.
    """

    does: str
    stages: tuple[str, ...]


GATE = ("LinearRegressionModel", "IsotonicRegressionModel", "Bucketizer")
"""Of parts that multiply features: nothing is added in rows with infinite ones."""
KINDS: Mapping[str, Kind] = {
    "units": Kind("hidden units of the features", ("MultilayerPerceptronClassificationModel",)),
    "crosses": Kind("effects of pairs of values of two columns", ("Bucketizer", "OneHotEncoderModel", "Interaction")),
    "shapes": Kind(
        "curves and steps of single columns",
        ("Bucketizer", "OneHotEncoderModel", "VectorAssembler", "IsotonicRegressionModel"),
    ),
    "effects": Kind(
        "an effect of each entity, and slopes of its own by the features",
        ("OneHotEncoderModel", *GATE, "ElementwiseProduct", "VectorAssembler", "Interaction"),
    ),
    "embeddings": Kind(
        "learned coordinates of a category's values, alone or times the features",
        ("OneHotEncoderModel", "PCAModel", *GATE, "VectorAssembler", "Interaction"),
    ),
    "trees": Kind("boosted trees of the columns", ("VectorAssembler", "GBTRegressionModel")),
}
"""In the order in which they are proposed; `parts.KINDS` has a module for each."""
GAPS = ("VectorAssembler", "LinearRegressionModel", "Bucketizer")
"""Further stages for a column that lacks values in some rows: they turn null into NaN, which has a bucket of its own."""
