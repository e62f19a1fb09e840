"""The finalists of an improvement: which are chosen, what their folds decide, and what is made of them. Without Spark."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from py4j.protocol import Py4JError
from torch import Tensor

from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.errors import FullDiskError, InputError, ParityError, WriteError
from sparkdiff.evaluation.acceptance import Judgement
from sparkdiff.evaluation.paired_rows import PairedRows
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.units import Units
from sparkdiff.improvement import parallel_tasks, proving
from sparkdiff.improvement.candidate import Candidate, CandidateRecipe, Step
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.improvement.parallel_tasks import StoppableListener
from sparkdiff.improvement.proving import Finalist, FinalistResult, FinalPipeline, Proof, decide, finalists
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.improvement.summary_contents import reason_of, shown_of
from sparkdiff.options import Options
from sparkdiff.proof.decision import FoldComparison
from sparkdiff.report import Phases
from sparkdiff.training.recipes import Recipe

F64 = torch.float64
ROWS = 200
LOSS = 10.0


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def figures(loss: float, cost: float = 1.0) -> Any:
    weights = torch.ones(ROWS, dtype=F64)
    score = Score(torch.full((ROWS,), loss, dtype=F64), weights, 0)
    return SimpleNamespace(cost=cost, scores={"validation": score, "train": score}, model=object())


def ground_of(options: Mapping[str, Any] | None = None, *, side_by_side: int = 1, **settings: Any) -> Any:
    return SimpleNamespace(
        options=Options.of(options or {}),
        settings=ImprovementSettings.of(settings),
        start=figures(LOSS),
        stay={},
        rows={"train": 900},
        sources=[SimpleNamespace(data=None)],
        boundaries=None,
        metric=SimpleNamespace(sign=1.0, name="loss"),
        plan=SimpleNamespace(compare_other_outputs=lambda judgement, model, rows, stay: (judgement, [])),
        folds_side_by_side=side_by_side,
        brake=StoppableListener(()),
    )


def candidate(arm: str, loss: float, cost: float = 1.0, **more: Any) -> Candidate:
    name = more.pop("name", f"{arm} {loss} {cost}")
    return Candidate(arm, name, figures(loss, cost), CandidateRecipe(arm, {"name": name}), **more)


# Which are chosen -----------------------------------------------------------------------------------------------------


def chosen(
    *candidates: Candidate, small: bool = False, seconds: float = math.inf, **settings: Any
) -> list[tuple[str, str]]:
    steps = [Step(c.arm, 0, (c,), 0.0, "") for c in candidates]
    found = finalists(ground_of(**settings), steps, small=small, seconds=seconds)
    return [(f.role, f.candidate.name) for f in found]


GROWN, TRAINED, REFITTED = candidate("grow", 5.0, 3.0), candidate("finetune", 8.0), candidate("search", 7.0, 2.0)
DELETED, CHEAPEST = candidate("simplify", 10.01, 0.4), candidate("simplify", 10.04, 0.3)
PLAIN = ("refit", "refitted")


def test_the_best_the_refit_same_form_and_cheap_are_proven() -> None:
    found = chosen(TRAINED, REFITTED, GROWN, DELETED)
    assert found == [("best", GROWN.name), PLAIN, ("sameForm", REFITTED.name), ("asCheap", TRAINED.name)]


def test_the_best_that_there_is_time_for_follows_the_best() -> None:
    slow, quick = dataclasses.replace(GROWN, seconds=17.0), dataclasses.replace(REFITTED, seconds=4.0)
    found = chosen(TRAINED, quick, slow, seconds=8.0)
    assert found == [("best", GROWN.name), ("next", REFITTED.name), PLAIN, ("asCheap", TRAINED.name)]
    assert chosen(TRAINED, quick, slow, seconds=17.0) == chosen(TRAINED, quick, slow)
    assert chosen(slow, seconds=8.0) == [("best", GROWN.name), PLAIN]


def test_nothing_is_proven_twice_and_the_next_role_moves_up() -> None:
    assert chosen(TRAINED, DELETED, CHEAPEST) == [("best", TRAINED.name), PLAIN, ("simpler", CHEAPEST.name)]
    again = dataclasses.replace(TRAINED, name="fine-tuned, thorough", found=figures(8.0))  # made in the same way
    assert chosen(TRAINED, again) == [("best", TRAINED.name), PLAIN]
    refit = Candidate("refit", "refitted", figures(9.0), CandidateRecipe("refit"))
    assert chosen(refit, DELETED) == [("best", "refitted"), ("simpler", DELETED.name)]


def test_in_small_tables_best_of_other_arms_precede_roles() -> None:
    good, cheap = candidate("simplify", 6.0), candidate("simplify", 9.9, 0.1)
    assert chosen(TRAINED, REFITTED, GROWN, good, cheap, small=True) == [
        ("best", GROWN.name),
        PLAIN,
        ("other", good.name),
        ("other", REFITTED.name),
    ]
    assert chosen(GROWN, cheap, small=True) == [("best", GROWN.name), PLAIN, ("other", cheap.name)]
    refit = Candidate("refit", "refitted", figures(9.0), CandidateRecipe("refit"))
    tuned = Candidate("refit", "refitted, fine-tuned", figures(8.5), CandidateRecipe("refit", epochs=3))
    assert chosen(GROWN, refit, tuned, small=True) == [("best", GROWN.name), PLAIN, ("other", tuned.name)]
    assert chosen(small=True) == [PLAIN]


def test_only_the_refit_is_proven_where_nothing_gains() -> None:
    assert chosen(candidate("finetune", 10.0), candidate("grow", 11.0)) == [PLAIN]
    assert chosen() == [PLAIN]
    # Of the best of many epochs, what another training may have counts.
    assert chosen(candidate("finetune", 8.0, value=10.5)) == [PLAIN]


def test_what_loses_or_costs_too_much_is_not_proven() -> None:
    assert chosen(CHEAPEST) == [PLAIN, ("simpler", CHEAPEST.name)]
    assert chosen(candidate("simplify", 10.06, 0.3)) == [PLAIN]
    assert chosen(CHEAPEST, maxLoss=0.003) == [PLAIN]
    assert chosen(GROWN, REFITTED, maxServingCost=1.5) == [PLAIN]
    assert chosen(GROWN, REFITTED, maxServingCost=2.0) == [("best", REFITTED.name), PLAIN]


@pytest.mark.parametrize(
    "making",
    [
        CandidateRecipe("finetune", recipe=Recipe(1e-3, 1e-4), epochs=3),
        CandidateRecipe("import", {"item": {"kind": "trees", "settings": {"depth": 3}}, "inPlace": True}),
        CandidateRecipe("import", {"rounds": 1, "trees": [(1, "trees of depth 2", 40)]}),
    ],
)
def test_a_finalist_keeps_its_name_after_an_interruption(making: CandidateRecipe) -> None:
    """What is kept of its folds is found by this name."""
    again = CandidateRecipe.of(json.loads(json.dumps(dataclasses.asdict(making))))
    names = [Finalist("best", Candidate("x", "x", figures(1.0), m)).name for m in (making, again)]
    assert names[0] == names[1] != Finalist("best", Candidate("x", "x", figures(1.0), CandidateRecipe("finetune"))).name
    assert again.recipe == making.recipe


# What the folds decide ------------------------------------------------------------------------------------------------


def fold(gains: Tensor, k: int = 0, loss: float = LOSS) -> FoldComparison:
    n = len(gains)
    original, weight = torch.full((n,), loss, dtype=F64), torch.ones(n, dtype=F64)
    block = (k * n + torch.arange(n)) % MAX_BLOCKS
    rows = PairedRows(
        original,
        original - gains,
        weight,
        block,
        None,
        Units(n),
        torch.empty((3, 0), dtype=F64),
        torch.stack([original, original - gains]),
    )
    return FoldComparison(rows, None)


def proof(log: StepLog | None = None, *, against: Any = "the fitted original", **options: Any) -> Proof:
    settings = {k: options.pop(k) for k in ("maxLoss", "maxServingCost", "side_by_side") if k in options}
    division: Any = SimpleNamespace(factor=1.0, proves=(1, 2, 3), number=3, ships=(0,), boundaries=(None, None))
    return Proof(ground_of(options, **settings), division, against, log or StepLog(None))


def proven(
    c: Candidate, shift: float, *, of: Proof | None = None, role: str = "best", seed: int = 0, folds: int = 2
) -> FinalistResult:
    """A finalist that gains so much in each row, in the mean of a million."""
    draws = noise(seed, folds, ROWS)
    each = [fold(0.1 * (x - draws.mean()) + shift, k) for k, x in enumerate(draws)]
    return (of or proof())._decide(Finalist(role, c, folds), each)


class Folds:
    """Stands for what Spark makes in the folds: a fold's context is its number."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: Mapping[tuple[str, Any], BaseException]) -> None:
        self.made: list[tuple[str, Any]] = []
        self.rivals: list[int] = []
        self.fails = dict(fails)
        monkeypatch.setattr(Proof, "ground_of", lambda of, k: k)
        monkeypatch.setattr(Proof, "_measure_rival", lambda of, k: self.rivals.append(k))
        monkeypatch.setattr(Proof, "_compare", lambda of, k, rival, found: fold(noise(k, ROWS) + 1.0, k))
        monkeypatch.setattr(proving, "remake", self.remake)

    def remake(self, k: Any, making: CandidateRecipe, arms: Any) -> Any:
        self.made.append((making.arm, k))
        if (making.arm, k) in self.fails:
            raise self.fails[making.arm, k]
        return figures(9.0)


CHOSEN = [Finalist("best", GROWN, 3), Finalist("sameForm", TRAINED, 3), Finalist("asCheap", REFITTED, 0)]


@pytest.mark.parametrize("error", [InputError("no row of class 2"), ParityError("no row of class 2")])
def test_what_fails_in_a_fold_is_left_out_and_others_go_on(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    folds = Folds(monkeypatch, {("grow", 1): error})
    found = proof().prove(CHOSEN, Phases(False))
    assert folds.made == [("grow", 0), ("finetune", 0), ("grow", 1), ("finetune", 1), ("finetune", 2)]
    assert folds.rivals == [0, 1, 2]  # once in each fold, for all finalists
    assert [p.finalist.candidate.arm for p in found] == ["grow", "finetune"]  # no time for the third one
    assert found[0].failure == "fold 3: no row of class 2"
    assert not found[0].accepted and not found[0].folds
    assert found[1].accepted and len(found[1].folds) == 3


def test_a_finalist_of_fewer_folds_is_decided_by_these(monkeypatch: pytest.MonkeyPatch) -> None:
    folds = Folds(monkeypatch, {})
    [one, other] = proof().prove([Finalist("best", GROWN, 2), Finalist("sameForm", TRAINED, 3)], Phases(False))
    assert (len(one.folds), len(other.folds)) == (2, 3)
    assert ("grow", 2) not in folds.made


def test_what_ships_is_made_beside_the_last_fold_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Proof, "whole", lambda of: "all rows")
    run = parallel_tasks.run
    monkeypatch.setattr(
        parallel_tasks, "run", lambda tasks, number, *others: run(tasks, 1, *others)
    )  # threads need Spark
    folds, of = Folds(monkeypatch, {}), proof(side_by_side=2)
    of.prove(CHOSEN, Phases(False), early=True)
    assert folds.made.count(("grow", "all rows")) == 1
    of.make_from_all_rows(CHOSEN[0])
    assert len(folds.made) == 7
    # An error counts where it is asked for, and what failed in a fold is not made; nor anything without an idle thread.
    failed, of = Folds(monkeypatch, {("grow", "all rows"): OSError("no")}), proof(side_by_side=2)
    assert of.prove(CHOSEN, Phases(False), early=True)[0].accepted and len(failed.made) == 7
    with pytest.raises(OSError, match="no"):
        of.make_from_all_rows(CHOSEN[0])
    refused = Folds(monkeypatch, {("grow", 0): InputError("no")})
    proof(side_by_side=2).prove(CHOSEN, Phases(False), early=True)
    alone = Folds(monkeypatch, {})
    proof().prove(CHOSEN, Phases(False), early=True)
    assert ("grow", "all rows") not in [*refused.made, *alone.made]


def test_a_full_disk_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    Folds(monkeypatch, {("grow", 0): FullDiskError("the disk is full")})
    with pytest.raises(WriteError):
        proof().prove(CHOSEN, Phases(False))


def test_a_proof_that_was_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What sparkdiff refuses stays refused; what Spark could not do is tried once more."""
    killed = Folds(monkeypatch, {("finetune", 1): KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        proof(StepLog(tmp_path)).prove(CHOSEN, Phases(False))
    assert killed.made[-1] == ("finetune", 1)
    refused = Folds(monkeypatch, {("finetune", 1): InputError("no"), ("grow", 2): Py4JError("out of memory")})
    first = proof(StepLog(tmp_path)).prove(CHOSEN, Phases(False))
    assert refused.made == [("finetune", 1), ("grow", 2)]
    assert [p.failure for p in first] == ["fold 4: out of memory", "fold 3: no"]
    last = Folds(monkeypatch, {})
    second = proof(StepLog(tmp_path)).prove(CHOSEN, Phases(False))
    assert last.made == [("grow", 2)]
    assert [p.failure for p in second] == ["", "fold 3: no"]
    whole = proof().prove(CHOSEN[:1], Phases(False))
    assert second[0].judgement == whole[0].judgement


# What is no worse -----------------------------------------------------------------------------------------------------


def test_what_loses_as_much_as_allowed_is_rarely_no_worse() -> None:
    """The chance that the deletion which ships really loses more than `maxLoss` is a quarter of the level."""
    of = proof(maxLoss=0.005)
    found = []
    for seed in range(200):
        draws = noise(seed, 2, ROWS) - 0.05
        each = [fold(x, k) for k, x in enumerate(draws)]
        found.append(of.no_worse(of._decide(Finalist("simpler", DELETED, 2), each), None))
    assert sum(found) <= 5  # 1.2 are expected


def test_a_simpler_pipeline_has_to_be_no_worse_than_the_best() -> None:
    """A deletion that is as good as the original is worse than what gains 10%; the allowance is one of the best's loss."""
    of = proof(maxLoss=0.005)
    tuned, deleted = proven(GROWN, 1.0), proven(DELETED, 0.0)
    assert of.no_worse(deleted, None) and not of.no_worse(deleted, tuned)
    alike = proven(DELETED, 1.0 - 0.01)  # 0.1% of the best's loss of 9, of which 0.5% are allowed
    assert of.no_worse(alike, tuned)
    assert not of.no_worse(proven(DELETED, 1.0 - 0.1, seed=1), tuned)
    assert not proof(maxLoss=0.1).no_worse(proven(DELETED, 7.5), proven(GROWN, 8.0))  # of 2, of which 0.2 are allowed
    assert not proof(maxLoss=0.0).no_worse(alike, tuned)  # exact only
    assert proof(maxLoss=0.005, guard=1.0).no_worse(alike, tuned)


def test_what_a_slice_or_labels_speak_against_is_not_no_worse() -> None:
    of, one = proof(), proven(DELETED, 0.0)
    assert of.no_worse(one, None)
    for vetoed in (
        {"slices": [SimpleNamespace(p=0.0)], "level": 0.025},
        {"compatibility": flips(0.2), "maxFlipRate": 0.1},
    ):
        judgement = dataclasses.replace(one.judgement, **dict(vetoed.items()))  # type: ignore[arg-type]
        assert not of.no_worse(dataclasses.replace(one, judgement=judgement), None)


def flips(changed: float) -> Any:
    return SimpleNamespace(labels=True, changed=changed)


def test_simpler_and_best_are_compared_in_the_same_folds() -> None:
    of = proof(maxLoss=0.01)
    tuned, deleted = proven(GROWN, 1.0, folds=2), proven(DELETED, 1.0, folds=3)
    assert not of.no_worse(deleted, tuned)  # which lacks one of them
    assert of.no_worse(proven(DELETED, 1.0, folds=2), proven(GROWN, 1.0, folds=3))


# What ships -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What each candidate is on all rows, by name: its figures, or why it can't be made."""
    each: dict[str, Any] = {}

    def remade(context: Any, making: CandidateRecipe, arms: Any) -> Any:
        found = each.get(making.settings.get("name", making.arm), figures(9.0))
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(proving, "remake", remade)
    monkeypatch.setattr(proving, "refit_on_rows", lambda context, *rows, **more: context)
    monkeypatch.setattr(proving, "fold_stages", lambda context, model: None)
    return each


def offers(found: Any) -> dict[str, str]:
    return {name: s.proven.finalist.candidate.name for name, s in found.offers.items()}


def decided(*each: FinalistResult, of: Proof | None = None) -> Any:
    return decide(of or proof(), [p.finalist for p in each], each)


def test_offers_are_best_cheap_same_form_and_simpler(made: dict[str, Any]) -> None:
    made[DELETED.name] = figures(9.0, cost=0.4)
    every = proven(GROWN, 1.01), proven(REFITTED, 0.9), proven(TRAINED, 0.8), proven(DELETED, 1.0, role="simpler")
    found = decided(*every)
    assert offers(found) == {
        "best": GROWN.name,
        "asCheap": DELETED.name,
        "sameForm": REFITTED.name,
        "simpler": DELETED.name,
    }
    assert offers(decided(*every[2:3])) == {"best": TRAINED.name}  # which is the others, too
    assert decided().best is None and not decided(proven(GROWN, -1.0)).offers


def test_if_the_best_diverges_on_all_rows_the_next_ships(made: dict[str, Any]) -> None:
    made[GROWN.name] = InputError("the training diverges in epoch 2")
    found = decided(proven(GROWN, 1.0), proven(TRAINED, 0.8))
    assert offers(found) == {"best": TRAINED.name}
    [refused] = found.refused
    assert refused.failure == "it can't be made from all rows: the training diverges in epoch 2"


@pytest.mark.parametrize(
    ("loss", "ships"), [(9.0, True), (9.01, True), (9.1, False), (float("nan"), False), (0.1, True)]
)
def test_what_loses_more_on_own_rows_than_folds_never_ships(loss: float, ships: bool, made: dict[str, Any]) -> None:
    """Of 400 rows with a standard deviation of 0.1; its own rows it may know by heart."""
    made[GROWN.name] = figures(loss)
    found = decided(proven(GROWN, 1.0))
    assert (found.best is not None) == ships
    assert ships or "made from all rows its loss there is" in found.refused[0].failure


def test_a_full_disk_ends_what_ships_too(made: dict[str, Any]) -> None:
    made[GROWN.name] = FullDiskError("the disk is full")
    with pytest.raises(WriteError):
        decided(proven(GROWN, 1.0))


def test_a_simpler_pipeline_ships_though_it_gains_nothing(made: dict[str, Any]) -> None:
    made[DELETED.name] = figures(9.0, cost=0.4)
    found = decided(proven(DELETED, 0.0, role="simpler"))
    assert offers(found) == {"simpler": DELETED.name}
    assert found.best is None  # the original is kept
    assert not decided(proven(DELETED, 0.0), of=proof(maxLoss=0.0)).offers
    assert not decided(proven(DELETED, 0.0), of=proof(timeCol="day")).offers
    # A deletion is one of the refit, which is as new to the rows as the rival is.
    assert not decided(proven(DELETED, 0.0), of=proof(against=None)).offers
    costly = dataclasses.replace(DELETED, found=figures(9.0, cost=1.2))
    assert not decided(proven(costly, 0.0)).offers


def test_outputs_outside_the_loss_are_a_veto_on_what_ships(made: dict[str, Any]) -> None:
    of = proof()

    def outside(judgement: Judgement, model: Any, rows: Any, stay: Any) -> Any:
        return dataclasses.replace(judgement, outside=("column 'segment' is gone",)), [
            "column 'chance' can't be compared"
        ]

    of.context.plan.compare_other_outputs = outside
    for one in (proven(GROWN, 1.0), proven(DELETED, 0.0, role="simpler")):
        found = decided(one, of=of)
        assert not found.offers and len(found.refused) == 1
        assert found.warnings == ("column 'chance' can't be compared",)


def test_the_refit_ships_only_where_nothing_is_better_than_it(made: dict[str, Any]) -> None:
    """A gain over the refit comes on top of that of the refit over the pipeline as it was passed, however large that is."""
    of = proof(against=None)
    refit, made["refit"] = Candidate("refit", "refitted", figures(5.0), CandidateRecipe("refit")), figures(5.0)
    old, new = proven(refit, 5.0, of=of, role="refit"), proven(TRAINED, 0.5, of=of)
    assert (old.rival, new.rival) == ("your pipeline", "its refit in the same folds")
    assert offers(decided(old, new, of=of))["best"] == TRAINED.name
    assert offers(decided(old, of=of))["best"] == "refitted"
    assert offers(decided(proven(refit, 5.0, role="refit"), proven(TRAINED, 0.5)))["best"] == "refitted"


def test_what_there_was_no_time_for_is_listed(made: dict[str, Any]) -> None:
    one = proven(GROWN, 1.0)
    found = decide(proof(), [one.finalist, Finalist("sameForm", TRAINED, 0)], [one])
    assert [f.candidate.name for f in found.unproven] == [TRAINED.name]


@pytest.mark.parametrize(("shift", "tells"), [(0.005, "is within what chance explains"), (-1.0, ""), (1.0, None)])
def test_the_reason_tells_of_a_best_without_time(made: dict[str, Any], shift: float, tells: str | None) -> None:
    """Unless what was proven in its place is accepted."""
    one, of = proven(TRAINED, shift, role="next"), proof()
    found = decide(of, [Finalist("best", GROWN, 0, lacks=22.0), one.finalist], [one])
    shown, judgement = shown_of(found)
    assert shown is one
    settings = ImprovementSettings.of({"budget": "60s"})
    context: Any = SimpleNamespace(settings=settings, options=of.context.options, metric=None)
    origin: Any = SimpleNamespace(refused="")
    division: Any = SimpleNamespace(name="5 folds", ships=(None,))
    text = reason_of(context, origin, division, found, shown, judgement)
    late = f"there was no time to prove {GROWN.name!r}, the best on the rows that explore: set a budget of 85s or more"
    if tells is None:
        assert "is larger than chance explains" in text and "no time" not in text
    else:
        assert text.endswith(late) and tells in text


def test_what_folds_exactly_is_offered_on_the_same_evidence(
    made: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proving, "fold_stages", lambda context, model: "folded")
    monkeypatch.setattr(proving, "measure", lambda context, model: figures(9.0, 0.5))
    best = proven(GROWN, 1.0)
    found = decided(best)
    simpler: FinalPipeline = found.offers["simpler"]
    assert simpler.proven.finalist.candidate.exact and simpler.judgement == best.judgement
    assert simpler.proven.finalist.candidate.name == f"{GROWN.name}, compacted"
    kept = decided(proven(GROWN, -1.0))
    assert kept.best is None and offers(kept) == {"simpler": "compacted"}
    made[DELETED.name] = figures(9.0, 0.3)  # cheaper than what folds
    assert offers(decided(best, proven(DELETED, 1.0)))["simpler"] == DELETED.name
