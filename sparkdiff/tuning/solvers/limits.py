"""Which settings are not solved here and left to Spark."""

from sparkdiff.tuning.solvers.problem import Facts, Setting

WIDEST = {"LinearRegression": 2000}
"""Columns from which on a matrix of all pairs of them costs more than Spark's own passes."""


def unsolved(kind: str, setting: Setting, facts: Facts) -> str | None:
    """Why Spark has to fit this setting, in words; None if `kind` (the name of Spark's class) is solved here with it."""
    if kind not in WIDEST:
        return f"{kind} is fitted by Spark"
    if facts.columns > WIDEST[kind]:
        return f"{facts.columns} columns are more than {WIDEST[kind]}, so {kind} is fitted by Spark"
    return linear_regression(setting)


def linear_regression(setting: Setting) -> str | None:
    if setting.loss != "squaredError":
        return f"loss={setting.loss!r} is fitted by Spark, squaredError is not"
    return None
