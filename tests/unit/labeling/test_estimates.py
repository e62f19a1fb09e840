"""Accuracies of functions whose votes are generated, against the truth and against the majority vote."""

from typing import Any

import numpy as np
import pytest

from sparkdiff.labeling.estimates import ABSTAINS, Estimate, em, majority, precision, triplets, unexplained
from sparkdiff.labeling.estimator import DEPENDENT, _estimated
from sparkdiff.labeling.votes import Votes

pytestmark = pytest.mark.once

ROWS, FUNCTIONS = 20_000, 10


def generated(k: int, kind: str, seed: int) -> tuple[Any, Any]:
    """Votes (n, m) of functions that are independent given the class, and the classes (n,)."""
    random = np.random.default_rng(seed)
    shares = random.dirichlet(np.full(k, 8.0)) if k > 2 else np.array([0.65, 0.35])
    y = random.choice(k, ROWS, p=shares)
    votes = np.full((ROWS, FUNCTIONS), ABSTAINS)
    for j in range(FUNCTIONS):
        right = random.uniform(0.55, 0.9)
        if kind == "one class each":
            c, hit = j % k, random.uniform(0.2, 0.6)
            miss = hit * (1 - right) / right * shares[c] / (1 - shares[c])
            votes[random.random(ROWS) < np.where(y == c, hit, miss), j] = c
            continue
        often = random.uniform(0.1, 0.9, k) if kind == "by class" else np.full(k, random.uniform(0.2, 0.8))
        on = random.random(ROWS) < often[y]
        wrong = (y + random.integers(1, k, ROWS)) % k
        votes[on, j] = np.where(random.random(ROWS) < right, y, wrong)[on]
    return votes, y


def estimated(votes: Any, k: int, method: str) -> tuple[Any, Any, Estimate]:
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    weights = counts.astype(float)
    return patterns, counts, triplets(patterns, weights) if method == "triplets" else em(patterns, weights, k)


@pytest.mark.parametrize("kind", ["alike", "by class", "one class each"])
@pytest.mark.parametrize(("k", "method"), [(2, "triplets"), (2, "em"), (3, "em")])
def test_accuracies_and_labels_of_generated_votes(k: int, kind: str, method: str) -> None:
    for seed in range(5):
        votes, y = generated(k, kind, seed)
        found = estimated(votes, k, method)[2]
        truth = [(votes[:, j] == y)[votes[:, j] >= 0].mean() for j in range(FUNCTIONS)]
        # Of functions that vote for one class only, the shares of the classes decide, which are harder to tell.
        assert np.abs(found.accuracies - truth).max() < ({2: 0.06, 3: 0.1}[k] if kind == "one class each" else 0.03)
        some = (votes >= 0).any(1)
        at = np.arange(some.sum())
        label = (found.posterior(votes[some]).argmax(1) == y[some]).mean()
        assert label >= majority(votes[some], k)[at, y[some]].mean()
        assert unexplained(found, votes, np.ones(ROWS))[0] < DEPENDENT / 2


def test_functions_that_are_mostly_wrong_are_found_if_the_others_are_right() -> None:
    votes, _ = generated(2, "alike", 1)
    votes[:, 0] = np.where(votes[:, 0] >= 0, 1 - votes[:, 0], ABSTAINS)
    accuracy = estimated(votes, 2, "triplets")[2].accuracies
    assert accuracy[0] < 0.5 < accuracy[1:].min()


def test_known_classes_are_certain_and_help() -> None:
    votes, y = generated(2, "alike", 2)
    patterns, index = np.unique(
        np.column_stack([votes, np.where(np.arange(ROWS) < 500, y, -1)]), axis=0, return_inverse=True
    )
    weights = np.bincount(index.reshape(-1)).astype(float)
    found = em(patterns[:, :-1], weights, 2, known=patterns[:, -1])
    truth = [(votes[:, j] == y)[votes[:, j] >= 0].mean() for j in range(FUNCTIONS)]
    assert np.abs(found.accuracies - truth).max() < 0.02


def test_a_class_balance_that_is_given_stays() -> None:
    votes, _ = generated(2, "alike", 3)
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    half, weights = np.array([0.5, 0.5]), counts.astype(float)
    for found in (triplets(patterns, weights, half), em(patterns, weights, 2, balance=half)):
        assert found.balance.tolist() == [0.5, 0.5]


def test_votes_without_any_agreement_end_in_numbers() -> None:
    votes = np.array([[0, ABSTAINS, ABSTAINS], [ABSTAINS, 0, ABSTAINS], [ABSTAINS, ABSTAINS, 1], [ABSTAINS] * 3])
    for found in (triplets(votes, np.ones(4)), em(votes, np.ones(4), 2)):
        assert np.isfinite(found.tables).all() and np.allclose(found.tables.sum(2), 1)
        assert np.allclose(found.posterior(votes).sum(1), 1)


def topics(k: int, seed: int) -> tuple[Any, Any]:
    """Votes of functions that each know some topics of one class, and the classes: what they have in common is more a topic."""
    random = np.random.default_rng(seed)
    y = random.choice(k, 6_000, p=np.array([0.7, *[0.3 / (k - 1)] * (k - 1)]))
    topic = random.integers(0, 4, len(y))  # 0 and 1 hold words of several functions, the others hardly any
    votes = np.full((len(y), 6 * k), ABSTAINS)
    for j in range(votes.shape[1]):
        c, own = j % k, (j // k) % 2
        often = np.where(topic == own, 0.3, 0.02) * np.where(y == c, 1.0, random.uniform(0.01, 0.15))
        votes[random.random(len(y)) < often, j] = c
    return votes, y


@pytest.mark.parametrize("k", [2, 3])
def test_functions_that_are_not_independent_label_as_well_as_the_majority(k: int) -> None:
    for seed in range(5):
        votes, y = topics(k, seed)
        patterns, counts = np.unique(votes, axis=0, return_counts=True)
        nobody = np.full(len(patterns), -1)
        rows = Votes(patterns, counts.astype(float), nobody, sampled=False)
        names = [f"f{j}" for j in range(votes.shape[1])]
        method, found, [warning] = _estimated("auto", rows, k, None, names)
        assert method == "precision" and "do not vote independently" in warning
        some = (votes >= 0).any(1)
        at = np.arange(some.sum())
        label = (found.posterior(votes[some]).argmax(1) == y[some]).mean()
        assert label >= majority(votes[some], k)[at, y[some]].mean()
        assert (found.accuracies >= 1 / k - 1e-9).all()
        posterior = found.posterior(votes[~some])
        assert np.allclose(posterior, found.balance)  # abstaining says nothing


def test_a_single_vote_counts_as_its_precision_and_known_classes_are_certain() -> None:
    votes, y = topics(2, 0)
    patterns, index = np.unique(np.column_stack([votes, y]), axis=0, return_inverse=True)
    weights = np.bincount(index.reshape(-1)).astype(float)
    found = precision(patterns[:, :-1], weights, 2, known=patterns[:, -1])
    alone = np.full(votes.shape[1], ABSTAINS)
    for j in range(votes.shape[1]):
        alone[j] = j % 2
        number, right = (votes[:, j] == j % 2).sum(), ((votes[:, j] == j % 2) & (y == j % 2)).sum()
        before = 10 + 0.25 * number
        expected = min((right + 0.8 * before) / (number + before), 1 - 1e-4)
        assert found.posterior(alone[None])[0, j % 2] == pytest.approx(expected, abs=1e-9)
        assert found.accuracies[j] == pytest.approx(expected, abs=1e-9)
        alone[j] = ABSTAINS
