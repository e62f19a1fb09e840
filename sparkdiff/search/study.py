"""The trials of a search, in a file that survives a kill: their configurations and results. Trials that ran when a
process was killed are repeated. A rung is an amount of a resource (such as rows, epochs or trees) at which a pruner
compares trials.
"""

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sparkdiff.errors import InputError
from sparkdiff.search.samplers import SamplingPlan, suggest_value
from sparkdiff.search.search_space import Configuration
from sparkdiff.store import folder_marker
from sparkdiff.store.files import read_object, write_bytes
from sparkdiff.store.lease import hold_lease, lease_of

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalStorage
except ImportError:  # the extra `search`
    pass

T = TypeVar("T")
NAME, TOTAL = "search", "trials"
JOURNAL, REQUEST = "study.journal", "search.json"
STEPS = 1000
"""Factor between a resource and Optuna's step, which must be a whole number: a resource may be a share."""


@dataclass(frozen=True)
class TrialOutcome:
    """The outcome of a trial: its metrics, or the reason why there are none.

    Attributes:
        steps: (resource, metric) of each rung that the trial took part in, including the last one.
        pruned: whether the trial ended before the last rung; `values` are then those of the last rung that it reached.
    """

    values: tuple[float, ...] | None
    why: str = ""
    seconds: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()
    pruned: bool = False


@dataclass(frozen=True)
class Trial:
    """A trial of a study, finished or not.

    Attributes:
        state: "complete", "pruned", "failed" or "running".
        steps: (resource, metric) of each rung.
    """

    number: int
    configuration: Configuration
    state: str
    values: tuple[float, ...] = ()
    why: str = ""
    seconds: float = 0.0
    steps: tuple[tuple[float, float], ...] = ()


class Study:
    """A study of Optuna whose trials get their configurations in batches.

    Args:
        folder: folder of the stored study; None keeps the study in memory.
        first: the configurations of the first trials; missing values are sampled.
    """

    def __init__(self, plan: SamplingPlan, folder: Path | None = None, first: Sequence[Configuration] = ()):
        self.plan = plan
        self.asked: dict[int, Any] = {}
        with quiet():
            self.study = optuna.create_study(
                storage=None if folder is None else journal(folder),
                study_name=NAME,
                load_if_exists=True,
                directions=["maximize" if larger else "minimize" for larger in plan.larger],
            )
            for configuration in first[len(self.study.get_trials(deepcopy=False)) :]:
                self.study.enqueue_trial(configuration)
        self.study.set_user_attr(TOTAL, plan.total)

    def next(self) -> list[Trial]:
        """The trials of the next unfinished batch, by number, including finished ones; empty if all are done.

        Trials that were running when a process was killed are returned again, with the same configuration.
        """
        known, first = self.study.get_trials(deepcopy=False), 0
        while first < self.plan.total:
            last = min(first + max(self.plan.batch(first), 1), self.plan.total)
            done = [n < len(known) and known[n].state.is_finished() for n in range(first, last)]
            if not all(done):
                return [
                    _trial(known[n]) if is_done else self._ask(n, known)
                    for n, is_done in zip(range(first, last), done, strict=True)
                ]
            first = last
        return []

    def _ask(self, number: int, known: Sequence[Any]) -> Trial:
        with quiet():
            self.study.sampler = self.plan.sampler(number)
            asked = (
                number < len(known) and known[number].state.name != "WAITING"
            )  # asked before a kill: the trial gets the same values again
            trial = self._again(known[number]) if asked else self.study.ask()
            assert trial.number == number
            configuration = self.plan.space.sample(lambda q: suggest_value(trial, q.name, q.distribution))
        self.asked[number] = trial
        return Trial(number, configuration, "running")

    def _again(self, begun: Any) -> Any:
        """The trial that a kill interrupted, to run again. It keeps the values drawn before the kill, and the missing
        ones are drawn as they would have been without the kill.
        """
        trial = optuna.trial.Trial(self.study, begun._trial_id)
        drawn_together = {*trial.relative_params, *begun.system_attrs.get("fixed_params", ())}
        for name, distribution in begun.distributions.items():
            if name not in drawn_together and not distribution.single():  # else no random number was used
                self.study.sampler.sample_independent(self.study, begun, name, distribution)
        return trial

    def tell(self, number: int, found: TrialOutcome) -> None:
        """Store the outcome of a trial."""
        trial = self.asked.pop(number)
        trial.set_user_attr("seconds", found.seconds)
        if found.why:
            trial.set_user_attr("why", found.why)
        for resource, value in found.steps:
            trial.report(value, round(STEPS * resource))
        states = optuna.trial.TrialState
        state = states.FAIL if found.values is None else states.PRUNED if found.pruned else states.COMPLETE
        with quiet():
            self.study.tell(number, found.values if state == states.COMPLETE else None, state)

    def once(self, name: str, find: Callable[[], Any]) -> Any:
        """The result of `find`, as JSON values, stored under a name; after a kill and restart, the stored result."""
        if name not in self.study.user_attrs:
            self.study.set_user_attr(name, find())
        return self.study.user_attrs[name]

    def trials(self) -> list[Trial]:
        """All trials so far."""
        return [_trial(t) for t in self.study.get_trials(deepcopy=False)]

    def best(self) -> Trial | None:
        """The trial with the best first metric, the earliest among equals; None if none is complete."""
        return best_of(self.trials(), self.plan.larger[0])

    def front(self) -> list[Trial]:
        """The trials on the Pareto front: no other trial is as good or better in all metrics, and better in one."""
        return [_trial(t) for t in self.study.best_trials]


def best_of(trials: Sequence[Trial], larger: bool) -> Trial | None:
    complete = [t for t in trials if t.state == "complete"]
    return min(complete, key=lambda t: -t.values[0] if larger else t.values[0], default=None)


def _trial(t: Any) -> Trial:
    state = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed"}.get(t.state.name, "running")
    steps = t.intermediate_values
    values = tuple(t.values) if t.values is not None and state == "complete" else ()
    if state == "pruned" and steps:
        values = (steps[max(steps)],)
    return Trial(
        t.number,
        dict(t.params),
        state,
        values,
        t.user_attrs.get("why", ""),
        t.user_attrs.get("seconds", 0.0),
        tuple((step / STEPS, value) for step, value in sorted(steps.items())),
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which Optuna logs errors only, and not that a study is new or a package is missing."""
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


# In a folder ----------------------------------------------------------------------------------------------------------


def journal(folder: Path) -> Any:
    """The storage of a study. A line that a kill cut off is removed, because lines after it could not be read."""
    path = folder / JOURNAL
    for lock in folder.glob(f"{JOURNAL}.lock*"):  # left by a killed process: this process holds the folder's lease
        lock.unlink(missing_ok=True)
    if path.exists():
        with path.open("r+b") as file:
            file.truncate(file.read().rfind(b"\n") + 1)
    return _storage(path)


def _storage(path: Path) -> Any:
    return _read_whole(path, lambda: JournalStorage(JournalFileBackend(str(path))))


def _read_whole(path: Path, read: Callable[[], T]) -> T:
    """Read a file of a search.

    Raises:
        InputError: the file is missing or damaged.
    """
    try:
        return read()
    except Exception as e:  # the reader of a damaged file may raise anything
        raise InputError(
            f"{path} is damaged ({type(e).__name__}: {e}), so the search cannot go on: delete {path.parent} to start again, or "
            "choose another folder"
        ) from e


def read_study(folder: Path) -> tuple[list[Trial], int, bool]:
    """The trials of a study in a folder, their total number, and whether larger is better. Writes nothing.

    Raises:
        InputError: there is no study.
    """
    path = folder / JOURNAL
    if not path.exists():
        raise InputError(f"{folder} has no {JOURNAL}: no search has begun there")
    with quiet():
        try:
            study = optuna.load_study(study_name=NAME, storage=_storage(path))
        except KeyError as e:
            raise InputError(f"{path} has no search yet") from e
        larger = study.directions[0] == optuna.study.StudyDirection.MAXIMIZE
        known = [_trial(t) for t in study.get_trials(deepcopy=False)]
    return known, study.user_attrs.get(TOTAL, len(known)), larger


@contextlib.contextmanager
def lock_search_folder(folder: Path, request: Mapping[str, Any]) -> Iterator[Path]:
    """The folder of a search, locked against other processes.

    Args:
        request: everything that determines the trials, by name.

    Raises:
        InputError: the folder cannot be written, or it holds another search. The message then names the differences.
        LeaseHeldError: another process works in the folder.
    """
    asked = json.loads(json.dumps(request, sort_keys=True))
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lease(lease_of(folder), f"runDir={str(folder)!r}"))
            _claim(folder, asked)
        except OSError as e:
            raise InputError(f"runDir={str(folder)!r} cannot be used: {e.strerror}; choose another folder") from e
        yield folder


def _claim(folder: Path, asked: Mapping[str, Any]) -> None:
    """Write the request to a folder, or compare it with the one that is stored there."""
    folder_marker.check_owner(folder, folder_marker.SEARCH, f"runDir={str(folder)!r}", "folder")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / REQUEST
    if not path.exists() and not (folder / JOURNAL).exists():
        folder_marker.mark(folder, folder_marker.SEARCH)
        write_bytes(path, json.dumps(asked, sort_keys=True, indent=1).encode())
        return
    begun = _read_whole(path, lambda: read_object(path))
    if begun != asked:
        names = sorted(k for k in {*begun, *asked} if begun.get(k) != asked.get(k))
        told = "; ".join(f"{k}: {begun.get(k)!r}, now {asked.get(k)!r}" for k in names)
        raise InputError(
            f"runDir={str(folder)!r} holds a search with other {', '.join(names)} ({told}): choose another folder, or delete "
            "this one to start again"
        )
