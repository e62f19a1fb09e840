"""The posterior class probabilities of a label model as plain Spark stages: an SQLTransformer and a VectorAssembler."""

from collections.abc import Sequence

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, VectorAssembler

from sparkdiff import jvm
from sparkdiff.labeling.estimates import Estimate, Floats

SURE = 1 - 1e-9
"""Largest predicted probability, less than 1 because a 1 marks a true label in labels that are vectors of probabilities."""


def columns_of(probabilityCol: str, k: int) -> list[str]:
    """Names of the probability columns, one for each class."""
    return [f"{probabilityCol}_{y}" for y in range(k)]


def added_by(probabilityCol: str, k: int) -> list[str]:
    """Names of all added columns: the vector of probabilities, the probability of each class, and the scores."""
    return [probabilityCol, *columns_of(probabilityCol, k), f"{probabilityCol}_scores"]


def as_number(vote: str) -> str:
    """SQL that casts a vote to double. The vote is on a line of its own, so that a comment in it can't hide what follows."""
    return f"CAST((\n{vote}\n) AS DOUBLE)"


def stages_of(votes: Sequence[str], estimate: Estimate, probabilityCol: str) -> PipelineModel:
    """Stages that add the columns of `added_by`.

    `<probabilityCol>_scores` is an array (k,): the log share of each class plus the log probability of each vote in
    that class. A vote that is not one of the estimate's classes (null, NaN, 0.5, -1, k) counts as abstaining. The
    probability P(Y = y | votes) = 1 / sum over z of exp(score of z - score of y) is in one column for each class, and
    in the vector (k,).

    Because the scores have their own column, the length of the statement grows with the square of the number of
    classes rather than with the cube. The scores remain in the result. To hide them, the statement would have to carry
    the row in a struct; but only with `SELECT *` does Spark read no more columns than are needed, and resolve `df.x`
    on the result.

    Args:
        votes: SQL expressions of the votes, one for each function.
        estimate: estimate with these functions.
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
    """SQL for the index of a vote in a list with an entry for abstaining first, and then one for each class.

    Adding 0.0 turns -0.0 into 0.0, because IN treats the two as different.
    """
    value = as_number(vote)
    return f"IF({value} + 0D IN ({', '.join(f'{y}D' for y in range(k))}), INT({value}) + 1, 0)"


def _sum(places: Sequence[str], gains: Floats, start: float) -> str:
    """SQL for the score of a class: a sum with one summand per function, looked up in a list by the function's vote.

    Spark folds a list of numbers to a constant, while a CASE would generate code for each number.

    Args:
        places: SQL for the index of the vote of each function.
        gains: (m, k + 1) the summand for each vote of each function, abstaining last.
        start: the first summand, which doesn't depend on votes.
    """
    lists = (", ".join(map(_number, np.roll(values, 1))) for values in gains)
    return " + ".join([_number(start), *(f"ARRAY({told})[{at}]" for told, at in zip(lists, places, strict=True))])


def _number(value: float) -> str:
    """SQL literal of a double, with all digits."""
    return f"({float(value)!r}D)".replace("e", "E")
