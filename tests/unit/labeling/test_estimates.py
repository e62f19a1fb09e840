"""Accuracies of functions whose votes are generated, against the truth and against the majority vote."""

from typing import Any

import numpy as np
import pytest

from sparkdiff.errors import InputError
from sparkdiff.labeling import estimates
from sparkdiff.labeling.estimates import (
    ABSTAINS,
    Estimate,
    UndeterminedError,
    em,
    majority,
    precision,
    residual_correlations,
    triplets,
)
from sparkdiff.labeling.label_model import DEPENDENT, _choose_estimate
from sparkdiff.labeling.label_summary import _agreement, _warnings, summary_fields
from sparkdiff.labeling.votes import Votes

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
    for seed in range(2):
        votes, y = generated(k, kind, seed)
        found = estimated(votes, k, method)[2]
        truth = [(votes[:, j] == y)[votes[:, j] >= 0].mean() for j in range(FUNCTIONS)]
        # Of functions that vote for one class only, the shares of the classes decide, which are harder to tell.
        assert np.abs(found.accuracies - truth).max() < ({2: 0.06, 3: 0.1}[k] if kind == "one class each" else 0.03)
        some = (votes >= 0).any(1)
        at = np.arange(some.sum())
        label = (found.posterior(votes[some]).argmax(1) == y[some]).mean()
        assert label >= majority(votes[some], k)[at, y[some]].mean()
        assert residual_correlations(found, votes, np.ones(ROWS))[0] < DEPENDENT / 2


def test_mostly_wrong_functions_are_found_among_right_ones() -> None:
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


def test_known_classes_outvote_what_functions_have_in_common() -> None:
    """Half of the functions repeat each other: without labels EM takes what they say for the class."""
    random = np.random.default_rng(0)
    y, topic = random.integers(0, 2, 2000), random.integers(0, 2, 2000)
    votes = np.column_stack(
        [np.where(random.random(2000) < 0.95, topic, 1 - topic) for _ in range(4)]
        + [np.where(random.random(2000) < 0.7, y, 1 - y) for _ in range(2)]
    )
    known = np.where(np.arange(2000) < 1500, y, -1)
    right = [(em(votes, np.ones(2000), 2, known=k).posterior(votes).argmax(1) == y).mean() for k in (None, known)]
    assert right[0] < 0.6 < right[1]


def test_a_class_balance_that_is_given_stays() -> None:
    votes, _ = generated(2, "alike", 3)
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    half, weights = np.array([0.5, 0.5]), counts.astype(float)
    for found in (triplets(patterns, weights, half), em(patterns, weights, 2, balance=half)):
        assert found.balance.tolist() == [0.5, 0.5]


def test_votes_without_any_agreement_end_in_numbers() -> None:
    votes = np.array([[0, ABSTAINS, ABSTAINS], [ABSTAINS, 0, ABSTAINS], [ABSTAINS, ABSTAINS, 1], [ABSTAINS] * 3])
    found = em(votes, np.ones(4), 2)
    assert np.isfinite(found.tables).all() and np.allclose(found.tables.sum(2), 1)
    assert np.allclose(found.posterior(votes).sum(1), 1)
    with pytest.raises(UndeterminedError, match="only 0 of 3 functions"):
        triplets(votes, np.ones(4))


def exclusive(more: bool) -> Any:
    """Votes of one-class functions that never meet; and of an independent one."""
    random = np.random.default_rng(0)
    y, which = random.integers(0, 2, 20_000), random.integers(0, 3, 20_000)
    votes = np.full((20_000, 3 + more), ABSTAINS)
    for j, c in enumerate((1, 0, 1)):
        votes[(which == j) & (random.random(20_000) < np.where(y == c, 0.6, 0.2)), j] = c
    if more:
        votes[:, 3] = np.where(random.random(20_000) < 0.75, y, 1 - y)
    return votes


def test_functions_that_exclude_each_other() -> None:
    names = list("abcd")
    with pytest.raises(InputError, match=r"method='triplets' can't be used: .* Set method='auto'"):
        _choose_estimate("triplets", rows_of(exclusive(False)), 2, None, names)
    method, found, [warning] = _choose_estimate("auto", rows_of(exclusive(False)), 2, None, names)
    assert method == "precision" and "0 pairs of votes" in warning and (found.accuracies > 0.7).all()
    warnings = _warnings(names, rows_of(exclusive(True)))
    assert sum("never vote on the same row, where" in w for w in warnings) == 3 == len(warnings)


@pytest.mark.parametrize("q", [0.001, 0.1])
def test_rare_classes(q: float) -> None:
    """Shares and tables of a class of one row in a thousand, given and estimated, and of rules that hit only it."""
    random = np.random.default_rng(1)
    n = 400_000
    y = random.random(n) < q
    votes = np.full((n, 5), ABSTAINS)
    for j in range(5):
        votes[random.random(n) < np.where(y, 0.6, 0.002), j] = 1
    votes[(votes[:, 4] < 0) & (random.random(n) < 0.3), 4] = 0
    patterns, counts = np.unique(votes, axis=0, return_counts=True)
    truth = np.array([[(votes[y == c, j] == 1).mean() for c in (0, 1)] for j in range(5)])
    for balance in (None, np.array([1 - q, q])):
        found = triplets(patterns, counts.astype(float), balance)
        assert found.balance[1] == pytest.approx(q, rel=0.2 if balance is None else 1e-12)
        np.testing.assert_allclose(found.tables[:, 1, 1], truth[:, 1], atol=0.1)
        np.testing.assert_allclose(found.tables[:, 0, 1], truth[:, 0], atol=3e-4)


def drawn(seed: int, share: float, rules: int = 10, rows: int = ROWS) -> tuple[Any, Any]:
    """Votes of rules on 30% of the rows each, right on 60 to 90% of them, and the classes, 1 in this share of the rows."""
    random = np.random.default_rng(seed)
    right, y = random.uniform(0.6, 0.9, rules), (random.random(rows) < share).astype(int)
    votes = np.where(random.random((rows, rules)) < right, y[:, None], 1 - y[:, None])
    return np.where(random.random((rows, rules)) < 0.3, votes, ABSTAINS), y


def log_loss(probability: Any, y: Any) -> float:
    return float(-np.log(np.where(y == 1, probability, 1 - probability)).mean())


@pytest.mark.parametrize("share", [0.02, 0.05, 0.3])
def test_probabilities_are_better_than_the_share_of_the_class(share: float) -> None:
    """Far from the maximum of the likelihood those of a rare class are worse, and nothing says so."""
    for seed in range(2):
        votes, y = drawn(seed, share)
        method, found, _ = _choose_estimate("auto", rows_of(votes), 2, None, [*map(str, range(10))])
        assert method == "em" and found.converged
        assert log_loss(found.posterior(votes)[:, 1], y) < 0.85 * log_loss(y.mean(), y)


def test_no_start_ends_at_a_larger_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even the true classes."""
    votes, y = drawn(3, 0.02)
    patterns, at, counts = np.unique(votes, axis=0, return_inverse=True, return_counts=True)
    found = em(patterns, counts.astype(float), 2)
    share = np.bincount(at.ravel(), y) / counts
    monkeypatch.setattr(estimates, "majority", lambda patterns, k: np.column_stack([1 - share, share]))
    again = em(patterns, counts.astype(float), 2)
    assert again.likelihood == pytest.approx(found.likelihood, abs=1e-3)
    assert again.balance == pytest.approx(found.balance, abs=1e-5)


def test_votes_that_do_not_tell_the_shares_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [*map(str, range(10))]
    rare, even = rows_of(drawn(3, 0.02)[0]), rows_of(drawn(3, 0.3)[0])
    assert (
        not _choose_estimate("em", even, 2, None, names)[2]
        and not _choose_estimate("triplets", even, 2, None, names)[2]
    )
    [warning] = _choose_estimate("triplets", rare, 2, None, names)[2]
    assert "the share of class 1 as 2.00%, but" in warning and "set classBalance, or method='em'" in warning
    few = rows_of(drawn(3, 0.02, rules=5)[0])
    [warning] = _choose_estimate("em", few, 2, None, names)[2]
    assert "the votes hardly tell the share of class 1" in warning and "Set classBalance" in warning
    assert not _choose_estimate("em", few, 2, np.array([0.98, 0.02]), names)[2]
    monkeypatch.setattr(estimates, "FEWEST", 3)
    monkeypatch.setattr(estimates, "WORK", 0)
    assert "stopped before it converged" in _choose_estimate("auto", rare, 2, None, names)[2][0]


def test_votes_that_tell_hardly_anything_end_soon_and_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The likelihood is flat there: its maximum was still far after 20,000 steps from each start, minutes of a core."""
    random, taken, cycle = np.random.default_rng(0), list[int](), estimates._extrapolation
    y = random.integers(0, 2, 5_000)
    votes = np.where(random.random((5_000, 12)) < 0.05, y[:, None], random.integers(0, 2, (5_000, 12)))
    votes[random.random(votes.shape) < 0.5] = ABSTAINS
    monkeypatch.setattr(estimates, "_extrapolation", lambda *e: (taken.append(1), cycle(*e))[1])
    _, found, warnings = _choose_estimate("em", rows_of(votes), 2, None, [*map(str, range(12))])
    assert 3 * len(taken) < 5_000 and np.isfinite(found.likelihood)
    assert any("stopped before it converged" in w or "hardly tell the share" in w for w in warnings)


def test_a_rule_on_few_of_many_rows_is_read() -> None:
    """510 of 8 million rows: the least probability of a wrong vote is a share of these."""
    random = np.random.default_rng(2)
    y = random.integers(0, 2, 4000)
    votes = np.column_stack([np.where(random.random(4000) < 0.8, y, 1 - y) for _ in range(4)] + [np.full(4000, -1)])
    some = random.choice(4000, 510, replace=False)
    votes[some, 4] = np.where(random.random(510) < 0.975, y[some], 1 - y[some])
    weights = np.where(votes[:, 4] >= 0, 1.0, 8e6 / 3490)
    assert triplets(votes, weights).accuracies[4] > 0.9


@pytest.mark.parametrize(("n", "m"), [(300, 3), (300, 5), (1000, 3), (3000, 5)])
def test_few_rows_are_labelled_about_as_well_as_by_the_majority(n: int, m: int) -> None:
    gains, logLoss = [], []
    for seed in range(10):
        random = np.random.default_rng(seed)
        y = (random.random(n) < 0.4).astype(int)
        votes = np.where(random.random((n, m)) < 0.75, y[:, None], 1 - y[:, None])
        votes[random.random((n, m)) < 0.5] = ABSTAINS
        _, found, _ = _choose_estimate("auto", rows_of(votes), 2, None, [*map(str, range(m))])
        some = (votes >= 0).any(1)
        posterior, at = found.posterior(votes[some]), np.arange(some.sum())
        gains.append((posterior.argmax(1) == y[some]).mean() - majority(votes[some], 2)[at, y[some]].mean())
        logLoss.append(-np.log(posterior[at, y[some]]).mean())
    assert np.mean(gains) > -0.005 and np.min(gains) > -0.05 and np.mean(logLoss) < 0.6


def test_labels_that_refute_the_model_are_told() -> None:
    random = np.random.default_rng(3)
    y = random.integers(0, 2, 5000)
    votes = np.where(random.random((5000, 5)) < 0.2, y[:, None], 1 - y[:, None])
    rows = rows_of(votes, np.where(np.arange(5000) < 60, y, -1))
    names = list("abcde")
    warnings = summary_fields(names, rows, triplets(rows.patterns, rows.weights))["warnings"]
    assert any("labels refute the estimated accuracy of 'a' 8" in w and "drop the functions" in w for w in warnings)
    assert any("less than chance (50.0%)" in w for w in warnings)
    honest = rows_of(1 - votes, np.where(np.arange(5000) < 60, y, -1))
    assert not summary_fields(names, honest, triplets(honest.patterns, honest.weights))["warnings"]


def test_ties_are_shared_and_rows_without_votes_say_nothing() -> None:
    votes = np.array([[0, 1, -1], [1, 0, -1], [-1, -1, -1], [-1, -1, 1]])
    estimate = Estimate(np.array([0.5, 0.5]), np.full((3, 2, 3), 1 / 3))
    found = _agreement(Votes(votes, np.ones(4), np.ones(4), np.array([1, 1, 0, 1]), sampled=False), estimate)
    assert found == {"rows": 3.0, "labelModel": pytest.approx(0.5), "majority": pytest.approx(2 / 3)}


def test_pairs_of_functions_of_one_class() -> None:
    """Copies are told; opposite functions of one class each can't agree, which says nothing."""
    random = np.random.default_rng(4)
    on = random.random((2000, 2)) < 0.5
    votes = np.column_stack([np.where(on[:, 0], 1, -1), np.where(on[:, 0], 1, -1), np.where(on[:, 1], 0, -1)])
    [warning] = _warnings(list("abc"), rows_of(votes))
    assert "'a' and 'b' agree on all" in warning
    votes = np.column_stack([np.where(on[:, 0], 1, -1), np.where(on[:, 0], 0, -1), np.where(on[:, 1], 0, -1)])
    [warning] = _warnings(list("abc"), rows_of(votes))  # on the same rows each time
    assert "'a' and 'b' contradict each other on all" in warning
    large = np.column_stack([random.integers(0, 2, 2000), np.full(2000, -1)])
    large[:900, 1] = large[:900, 0]
    for order in ([0, 1], [1, 0]):  # the smaller one is a copy, whichever comes first
        assert "agree on all 900 rows" in _warnings(list("ab"), rows_of(large[:, order]))[0]


def rows_of(votes: Any, known: Any = None) -> Votes:
    """Votes (n, m) and labels, counted."""
    known = np.full(len(votes), -1) if known is None else known
    found, counts = np.unique(np.column_stack([votes, known]), axis=0, return_counts=True)
    rows = counts.astype(float)
    return Votes(found[:, :-1], rows, rows, found[:, -1], sampled=False)


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
def test_dependent_functions_label_as_well_as_the_majority(k: int) -> None:
    for seed in range(5):
        votes, y = topics(k, seed)
        names = [f"f{j}" for j in range(votes.shape[1])]
        method, found, [warning] = _choose_estimate("auto", rows_of(votes), k, None, names)
        assert method == "precision" and ("do not vote independently" in warning or "pairs of votes" in warning)
        some = (votes >= 0).any(1)
        at = np.arange(some.sum())
        label = (found.posterior(votes[some]).argmax(1) == y[some]).mean()
        assert label >= majority(votes[some], k)[at, y[some]].mean()
        assert (found.accuracies >= 1 / k - 1e-9).all()
        posterior = found.posterior(votes[~some])
        assert np.allclose(posterior, found.balance)  # abstaining says nothing


def test_a_vote_is_its_precision_and_known_classes_certain() -> None:
    votes, y = topics(2, 0)
    patterns, index = np.unique(np.column_stack([votes, y]), axis=0, return_inverse=True)
    weights = np.bincount(index.reshape(-1)).astype(float)
    found = precision(patterns[:, :-1], weights, 2, known=patterns[:, -1])
    on = votes != ABSTAINS
    mean = (votes == y[:, None])[on].mean()
    alone = np.full(votes.shape[1], ABSTAINS)
    for j in range(votes.shape[1]):
        alone[j] = j % 2
        number, right = (votes[:, j] == j % 2).sum(), ((votes[:, j] == j % 2) & (y == j % 2)).sum()
        own = (right + 10 * mean) / (number + 10)
        expected = min((own + 0.25 * 0.8) / 1.25, 1 - 1e-4)
        assert found.posterior(alone[None])[0, j % 2] == pytest.approx(expected, abs=1e-9)
        assert found.accuracies[j] == pytest.approx(expected, abs=1e-9)
        alone[j] = ABSTAINS


def test_votes_on_few_rows_count_as_much_as_all_do_on_average() -> None:
    """How often a function votes does not decide between two of its kind: "c" is right whenever it can be checked, "a" is not."""
    both, alone = np.array([[1, 1, -1, -1]]), np.array([[1, -1, -1, -1]])
    rows = [*[both] * 760, *[alone] * 100, *[[[1, 0, -1, 0]]] * 60, *[[[-1, 0, 0, -1]]] * 12]
    found = precision(np.concatenate(rows), np.ones(len(rows)), 2)
    assert found.accuracies[2] > found.accuracies[0]
    assert found.posterior(np.array([[1, -1, 0, -1]]))[0].argmax() == 0
