"""The decision about a finalist: fold by fold, with one p-value for four of them, and what else speaks against it."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.evaluation.compatibility import Compatibility
from sparkdiff.evaluation.paired_rows import PairedRows
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.evaluation.units import Costs, Units
from sparkdiff.options import Options
from sparkdiff.proof import decision
from sparkdiff.proof.decision import FINALISTS, FoldComparison

F64 = torch.float64
NONE = torch.empty((3, 0), dtype=F64)
LOSS = 10.0


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def fold(gains: Tensor, k: int = 0, folds: int = 1, **more: Any) -> FoldComparison:
    """A fold whose rival loses `LOSS` in each row; its rows lie in blocks of their own."""
    n = len(gains)
    original, weight = torch.full((n,), LOSS, dtype=F64), torch.ones(n, dtype=F64)
    block = (k + folds * torch.arange(n)) % MAX_BLOCKS
    both = torch.stack([original, original - gains])
    rows = PairedRows(original, original - gains, weight, block, None, Units(n), NONE, both)
    return FoldComparison(rows, None, **more)


def in_folds(gains: Tensor, **more: Any) -> list[FoldComparison]:
    """(K, n) gains of K folds."""
    return [fold(g, k, len(gains), **more) for k, g in enumerate(gains)]


def judged(folds: list[FoldComparison], factor: float | None = 1.0, **options: Any) -> Any:
    return decision.judge(folds, Options.of(options), factor)


@pytest.mark.parametrize("shift", [0.02, 0.1, 0.2])
def test_each_p_value_pays_for_four_finalists_alone(shift: float) -> None:
    folds = in_folds(random(1, 4, 200) + shift)
    found = judged(folds).verdict
    alone = decision.decide_gain(folds, level=0.025 / FINALISTS, factor=1.0, finalists=1)
    assert FINALISTS == 4
    assert found.p == min(4 * alone.p, 1.0)
    assert judged(folds).verdict == found
    assert (found.gain, found.z) == (alone.gain, alone.z)


def test_false_gains_pass_at_a_quarter_of_the_level_at_most() -> None:
    accepted = sum(judged(in_folds(random(seed, 4, 60))).accepted for seed in range(200))
    assert accepted <= 5  # 1.2 are expected; more than 5 have a chance of 0.2%


def test_what_the_folds_disagree_about_widens_the_test() -> None:
    """The same gains, once of pipelines that agree on each other's rows, once of some that don't."""
    gains, rows = random(1, 4, 200) + 0.2, torch.arange(MAX_BLOCKS)
    held = [torch.isin(rows, f.rows.block) for f in in_folds(gains)]

    def elsewhere(disagree: float) -> list[FoldComparison]:
        own = [torch.where(h, 0.0, disagree * random(k, MAX_BLOCKS)) for k, h in enumerate(held)]
        return [dataclasses.replace(f, elsewhere=x) for f, x in zip(in_folds(gains), own, strict=True)]

    alike, unlike = (decision.dependence_of(elsewhere(x), None) for x in (0.0, 2.0))
    assert (alike, unlike) == (1.5, 2.0)
    assert decision.dependence_of(elsewhere(2.0), 1.25) == 1.25  # where it is known, as by time
    assert decision.dependence_of(elsewhere(2.0)[:1], None) == 1.0
    assert judged(elsewhere(2.0), None).verdict.z == pytest.approx(
        judged(elsewhere(0.0), None).verdict.z * (1.5 / 2) ** 0.5
    )
    assert judged(elsewhere(2.0), None).verdict.p > judged(elsewhere(0.0), None).verdict.p


def test_weights_of_all_folds_count_in_one_unit() -> None:
    """The cache of a fold may divide its weights by a power of two."""
    sums = SliceSums(
        (("a", 1),), *(torch.ones((1, MAX_BLOCKS), dtype=F64) for _ in range(3)), *[torch.tensor([50])] * 2, 1.0
    )
    gains = random(1, 3, 100) + torch.tensor([[0.5], [0.0], [-0.1]], dtype=F64)
    plain = in_folds(gains, slices=sums, unseen=torch.ones(3, dtype=F64), elsewhere=torch.ones(MAX_BLOCKS, dtype=F64))
    divided = [*plain[:2], dataclasses.replace(plain[2].scaled(3), exponent=3)]
    assert float(divided[2].rows.weight[0]) == 1 / 8
    one, other = judged(plain), judged(divided)
    assert other.verdict.gain == pytest.approx(one.verdict.gain, rel=1e-12)
    assert other.verdict.z == pytest.approx(one.verdict.z, rel=1e-12)
    assert other.slices[0].before == pytest.approx(one.slices[0].before, rel=1e-12)
    assert other.unseen.cost * 8 == pytest.approx(one.unseen.cost, rel=1e-12)  # both are in one unit
    assert other.unseen.gain * 8 == pytest.approx(one.unseen.gain, rel=1e-12)


def test_rows_of_all_folds_count_where_each_has_too_few() -> None:
    assert "30 are needed" in judged(in_folds(random(1, 2, 14) + 9)).verdict.untested
    assert judged(in_folds(random(1, 2, 15) + 9)).accepted


def test_the_dearest_training_rows_count() -> None:
    """They show rare losses that the rows which prove don't show."""
    steady, rare = torch.zeros(400, dtype=F64), torch.zeros(400, dtype=F64)
    rare[:3] = 60.0
    cheap, dear = (Costs(x, torch.ones(400, dtype=F64)) for x in (steady, rare))
    gains = 0.1 + 0.2 * random(1, 2, 200).abs()
    folds = in_folds(gains)
    assert judged([dataclasses.replace(f, training=cheap) for f in folds]).accepted
    mixed = [dataclasses.replace(f, training=t) for f, t in zip(folds, (cheap, dear), strict=True)]
    found = judged(mixed)
    assert not found.accepted
    assert "training rows lose far more" in found.verdict.against


def sums(**slices: tuple[float, range]) -> SliceSums:
    """Slices by name: the gain in each of these blocks."""
    size = (len(slices), MAX_BLOCKS)
    loss, gains, weights = (torch.zeros(size, dtype=F64) for _ in range(3))
    for i, (gain, blocks) in enumerate(slices.values()):
        at = torch.tensor([*blocks])
        loss[i, at], gains[i, at], weights[i, at] = LOSS, gain + 0.1 * random(i, len(at)), 1.0
    number = (weights > 0).sum(1)
    return SliceSums(tuple(("city", name) for name in slices), loss, gains, weights, number, number, 1.0)


def test_a_slice_that_loses_in_all_folds_together_is_a_veto() -> None:
    """Of 20 rows in each fold, too few for a test of their own; and a value that the first fold has no row of."""
    gains = random(1, 2, 200) + 1.0
    one, two = in_folds(gains)
    first = dataclasses.replace(one, slices=sums(here=(1.0, range(100, 200)), small=(-0.3, range(20))))
    second = sums(here=(1.0, range(300, 400)), late=(1.0, range(500, 560)), small=(-0.3, range(20, 40)))
    found = judged([first, dataclasses.replace(two, slices=second)])
    assert {c.value: c.rows for c in found.slices} == {"here": 200, "small": 40, "late": 60}
    assert [c.value for c in found.worse] == ["small"]
    assert found.verdict.accepted and not found.accepted
    by_value = {c.value: c for c in found.slices}
    assert by_value["late"].gain == pytest.approx(1.0, abs=0.1) and by_value["small"].gain == pytest.approx(
        -0.3, abs=0.1
    )
    alone = judged([first])
    assert not alone.worse  # fewer than 30


def test_labels_that_change_count_over_all_folds() -> None:
    def changes(*shares: float) -> list[FoldComparison]:
        each = [Compatibility(100, share, True, 0.0, None, None, None) for share in shares]
        folds = in_folds(random(1, 2, 200) + 1.0)
        return [dataclasses.replace(f, compatibility=c) for f, c in zip(folds, each, strict=True)]

    assert judged(changes(0.3, 0.1), maxFlipRate=0.21).accepted
    found = judged(changes(0.3, 0.1), maxFlipRate=0.19)
    assert found.verdict.accepted and found.flips and not found.accepted
    assert judged(in_folds(random(1, 2, 200) + 1.0)).compatibility is None


def test_one_more_wrong_row_may_undo_the_gain_of_all_folds() -> None:
    gains = 0.05 + 0.01 * random(1, 2, 200)  # 20 of all rows together
    for cost, accepted in ((19.0, True), (21.0, False)):
        found = judged(in_folds(gains, unseen=torch.full((200,), cost, dtype=F64)))
        assert found.verdict.accepted and found.accepted == accepted == (not found.fragile)


def test_a_fleet_pays_for_its_size_and_keeps_its_vetoes() -> None:
    folds = in_folds(random(1, 2, 200) + 0.15, slices=sums(here=(1.0, range(200))))
    one, fleet = judged(folds), judged(folds, fleetSize=1000)
    assert one.accepted and not fleet.accepted
    assert (one.verdict.level, fleet.verdict.level, fleet.level) == pytest.approx((0.025, 2.5e-5, 0.025))


def test_without_a_guard_any_gain_is_accepted() -> None:
    assert judged(in_folds(random(1, 1, 40) * 0 + 1e-6), guard=1.0).accepted
    assert not judged(in_folds(random(1, 1, 40) * 0 - 1e-6), guard=1.0).accepted
