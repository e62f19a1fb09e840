"""Rules that decide which solver solves a setting, and which settings are left to Spark."""

from sparkdiff.tuning.solvers.classification import MEMORY, solve_logistic
from sparkdiff.tuning.solvers.families import FAMILIES
from sparkdiff.tuning.solvers.least_squares import NORMAL_COLUMNS, solve_linear
from sparkdiff.tuning.solvers.problem import Chunks, RowFacts, Setting, Solution
from sparkdiff.tuning.solvers.reweighting import solve_generalized

WIDEST = {"LinearRegression": 2000, "LogisticRegression": 2000, "GeneralizedLinearRegression": 1000}
"""Number of coefficients (columns, times classes if multinomial) above which their Hessians cost too much."""


def solve(
    kind: str, chunks: Chunks, settings: list[Setting], folds: int, classes: int, memory: int = MEMORY
) -> list[list[Solution]]:
    """The models of settings of Spark's class `kind` that are not wide, [setting][fold].

    Args:
        classes: number of classes of a LogisticRegression.
        memory: number of bytes that rows may take in memory between passes; if they need more, each pass reads `chunks`
            again.
    """
    if kind == "LinearRegression":
        return solve_linear(chunks, settings, folds)
    if kind == "LogisticRegression":
        return solve_logistic(chunks, settings, folds, classes, memory)
    return solve_generalized(chunks, settings, folds, memory)


def is_wide(kind: str, setting: Setting, facts: RowFacts, *, sparse: bool) -> bool:
    """True if `solve_wide` solves a setting, on rows in memory and without Hessian matrices."""
    if kind == "GeneralizedLinearRegression" or setting.regParam == 0:
        return False
    return sparse or facts.columns * setting.sets(facts.classes) > WIDEST[kind]


def _has_many_optima(setting: Setting, facts: RowFacts) -> bool:
    """True if a multinomial model of two classes has many optimal solutions, which differ in their raw predictions."""
    pure = setting.regParam > 0 and setting.elasticNetParam == 1
    return pure and setting.family == "multinomial" and facts.classes == 2


def why_left_to_spark(kind: str, setting: Setting, facts: RowFacts) -> str:
    """The reason why Spark has to fit this setting; empty if it is solved here. `kind` is the name of Spark's class."""
    if kind not in WIDEST:
        return f"{kind} is fitted by Spark"
    if kind == "LogisticRegression" and setting.family == "binomial" and facts.classes > 2:
        return f"family='binomial' has two classes, the rows have {facts.classes}"
    width = facts.columns * setting.sets(facts.classes)
    if width > WIDEST[kind] and not is_wide(kind, setting, facts, sparse=False):
        without = " without a penalty" if setting.regParam == 0 else ""
        return f"{width} coefficients{without} are more than {WIDEST[kind]}, so Spark fits {kind}"
    if setting.solver == "normal" and facts.columns > NORMAL_COLUMNS:
        return f"solver='normal' takes at most {NORMAL_COLUMNS} columns"
    if kind == "LinearRegression" and setting.loss != "squaredError":
        return f"Spark fits loss={setting.loss!r}; here it is squaredError only"
    if kind == "GeneralizedLinearRegression":
        if setting.family not in FAMILIES:
            return f"Spark fits family={setting.family!r}; here it is one of {', '.join(FAMILIES)}"
        if setting.link is not None and setting.link not in FAMILIES[setting.family].links:
            return f"Spark judges link={setting.link!r} of family={setting.family!r}"
    if kind == "LogisticRegression" and _has_many_optima(setting, facts):
        return (
            "elasticNetParam=1 leaves open how two classes share their coefficients, so Spark fits family='multinomial'"
        )
    if setting.bounded:
        return "Spark fits coefficients with bounds"
    return ""
