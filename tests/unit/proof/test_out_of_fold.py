"""The test by out-of-fold rows: what the folds share, and how often it accepts where nothing can be gained."""

import dataclasses
import math

import pytest
import torch

from sparkdiff.evaluation import guard, slices
from sparkdiff.evaluation.slices import SliceSums
from sparkdiff.proof import decision
from sparkdiff.proof.decision import FoldSums

FOLDS, ROWS = 5, 300


def steps_along_chance(seed: int, columns: int = 30, shift: float = 0.0) -> list[FoldSums]:
    """The gains of one small step of a logistic regression from the truth, or from what is `shift` away from it."""
    random = torch.Generator().manual_seed(seed)
    x = torch.randn(ROWS, columns, generator=random, dtype=torch.float64)
    truth = torch.randn(columns, generator=random, dtype=torch.float64) / math.sqrt(columns)
    y = (torch.rand(ROWS, generator=random, dtype=torch.float64) < torch.sigmoid(x @ truth)).double()
    start = truth * (1 - shift)
    fold = torch.arange(ROWS) % FOLDS

    def loss(weights: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.softplus(x @ weights) - y * (x @ weights)

    out = []
    for k in range(FOLDS):
        outside, before = fold != k, loss(start)
        step = x[outside].T @ (y - torch.sigmoid(x @ start))[outside] / ROWS
        gains, own = before - loss(start + 1e-3 * step), (~outside).double()
        out.append(FoldSums(gains * own, own, gains * outside.double()))
    return out


def decide(folds: list[FoldSums]) -> guard.Verdict:
    gains, weights = (torch.stack([getattr(f, name) for f in folds]).sum(0) for name in ("gains", "weights"))
    return guard.decide(gains[None], weights, original=5 * weights, dependence=decision.dependence(folds))


def test_despite_shared_rows_false_gains_keep_to_the_level() -> None:
    accepted = independent = 0
    for seed in range(300):
        folds = steps_along_chance(seed)
        accepted += decide(folds).accepted
        gains, weights = (torch.stack([getattr(f, name) for f in folds]).sum(0) for name in ("gains", "weights"))
        independent += guard.decide(gains[None], weights).accepted
    assert accepted <= 13 < independent  # 2.5%, and two standard errors; a test of independent rows accepts too often


def test_a_true_gain_is_found_and_interval_and_p_agree() -> None:
    verdict = decide(steps_along_chance(1, columns=3, shift=0.9))
    assert verdict.accepted and verdict.z > 2 and verdict.interval is not None and verdict.interval[0] > 0


def test_rows_count_fully_if_folds_agree_and_half_if_not() -> None:
    common = torch.randn(ROWS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    fold = torch.arange(ROWS) % FOLDS
    own = [(fold == k).double() for k in range(FOLDS)]
    same = [FoldSums(common * w, w, common * (1 - w)) for w in own]
    assert decision.dependence(same) == 1.0
    apart = [dataclasses.replace(f, elsewhere=(-1) ** k * 9 * f.elsewhere) for k, f in enumerate(same)]
    assert decision.dependence(apart) == decision.MOST
    unknown = [dataclasses.replace(f, elsewhere=None) for f in same]
    assert decision.dependence(unknown) == decision.dependence(same[:2]) == decision.MOST
    shared_blocks = [dataclasses.replace(f, weights=torch.ones(ROWS, dtype=torch.float64)) for f in same]
    assert decision.dependence(shared_blocks) == decision.MOST
    nothing = [dataclasses.replace(f, gains=0 * f.gains, elsewhere=0 * common) for f in same]
    assert decision.dependence(nothing) == decision.MOST
    assert not decide(nothing).accepted and decide(nothing).best == -1


def test_known_dependence_widens_error_p_and_interval_alike() -> None:
    gains = torch.randn(1, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.15
    weights = torch.ones(400, dtype=torch.float64)
    plain, double = (guard.decide(gains, weights, original=5 * weights, dependence=d) for d in (1.0, 2.0))
    assert plain.gain == double.gain and plain.z == pytest.approx(math.sqrt(2) * double.z)
    assert plain.p < double.p and plain.interval is not None and double.interval is not None
    widths = [high - low for low, high in (plain.interval, double.interval)]
    assert widths[1] / widths[0] == pytest.approx(math.sqrt(2), rel=0.1)


def test_slices_of_folds_join_and_count_less_on_shared_rows() -> None:
    random = torch.Generator().manual_seed(1)
    loss, gains = (
        torch.ones(1, 80, dtype=torch.float64),
        torch.randn(1, 80, generator=random, dtype=torch.float64) - 0.3,
    )
    own = [(torch.arange(80) % 2 == k).double()[None] for k in (0, 1)]
    parts = [SliceSums((("hour", 3),), loss * w, gains * w, w, w.sum(1).long(), w.sum(1).long(), 1.0) for w in own]
    every = parts[0].scaled(0.5) + parts[1].scaled(0.5)
    assert [int(every.rows), int(every.units), float(every.weights.sum())] == [80, 80, 40.0]
    [one], [double] = (slices.changes_from_sums(every, level=0.025, dependence=d) for d in (1.0, 2.0))
    assert one.before == double.before == 1.0 and one.gain == pytest.approx(float(gains.mean()))
    assert one.p is not None and double.p is not None and one.p < double.p
