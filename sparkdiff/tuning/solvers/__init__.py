"""Linear models for all settings and all folds at once, on tensors only: `linear`, `logistic` and `generalized` give Spark's
optimum (of `Setting`s on `Chunk`s), `unsolved` says which settings are left to Spark.
"""

from sparkdiff.tuning.solvers.limits import unsolved
from sparkdiff.tuning.solvers.linear import linear
from sparkdiff.tuning.solvers.problem import Chunk, Chunks, Facts, Setting, Solution

__all__ = ["Chunk", "Chunks", "Facts", "Setting", "Solution", "generalized", "linear", "logistic", "unsolved"]

MEMORY = 2**30


def logistic(
    chunks: Chunks, settings: list[Setting], folds: int, classes: int, memory: int = MEMORY
) -> list[list[Solution]]:
    """LogisticRegression's models, [setting][fold]; `classes` as Spark counts them (labels are 0 to classes - 1).

    Rows stay in memory between passes if they need no more than `memory` bytes; else each pass reads `chunks` again.
    """
    raise NotImplementedError


def generalized(chunks: Chunks, settings: list[Setting], folds: int, memory: int = MEMORY) -> list[list[Solution]]:
    """GeneralizedLinearRegression's models, [setting][fold]; `memory` as in `logistic`."""
    raise NotImplementedError
