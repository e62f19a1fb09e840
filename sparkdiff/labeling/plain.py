"""The posterior of a label model as plain Spark stages: an SQLTransformer that sums log-odds, and a VectorAssembler."""

from collections.abc import Sequence

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.feature import SQLTransformer, VectorAssembler

from sparkdiff import jvm
from sparkdiff.labeling.estimates import Estimate, Floats

SURE = 1 - 1e-9
"""The largest probability of a guess: where a label is a vector of probabilities, a 1 is a true label."""


def columns_of(probabilityCol: str, k: int) -> list[str]:
    """Names of the columns of single classes."""
    return [f"{probabilityCol}_{y}" for y in range(k)]


def added_by(probabilityCol: str, k: int) -> list[str]:
    """Names of all columns that are added: the vector, those of single classes, and the scores."""
    return [probabilityCol, *columns_of(probabilityCol, k), f"{probabilityCol}_scores"]


def as_number(vote: str) -> str:
    """A vote as a double in SQL. It stands on lines of its own, so that a comment at its end ends with it."""
    return f"CAST((\n{vote}\n) AS DOUBLE)"


def stages_of(votes: Sequence[str], estimate: Estimate, probabilityCol: str) -> PipelineModel:
    """Stages that add the columns of `added_by`.

    `<probabilityCol>_scores` is an array (k,): the logarithm of the share of each class plus what each vote says of it. A vote
    that is no class of the estimate (null, NaN, 0.5, -1, k) abstains. P(Y = y | votes) = 1 / sum over z of exp(score of z -
    score of y) is in a column for each class, and in the vector (k,).

    With the scores in a column the statement grows with the square of the classes, not with the cube. They stay in the result
    because `SELECT *` leaves the columns of the data what they are to Spark: it reads only those that are wanted, and knows
    `df.x` on the result. A struct that carried the row past a column to be hidden would lose both.
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
    """The place of a vote in a list that begins with that of abstaining, in SQL. (-0.0 + 0.0 is 0.0, which sets tell apart.)"""
    value = as_number(vote)
    return f"IF({value} + 0D IN ({', '.join(f'{y}D' for y in range(k))}), INT({value}) + 1, 0)"


def _sum(places: Sequence[str], gains: Floats, start: float) -> str:
    """A score in SQL. Spark folds a list of numbers to a constant, where a CASE would make code for each number.

    Args:
        places: of the vote of each function.
        gains: (m, k + 1) of each vote of each function, abstaining last.
    """
    lists = (", ".join(map(_number, np.roll(values, 1))) for values in gains)
    return " + ".join([_number(start), *(f"ARRAY({told})[{at}]" for told, at in zip(lists, places, strict=True))])


def _number(value: float) -> str:
    """A double in SQL, with all of its digits."""
    return f"({float(value)!r}D)".replace("e", "E")
