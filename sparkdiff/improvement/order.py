"""The order in which arms are tried: by what worked first on pipelines like this one."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff import jvm
from sparkdiff.errors import SparkdiffError
from sparkdiff.forecasting.arms import COLUMNS, ArmForecaster, PastImprovement, of_store, priors
from sparkdiff.forecasting.facts import facts_of, finite
from sparkdiff.history import store
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.ground import Ground
from sparkdiff.jvm import stores

LEARNED, FIXED = "learned", "fixed"


@dataclasses.dataclass(frozen=True)
class ArmOrder:
    """The order of the arms, and why.

    Attributes:
        arms: by name, the first one first.
        chances: that an arm finds the best pipeline, if there is a better one; empty in the fixed order.
        shipped, own: from how many improvements it was learned: that sparkdiff ships, and of the store.
        why: in words.
        facts: of the pipeline and its rows, from which later improvements learn.
    """

    arms: tuple[str, ...]
    chances: Mapping[str, float] = dataclasses.field(default_factory=dict)
    shipped: int = 0
    own: int = 0
    why: str = ""
    facts: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return f"{', '.join(self.arms)}; {self.why}"


def order_of(ground: Ground, arms: Sequence[Arm]) -> ArmOrder:
    """The order for this pipeline and these rows; the fixed one, the cheap arms first, where none can be learned."""
    names = tuple(arm.name for arm in arms)
    if ground.settings.order == FIXED:
        return ArmOrder(names, why="the cheap ones first, as order='fixed' asks")
    if len(names) < 2:
        return ArmOrder(names, why="there is no other one")
    try:
        facts = finite(facts_of(ground.plan, ground.sources[0].df))
        own = _of_store(ground.options.storeDir)
        found = ArmForecaster([*priors(), *own])(facts, names)
    except Exception as e:  # the order decides nothing: whatever it is, it may not end the improvement
        cause = jvm.cause(e) if isinstance(e, jvm.SparkError) else str(e)
        why = cause if isinstance(e, (SparkdiffError, jvm.SparkError)) else f"{type(e).__name__}: {cause}"
        return ArmOrder(names, why=f"the cheap ones first, as no order can be learned: {why}")
    stored = f" and {len(own):,} of storeDir" if ground.options.storeDir else ""
    why = f"learned from {len(priors()):,} improvements that sparkdiff ships{stored}"
    chances = {f.arm: round(f.probability, 3) for f in found}
    return ArmOrder(tuple(f.arm for f in found), chances, len(priors()), len(own), why, facts)


def _of_store(storeDir: str | None) -> list[PastImprovement]:
    """The improvements of a store, the oldest first; none where there is no store yet."""
    if storeDir is None:
        return []
    folder = jvm.folder("storeDir", storeDir)
    try:
        known = any(name.startswith("run") for name in stores.names(folder))
    except OSError:
        return []
    return of_store(store.rows(folder, COLUMNS)) if known else []


def as_json(order: ArmOrder) -> dict[str, Any]:
    return dataclasses.asdict(order) | {"arms": list(order.arms)}


def of_json(told: Mapping[str, Any]) -> ArmOrder:
    return ArmOrder(**{**told, "arms": tuple(told["arms"])})
