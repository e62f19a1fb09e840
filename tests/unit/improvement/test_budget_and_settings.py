"""Budgets and the options of an improvement: what they accept, and what they say where they don't."""

import math

import pytest

from sparkdiff.cli.job_options import check
from sparkdiff.errors import InputError
from sparkdiff.improvement import baseline
from sparkdiff.improvement.budget import Account, Budget, Limit
from sparkdiff.improvement.improvement_options import ImprovementSettings


@pytest.mark.parametrize(
    ("text", "seconds", "passes"),
    [("90s", 90, None), ("30m", 1800, None), ("1.5 h", 5400, None), ("300 passes", None, 300)],
)
def test_a_budget_is_a_time_or_a_number_of_passes(text: str, seconds: float | None, passes: float | None) -> None:
    assert Budget.of(text) == Budget(seconds, passes)


@pytest.mark.parametrize("text", ["", "30", "30 minutes", "-5m", "m", "1e3s", "300passes please"])
def test_what_is_no_budget_is_named(text: str) -> None:
    with pytest.raises(InputError, match="must be a time such as 90s"):
        Budget.of(text)


@pytest.mark.parametrize(
    ("text", "least"), [("5s", "at least 10s"), ("0h", "at least 10s"), ("3 passes", "at least 20 passes")]
)
def test_a_budget_that_nothing_fits_in_is_refused(text: str, least: str) -> None:
    with pytest.raises(InputError, match=least):
        Budget.of(text)


def test_an_account_keeps_time_for_the_proof_of_the_best() -> None:
    """In three folds and on all rows the pipeline is fitted and measured, and the best candidate beside it."""
    account = Account(Budget.of("100s"), clock=lambda: 0.0)
    assert account.balance() == pytest.approx(100)
    account.start(4, 1)
    account.fold = 5.0  # before anything was tried, a candidate is taken to be twice as quick
    assert account.balance() == pytest.approx(120 - 4 * (5 + 2.5))  # a tenth of the budget and 10 s later it has to end
    account.best = 12.0
    assert account.balance() == pytest.approx(120 - 4 * (5 + 12))
    account.start(1, 1)
    assert account.balance() == pytest.approx(120 - 2 * (5 + 12))


def test_two_folds_at_once_take_longer_each_than_one_alone() -> None:
    account = Account(Budget.of("100s"), clock=lambda: 0.0)
    account.start(4, 2)
    account.fold = 20.0
    # Three folds and all rows are four fits of the pipeline, and the candidate is made four times: two at a time.
    assert account.balance() == pytest.approx(120 - 2 * 20 - 2 * 10)


def proven(
    budget: str,
    *seconds: float,
    passed: float = 0.0,
    folds: int = 4,
    fold: float = 1.0,
    lanes: int = 1,
    ready: int = 0,
    check: float = 0.0,
) -> list[int]:
    """The folds that prove each finalist, once so many seconds have passed."""
    now = [0.0]
    account = Account(Budget.of(budget), clock=lambda: now[0])
    account.start(folds, lanes)
    account.fold = fold
    account.note_check(check)
    now[0] = passed
    return [folds for folds, _ in account.buy_folds(seconds, ready)]


def test_the_best_gets_folds_first_and_others_in_time_left() -> None:
    assert proven("100s", 2.0, 2.0, 2.0, 2.0) == [4, 4, 4, 4]
    assert proven("100s", 2.0, 2.0, 9.0, 2.0, passed=70.0) == [4, 4, 0, 0]
    assert proven("100s", 2.0, 9.0, 1.0, passed=70.0) == [4, 0, 4]  # a later one that is quicker


def test_the_best_gets_three_folds_even_if_a_little_late() -> None:
    assert proven("100s", 2.0, 0.0, passed=87.0) == [3, 3]  # 12 s of 13, where 15 would be too many
    assert proven("100s", 2.0, passed=100.0) == [3]  # 12 s: a tenth of the budget and 10 s are allowed
    assert proven("100s", 2.0, 1.0, passed=109.0) == [0, 3]  # what is quicker, in its place
    assert proven("100s", 2.0, 1.0, passed=113.0) == [0, 0]
    assert proven("100s", 2.0, folds=1, passed=99.0) == [1]
    assert proven("100s", 2.0, passed=100.0, check=8.0) == [3]
    assert proven("100s", 2.0, passed=100.0, check=9.0) == [0]  # what is saved is compared after the proof


def test_folds_fitted_already_or_in_parallel_take_less_time() -> None:
    assert proven("100s", 2.0, fold=5.0, passed=95.0) == [0]
    assert proven("100s", 2.0, fold=5.0, passed=95.0, ready=4) == [3]
    assert proven("100s", 2.0, fold=5.0, passed=95.0, lanes=2) == [3]
    assert proven("100s", 2.0, fold=5.0, passed=80.0, lanes=2) == [4]


@pytest.mark.parametrize(("ready", "lanes"), [(0, 1), (2, 1), (5, 1), (0, 2), (5, 2)])
def test_what_is_provable_is_what_gets_folds(ready: int, lanes: int) -> None:
    now = [0.0]
    account = Account(Budget.of("100s"), clock=lambda: now[0])
    account.start(4, lanes)
    account.fold = 4.0
    account.note_check(9.0)
    now[0] = 85.0
    most = account.provable_seconds(ready)
    for seconds, number in ((0.999 * most, 3), (1.001 * most, 0)):
        account.start(4, lanes)
        assert account.buy_folds([seconds], ready)[0][0] == number
    assert Account(Budget.of("60 passes")).provable_seconds(0) == math.inf


def test_the_time_for_the_check_takes_none_from_the_proof() -> None:
    """On many rows the original is measured for longer than there is beyond the budget."""
    assert proven("100s", 5.0, fold=1e-9, passed=70.0) == proven("100s", 5.0, fold=1e-9, passed=70.0, check=30.0) == [4]
    assert proven("60s", 2.0, fold=5.0, passed=30.0, check=120.0) == [3]  # 4 * 5 + 4 * 2: 28 s of 30


def test_of_a_fold_that_is_being_fitted_a_part_is_there() -> None:
    now = [0.0]
    account = Account(Budget.of("100s"), clock=lambda: now[0])
    account.start(4, 1)
    account.fold = 5.0
    now[0] = 85.0
    assert account.buy_folds([2.0], 1) == [(3, 0.0)]  # 3 * 5 + 4 * 2: 23 s of 35
    assert account.folds == 3
    account.start(4, 1)
    with account.fitting():
        now[0] = 97.5
        assert account.buy_folds([2.0], 1) == [(3, 0.0)]  # 2.5 s of the second are over: 20.5 s of 22.5
        now[0] += 5
        assert account.fold == 5.0
    assert account.fold == 17.5
    [(folds, lacking)] = account.buy_folds([2.0], 1)
    assert folds == 0
    assert lacking == pytest.approx(3 * 17.5 + 4 * 2 + 2.5)  # and the 100 s have been over for 2.5 s
    assert account.folds == 0


def test_a_budget_of_passes_gives_every_finalist_all_folds() -> None:
    assert proven("60 passes", 1e9, 1e9) == [4, 4]
    assert proven("60s") == []


def test_a_budget_without_end_limits_nothing() -> None:
    account = Account(Budget.unlimited())
    account.start(4, 1)
    account.fold = 1e9
    assert account.limit(0.1) == Limit(None, None)
    assert account.buy_folds([1e9, 1.0]) == [(4, 0.0), (4, 0.0)]
    assert account.balance() > 1


def test_an_account_shares_what_is_left() -> None:
    now = [1000.0]
    account = Account(Budget.of("95s"), clock=lambda: now[0])
    assert account.balance() == pytest.approx(95)
    account.add("refit", 45, until=45)  # as a run that was interrupted then has it in its log
    assert account.balance() == pytest.approx(50)
    now[0] += 10
    account.add("refit", 10, until=55)
    assert account.spent == {"refit": 55}
    assert account.balance() == pytest.approx(40)
    assert account.limit(0.25).seconds == pytest.approx(10)
    assert account.limit(0.25).passes is None
    assert account.limit(0.25, lanes=2).seconds == pytest.approx(20)  # two arms at the same time
    assert account.limit(0.75, lanes=2).seconds == pytest.approx(40)  # but no more than there is


def test_what_a_step_makes_can_still_be_proven() -> None:
    """A candidate that takes all the time of its step is made again in three folds and from all rows."""
    now = [0.0]
    account = Account(Budget.of("100s"), clock=lambda: now[0])
    account.start(4, 2)
    account.fold = 2.0
    seconds = account.limit(1.0).seconds
    assert seconds is not None
    now[0] += seconds
    assert account.buy_folds([seconds]) == [(3, 0.0)]
    assert account.buy_folds([1.1 * seconds])[0][0] == 0


@pytest.mark.parametrize(
    ("text", "most"), [("299s", 0), ("5m", 12), ("30m", 72), ("2499 passes", 0), ("2500 passes", 100)]
)
def test_comparing_may_take_a_25th_of_five_minutes_or_more(text: str, most: float) -> None:
    assert baseline.limit(Budget.of(text)) == pytest.approx(most)


def test_what_is_granted_is_spent() -> None:
    account = Account(Budget.of("400 passes"))
    account.grant(100)
    assert account.balance() == 300
    timed = Account(Budget.of("100s"), clock=lambda: 0.0)
    timed.grant(100)  # here the clock counts
    assert timed.balance() == pytest.approx(100)


def test_passes_are_shared_whatever_the_clock_says() -> None:
    account = Account(Budget.of("400 passes"))
    account.add("refit", 1e9)
    limit = account.limit(0.25)
    assert (limit.seconds, limit.passes) == (None, 100)
    assert limit.epochs(4, 120) == 25
    assert limit.epochs(1000, 120) == 1
    assert account.limit(0.5).passes == 150  # what was granted is spent
    assert account.balance() == 150


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"budget": "soon"}, "must be a time"),
        ({"arms": ["growth"]}, "Did you mean 'grow'"),
        ({"arms": []}, "arms is empty"),
        ({"arms": ["refitt", "growe"]}, "unknown arm 'refitt'.*arms names an unknown arm 'growe'"),
        ({"parts": ["trees"]}, "parts names an unknown kind 'trees'"),
        ({"maxServingCost": 0.5}, "maxServingCost"),
        ({"keepForm": True, "arms": ["grow", "simplify"]}, "keepForm=true forbids all of arms"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        ImprovementSettings.of(given)


def test_what_the_user_forbids_is_not_tried() -> None:
    assert ImprovementSettings.of({"keepForm": True}).allowed_arms() == ("refit", "finetune", "threshold", "search")
    assert ImprovementSettings.of({"arms": ["grow", "refit"]}).allowed_arms() == ("refit", "grow")


@pytest.mark.parametrize(
    ("given", "others", "says"),
    [
        ({"maxEpochs": 3}, {}, "unknown key 'maxEpochs'. Did you mean fineTuner.maxEpochs"),
        ({"budgets": "3m"}, {}, "unknown key 'budgets'. Did you mean 'budget'"),
        ({}, {"maxSeconds": 5}, "its time is `budget`"),
    ],
)
def test_a_jobs_section_is_checked(given: dict[str, object], others: dict[str, object], says: str) -> None:
    with pytest.raises(InputError, match=says):
        check("improver", given, others)
