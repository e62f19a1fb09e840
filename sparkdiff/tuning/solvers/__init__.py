"""Solvers of linear models for all settings and all folds at once, on tensors only. `solve` returns Spark's optimum for
`Setting`s on `Chunk`s of rows, by `solve_linear`, `solve_logistic` or `solve_generalized`; `solve_wide` does so for
models with many coefficients, and `why_left_to_spark` says why a setting is left to Spark.
"""

from sparkdiff.tuning.solvers.classification import solve_logistic
from sparkdiff.tuning.solvers.least_squares import solve_linear
from sparkdiff.tuning.solvers.limits import WIDEST, is_wide, solve, why_left_to_spark
from sparkdiff.tuning.solvers.problem import Chunk, Chunks, RowFacts, Setting, Solution
from sparkdiff.tuning.solvers.reweighting import solve_generalized
from sparkdiff.tuning.solvers.wide import solve_wide
from sparkdiff.tuning.solvers.wide_rows import RowsInMemory, gather

__all__ = [
    "WIDEST",
    "Chunk",
    "Chunks",
    "RowFacts",
    "RowsInMemory",
    "Setting",
    "Solution",
    "gather",
    "is_wide",
    "solve",
    "solve_generalized",
    "solve_linear",
    "solve_logistic",
    "solve_wide",
    "why_left_to_spark",
]
