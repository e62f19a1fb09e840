"""Which settings are not solved here and left to Spark."""

from sparkdiff.tuning.solvers.problem import Facts, Setting

BUILT: frozenset[str] = frozenset()


def unsolved(kind: str, setting: Setting, facts: Facts) -> str | None:
    """Why Spark has to fit this setting, in words; None if `kind` (the name of Spark's class) is solved here with it."""
    return None if kind in BUILT else f"{kind} is fitted by Spark"
