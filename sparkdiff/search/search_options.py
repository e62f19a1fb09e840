"""The options of a search, in one list, from which the Params of `Search`, their checks and their help are made."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from sparkdiff.options import convert_all, option, refuse, without_effect


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options of one search. `Settings.of` creates them: it checks all values and raises one error for all problems."""

    # fmt: off
    method: str = option("trials", "trials, or hypergradient: a linear last stage gets a penalty for each column of features, and alternatives are chosen, by the slope of its loss on validation rows", choices=("trials", "hypergradient"))
    sampler: str = option("tpe", "which settings are tried next: grid, random, recursiveRandom, gp, tpe, cmaes or nsga2", choices="sparkdiff.search.samplers")
    pruner: str | None = option(None, "which trials end early: none if unset, or median, halving, hyperband, bohb (Hyperband with TPE)", kind=str, choices="sparkdiff.search.rungs")
    resource: str = option("auto", "what a pruned trial has less of: rows, or a Param of the last stage, such as maxIter; auto takes epochs or trees where the last stage has them, else rows")
    minResource: float | None = option(None, "the resource that a pruned trial starts with at least: a share of the rows, or a number of epochs or trees; if unset, 1/27 of the whole, 1/9 of boosted trees", kind=float, low=0, openLow=True)
    numTrials: int = option(30, "number of trials; a grid is always searched as a whole", low=1)
    maxSeconds: float | None = option(None, "seconds of trials after which no other batch begins, those before a kill included; if unset, no limit", kind=float, low=0, openLow=True)
    validationFraction: float = option(0.2, "share of the rows that chooses among trials, where they are not in folds", low=0, high=1, openLow=True, openHigh=True)
    numFolds: int | str = option("auto", "folds, 2 to 20: the first chooses among trials, the others decide, each by models that were fitted without it, and all rows fit what ships; by time, four stretches of it in place of folds; 0 keeps testFraction of the rows fresh instead; auto takes what shows smaller gains", kind=int, low=0, high=20, words=("auto",))
    testFraction: float = option(0.2, "share of the rows that no trial sees, on which the winner is compared with the default, where they are not in folds", low=0, high=1, openLow=True, openHigh=True)
    groupCol: str | None = option(None, "group column: all rows of a group are in the same part, and the winner is tested by group", kind=str)
    timeCol: str | None = option(None, "time column: the latest rows are the fresh ones, those before them choose among trials", kind=str)
    rowsAreNew: bool = option(False, "whether no fitted stage inside the estimator was fitted on these rows; false refuses stages that were fitted with labels, which may have seen the fresh rows")
    parallelism: int = option(1, "trials that are fitted at the same time", low=1)
    seed: int = option(0, "seed of the split, of the samplers and of the statistical test", low=0, high=2**62)
    guard: float = option(0.025, "p-value needed to ship the winner instead of the default; 1 accepts any gain", low=0, high=1, openLow=True)
    runDir: str | None = option(None, "folder of the study: a search that was killed goes on there; if unset, the study is in memory", kind=str, folder=True)
    storeDir: str | None = option(None, "folder of a store of runs, on any file system that Spark knows, to which each finished search is added; nothing of the rows is in it", kind=str, folder="any")
    tags: Mapping[str, str] = option({}, "texts by name that are kept with the search in storeDir, such as {'team': 'risk'}", texts=True)
    redact: bool = option(True, "whether storeDir gets no folders, no command and no texts of warnings")
    verbosity: int | None = option(None, "0 shows nothing, 1 shows the phases and their progress; if unset, 1 in a terminal and in a notebook, else 0", kind=int, low=0, high=1)
    # fmt: on

    @staticmethod
    def of(given: Mapping[str, Any]) -> "Settings":
        """Options from names and values; each value is checked independently of the others.

        Raises:
            InputError: a key is unknown, or a value has a wrong type or is out of bounds. The message names them all.
        """
        values, problems = convert_all(given, FIELDS, "Search", OTHERS)
        if values.get("numFolds") == 1:
            problems.append(
                "numFolds=1 leaves no rows to decide: use 2 or more, as the first chooses, or 0 for fresh rows"
            )
        refuse(problems)
        return Settings(**values)

    @property
    def folds(self) -> int:
        """`numFolds`; 0 until `auto` is resolved."""
        return self.numFolds if isinstance(self.numFolds, int) else 0

    def idle(self) -> list[str]:
        """A sentence for each option that is set and has no effect."""
        no_trials = (self.method != "trials", f"method={self.method!r} runs no trials")
        not_kept = (self.storeDir is None, "it is for what storeDir keeps, which is not set")
        return without_effect(
            self,
            {
                "sampler": no_trials,
                "maxSeconds": no_trials,
                "parallelism": no_trials,
                "numTrials": (self.sampler == "grid", "a grid is searched as a whole")
                if self.method == "trials"
                else no_trials,
                "resource": (self.pruner is None, "without a pruner each trial has the whole of it"),
                "validationFraction": (self.folds > 0, f"of {self.folds} folds the first chooses among trials"),
                "testFraction": (self.folds > 0, f"of {self.folds} folds all but the first decide"),
                "tags": not_kept,
                "redact": not_kept,
            },
        )

    def check_together(self) -> None:
        """Refuse options that exclude each other. Called after all are set, as setters and `copy` set them one by one.

        Raises:
            InputError: options exclude each other. The message names all of them.
        """
        problems = []
        if self.groupCol and self.timeCol:
            problems.append(f"groupCol={self.groupCol!r} and timeCol={self.timeCol!r} exclude each other")
        if self.minResource is not None and self.pruner is None:
            problems.append(f"minResource={self.minResource:g} is for a pruner: set pruner, or leave it out")
        if not self.folds and self.validationFraction + self.testFraction >= 1:
            problems.append(
                f"validationFraction={self.validationFraction:g} and testFraction={self.testFraction:g} leave no rows "
                "to fit models to"
            )
        refuse(problems)


FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
OTHERS = {
    name: option(None, help)
    for name, help in {
        "estimator": "the estimator: a stage or a Pipeline, with sparkdiff.alternatives() where a stage is to be chosen",
        "space": "{Param of a stage: sparkdiff.uniform, loguniform, integer or choice}",
        "evaluator": "the Evaluator of the metric, or a list of them",
        "current": "the fitted model that the winner is to replace; if unset, it is compared with the estimator as it is",
    }.items()
}
"""Params that hold objects, in contrast to the options in `Settings`, with their help."""
