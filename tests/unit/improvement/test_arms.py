"""Steps of arms that need no Spark."""

from types import SimpleNamespace
from typing import Any

import torch

from sparkdiff.improvement.arms import searching
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import nothing


def test_where_no_settings_were_better_there_is_nothing_to_train() -> None:
    score = SimpleNamespace(weights=torch.ones(3))
    ground: Any = SimpleNamespace(start=SimpleNamespace(scores={"validation": score}))
    steps = [nothing(ground, "search", number, "none better") for number in (0, 1)]
    step = searching.ARM.run(ground, 2, Limit(60.0, None), steps)
    assert step.gains.shape == (0, 3)
    assert step.candidates == ()
