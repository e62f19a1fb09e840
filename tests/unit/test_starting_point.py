"""Whether a linear regression has seen rows, by its losses and those of its refits: drawn many times, without Spark."""

import numpy as np
import pytest
import torch

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.errors import InputError
from sparkdiff.evaluation.scores import Score
from sparkdiff.fine_tuning.fine_tuning_run import Evidence, evidence

ROWS, COLUMNS, DRAWS = 1000, 30, 12
Array = np.ndarray


def fitted(x: Array, y: Array) -> Array:
    return np.asarray(np.linalg.lstsq(x, y, rcond=None)[0])


def score(losses: Array, blocks: Array) -> Score:
    sums = torch.zeros(MAX_BLOCKS, dtype=torch.float64)
    ones = torch.ones(len(losses), dtype=torch.float64)
    at = torch.tensor(blocks)
    return Score(sums.index_add(0, at, torch.tensor(losses)), sums.index_add(0, at, ones), 0)


def verdicts(seed: int) -> dict[str, Evidence]:
    """Whether an original of each kind has seen the held-out rows of a table."""
    random = np.random.default_rng(seed)
    slopes = 0.3 * random.normal(size=COLUMNS)

    def rows(number: int) -> tuple[Array, Array]:
        x = random.normal(size=(number, COLUMNS))
        return x, x @ slopes + random.normal(size=number)

    (x, y), (others, labels), (many, their) = rows(ROWS), rows(ROWS), rows(8 * ROWS)
    held, some, blocks = random.random(ROWS) < 0.2, random.random(ROWS) < 0.75, random.integers(0, MAX_BLOCKS, ROWS)

    def measured(weights: Array) -> dict[str, Score]:
        losses = (y - x @ weights) ** 2
        return {s: score(losses[at], blocks[at]) for s, at in (("train", ~held), ("validation", held))}

    training, whole = fitted(x[~held], y[~held]), fitted(x, y)
    kinds = {
        "all": whole + 1e-9,
        "training": training + 1e-9,
        "most": fitted(x[some], y[some]),
        "all and others": fitted(np.concatenate([x, others]), np.concatenate([y, labels])),
        "all and many others": fitted(np.concatenate([x, many]), np.concatenate([y, their])),
        "others": fitted(others, labels),
        "many others": fitted(many, their),
        "others of another time": fitted(others, labels + 0.3 * others[:, 0]),
    }
    return {k: evidence(measured(w), measured(training), lambda: measured(whole)) for k, w in kinds.items()}


def test_only_what_a_refit_reproduces_is_told_new_or_seen() -> None:
    found = [verdicts(seed) for seed in range(DRAWS)]
    assert {one["all"] for one in found} == {Evidence.SEEN} and {one["training"] for one in found} == {Evidence.NEW}
    others = [{kind: told for kind, told in one.items() if kind not in ("all", "training")} for one in found]
    assert all({*one.values()} <= {Evidence.BETTER, Evidence.NO_BETTER} for one in others)
    for kind in ("most", "all and others", "all and many others"):
        assert [one[kind] for one in others].count(Evidence.BETTER) > 0.7 * DRAWS, kind
    assert [one["others of another time"] for one in others].count(Evidence.NO_BETTER) > 0.7 * DRAWS


def test_a_refit_that_leaves_out_other_rows_is_none() -> None:
    one = score(np.ones(60), np.arange(60))
    less = score(np.ones(50), np.arange(50))
    pair = [{"train": one, "validation": held} for held in (one, less)]
    with pytest.raises(InputError, match="leaves out other rows"):
        evidence(*pair, lambda: pair[0])  # type: ignore[arg-type]


def test_a_threshold_of_refits_is_for_what_a_refit_reproduces() -> None:
    """Though the original is no better than its refit: its own weights would get the threshold."""
    rows = np.arange(100)
    mine, anew, other = (
        {s: score(losses + 0.0 * rows, rows) for s in ("train", "validation")} for losses in (2.0, 1.0, 1.5)
    )
    assert evidence(mine, anew, lambda: mine) is Evidence.NO_BETTER
    assert evidence(mine, anew, lambda: mine, alike=True) is Evidence.SEEN
    assert evidence(mine, anew, lambda: other, alike=True) is Evidence.NO_BETTER
    assert evidence(anew, mine, lambda: other, alike=True) is Evidence.BETTER
