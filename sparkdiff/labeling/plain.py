"""The posterior of a label model as plain Spark stages: an SQLTransformer that sums log-odds, and a VectorAssembler."""

from collections.abc import Sequence

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, VectorAssembler

from sparkdiff.labeling.estimates import Estimate, Floats

SURE = 1 - 1e-9
"""The largest probability of a guess: where a label is a vector of probabilities, a 1 is a true label."""


def columns_of(probabilityCol: str, k: int) -> list[str]:
    """Names of the columns of single classes."""
    return [f"{probabilityCol}_{y}" for y in range(k)]


def as_number(vote: str) -> str:
    """A vote as a double in SQL. It stands on lines of its own, so that a comment at its end ends with it."""
    return f"CAST((\n{vote}\n) AS DOUBLE)"


def stages_of(votes: Sequence[str], estimate: Estimate, probabilityCol: str) -> PipelineModel:
    """Stages that add `probabilityCol`, a vector (k,), and a column for each class.

    P(Y = y | votes) = 1 / sum over z of exp(log-odds of z against y), each a sum of what the votes say. A vote that is no class
    of the estimate (null, NaN, 0.5, -1, k) abstains.
    """
    k = len(estimate.balance)
    logs, balance = np.log(estimate.tables), np.log(estimate.balance)
    names = columns_of(probabilityCol, k)
    columns = []
    for y in range(k):
        odds = [_sum(votes, logs[:, z] - logs[:, y], balance[z] - balance[y]) for z in range(k) if z != y]
        chance = f"1D / (1D + {' + '.join(f'EXP({o})' for o in odds)})"
        columns.append(f"LEAST({chance}, {_number(SURE)}) AS {_quoted(names[y])}")
    select = SQLTransformer(statement=f"SELECT *, {', '.join(columns)} FROM __THIS__")
    return PipelineModel([select, VectorAssembler(inputCols=names, outputCol=probabilityCol)])


def _sum(votes: Sequence[str], gains: Floats, start: float) -> str:
    """Log-odds in SQL.

    Args:
        gains: (m, k + 1) of each vote of each function.
    """
    parts = [_number(start)]
    for told, values in zip(votes, gains, strict=True):
        cases = " ".join(f"WHEN {v}D THEN {_number(x)}" for v, x in enumerate(values[:-1]))
        parts.append(f"CASE {as_number(told)} {cases} ELSE {_number(values[-1])} END")
    return " + ".join(parts)


def _number(value: float) -> str:
    """A double in SQL, with all of its digits."""
    return f"({float(value)!r}D)".replace("e", "E")


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
