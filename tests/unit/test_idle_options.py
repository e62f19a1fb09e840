"""Every option acts, or the summary says that it has no effect and why."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyspark.ml import PipelineModel

from sparkdiff.fine_tuning.phases import OF_TRAINING, idle_options
from sparkdiff.growth import growth_options as growth
from sparkdiff.improvement import improvement_options as improvement
from sparkdiff.improvement.proving import Decision
from sparkdiff.improvement.summary_contents import _warnings
from sparkdiff.options import FIELDS, Options
from sparkdiff.search import search_options as search

SEVERAL = {"numProcesses": 2, "localSteps": 2}
# Name: a value, the other options with which it has no effect, and those with which it has one.
IDLE: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "recipe": ("thorough", {"validationRows": 199}, {}),
    "schedule": ("cosine", {"optimizer": "lbfgs"}, {}),
    "ema": (0.9, {"optimizer": "lbfgs"}, {}),
    "gradientClip": (1.0, {"optimizer": "lbfgs"}, {}),
    "batchSize": (64, {"optimizer": "lbfgs"}, {}),
    "patience": (15, {"maxEpochs": 10}, {}),
    "minDelta": (0.1, {"maxEpochs": 10}, {}),
    "fleetSize": (7, {"guard": 1.0}, {}),
    "guardCols": (("region",), {"guard": 1.0}, {}),
    "timeout": (30.0, {}, SEVERAL),
    "localMode": ("false", {}, SEVERAL),
    "localSteps": (4, {}, {"numProcesses": 2}),
    "slowMomentum": (0.9, {"numProcesses": 2}, SEVERAL),
    "localCacheLimit": (10**9, {}, {"inStore": True}),
    "reuseStages": (True, {}, {"stagesInSpark": True}),
    "cacheMaxAge": (30.0, {"inStore": True}, {}),
    "waitForRun": (5.0, {}, {"runId": "one"}),
    "tags": ({"team": "risk"}, {}, {"storeDir": "/tmp/runs"}),
    "redact": (False, {}, {"storeDir": "/tmp/runs"}),
    "learningRates": ({"indexer": 0.1}, {}, {"trained": "indexer"}),
}
# Those that act in every run, or are refused: a value that can't be used is an error.
ACTS = {
    "labelCol",
    "weightCol",
    "predictionCol",
    "validationIndicatorCol",
    "validationFraction",
    "numFolds",
    "rowsAreNew",
    "groupCol",
    "timeCol",
    "loss",
    "lossParams",
    "metric",
    "metricParams",
    "penalties",
    "unfreeze",
    "reference",
    "freeze",
    "target",
    "tune",
    "optimizer",
    "learningRate",
    "regAnchor",
    "maxEpochs",
    "maxSeconds",
    "guard",
    "maxFlipRate",
    "numProcesses",
    "device",
    "precision",
    "stream",
    "cacheDir",
    "cacheInMemory",
    "checkpointDir",
    "runId",
    "storeDir",
    "seed",
    "verbosity",
}


def told(
    validationRows: int = 5000, inStore: bool = False, stagesInSpark: bool = False, trained: str = "pca", **options: Any
) -> list[str]:
    """The options without effect in a run with two stages, one of which trains."""
    names = ("indexer", "pca")
    graph = SimpleNamespace(select=lambda given, option: {names.index(name) for name in given})
    task = SimpleNamespace(
        options=Options.of(options),
        cut=SimpleNamespace(stages=["indexer"] * stagesInSpark, graph=graph),
        plan=SimpleNamespace(stages=[SimpleNamespace(trainable=name == trained) for name in names]),
        roles=SimpleNamespace(trainable={names.index(trained)}),
    )
    folder = Path("/nowhere/of/a/store" if inStore else "/tmp")
    run: Any = SimpleNamespace(task=task, cache=SimpleNamespace(rows=lambda split: validationRows, folder=folder))
    return idle_options(run)


def test_every_option_is_in_one_of_the_lists() -> None:
    assert IDLE.keys() | ACTS == FIELDS.keys() and not IDLE.keys() & ACTS


@pytest.mark.parametrize("name", IDLE)
def test_an_option_without_effect_is_named_with_the_reason(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sparkdiff.jvm.stores.url_of", lambda path: "s3a://b" if "store" in str(path) else None)
    value, idle, acting = IDLE[name]
    assert not any(name in w.split(":")[0] for w in told(**idle))
    [found] = [w for w in told(**{name: value}, **idle) if w.startswith((f"{name}=", f"{name} names 'indexer'"))]
    assert "has no effect: " in found and len(found.partition("has no effect: ")[2]) > 20
    assert not [w for w in told(**{name: value}, **acting) if w.startswith(name)]


def test_a_threshold_alone_trains_nothing() -> None:
    """Of all options of a training, those that are set are named."""
    assert FIELDS.keys() >= {*OF_TRAINING} and not told(tune="threshold")
    found = told(tune="threshold", maxEpochs=7, unfreeze=["a.b"], numFolds=5)
    why = "has no effect: tune='threshold' trains nothing, and held-out rows decide"
    assert found == [f"maxEpochs=7 {why}", f"unfreeze=('a.b',) {why}", f"numFolds=5 {why}"]


def test_freezing_an_untrained_stage_is_not_called_idle() -> None:
    """It is held out of a refit, too, on which it depends whether there is one; improvements don't search or delete it."""
    [found] = told(freeze=["indexer"])
    assert found.startswith("freeze names 'indexer', which only keeps it from being fitted anew, searched or deleted")
    assert "no effect" not in found and not told(freeze=["indexer"], trained="indexer")


def test_a_recipe_of_one_candidate_needs_more_rows_to_act() -> None:
    assert [bool(told(validationRows=rows, recipe="fast")) for rows in (999, 1000)] == [True, False]
    assert not told(validationRows=200, recipe="thorough")


def test_slices_whose_gap_is_penalised_act_without_a_guard() -> None:
    given = {"guardCols": ["region"], "guard": 1.0}
    assert told(**given) and not told(**given, penalties={"parityGap": {"region": 1.0}})
    assert not told()


# As above; without the third, an option acts by itself.
IDLE_IN_A_SEARCH: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "sampler": ("gp", {"method": "hypergradient"}, {}),
    "numTrials": (7, {"sampler": "grid"}, {}),
    "maxSeconds": (60.0, {"method": "hypergradient"}, {}),
    "parallelism": (2, {"method": "hypergradient"}, {}),
    "resource": ("rows", {}, {"pruner": "halving"}),
    "validationFraction": (0.3, {"numFolds": 3}, {}),
    "testFraction": (0.3, {"numFolds": 3}, {}),
    "tags": ({"team": "risk"}, {}, {"storeDir": "/tmp/searches"}),
    "redact": (False, {}, {"storeDir": "/tmp/searches"}),
}
# `rowsAreNew` is told by what the estimator holds; a pruner's options without one are refused.
ACTS_IN_A_SEARCH = {
    "method",
    "pruner",
    "minResource",
    "numFolds",
    "groupCol",
    "timeCol",
    "rowsAreNew",
    "seed",
    "guard",
    "runDir",
    "storeDir",
    "verbosity",
}


# Of growth, whose fits tell what has no effect (tests/api/growth), and of an improvement; all others act.
IDLE_IN_A_GROWTH, ACTS_IN_A_GROWTH = (
    {"entityCols"},
    {"parts", "rounds", "maxServingCost", "complexity", "maxLoss", "dropColumns"},
)
IDLE_IN_AN_IMPROVEMENT: dict[str, tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "parts": (["crosses"], [{"arms": ["import", "finetune"]}, {"keepForm": True}], [{}, {"arms": ["grow"]}]),
    "entityCols": (["shop"], [{"arms": ["refit"]}, {"arms": ["grow"], "parts": ["units"]}], [{}, {"arms": ["import"]}]),
    "maxLoss": (
        0.1,
        [{"arms": ["refit", "search", "finetune"]}],
        [{"arms": [arm]} for arm in ("grow", "import", "simplify")],
    ),
}
ACTS_IN_AN_IMPROVEMENT = {
    "budget",
    "arms",
    "keepForm",
    "keepStages",
    "maxServingCost",
    "baseline",
    "parallelism",
    "order",
}


def test_every_growth_and_improvement_option_is_in_a_list() -> None:
    assert growth.FIELDS.keys() == IDLE_IN_A_GROWTH | ACTS_IN_A_GROWTH
    assert IDLE_IN_AN_IMPROVEMENT.keys() | ACTS_IN_AN_IMPROVEMENT == improvement.FIELDS.keys()


@pytest.mark.parametrize("name", IDLE_IN_AN_IMPROVEMENT)
def test_an_improvement_option_that_no_arm_reads_is_idle(name: str) -> None:
    def told(**given: Any) -> list[str]:
        settings = improvement.ImprovementSettings.of(given)
        context: Any = SimpleNamespace(settings=settings, options=Options(), doubts=(), model=PipelineModel([]))
        nothing: Any = SimpleNamespace(warnings=(), verdict=SimpleNamespace(warnings=()))
        found = _warnings(context, context, nothing, Decision((), (), {}), nothing)
        return [w for w in found if w.startswith(f"{name}=")]

    value, idle, acting = IDLE_IN_AN_IMPROVEMENT[name]
    assert all("has no effect: it is for " in told(**{name: value, **given})[0] for given in idle)
    assert not [told(**{name: value, **given}) for given in acting if told(**{name: value, **given})]
    assert not told(**idle[0])


def test_every_option_of_a_search_is_in_one_of_the_lists() -> None:
    assert IDLE_IN_A_SEARCH.keys() | ACTS_IN_A_SEARCH == search.FIELDS.keys()
    assert not IDLE_IN_A_SEARCH.keys() & ACTS_IN_A_SEARCH


@pytest.mark.parametrize("name", IDLE_IN_A_SEARCH)
def test_an_idle_search_option_is_named_with_the_reason(name: str) -> None:
    value, idle, acting = IDLE_IN_A_SEARCH[name]
    assert not [w for w in search.Settings.of(idle).idle() if w.startswith(name)]
    [found] = [w for w in search.Settings.of({name: value, **idle}).idle() if w.startswith(f"{name}=")]
    assert len(found.partition("has no effect: ")[2]) > 20
    assert not search.Settings.of({name: value, **acting}).idle()
