"""Whether a linear regression has seen rows, by its losses and those of its refits: drawn many times, without Spark."""

import numpy as np
import pytest
import torch

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.errors import InputError
from sparkdiff.evaluation.acceptance import GivenPipeline
from sparkdiff.evaluation.recorded import Recorded
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.starting_point import evidence

ROWS, COLUMNS, DRAWS = 1000, 30, 12
Array = np.ndarray


def fitted(x: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def score(losses: Array, blocks: Array) -> Score:
    sums = torch.zeros(MAX_BLOCKS, dtype=torch.float64)
    ones = torch.ones(len(losses), dtype=torch.float64)
    at = torch.tensor(blocks)
    return Score(sums.index_add(0, at, torch.tensor(losses)), sums.index_add(0, at, ones), 0)


def verdicts(seed: int) -> dict[str, bool | None]:
    """Whether an original of each kind has seen the held-out rows of a table."""
    random = np.random.default_rng(seed)
    slopes = 0.3 * random.normal(size=COLUMNS)

    def rows(number: int) -> tuple[Array, Array]:
        x = random.normal(size=(number, COLUMNS))
        return x, x @ slopes + random.normal(size=number)

    (x, y), (others, labels), (many, their) = rows(ROWS), rows(ROWS), rows(8 * ROWS)
    held, some, blocks = random.random(ROWS) < 0.2, random.random(ROWS) < 0.75, random.integers(0, MAX_BLOCKS, ROWS)

    def measured(weights: Array) -> GivenPipeline:
        losses = (y - x @ weights) ** 2
        scores = {s: score(losses[at], blocks[at]) for s, at in (("train", ~held), ("validation", held))}
        nothing = torch.zeros(0)
        return GivenPipeline(scores, Recorded(None, nothing, nothing, nothing), False)  # type: ignore[arg-type]

    training, whole = fitted(x[~held], y[~held]), fitted(x, y)
    kinds = {
        "all": whole + 1e-9, "training": training + 1e-9, "most": fitted(x[some], y[some]),
        "all and others": fitted(np.concatenate([x, others]), np.concatenate([y, labels])),
        "all and many others": fitted(np.concatenate([x, many]), np.concatenate([y, their])),
        "others": fitted(others, labels), "many others": fitted(many, their),
        "others of another time": fitted(others, labels + 0.3 * others[:, 0]),
    }  # fmt: skip
    return {k: evidence(measured(w), measured(training), lambda: measured(whole))[0] for k, w in kinds.items()}


def test_nothing_that_has_seen_most_rows_counts_as_new_and_no_other_rows_as_seen() -> None:
    found = [verdicts(seed) for seed in range(DRAWS)]
    told = {kind: {v: [one[kind] for one in found].count(v) for v in (True, False, None)} for kind in found[0]}
    assert told["all"][True] == told["training"][False] == DRAWS
    for kind in ("most", "all and others", "all and many others"):
        assert told[kind][False] == 0, kind
    assert not any(told[kind][True] for kind in told if kind != "all")
    assert told["others of another time"][False] > 0.7 * DRAWS


def test_a_refit_that_leaves_out_other_rows_is_none() -> None:
    one = score(np.ones(60), np.arange(60))
    less = score(np.ones(50), np.arange(50))
    nothing = torch.zeros(0)
    pair = [
        GivenPipeline({"train": one, "validation": held}, Recorded(None, nothing, nothing, nothing), False)  # type: ignore[arg-type]
        for held in (one, less)
    ]
    with pytest.raises(InputError, match="leaves out other rows"):
        evidence(*pair, lambda: pair[0])  # type: ignore[arg-type]
