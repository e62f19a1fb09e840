"""Race of the arms (ways to improve a pipeline).

Each arm gets a tenth of its share of the budget for a first step. After each round of steps, only arms that may still
win continue.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence

from sparkdiff import jvm
from sparkdiff.data.splits import VALIDATION
from sparkdiff.errors import SparkdiffError, WriteError
from sparkdiff.improvement import parallel_tasks
from sparkdiff.improvement.arm_context import ArmContext
from sparkdiff.improvement.budget import Account, Limit
from sparkdiff.improvement.candidate import Arm, Step, best_of, nothing, share
from sparkdiff.improvement.step_log import StepLog
from sparkdiff.objectives.metrics import NAMES
from sparkdiff.report import Phases, signed
from sparkdiff.store.lease import LeaseHeldError

FIRST = 0.1
"""Fraction of the arm's share of the budget that its first step may use."""
WEIGHTS = 0.1
"""Expected gain of training all weights together, as a share of the metric, until the arm "finetune" has a candidate."""
NEGATIVE = ("poisson", "gamma", "tweedie", "weibull", "oneVsRest", "logLikelihood", "cost", "expectedCost")
"""Losses and metrics that may be below 0, so that their best value is unknown. All others are at least 0 if smaller is
better, and at most 1 if larger is better."""
LEAST = 15.0
"""Shortest time limit of a step in seconds, if this much time is left: enough to write a cache and train some epochs."""


@dataclasses.dataclass(frozen=True)
class ArmStanding:
    """Final standing of an arm.

    Attributes:
        state: "done", "stopped" (because other arms are better, or no time was left), "failed", "not tried" or "interrupted".
        why: a short reason.
        seconds: seconds spent on the arm.
        cut: True if the arm's last step ended because its time was over, or if no time was left for its next step.
    """

    arm: str
    state: str
    why: str
    seconds: float
    cut: bool = False


@dataclasses.dataclass(frozen=True)
class RaceResult:
    """All steps that ran, and the final standing of each arm."""

    steps: tuple[Step, ...]
    standings: tuple[ArmStanding, ...]


def race(context: ArmContext, arms: Sequence[Arm], account: Account, log: StepLog, phases: Phases) -> RaceResult:
    """Run the arms within the budget, by successive halving over the arms (Jamieson and Talwalkar 2016).

    After each round of steps, each arm has a gain so far and an expected further gain. At most half of the arms continue (rounded
    up), namely those with the largest sums; an arm whose sum is less than the best gain of any arm so far is stopped,
    too. Decisions that depend on the time are logged, and read again when a run is resumed. Steps of a round may run at
    the same time (`ArmContext.side_by_side`), because no step reads results of the same round.
    """
    steps, ends, cut = list[Step](), dict[str, tuple[str, str]](), set[str]()
    alive = list[Arm]()
    for arm in arms:
        if why := arm.refusal(context):
            ends[arm.name] = ("not tried", why)
        else:
            alive.append(arm)
    number = 0
    try:
        while alive:
            found = Round(context, alive, number, tuple(steps), account, log)
            try:
                parallel_tasks.run(found.tasks(), context.side_by_side, phases, context.brake)
            finally:
                steps += found.steps()
                ends |= found.ends
                cut |= found.cut
            alive = _better_half(context, found.going(), steps, ends)
            number += 1
    except KeyboardInterrupt:
        if any(arm.alone for arm in arms):
            raise
        ends |= {a.name: ("interrupted", "by the user") for a in arms if a.name not in ends}
    last = {s.arm: s for s in steps}
    cut |= {arm for arm, step in last.items() if step.learned.get("late")}
    standings = (ArmStanding(a.name, *ends[a.name], account.spent.get(a.name, 0.0), a.name in cut) for a in arms)
    return RaceResult(tuple(steps), tuple(standings))


class Round:
    """One step of each arm that is still in the race.

    Args:
        alive: the arms that are still in the race.
        number: number of the round, from 0.
        before: the finished steps of earlier rounds.
    """

    def __init__(
        self,
        context: ArmContext,
        alive: Sequence[Arm],
        number: int,
        before: Sequence[Step],
        account: Account,
        log: StepLog,
    ):
        self.context, self.alive, self.number, self.before = context, alive, number, before
        self.account, self.log = account, log
        self.found: dict[str, Step] = {}
        self.ends: dict[str, tuple[str, str]] = {}
        self.cut: set[str] = set()

    def tasks(self) -> parallel_tasks.Tasks:
        """The steps to run, in the order of the arms. The limit of a step is determined only when the step is requested."""
        for arm in self.alive:
            if why := self.log.skip_reason(arm.name, self.number, functools.partial(self._too_late, arm)):
                self.ends[arm.name] = ("stopped", why)
                self.cut.add(arm.name)
                continue
            yield arm.name, self._task(arm, self._limit(arm))

    def _too_late(self, arm: Arm) -> str:
        """Reason why it is too late for a step of this arm to begin; empty if it may begin. If the budget is a time,
        the very first step of the run always begins: whether its result can still be proven is decided afterwards.
        """
        if self.account.budget.seconds is None:
            return "no passes are left" if self.account.balance() <= 1 else ""
        least = LEAST if self.number else max(LEAST, arm.fits * self.account.fold)
        left = self.account.balance()
        if arm.repeats:
            left = min(left, self.account.provable_step())
        return "no time is left" if left < least and (self.before or self.found) else ""

    def steps(self) -> list[Step]:
        """Finished steps, in the order of the arms."""
        return [self.found[a.name] for a in self.alive if a.name in self.found]

    def going(self) -> list[Arm]:
        """Arms that have finished this step and have another one."""
        return [a for a in self.alive if a.name in self.found and a.name not in self.ends]

    def _limit(self, arm: Arm) -> Limit:
        waiting = self.alive[[a.name for a in self.alive].index(arm.name) :]
        among = self.alive if self.number == 0 else waiting
        portion = arm.share / sum(a.share for a in among)
        limit = self.account.limit(
            FIRST * portion if self.number == 0 else portion, portion, lanes=self.context.side_by_side
        )
        if limit.seconds is None:
            return limit
        least = min(LEAST, self.account.balance()) if self.before or self.found else LEAST
        return dataclasses.replace(limit, seconds=max(limit.seconds, least))

    def _task(self, arm: Arm, limit: Limit) -> parallel_tasks.Task:
        def run() -> str:
            parallel_tasks.STEP.set({"arm": arm.name, "round": self.number})
            step = _run(self.context, arm, self.number, limit, self.before, self.account, self.log)
            self.found[arm.name] = step
            # As if all folds were fitted: a better candidate that may still be proven ends the race.
            seconds = self.account.provable_seconds(self.account.folds + 1)
            best = best_of(self.context, [*self.before, *self.found.values()], seconds)
            if best is not None:
                self.account.best = best.seconds
            if state := next((s for s in ("failed", "stopped") if step.learned.get(s)), None):
                self.ends[arm.name] = (state, step.says)
            elif self.number + 1 == arm.steps:
                self.ends[arm.name] = ("done", step.says)
            return _step_line(self.context, step)

        return run


def _run(
    context: ArmContext, arm: Arm, number: int, limit: Limit, steps: Sequence[Step], account: Account, log: StepLog
) -> Step:
    """Run one step of an arm, or read its result from the log of an interrupted run."""
    done = log.read(context, arm.name, number)
    if done is None:
        begun, kept = account.now(), True
        try:
            done = arm.run(context, number, limit, steps)
        except TimeoutError as e:
            done = nothing(
                arm.name, number, f"{e}, its share of the budget: set a larger one", ended="stopped", late=True
            )
        except (WriteError, LeaseHeldError):
            raise  # these end the run: other arms would fail, too
        except (SparkdiffError, *jvm.SparkError) as e:
            if arm.alone:
                raise
            kept = isinstance(e, SparkdiffError)  # errors of Spark aren't logged: it may succeed in a resumed run
            done = nothing(arm.name, number, jvm.message(e), ended="failed")
        done = dataclasses.replace(done, seconds=account.now() - begun, ended=account.now())
        if kept:
            log.write(done)
    account.add(arm.name, done.seconds, until=done.ended)
    return done


def _step_line(context: ArmContext, step: Step) -> str:
    best = max(step.candidates, key=lambda c: share(context, c), default=None)
    return step.says if best is None else f"{best.name}, {signed(share(context, best))}; {step.says}"


def _better_half(
    context: ArmContext, going: Sequence[Arm], steps: Sequence[Step], ends: dict[str, tuple[str, str]]
) -> list[Arm]:
    """Return the arms that continue, in their order, and record in `ends` why the other arms are stopped."""
    best = best_of(context, steps)
    reached = 0.0 if best is None else share(context, best)
    may = {a.name: _may_reach(context, a.name, steps) for a in going}
    most = math.ceil(len(going) / 2)
    chosen = sorted(going, key=lambda a: -may[a.name])[:most]
    for arm in going:
        if may[arm.name] < reached:
            ends[arm.name] = ("stopped", f"may reach {signed(may[arm.name])}, another arm has {signed(reached)}")
        elif arm not in chosen:
            ends[arm.name] = ("stopped", f"may reach {signed(may[arm.name])}, other arms more")
    return [a for a in going if a in chosen and a.name not in ends]


def expected_gain(context: ArmContext, steps: Sequence[Step]) -> float:
    """Expected gain from training the weights of a new pipeline: the gain on the original if the arm "finetune" has a
    candidate, else `WEIGHTS`.
    """
    tuned = [c for s in steps if s.arm == "finetune" for c in s.candidates]
    return max((share(context, c) for c in tuned), default=WEIGHTS)


def _may_reach(context: ArmContext, name: str, steps: Sequence[Step]) -> float:
    """Gain of an arm so far plus its expected further gain, together at most `most_gain`, as a share of the original's metric;
    infinite without a step.
    """
    own = [s for s in steps if s.arm == name]
    if not own:
        return math.inf
    best, last = best_of(context, own), own[-1]
    hope = last.hope + (expected_gain(context, steps) if last.trains else 0.0)
    reached = 0.0 if best is None else share(context, best)
    return min(reached + hope, max(reached, most_gain(context)))


def most_gain(context: ArmContext) -> float:
    """Gain of a pipeline with the best possible metric, as a share of the original's metric; infinite if that is unknown."""
    metric, value = context.metric, context.start.scores[VALIDATION].value
    if metric.name not in NAMES or metric.name in NEGATIVE or not value:
        return math.inf
    return (1 - value) / abs(value) if metric.larger else 1.0
