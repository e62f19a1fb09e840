"""Serving costs of a grown pipeline by the table of costs, and the limit on them.

Parts are judged in the rounds, before any of their stages is made. So each part declares the work of its stages, and `Serving`
adds the costs of joining them: indexers, the assembler, and the coefficients of the last stage. `costs.of_model` computes the
same from the stages of the finished pipeline, and `check_cost` compares.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.growth import costs
from sparkdiff.growth.part import Part, Served

SAME = 1e-6
"""Share by which the two sums may differ."""
CHEAPEST: Mapping[str, Served] = {
    "units": Served([("MultilayerPerceptronClassificationModel", 1)], 2),
    "crosses": Served([("OneHotEncoderModel", 2), ("Interaction", 1)], 1),
    "shapes": Served([("OneHotEncoderModel", 1)], 1),
    "effects": Served([("OneHotEncoderModel", 1)], 1),
    "embeddings": Served([("OneHotEncoderModel", 1), ("PCAModel", 1)], 1),
    "trees": Served([("VectorAssembler", 1), ("GBTRegressionModel", 1)], 1),
}
"""Least that serving a part of each kind can take."""


@dataclass(frozen=True)
class Serving:
    """
    Attributes:
        before: microseconds per row of the pipeline without parts.
        limit: largest cost of the grown pipeline in microseconds per row.
        head: class of the last linear stage.
        margins: number of its margins.
        features: number of nonzero entries of a row of its features.
        indexed: columns of the indexers that are added where a part reads them.
    """

    before: float
    limit: float
    head: str
    margins: int
    features: float
    indexed: frozenset[str] = frozenset()

    def cost(self, parts: Sequence[Part]) -> float:
        """Microseconds per row of the pipeline with these parts."""
        return self.cost_of([part.served(self.features) for part in parts])

    def cost_of(self, served: Sequence[Served]) -> float:
        """Microseconds per row of the pipeline with parts that take this."""
        if not served:
            return self.before
        entries = self.features + sum(s.entries for s in served)
        read = {column for s in served for column in s.columns}
        steps = [step for s in served for step in s.steps]
        steps += [("StringIndexerModel", 1.0)] * len(self.indexed & read)
        steps += [("VectorSizeHint", 0.0)]
        wider = self._head(entries) - self._head(self.features)
        return self.before + costs.of_steps(steps) + costs.of("VectorAssembler", entries) + wider

    def share(self, part: Part) -> float:
        """Microseconds per row of this part alone: its stages, and the assembly and coefficients of its outputs."""
        served = part.served(self.features)
        assembled = costs.of("VectorAssembler", served.entries) - costs.of("VectorAssembler", 0)
        return costs.of_steps(served.steps) + assembled + self._head(served.entries) - self._head(0)

    def _head(self, entries: float) -> float:
        return costs.of(self.head, self.margins * entries)


def check_room(serving: Serving, kinds: Sequence[str]) -> None:
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


def check_cost(serving: Serving, parts: Sequence[Part], cost: float) -> None:
    """Raise SparkdiffError if the pipeline's cost differs from that counted for its parts, or exceeds the limit."""
    counted = serving.cost(parts)
    if abs(cost - counted) > SAME * counted or cost > serving.limit * (1 + SAME):
        names = ", ".join(part.name for part in parts)
        raise SparkdiffError(
            f"the grown pipeline costs {cost:.6g} us per row by the table of costs, but {counted:.6g} us were counted for its "
            f"parts ({names}), with a limit of {serving.limit:.6g} us. Nothing was changed. Report this as a bug"
        )
