"""What decides beside the sums of gains: the units that a metric counts, rare losses of training rows, one more wrong row."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.evaluation.paired_rows import PairedRows, decide_by_rows, pair
from sparkdiff.evaluation.units import FEW, Costs, Units, effective_number, high, units_of
from sparkdiff.objectives.metric import Metric, influence
from sparkdiff.objectives.metrics import BINARY, of_predictions

F64 = torch.float64
benchmarks = Path(__file__).parents[3] / "benchmarks"


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def by_class(name: str, label: float = 1.0, classes: int = 2) -> Metric:
    return of_predictions(name, {"metricLabel": label} if name.endswith("ByLabel") else {}, classes)


AREA = Metric("areaUnderROC", larger=True, column=lambda x: x, value=BINARY["areaUnderROC"], ranks=True)


def rows_of(
    metric: Metric,
    columns: tuple[Tensor, Tensor],
    label: Tensor,
    weight: Tensor | None = None,
    group: Tensor | None = None,
) -> PairedRows:
    weight = torch.ones(len(label), dtype=F64) if weight is None else weight
    block = torch.arange(len(label)) % MAX_BLOCKS if group is None else group
    return pair(metric, columns, (label, label), weight, block, group, "rows" if group is None else "groups")


# Units ------------------------------------------------------------------------------------------------------------------


def test_uneven_weights_count_by_their_effective_number() -> None:
    assert effective_number(torch.full((40,), 7.0, dtype=F64), None) == pytest.approx(40)
    heavy = torch.ones(40, dtype=F64)
    heavy[0] = 400.0
    assert effective_number(heavy, None) == pytest.approx(439**2 / (400**2 + 39))
    groups = torch.arange(40) // 8
    assert effective_number(torch.ones(40, dtype=F64), groups) == pytest.approx(5)
    assert effective_number(torch.empty(0, dtype=F64), None) == 0


@pytest.mark.parametrize(
    ("name", "expected", "words"),
    [
        ("precisionByLabel", 4, "rows predicted as class 1"),
        ("recallByLabel", 10, "rows of class 1"),
        ("fMeasureByLabel", 13, "rows of, or predicted as, class 1"),
        ("falsePositiveRateByLabel", 90, "rows of other classes than 1"),
        ("weightedRecall", 100, "rows"),  # the accuracy, by another name
    ],
)
def test_the_smaller_denominator_of_two_pipelines_counts(name: str, expected: int, words: str) -> None:
    label, many, few = (torch.zeros(100, dtype=F64) for _ in range(3))
    label[:10] = many[:60] = 1
    few[9:13] = 1
    for columns in ((many, few), (few, many)):
        found = rows_of(by_class(name), columns, label).units
        assert found.number == pytest.approx(expected)
        assert str(found) == f"{expected} {words}"


def test_a_rarely_predicted_class_counts_by_what_it_moves() -> None:
    label = (torch.arange(500) % 5 < 2).double()  # 40%
    prediction = torch.zeros(500, dtype=F64)
    prediction[:2] = 1
    assert rows_of(by_class("weightedPrecision"), (prediction, prediction), label).units.number < 30
    rare = torch.zeros(500, dtype=F64)
    rare[:5] = 1  # 1%
    assert rows_of(by_class("weightedPrecision"), (prediction, prediction), rare).units.number > 300


def test_an_area_needs_units_of_both_classes() -> None:
    group = torch.arange(200) // 10
    label = (group < 3).double()
    score = torch.randn(200, generator=random(), dtype=F64)
    assert str(rows_of(AREA, (score, score), label).units) == "30 rows of class 1"
    assert str(rows_of(AREA, (score, score), label, group=group).units) == "3 groups of class 1"
    assert str(rows_of(AREA, (score, score), 1 - label, group=group).units) == "3 groups of class 0"
    verdict = decide_by_rows(rows_of(AREA, (score, label), label, group=group), level=0.025)
    assert not verdict.accepted and verdict.untested == "3 groups of class 1, 30 are needed"
    assert decide_by_rows(rows_of(AREA, (score, label), label, group=group), level=1).accepted


# One more wrong row -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["precisionByLabel", "weightedPrecision", "f1", "recallByLabel", "fMeasureByLabel"])
def test_each_denominator_gets_one_more_unit_that_is_wrong(name: str) -> None:
    generator = random(1)
    label, one, other = (torch.randint(0, 3, (90,), generator=generator).double() for _ in range(3))
    metric = by_class(name, classes=3)
    found = rows_of(metric, (one, other), label)
    classes = metric.denominators.classes if metric.denominators is not None else ()
    assert found.wrong.shape == (3, len(classes))
    prediction, wanted = metric.denominators.wrong_rows(3)  # type: ignore[union-attr]
    assert not (prediction == wanted).any()
    w = torch.ones(90 + len(classes), dtype=F64)
    for column, own, extra in ((one, found.beside[0], found.wrong[1]), (other, found.beside[1], found.wrong[2])):
        whole = influence(metric, torch.cat([column, prediction]), torch.cat([label, wanted]), w)
        torch.testing.assert_close(torch.cat([own, extra]), metric.sign * whole)


def test_few_lucky_predictions_are_no_proof() -> None:
    label = (torch.rand(2000, generator=random(2), dtype=F64) < 0.4).double()
    original = (torch.rand(2000, generator=random(3), dtype=F64) < 0.1).double()
    for number in (1, 2, 29):
        lucky = torch.zeros(2000, dtype=F64)
        lucky[label.nonzero()[:number, 0]] = 1
        verdict = decide_by_rows(rows_of(by_class("precisionByLabel"), (original, lucky), label), level=0.025)
        assert not verdict.accepted and verdict.untested.startswith(f"{number} rows predicted as class 1")
    better = torch.zeros(2000, dtype=F64)
    better[label.nonzero()[:200, 0]] = 1
    assert decide_by_rows(rows_of(by_class("precisionByLabel"), (original, better), label), level=0.025).accepted


def test_a_gain_that_one_more_wrong_row_undoes_says_so() -> None:
    label, one, other = (torch.zeros(4000, dtype=F64) for _ in range(3))
    label[:3000] = 1
    one[:1000] = other[:31] = 1
    label[0] = 0
    one[0], other[0] = 1, 0  # 999 of 1,000, and 30 of 30
    verdict = decide_by_rows(rows_of(by_class("precisionByLabel"), (one, other), label), level=0.025)
    assert not verdict.accepted and "one more row that is predicted wrongly" in verdict.against


@pytest.mark.parametrize("metric", [by_class("precisionByLabel"), of_predictions("mse", {})])
def test_without_a_gain_nothing_speaks_against_one(metric: Metric) -> None:
    label = (torch.arange(400) % 2).double()
    verdict = decide_by_rows(rows_of(metric, (label, 1 - label), label), level=0.025)
    assert (verdict.best, verdict.gain, verdict.against) == (-1, 0.0, "")


def test_where_any_gain_is_accepted_no_row_is_added() -> None:
    """The original finds 31 of 31, the other 999 of 1,000."""
    label, one, other = (torch.zeros(4000, dtype=F64) for _ in range(3))
    label[:3000] = 1
    one[:31] = other[:1000] = 1
    label[999] = 0
    for columns, accepted in (((one, other), False), ((other, one), True)):
        verdict = decide_by_rows(rows_of(by_class("precisionByLabel"), columns, label), level=1.0)
        assert verdict.accepted is accepted and (verdict.gain > 0) is accepted


# Rare losses ------------------------------------------------------------------------------------------------------------


def squared(shift: float, large: int, rows: int) -> PairedRows:
    """A regression that ignores the labels of 250, of which there are so many, against one that predicts the mean."""
    label = torch.randn(rows, generator=random(rows), dtype=F64)
    label[:large] += 250
    one, other = torch.full((rows,), shift, dtype=F64), torch.zeros(rows, dtype=F64)
    return rows_of(of_predictions("mse", {}), (one, other), label)


def test_rare_losses_in_training_rows_alone_bar_a_gain() -> None:
    held = squared(1.0, 0, 300)
    alone = decide_by_rows(held, level=0.025)
    assert alone.accepted and alone.p < 1e-6
    verdict = decide_by_rows(held, level=0.025, training=squared(1.0, 6, 1200).costs())
    assert not verdict.accepted
    assert "some of 1,200 training rows lose far more than those that are held out (up to 50" in verdict.against
    verdict = decide_by_rows(held, level=0.025, training=squared(1.0, 2, 1200).costs())
    assert not verdict.accepted and f"fewer than {FEW} of 1,200 training rows" in verdict.against
    assert decide_by_rows(held, level=0.025, training=squared(1.0, 0, 1200).costs()).accepted
    assert decide_by_rows(held, level=1.0, training=squared(1.0, 6, 1200).costs()).accepted


def test_rare_losses_that_cannot_undo_a_gain_do_not_bar_it() -> None:
    held, training = squared(1.0, 0, 9000), squared(1.0, 6, 36000).costs()
    assert decide_by_rows(held, level=0.025, training=training).accepted


def costs(losses: torch.Tensor) -> Costs:
    """Of rows of equal weight."""
    return Costs.of(losses, torch.ones_like(losses), None, "rows")


def test_costs_add_up_and_count_groups_whole() -> None:
    losses = torch.tensor([3.0, -1.0, 2.0, -5.0, 0.5, 0.5], dtype=F64)
    by_row = costs(losses)
    assert by_row.each.tolist() == [3.0, 0.0, 2.0, 0.0, 0.5, 0.5] and by_row.mean_square == 13.5 / 6
    by_group = Costs.of(losses, torch.ones(6), torch.tensor([0, 0, 1, 1, 2, 2]), "groups")
    assert (by_group.each.tolist(), by_group.weight.tolist()) == ([2.0, 0.0, 1.0], [2.0, 2.0, 2.0])
    both = by_row + by_row
    assert (len(both.each), both.mean_square) == (12, 13.5 / 6)
    assert costs(losses[:0]).missing_from(by_row) == 0
    assert high(torch.arange(100, dtype=F64)) == 97


def test_few_costly_units_may_come_up_to_three_times_as_often() -> None:
    held = costs(torch.full((100,), -1.0, dtype=F64))
    some, few = torch.full((400,), -1.0, dtype=F64), torch.full((400,), -1.0, dtype=F64)
    some[:6], few[:2] = 10.0, 10.0
    assert costs(some).missing_from(held) == pytest.approx((1 + 2 * (5 / 6) ** 2) * 100 * 6 * 100 / 400)
    assert costs(few).missing_from(held) == pytest.approx(3 * 100 * 2 * 100 / 400)


def test_a_rare_loss_may_come_to_a_heavy_row() -> None:
    """Training rows show both, and no heavy row with a rare loss."""
    held, training = torch.full((100,), -1.0, dtype=F64), torch.full((400,), -1.0, dtype=F64)
    weight = torch.ones(400, dtype=F64)
    training[:20], weight[-20:] = 10.0, 50.0
    heavy = weight[-100:]
    costs = Costs.of(training * weight, weight, None, "rows")
    assert costs.power == pytest.approx(1 - 20 * math.log(10) / 380 / math.log(50))
    factor = 1 + 2 * (5 / 20) ** 2
    expected = factor * (80 + 20 * 50 ** (2 * costs.power)) * 20 * 10**2 / 400
    assert costs.missing_from(Costs.of(held * heavy, heavy, None, "rows")) == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["inverse variance", "exposure"])
def test_light_rows_that_lose_more_keep_no_gain_away(kind: str) -> None:
    def drawn(n: int, seed: int) -> PairedRows:
        random = torch.Generator().manual_seed(seed)
        x, z = torch.randn((2, n), generator=random, dtype=F64)
        if kind == "exposure":
            weight = torch.where(torch.rand(n, generator=random) < 0.3, 0.01, 1.0).double()
            label = torch.poisson(0.1 * torch.exp(0.6 * x) * weight, generator=random) / weight
            one, other = (0.1 * torch.exp(b * x) - label * b * x for b in (0.2, 0.58))
        else:
            weight = torch.exp(-2 * z)
            label = x + z.exp() * torch.randn(n, generator=random, dtype=F64)
            one, other = ((label - b * x) ** 2 for b in (0.7, 0.98))
        blocks = torch.arange(n) % MAX_BLOCKS
        return pair(Metric("loss", rows=lambda m, y, w: m), (one, other), (label, label), weight, blocks, None, "rows")

    held, training = drawn(4000, 0), drawn(16_000, 1)
    assert decide_by_rows(held, level=0.025, training=training.costs()).accepted


def test_parts_with_metrics_of_their_own_are_joined() -> None:
    label = (torch.arange(80) % 2).double()
    one, two = (rows_of(by_class("precisionByLabel"), (label, 1 - label), label) for _ in range(2))
    both = one + two.scaled(2.0)
    assert (both.units.number, len(both.weight), both.wrong.shape) == (80, 160, (3, 2))
    assert float(both.original.sum()) == pytest.approx(3 * float(one.original.sum()))


@pytest.fixture
def rare(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(benchmarks))
    import guard_rare

    yield guard_rare
    sys.modules.pop("guard_rare")


@pytest.mark.parametrize(
    "name",
    [
        "precisionByLabel, 500 rows, 40% of the class, predicted ever less, to 1 row",
        "recallByLabel, 1000 rows, 3 of the class",
        "areaUnderROC, 600 rows, 2 of class 1",
        "areaUnderROC, 600 rows, 40 of class 1, 1 of them weigh 40",
        "squared, 320 rows, 1 of 250",
        "squared, 1000 rows, 1 of 100, 2% of 50 weights",
        "rmse, 320 rows, 1 of 250",
        "r2, 320 rows, 1 of 250",
    ],
)
def test_what_a_test_of_sums_accepts_without_a_gain_is_kept(rare: Any, name: str) -> None:
    [cell] = [c for c in rare.cells() if c.name == name]
    now, before = rare.share_accepted(cell, 40)
    assert now <= 0.075 and before >= 0.1


def test_infinite_losses_are_costs_of_nothing() -> None:
    assert costs(torch.tensor([math.nan, 1.0], dtype=F64)).each.tolist() == [0.0, 1.0]
    assert str(Units(31.5, "groups", " of class 2")) == "31.5 effective groups of class 2"
    assert (
        units_of(AREA, (torch.ones(3),), (torch.ones(3, dtype=F64),), torch.ones(3, dtype=F64), None, "rows").number
        == 0
    )
