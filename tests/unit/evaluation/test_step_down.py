"""Step-down p-values: those of several gains that may all be accepted."""

import pytest
import torch

from sparkdiff.evaluation import guard

LEVEL = 0.05


def planted(columns: int, gains: list[float], blocks: int = 200, seed: int = 0) -> torch.Tensor:
    """Sums (C, B) of noise that the columns share in part; the first ones have a mean."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(blocks, generator=generator, dtype=torch.float64)
    found = 0.7 * common + torch.randn(columns, blocks, generator=generator, dtype=torch.float64)
    found[: len(gains)] += torch.tensor(gains, dtype=torch.float64)[:, None]
    return found


def test_the_largest_score_has_the_p_value_of_the_guard() -> None:
    gains = planted(10, [0.35])
    verdict = guard.decide(gains, torch.ones(200), chosen=0, level=LEVEL)
    assert float(guard.step_down(gains, level=LEVEL)[0]) == pytest.approx(verdict.p, abs=0.01)


def test_a_gain_is_compared_with_what_is_left_only() -> None:
    """Behind sixty larger gains, each with noise of its own: once they are rejected, they no longer stand in the way."""
    gains = planted(2, [0.6, 0.24])
    noise = torch.randn(60, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = torch.cat([gains, 1.5 + noise])
    alone, among = guard.step_down(gains, level=LEVEL), guard.step_down(every, level=LEVEL)
    single = guard.decide(every, torch.ones(200), chosen=1, level=LEVEL).p
    assert float(among[1]) == pytest.approx(float(alone[1]), abs=0.02)
    assert float(among[1]) < 0.5 * single


def test_p_values_rise_as_scores_fall() -> None:
    gains = planted(30, [0.5, 0.3, 0.2, 0.1])
    p = guard.step_down(gains, level=LEVEL)
    scores = gains.sum(1) / gains.square().sum(1).sqrt()
    ordered = p[scores.argsort(descending=True)]
    assert bool((ordered.diff() >= 0).all())
    assert float(p[scores < 0].min()) == 1.0 if bool((scores < 0).any()) else True


def test_columns_that_cannot_be_tested_have_a_p_value_of_one() -> None:
    gains = planted(3, [0.5])
    gains[1], gains[2] = 0.0, torch.inf
    p = guard.step_down(gains, level=LEVEL)
    assert float(p[0]) < 0.001
    assert p[1:].tolist() == [1.0, 1.0]


def test_false_gains_beside_true_ones_are_rarely_accepted() -> None:
    """400 families of 2 true and 18 false gains: in at most 5% (and three standard errors) a false one is accepted."""
    wrong = sum(
        bool((guard.step_down(planted(20, [0.6, 0.5], seed=s), level=LEVEL)[2:] < LEVEL).any()) for s in range(400)
    )
    assert wrong <= 400 * LEVEL + 3 * (400 * LEVEL * (1 - LEVEL)) ** 0.5
    assert wrong > 2  # the test is no smaller than it has to be by an order
