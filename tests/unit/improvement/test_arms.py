"""Steps of arms that need no Spark."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import torch

from sparkdiff.evaluation import guard
from sparkdiff.evaluation.ledger import Ledger
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
    verdict = guard.Verdict(False, -1, 0.0, 0.0, 1.0, 0.025)
    kept: Any = SimpleNamespace(worse=[], flips=False, verdict=verdict)
    candidates: list[Any] = [
        Candidate(
            "simplify", str(i), SimpleNamespace(cost=0.5, scores={"validation": Score(blocks - g, weights, 0)}), i
        )
        for i, g in enumerate(gains)
    ]  # type: ignore[arg-type]
    ground: Any = SimpleNamespace(
        options=Options.of({}), settings=ImprovementSettings(), given=None,
        start=SimpleNamespace(cost=1.0, scores={"validation": whole}),
    )  # fmt: skip
    best = max(candidates, key=lambda c: float(gains[c.column].sum()))

    def simpler(gains: torch.Tensor, candidate: Candidate) -> Any:
        step = Step("simplify", 0, gains, [], (candidate,), 0.0, "")
        family = judging.family_of(ground, [step], Ledger(gains, weights, [], -1), -1)
        return judging._simpler(ground, [judging.JudgedCandidate(candidate, kept, 1.0, candidate.column)], None, family)

    assert simpler(gains[best.column][None], dataclasses.replace(best, column=0)) is not None
    assert simpler(gains, best) is None


def test_a_simpler_pipeline_has_to_be_no_worse_than_the_best() -> None:
    """A deletion that is as good as the original is worse than what gains 10%; the allowance is one of the best's loss."""
    noise = 0.1 * torch.randn((2, 200), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    blocks, weights = torch.full((2, 200), 10.0, dtype=torch.float64), torch.full((200,), 10.0, dtype=torch.float64)
    gains = noise + torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    found: list[Any] = [
        SimpleNamespace(cost=cost, scores={"validation": Score(b - g, weights, 0)})
        for cost, b, g in zip((1.0, 0.5), blocks, gains, strict=True)
    ]
    ground: Any = SimpleNamespace(
        options=Options.of({}), settings=ImprovementSettings(), given=None,
        start=SimpleNamespace(cost=1.0, scores={"validation": Score(blocks[0], weights, 0)}),
    )  # fmt: skip
    kept: Any = SimpleNamespace(
        worse=[], flips=False, accepted=True, verdict=guard.Verdict(True, 0, 1, 9, 0.001, 0.025)
    )

    def offers(gains: torch.Tensor, tuned: Any, deleted: Any) -> Any:
        candidates = Candidate("finetune", "tuned", tuned, 0), Candidate("simplify", "deleted", deleted, 0)
        steps = [Step(c.arm, 0, g[None], [], (c,), 0.0, "") for c, g in zip(candidates, gains, strict=True)]
        family = judging.family_of(ground, steps, Ledger(gains, weights, [], 0), 0)
        one, other = (judging.JudgedCandidate(c, kept, 0.001, i) for i, c in enumerate(candidates))
        return judging._simpler(ground, [one, other], one, family), judging._simpler(ground, [other], None, family)

    assert [x is None for x in offers(gains, *found)] == [True, False]
    alike = gains[0] - 0.01 + noise[1] / 10  # 0.1% of the best's loss of 9, of which 0.5% are allowed
    also = SimpleNamespace(cost=0.5, scores={"validation": Score(blocks[0] - alike, weights, 0)})
    assert [x is None for x in offers(torch.stack([gains[0], alike]), found[0], also)] == [False, False]
