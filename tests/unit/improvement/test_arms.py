"""Steps of arms that need no Spark."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from sparkdiff.improvement.arms import searching
from sparkdiff.improvement.arms.fine_tuning import steady
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import nothing
from sparkdiff.training.recipes import Recipe

CAREFUL, BOLD = Recipe(1e-3, 1e-4), Recipe(1e-2, 1e-4)


def test_without_better_settings_nothing_is_trained() -> None:
    context: Any = SimpleNamespace()
    steps = [nothing("search", number, "none better") for number in (0, 1)]
    step = searching.ARM.run(context, 2, Limit(60.0, None), steps)
    assert step.candidates == ()


# Which candidate and epoch are made again -----------------------------------------------------------------------------


def history(*losses: Mapping[int, float], train: float = 0.0) -> list[dict[str, Any]]:
    """Rows of a training: of each candidate the validation loss per epoch."""
    return [
        {"candidate": k, "epoch": epoch, "validationMetric": loss, "trainLoss": train}
        for k, own in enumerate(losses)
        for epoch, loss in own.items()
    ]


def test_an_epoch_is_as_good_as_those_around_it() -> None:
    """One lucky epoch among bad ones is no better than a steady candidate; another training has no such luck."""
    lucky = dict.fromkeys(range(1, 10), 1.0) | {5: 0.1}
    steadily = {e: 0.8 - 0.01 * e for e in range(1, 10)}
    candidate, epoch, value = steady(history(lucky, steadily), [CAREFUL, BOLD], 1.0)
    assert (candidate, epoch) == (1, 9)
    assert value == pytest.approx(0.725)  # the median of epochs 6 to 9
    assert steady(history(lucky), [CAREFUL], 1.0)[2] == 1.0


def test_where_a_larger_metric_is_better_the_largest_counts() -> None:
    rising = {e: 0.1 * e for e in range(1, 9)}
    assert steady(history(rising), [CAREFUL], -1.0)[:2] == (0, 8)
    assert steady(history(rising), [CAREFUL], 1.0)[:2] == (0, 1)


def test_the_start_and_epochs_that_diverged_are_not_made_again() -> None:
    """Epoch 0 is the pipeline before the training."""
    found = steady(history({0: 0.0, 1: math.nan, 2: math.inf, 3: math.inf}, {0: 0.0, 1: 0.5}), [CAREFUL, BOLD], 1.0)
    assert found == (1, 1, 0.5)
    assert steady(history({0: 0.0, 1: math.inf}), [CAREFUL], 1.0)[2] == math.inf


def test_only_on_changed_training_rows_may_an_epoch_lose() -> None:
    falling, augmented = dict.fromkeys(range(1, 4), 0.5), Recipe(1e-3, 1e-4, mixup=0.2)
    rows = history(falling, train=2.0)
    assert steady(rows, [CAREFUL], 1.0, most=1.0)[2] == math.inf
    assert steady(rows, [CAREFUL], 1.0, most=3.0)[2] == 0.5
    assert steady(rows, [augmented], 1.0, most=1.0)[2] == 0.5
