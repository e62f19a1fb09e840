"""Samplers and studies on a function of three numbers, without Spark: every sampler finds, and a killed study goes on."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sparkdiff import InputError, choice, integer
from sparkdiff.search import study
from sparkdiff.search.samplers import NAMES, SamplingPlan, check_sampler
from sparkdiff.search.search_progress import watch
from sparkdiff.search.search_space import Dimension, SearchSpace
from sparkdiff.search.study import Study, TrialOutcome, lock_search_folder
from tests.support.small_studies import REQUEST, SPACE, loss, plan

CHOICES = SearchSpace(None, tuple(Dimension(q.name, choice(1, 2, 3), param=1) for q in SPACE.dimensions[:2]))


def finish(study: Study, upto: int = 10**9) -> int:
    """Evaluate trials until there are none, or so many have been; returns their number."""
    done = 0
    while batch := study.next():
        for trial in (t for t in batch if t.state == "running"):
            if done == upto:
                return done
            study.tell(trial.number, TrialOutcome((loss(trial.configuration),), seconds=0.5))
            done += 1
    return done


def told(study: Study) -> list[Any]:
    return [(t.number, t.configuration, t.values) for t in study.trials()]


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("grid", "gp")])
def test_a_sampler_finds_and_repeats_itself(name: str) -> None:
    one, other = Study(plan(name)), Study(plan(name))
    assert finish(one) == finish(other) == 40
    assert told(one) == told(other)
    best = one.best()
    assert best is not None and best.values[0] < 1.5
    assert best.values[0] == min(t.values[0] for t in one.trials())


@pytest.mark.parametrize("name", ["recursiveRandom", "tpe"])
def test_samplers_that_learn_come_nearer_than_chance(name: str) -> None:
    def mean(kind: str) -> float:
        bests = []
        for seed in range(5):
            study = Study(plan(kind, seed=seed))
            finish(study)
            bests.append(study.best().values[0])  # type: ignore[union-attr]
        return sum(bests) / 5

    assert mean(name) < mean("random")


def test_a_gaussian_process_repeats_itself() -> None:
    one, other = Study(plan("gp", total=12)), Study(plan("gp", total=12))
    assert finish(one, 11) == 11 and finish(other) == 12
    assert finish(one) == 1  # as after a kill
    assert told(one) == told(other)


def test_a_grid_is_searched_as_a_whole() -> None:
    study = Study(SamplingPlan("grid", CHOICES, 0, 9, 1, 4))
    while batch := study.next():
        for trial in batch:
            study.tell(trial.number, TrialOutcome((float(trial.configuration["x"]),)))
    assert len({str(t.configuration) for t in study.trials()}) == 9


def test_random_tries_no_setting_of_a_list_twice() -> None:
    def tried(seed: int) -> list[str]:
        study = Study(SamplingPlan("random", CHOICES, seed, 12, 1, 4))
        while batch := study.next():
            for trial in batch:
                study.tell(trial.number, TrialOutcome((0.0,)))
        return [str(t.configuration) for t in study.trials()]

    assert len({*tried(0)[:9]}) == 9 and tried(0)[9:] == tried(0)[:3]
    assert tried(0) == tried(0) != tried(1)
    few = SearchSpace(None, (Dimension("n", integer(1, 3, log=True), param=1),))  # smaller ones are likelier
    assert SamplingPlan("random", few, 0, 3, 1, 3).shuffled_settings is None


def test_failed_trials_are_told_and_cannot_win() -> None:
    study = Study(plan("tpe", total=12))
    while batch := study.next():
        for t in batch:
            study.tell(
                t.number, TrialOutcome(None, "too wide") if t.number % 2 else TrialOutcome((loss(t.configuration),))
            )
    assert [t.state for t in study.trials()] == ["complete", "failed"] * 6
    assert study.trials()[1].why == "too wide"
    assert study.best() is not None and study.best().number % 2 == 0  # type: ignore[union-attr]


def test_several_metrics_have_a_front() -> None:
    study = Study(SamplingPlan("nsga2", SPACE, 0, 20, 1, 8, larger=(False, True)))
    while batch := study.next():
        for t in batch:
            study.tell(t.number, TrialOutcome((loss(t.configuration), float(t.configuration["n"]))))
    front, every = study.front(), study.trials()
    assert study.best() in front
    for t in every:
        beaten = any(o.values[0] <= t.values[0] and o.values[1] >= t.values[1] and o.values != t.values for o in every)
        assert (t in front) != beaten


KILLED = ["tpe", "recursiveRandom", "nsga2", "cmaes"]
CHILD = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from sparkdiff.search.study import Study, TrialOutcome, lock_search_folder
from tests.support.small_studies import REQUEST, loss, plan
for name in {names!r}:
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    with lock_search_folder(Path({folder!r}) / name, REQUEST) as folder:
        study, done = Study(plan(name, total=24, parallelism=3), folder), 0
        while batch := study.next():
            for trial in batch:  # none is finished
                if done == 11:
                    os.kill(os.getpid(), signal.SIGKILL)
                study.tell(trial.number, TrialOutcome((loss(trial.configuration),), seconds=0.5))
                done += 1
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies whose processes killed themselves after 11 trials."""
    folder = tmp_path_factory.mktemp("killed")
    code = CHILD.format(path=sys.path, names=KILLED, folder=str(folder))
    subprocess.run([sys.executable, "-c", code], check=True, timeout=400)
    return folder


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_study_goes_on_as_if_it_had_never_stopped(name: str, killed: Path) -> None:
    undisturbed, folder = Study(plan(name, total=24, parallelism=3)), killed / name
    finish(undisturbed)
    with (folder / "study.journal").open("ab") as file:  # a line that was cut off
        file.write(b'{"op_code": 6, "worker')
    (folder / "study.journal.lock").symlink_to(folder / "study.journal")  # of a process that was killed while it wrote
    with lock_search_folder(folder, REQUEST):
        study = Study(plan(name, total=24, parallelism=3), folder)
        assert sum(t.state == "complete" for t in study.trials()) == 11
        assert finish(study) == 13
        assert told(study) == told(undisturbed)
    with lock_search_folder(folder, REQUEST):
        assert told(Study(plan(name, total=24, parallelism=3), folder)) == told(undisturbed)


@pytest.mark.parametrize("name", ["random", "recursiveRandom", *KILLED])
def test_a_trial_killed_between_values_gets_the_same_ones(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = Study(plan(name, total=24))
    finish(undisturbed)
    left, draw = iter(range(5)), study.suggest_value

    def suggested(*given: Any) -> Any:
        if next(left, None) is None:
            raise KeyboardInterrupt
        return draw(*given)

    with monkeypatch.context() as m:
        m.setattr(study, "suggest_value", suggested)
        with pytest.raises(KeyboardInterrupt):
            finish(Study(plan(name, total=24), tmp_path))
    resumed = Study(plan(name, total=24), tmp_path)
    assert resumed.trials()[-1].state == "running" and 0 < len(resumed.trials()[-1].configuration) < 3
    finish(resumed)
    assert told(resumed) == told(undisturbed)


def test_a_study_can_be_watched_while_it_runs(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="is no folder of this machine"):
        watch(folder)
    with lock_search_folder(folder, REQUEST):
        with pytest.raises(InputError, match=r"has no study.journal: no search has begun there"):
            watch(folder)
        study = Study(plan("tpe", total=24), folder)
        assert str(watch(str(folder))) == "trial 0 of at most 24"
        finish(study, 5)
        seen, best = watch(folder), study.best()
        assert best is not None
        assert (seen.finished, seen.running, seen.best, seen.number) == (5, 5, best.values[0], best.number)
        assert seen.secondsLeft == pytest.approx(19 * 0.5) and "trial 5 of at most 24" in str(seen)


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with lock_search_folder(folder, REQUEST):
        pass
    with (
        pytest.raises(InputError, match=r"holds a search with other seed \(seed: 3, now 4\)"),
        lock_search_folder(folder, {**REQUEST, "seed": 4}),
    ):
        pass
    assert json.loads((folder / "search.json").read_text()) == REQUEST
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "study.journal").write_text("")
    with (
        pytest.raises(InputError, match=r"contains study.journal, which is not of sparkdiff.s search"),
        lock_search_folder(tmp_path / "other", REQUEST),
    ):
        pass


@pytest.mark.parametrize(
    ("name", "metrics", "message"),
    [
        ("tpee", 1, "sampler='tpee' is none of .* Did you mean 'tpe'"),
        ("annealing", 1, "beat recursiveRandom"),
        ("cmaes", 2, "looks at one metric, but there are 2"),
    ],
)
def test_a_sampler_that_does_not_fit_is_refused(name: str, metrics: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_sampler(name, metrics)
