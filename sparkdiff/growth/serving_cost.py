"""Serving cost of a grown pipeline according to the cost table, and the limit on this cost.

The rounds check the limit before any stage of a part is made. So each part declares the work of its stages, and
`ServingCostModel` adds the costs of joining the parts to the pipeline: indexers, the assembler, and more coefficients of the
last stage. `cost_table.of_model` computes the same cost from the stages of the finished pipeline; `check_cost` compares the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.growth import cost_table
from sparkdiff.growth.part import Part, ServingWork

SAME = 1e-6
"""Largest relative difference between two costs that count as equal."""
CHEAPEST: Mapping[str, ServingWork] = {
    "units": ServingWork([("MultilayerPerceptronClassificationModel", 1)], 2),
    "crosses": ServingWork([("OneHotEncoderModel", 2), ("Interaction", 1)], 1),
    "shapes": ServingWork([("OneHotEncoderModel", 1)], 1),
    "effects": ServingWork([("OneHotEncoderModel", 1)], 1),
    "embeddings": ServingWork([("OneHotEncoderModel", 1), ("PCAModel", 1)], 1),
    "trees": ServingWork([("VectorAssembler", 1), ("GBTRegressionModel", 1)], 1),
}
"""Kind of parts -> the smallest possible work of serving such a part."""


@dataclass(frozen=True)
class ServingCostModel:
    """Model of the serving cost of a pipeline with parts.

    Attributes:
        before: microseconds per row of the pipeline without parts.
        limit: largest allowed cost of the grown pipeline in microseconds per row; infinite without a limit.
        head: class of the last linear stage.
        margins: number of margins of the last linear stage.
        features: number of nonzero entries per row of the features of the last linear stage.
        indexed: output columns of the indexers of entities; an indexer is added if a part reads its column.
    """

    before: float
    limit: float
    head: str
    margins: int
    features: float
    indexed: frozenset[str] = frozenset()

    def cost(self, parts: Sequence[Part]) -> float:
        """Microseconds per row of the pipeline with these parts."""
        return self.cost_of([part.serving_work(self.features) for part in parts])

    def cost_of(self, served: Sequence[ServingWork]) -> float:
        """Microseconds per row of the pipeline with parts that need this work."""
        if not served:
            return self.before
        entries = self.features + sum(s.entries for s in served)
        read = {column for s in served for column in s.columns}
        steps = [step for s in served for step in s.steps]
        steps += [("StringIndexerModel", 1.0)] * len(self.indexed & read)
        steps += [("VectorSizeHint", 0.0)]
        wider = self._head(entries) - self._head(self.features)
        return self.before + cost_table.of_steps(steps) + cost_table.of("VectorAssembler", entries) + wider

    def share(self, part: Part) -> float:
        """Microseconds per row of one part alone: its stages, and the assembly and the coefficients of its outputs."""
        served = part.serving_work(self.features)
        assembled = cost_table.of("VectorAssembler", served.entries) - cost_table.of("VectorAssembler", 0)
        return cost_table.of_steps(served.steps) + assembled + self._head(served.entries) - self._head(0)

    def _head(self, entries: float) -> float:
        return cost_table.of(self.head, self.margins * entries)


def check_room(serving: ServingCostModel, kinds: Sequence[str]) -> None:
    """Raise InputError if the limit leaves no room for any part of these kinds."""
    least = min(serving.cost_of([CHEAPEST[kind]]) for kind in kinds)
    if least > serving.limit:
        before, more = serving.before, least - serving.before
        wanted = math.ceil(100 * (1 + 1.5 * more / before)) / 100
        raise InputError(
            f"maxServingCost={serving.limit / before:g} leaves {serving.limit - before:.3g} us per row beside the "
            f"{before:.3g} us that the pipeline costs now, but the cheapest part costs {more:.3g} us: set it to {wanted:g} or "
            "more"
        )


def check_cost(serving: ServingCostModel, parts: Sequence[Part], cost: float) -> None:
    """Raise SparkdiffError if the cost of the finished pipeline exceeds the limit or differs from the cost counted for its parts.

    Args:
        cost: microseconds per row, computed from the stages of the finished pipeline.
    """
    counted = serving.cost(parts)
    if abs(cost - counted) > SAME * counted or cost > serving.limit * (1 + SAME):
        names = ", ".join(part.name for part in parts)
        raise SparkdiffError(
            f"the grown pipeline costs {cost:.6g} us per row by the table of costs, but {counted:.6g} us were counted for its "
            f"parts ({names}), with a limit of {serving.limit:.6g} us. Nothing was changed. Report this as a bug"
        )
