"""The posterior of a label model as plain Spark stages: an SQLTransformer that sums log-odds, and a VectorAssembler."""

from collections.abc import Sequence

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, VectorAssembler

from sparkdiff import jvm
from sparkdiff.labeling.estimates import Estimate, Floats

SURE = 1 - 1e-9
"""Largest probability of a guess: in labels that are vectors of probabilities, a 1 marks a true label."""


def columns_of(probabilityCol: str, k: int) -> list[str]:
    """Names of the probability columns of single classes."""
    return [f"{probabilityCol}_{y}" for y in range(k)]


def added_by(probabilityCol: str, k: int) -> list[str]:
    """Names of all added columns: the vector, those of single classes, and the scores."""
    return [probabilityCol, *columns_of(probabilityCol, k), f"{probabilityCol}_scores"]


def as_number(vote: str) -> str:
    """A vote as a double in SQL. It is on its own lines, so that a comment at its end cannot hide the rest."""
    return f"CAST((\n{vote}\n) AS DOUBLE)"


def stages_of(votes: Sequence[str], estimate: Estimate, probabilityCol: str) -> PipelineModel:
    """Stages that add the columns of `added_by`.

    `<probabilityCol>_scores` is an array (k,): the log share of each class plus the log probability of each vote in
    that class. A vote that is no class of the estimate (null, NaN, 0.5, -1, k) counts as abstaining. P(Y = y | votes) =
    1 / sum over z of exp(score of z - score of y) is in a column for each class, and in the vector (k,).

    With the scores in a column, the length of the statement grows with the square of the number of classes, not with
    its cube. The column stays in the result, because with `SELECT *` Spark still reads only the columns that are
    needed, and resolves `df.x` on the result. Hiding it by carrying the row in a struct would lose both.
    """
    k = len(estimate.balance)
    logs, balance = np.log(estimate.tables), np.log(estimate.balance)
    names, scores = columns_of(probabilityCol, k), jvm.quoted(added_by(probabilityCol, k)[-1])
    places = [_place(vote, k) for vote in votes]
    sums = ", ".join(_sum(places, logs[:, y], balance[y]) for y in range(k))
    chances = []
    for y, name in enumerate(names):
        odds = " + ".join(f"EXP({scores}[{z}] - {scores}[{y}])" for z in range(k) if z != y)
        chances.append(f"LEAST(1D / (1D + {odds}), {_number(SURE)}) AS {jvm.quoted(name)}")
    source = f"(SELECT *, ARRAY({sums}) AS {scores} FROM __THIS__)"
    select = SQLTransformer(statement=f"SELECT *, {', '.join(chances)} FROM {source}")
    return PipelineModel([select, VectorAssembler(inputCols=names, outputCol=probabilityCol)])


def _place(vote: str, k: int) -> str:
    """Index of a vote, in SQL, in a list that begins with abstaining. Adding 0.0 maps -0.0 to 0.0, which IN
    distinguishes.
    """
    value = as_number(vote)
    return f"IF({value} + 0D IN ({', '.join(f'{y}D' for y in range(k))}), INT({value}) + 1, 0)"


def _sum(places: Sequence[str], gains: Floats, start: float) -> str:
    """A score in SQL. Spark folds a list of numbers to a constant, where a CASE would generate code for each number.

    Args:
        places: index of the vote of each function, in SQL.
        gains: (m, k + 1) summand for each vote of each function, abstaining last.
        start: the first summand.
    """
    lists = (", ".join(map(_number, np.roll(values, 1))) for values in gains)
    return " + ".join([_number(start), *(f"ARRAY({told})[{at}]" for told, at in zip(lists, places, strict=True))])


def _number(value: float) -> str:
    """A double in SQL, with all of its digits."""
    return f"({float(value)!r}D)".replace("e", "E")
