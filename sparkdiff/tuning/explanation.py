"""What a search would do, told before any job."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sparkdiff.report import Section, ShownFields, Strong
from sparkdiff.tuning import shared_fits, tails
from sparkdiff.tuning.fits import GridTask
from sparkdiff.tuning.scores import judge_of
from sparkdiff.tuning.searching import why_not_at_once
from sparkdiff.tuning.trie import Fit


@dataclass(frozen=True, repr=False)
class Explanation(ShownFields):
    """What a search would do; as text by `str` and `print`.

    Attributes:
        settings, folds: how many maps the grid has, and on how many sets of rows each is judged.
        sparkFits: how many fits Spark's own class makes before the last one, of the winner.
        fits: how many are made here; what is solved at once is none of them.
        solvedAtOnce: how many are solved at once.
        stages: per leaf stage its class, its uid, and in a fold Spark's fits, ours, and those solved at once.
        reasons: how, and why something is left to Spark.
    """

    settings: int
    folds: int
    sparkFits: int
    fits: int
    solvedAtOnce: int
    stages: tuple[dict[str, Any], ...]
    reasons: tuple[str, ...]

    def _headline(self) -> str:
        on = "one split" if self.folds == 1 else f"{self.folds} folds"
        at_once = f", {self.solvedAtOnce:,} more are solved at once" if self.solvedAtOnce else ""
        return f"{self.settings} settings x {on}: Spark makes {self.sparkFits:,} fits, here they are {self.fits:,}{at_once}"

    def _sections(self) -> Iterator[Section]:
        yield Strong(self._headline())
        for s in self.stages:
            if s["sparkFits"]:
                solved = f" and {s['solvedAtOnce']} solved at once" if s["solvedAtOnce"] else ""
                yield f"  {s['stage']}: {s['sparkFits']} fits in a fold, here {s['fits']}{solved}"
        yield from (f"  {r}" for r in self.reasons)


def explained(task: GridTask, folds: int, own: bool = True) -> Explanation:
    """What a search of this task on so many folds would do; `own` is False where pyspark's own class does it."""
    if not own:
        fits = task.sparks_fits * folds
        return Explanation(
            len(task.maps), folds, fits, fits, 0, (), ("Spark Connect: pyspark's own class makes all fits",)
        )
    why, last = why_not_at_once(task), len(task.stages) - 1
    asked = {} if why else tails.asked(task)
    reasons = [*dict.fromkeys(one.why for one in asked.values() if one.why)] if asked else [why]
    at_once = {fit for fit, one in asked.items() if not one.why}
    counts, shared = _fits(task, at_once)
    solved = len(at_once)
    stages = tuple(
        {
            "stage": type(stage).__name__,
            "uid": stage.uid,
            "sparkFits": len(task.maps) if task.estimates(i) else 0,
            "fits": counts[i],
            "solvedAtOnce": solved if i == last else 0,
        }
        for i, stage in enumerate(task.stages)
    )
    told = []
    if solved:
        where = "of all folds" if tails.one_for_all(task) else "of a fold"
        told.append(
            f"all settings {where} are solved at once, if no rows are invalid and no class is missing in a fold"
        )
        told.append(
            f"{type(task.evaluator).__name__} is computed here where that is exact, else by Spark"
            if judge_of(task.evaluator) is not None
            else f"{type(task.evaluator).__name__} is computed by Spark"
        )
        told += tails.notes(task)
    fits = sum(s["fits"] for s in stages)
    return Explanation(
        len(task.maps),
        folds,
        task.sparks_fits * folds,
        fits * folds,
        solved * folds,
        stages,
        (*told, *shared, *reasons),
    )


def _fits(task: GridTask, at_once: set[Fit]) -> tuple[Counter[int], list[str]]:
    """How many fits a fold takes, by the stage's position, but for those solved at once; and what settings share."""
    counts: Counter[int] = Counter()
    shared: list[str] = []
    for place in task.ways_to_fits():
        stage = task.stages[place.after[0].position]
        fits = [fit for fit in place.after if fit not in at_once]
        counts[place.after[0].position] += len(shared_fits.groups(stage, fits))
        shared += shared_fits.told(stage, fits)
    return counts, [*dict.fromkeys(shared)]
