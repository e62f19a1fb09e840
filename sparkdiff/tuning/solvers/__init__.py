"""Solvers of linear models for all settings and all folds at once, on tensors only. `linear`, `logistic` and
`generalized` return Spark's optimum for `Setting`s on `Chunk`s of rows, `wide` does so for models with many
coefficients, and `unsolved` says why a setting is left to Spark.
"""

from sparkdiff.tuning.solvers.classification import logistic
from sparkdiff.tuning.solvers.least_squares import linear
from sparkdiff.tuning.solvers.limits import WIDEST, is_wide, unsolved
from sparkdiff.tuning.solvers.problem import Chunk, Chunks, RowFacts, Setting, Solution
from sparkdiff.tuning.solvers.reweighting import generalized
from sparkdiff.tuning.solvers.threads import threads_for
from sparkdiff.tuning.solvers.wide import wide
from sparkdiff.tuning.solvers.wide_rows import Whole, gather

__all__ = [
    "WIDEST", "Chunk", "Chunks", "RowFacts", "Setting", "Solution", "Whole", "gather", "generalized", "is_wide", "linear",
    "logistic", "threads_for", "unsolved", "wide",
]  # fmt: skip
