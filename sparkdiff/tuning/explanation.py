"""What a search would do, told before any job."""

from dataclasses import asdict, dataclass
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.tuning.fits import Task


@dataclass(frozen=True)
class Explanation:
    """What a search would do; `print` shows it as text.

    Attributes:
        settings, folds: how many maps the grid has, and how often each is judged.
        sparkFits: how many fits Spark's own class makes before the last one.
        fits: how many of them are made here.
        solvedAtOnce: how many are solved at once instead.
        stages: per leaf stage its class, uid, and the fits of Spark and ours in a fold.
        reasons: why something is left to Spark.
    """

    __module__ = "sparkdiff"

    settings: int
    folds: int
    sparkFits: int
    fits: int
    solvedAtOnce: int
    stages: tuple[dict[str, Any], ...]
    reasons: tuple[str, ...]

    def toDict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        of = "1 split" if self.folds == 1 else f"{self.folds} folds"
        lines = [f"{self.settings} settings x {of}: Spark makes {self.sparkFits:,} fits, here they are {self.fits:,}"]
        if self.solvedAtOnce:
            lines[0] += f", and {self.solvedAtOnce:,} are solved at once"
        for s in self.stages:
            if s["sparkFits"]:
                lines.append(f"  {s['stage']}: {s['sparkFits']} fits a fold, here {s['how']}")
        return "\n".join([*lines, *(f"  {reason}" for reason in self.reasons)])


def explained(task: Task, folds: int, dataset: DataFrame) -> Explanation:
    counts = dict.fromkeys(range(len(task.stages)), 0)
    for fit in task.root.below():
        counts[fit.position] += 1
    stages = []
    for i, stage in enumerate(task.stages):
        estimates = task.estimates(i)
        stages.append({
            "stage": type(stage).__name__, "uid": stage.uid, "sparkFits": len(task.maps) if estimates else 0,
            "fits": counts[i] if estimates else 0, "how": str(counts[i]),
        })  # fmt: skip
    return Explanation(len(task.maps), folds, task.sparks_fits * folds, task.fits * folds, 0, tuple(stages), ())
