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

    P(Y = y | votes) is the softmax of scores; the score of a class is the logarithm of its share plus what each vote says. A
    vote that is no class of the estimate (null, NaN, 0.5, -1, k) abstains.

    One SELECT in another, so that each vote and each score is written once: the length of the statement grows with the square of
    the classes. The row itself passes through as one struct, because not every version of Spark has an SQL for all columns but
    some.
    """
    k = len(estimate.balance)
    logs, balance = np.log(estimate.tables), np.log(estimate.balance)
    own = _unread(votes)
    names, scores, row = columns_of(probabilityCol, k), [f"score_{y}" for y in range(k)], f"{own}row"
    placed = [f"{_place(vote, k)} AS {own}{j}" for j, vote in enumerate(votes)]
    sums = [f"{_sum(logs[:, y], balance[y], own)} AS {score}" for y, score in enumerate(scores)]
    odds = [f"EXP({score} - top)" for score in scores]
    total = " + ".join(odds)
    chances = [f"LEAST({o} / ({total}), {_number(SURE)}) AS {_quoted(n)}" for o, n in zip(odds, names, strict=True)]
    source = f"(SELECT struct(*) AS {row}, {', '.join(placed)} FROM __THIS__)"
    source = f"(SELECT {row}, {', '.join(sums)} FROM {source})"
    source = f"(SELECT *, GREATEST({', '.join(scores)}) AS top FROM {source})"
    select = SQLTransformer(statement=f"SELECT {row}.*, {', '.join(chances)} FROM {source}")
    return PipelineModel([select, VectorAssembler(inputCols=names, outputCol=probabilityCol)])


def _unread(votes: Sequence[str]) -> str:
    """How names begin that no vote reads: a column that the data lack would else be taken from those beside it in the SELECT."""
    own = "vote_"
    while any(own in vote.lower() for vote in votes):
        own += "_"
    return own


def _place(vote: str, k: int) -> str:
    """The place of a vote in a list that begins with that of abstaining, in SQL. (A search in an array is slower.)"""
    return f"CASE {as_number(vote)} {' '.join(f'WHEN {y}D THEN {y + 1}' for y in range(k))} ELSE 0 END"


def _sum(gains: Floats, start: float, own: str) -> str:
    """A score in SQL. Spark folds a list of numbers to a constant, where a CASE would make code for each number.

    Args:
        gains: (m, k + 1) of each vote of each function, abstaining last.
        own: how the names of their places begin.
    """
    lists = (", ".join(map(_number, np.roll(values, 1))) for values in gains)
    return " + ".join([_number(start), *(f"ARRAY({told})[{own}{j}]" for j, told in enumerate(lists))])


def _number(value: float) -> str:
    """A double in SQL, with all of its digits."""
    return f"({float(value)!r}D)".replace("e", "E")


def _quoted(name: str) -> str:
    return f"`{name.replace('`', '``')}`"
