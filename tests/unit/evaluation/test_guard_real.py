"""The samples that benchmarks/guard_real.py draws, on populations made up here, and that its bounds can fail."""

from dataclasses import replace

import guard_real
import pytest
import torch

from sparkdiff.data import blocks
from sparkdiff.evaluation import guard


def population(gain: float = 0.0, columns: int = 40) -> guard_real.Population:
    """100 days of hours, some missing; heavy-tailed differences that days share a tenth of; slowly rotating columns."""
    g = torch.Generator().manual_seed(4)
    hours = torch.arange(2400, dtype=torch.float64)[torch.rand(2400, generator=g) < 0.9]
    n = len(hours)
    rows = torch.randn((n, 5), generator=g, dtype=torch.float64) * torch.randn((n, 1), generator=g).exp().double()
    rows += 0.5 * torch.randn((101, 5), generator=g, dtype=torch.float64)[(hours // 24).long()]
    angle = torch.randn((5, columns), generator=g, dtype=torch.float64).cumsum(1)
    original = 20 + rows.square().sum(1)
    return guard_real.Population("made up", original, rows @ angle + gain * original.mean() + 0.3, hours)


CELLS = {unit: next(c for c in guard_real.CELLS if c.unit == unit) for unit in ("rows", "groups", "blocks")}


@pytest.mark.parametrize("samples", [100, pytest.param(300, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("unit", ["rows", "groups", "blocks"])
def test_the_true_gain_of_the_samples_is_zero(unit, samples):
    drawer = guard_real.Drawer(CELLS[unit], population())
    gains, generator = drawer.shifted(), torch.Generator().manual_seed(0)
    means = torch.stack([gains[drawer.draw(generator)[0]].mean(0) for _ in range(samples)])
    z = means.mean(0) / means.std(0) * samples**0.5
    assert float(z.abs().max()) < 4.5
    assert float((gains + 0.1).mean()) > 0.05  # what is left of the population's own 0.3 would show


def test_a_group_is_a_day_and_a_block_is_contiguous():
    pool = population()
    rows, block = guard_real.Drawer(CELLS["groups"], pool).draw(torch.Generator().manual_seed(1))
    days = (pool.hours[rows] // 24).reshape(-1, guard_real.GROUP_ROWS)
    assert bool((days == days[:, :1]).all())
    assert len(rows) == CELLS["groups"].size * guard_real.GROUP_ROWS
    assert bool((block.reshape(days.shape) == block.reshape(days.shape)[:, :1]).all())
    rows, block = guard_real.Drawer(CELLS["blocks"], pool).draw(torch.Generator().manual_seed(1))
    assert len(rows) == 20_000
    assert bool((block.diff() >= 0).all())
    assert block.unique().tolist() == list(range(blocks.TIME_BLOCKS))
    assert bool((rows.diff()[: guard_real.WEEK - 1] % len(pool.hours) == 1).all())


SLICED = next(c for c in guard_real.CELLS if c.slices)


def test_no_slice_has_a_true_gain():
    drawer = guard_real.Drawer(SLICED, population())
    gains, member = drawer.shifted(), drawer.member()
    assert member.sum(1).tolist() == [2.0] * len(gains)
    assert float((member.T @ gains).abs().max()) < 1e-8
    rows = drawer.pool.hours % 24 == 3
    assert bool((member[rows, 3] == 1).all())
    assert float(member[:, 3].sum()) == float(rows.sum())


def test_a_slice_with_a_true_loss_is_called_worse():
    pool = population()
    drawer = guard_real.Drawer(SLICED, pool)
    gains, member = drawer.shifted(), drawer.member()
    rows, block = drawer.draw(torch.Generator().manual_seed(2))
    assert float(member[rows, 1].sum()) == 49
    assert not guard_real.worse(gains, member, rows, block, 0)
    best = int(gains[rows].sum(0).argmax())
    gains[:, best] += torch.where(pool.hours % 24 == 1, -2, 1) * gains[:, best].std()
    assert guard_real.worse(gains, member, rows, block, 0)


def test_the_bounds_of_a_cell_can_fail():
    assert SLICED.bounds(3000) == (0, 92)  # 2.5% and two standard errors
    assert CELLS["rows"].bounds(300) == (0, 20)
    assert next(c for c in guard_real.CELLS if c.gain == 0.047).bounds(300) == (255, 300)


@pytest.mark.parametrize("runs", [15, pytest.param(60, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("unit", ["rows", "groups"])
def test_few_false_gains_pass_and_most_without_a_guard(unit, runs, monkeypatch):
    cell, pools = CELLS[unit], [population()]
    assert guard_real.accepted(cell, pools, runs) <= {15: 2, 60: 6}[runs]
    decide = guard.decide
    monkeypatch.setattr(guard_real.guard, "decide", lambda *a, **k: decide(*a, **k, level=1))
    assert guard_real.accepted(cell, pools, runs) > runs * 2 // 3


def test_a_gain_is_shifted_to_the_one_asked_for_and_seen():
    pool = population(gain=0.1)
    cell = replace(CELLS["rows"], size=2000, gain=round(pool.best - 0.005, 4))
    gains = guard_real.Drawer(cell, pool).shifted()
    assert float(gains.mean(0).max() / pool.original.mean()) == pytest.approx(cell.gain)
    assert guard_real.accepted(cell, [pool], 20) >= 18
    with pytest.raises(ValueError, match=r"too far from 1\.0%"):
        guard_real.Drawer(replace(cell, gain=0.01), pool).shifted()
