"""Steps of arms that need no Spark."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch

from sparkdiff.evaluation.scores import Score
from sparkdiff.improvement import judging
from sparkdiff.improvement.arms import searching
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, Step, nothing
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.options import Options


def test_where_no_settings_were_better_there_is_nothing_to_train() -> None:
    score = SimpleNamespace(weights=torch.ones(3))
    ground: Any = SimpleNamespace(start=SimpleNamespace(scores={"validation": score}))
    steps = [nothing(ground, "search", number, "none better") for number in (0, 1)]
    step = searching.ARM.run(ground, 2, Limit(60.0, None), steps)
    assert step.gains.shape == (0, 3)
    assert step.candidates == ()


def test_the_best_of_many_losses_is_not_taken_for_no_loss() -> None:
    """Forty deletions that all lose 0.6% of the metric, more than the allowed 0.5%, of which one looks better by chance."""
    noise = torch.randn((40, 200), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks = torch.full((200,), 10.0, dtype=torch.float64)
    weights = torch.full((200,), 10.0, dtype=torch.float64)
    whole = Score(blocks, weights, 0)
    gains = 1.2 * noise - 0.06
    kept = SimpleNamespace(worse=[], flips=False)
    candidates = [
        Candidate(
            "simplify", str(i), SimpleNamespace(cost=0.5, scores={"validation": Score(blocks - g, weights, 0)}), i
        )
        for i, g in enumerate(gains)
    ]  # type: ignore[arg-type]
    ground: Any = SimpleNamespace(
        options=Options.of({}), settings=ImprovementSettings(), rows={"validation": 2000},
        start=SimpleNamespace(cost=1.0, scores={"validation": whole}),
    )  # fmt: skip
    best = max(candidates, key=lambda c: float(gains[c.column].sum()))
    judged: Any = [judging.Judged(best, kept, 1.0)]  # type: ignore[arg-type]
    alone = Step("simplify", 0, gains[best.column][None], [], (dataclasses.replace(best, column=0),), 0.0, "")
    only: Any = [judging.Judged(alone.candidates[0], kept, 1.0)]  # type: ignore[arg-type]
    assert judging._simpler(ground, only, None, [alone]) is only[0]
    step = Step("simplify", 0, gains, [], tuple(candidates), 0.0, "")
    assert judging._simpler(ground, judged, None, [step]) is None
