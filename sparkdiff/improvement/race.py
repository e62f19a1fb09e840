"""Which arm runs how far: cheap arms first, each a tenth of its share, and then those that may still win."""

import dataclasses
import math
import time
from collections.abc import Sequence

from sparkdiff import jvm
from sparkdiff.errors import FullDiskError, SparkdiffError
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.budget import Account, Limit
from sparkdiff.improvement.candidate import Step, best_of, nothing, share
from sparkdiff.improvement.ground import Ground
from sparkdiff.improvement.log import Log
from sparkdiff.report import Phases
from sparkdiff.store.lease import HeldError

FIRST = 0.1
"""The part of its share that an arm's first step may use."""
LEAST = 10.0
"""Seconds that a step gets where so many are left: a cache is written, and some epochs train."""


@dataclasses.dataclass(frozen=True)
class Standing:
    """Where an arm stands at the end.

    Attributes:
        state: "done", "stopped" (clearly behind, or no time left), "failed", "not tried" or "interrupted".
        why: in a few words.
    """

    arm: str
    state: str
    why: str
    seconds: float


@dataclasses.dataclass(frozen=True)
class Raced:
    """All steps that ran, and where each arm stands."""

    steps: tuple[Step, ...]
    standings: tuple[Standing, ...]


def race(ground: Ground, arms: Sequence[Arm], account: Account, log: Log, phases: Phases) -> Raced:
    """Run the arms within the budget: successive halving (Jamieson and Talwalkar 2016) over arms.

    After each step an arm tells what it has gained and what it may still gain; at most half of the arms go on, and none
    whose sum of the two is less than what the best has already. What the clock decided is in the log, and is read again.
    """
    steps, ends = list[Step](), dict[str, tuple[str, str]]()
    alive = list[Arm]()
    for arm in arms:
        if why := arm.refused(ground):
            ends[arm.name] = ("not tried", why)
        else:
            alive.append(arm)
    number = 0
    try:
        while alive:
            going = list[Arm]()
            for arm in alive:
                if why := log.skipped(arm.name, number, lambda: _too_late(account)):
                    ends[arm.name] = ("stopped", why)
                    continue
                limit = account.limit(_portion(arm, alive, number), _portion(arm, alive, number, whole=True))
                with phases.phase(arm.name) as say:
                    step = _run(ground, arm, number, _at_least(limit, account), steps, account, log)
                    say(_told(ground, step))
                steps.append(step)
                if state := next((s for s in ("failed", "stopped") if step.learned.get(s)), None):
                    ends[arm.name] = (state, step.says)
                elif number + 1 < arm.steps:
                    going.append(arm)
                else:
                    ends[arm.name] = ("done", step.says)
            alive = _better_half(ground, going, steps, ends)
            number += 1
    except KeyboardInterrupt:
        ends |= {a.name: ("interrupted", "by the user") for a in arms if a.name not in ends}
    return Raced(tuple(steps), tuple(Standing(a.name, *ends[a.name], account.spent.get(a.name, 0.0)) for a in arms))


def _portion(arm: Arm, alive: Sequence[Arm], number: int, *, whole: bool = False) -> float:
    """The part of what is left that a step may use: of a first step a tenth of the arm's share, later all of it.

    Args:
        whole: all of it in a first step, too.
    """
    if number == 0:
        return (1.0 if whole else FIRST) * arm.share / sum(a.share for a in alive)
    waiting = alive[[a.name for a in alive].index(arm.name) :]
    return arm.share / sum(a.share for a in waiting)


def _at_least(limit: Limit, account: Account) -> Limit:
    if limit.seconds is None:
        return limit
    return dataclasses.replace(limit, seconds=max(limit.seconds, min(LEAST, account.left())))


def _too_late(account: Account) -> str:
    what = "time is" if account.budget.passes is None else "passes are"
    return f"no {what} left" if account.left() <= 1 else ""


def _run(
    ground: Ground, arm: Arm, number: int, limit: Limit, steps: Sequence[Step], account: Account, log: Log
) -> Step:
    """One step, or the result of the same step before an interruption."""
    done = log.read(ground, arm.name, number)
    if done is None:
        begun = time.monotonic()
        try:
            done = arm.run(ground, number, limit, steps)
        except TimeoutError as e:
            done = nothing(ground, arm.name, number, f"{e}, its share of the budget: set a larger one", ended="stopped")
        except (FullDiskError, HeldError):
            raise  # these end the run: no other arm could do better
        except SparkdiffError as e:
            done = nothing(ground, arm.name, number, str(e), ended="failed")
        except jvm.SparkError as e:
            failed = nothing(ground, arm.name, number, jvm.cause(e), ended="failed")
            account.add(arm.name, time.monotonic() - begun)
            return failed  # and not in the log: Spark may do it when the run goes on
        seconds = time.monotonic() - begun
        done = dataclasses.replace(done, seconds=seconds, ended=sum(account.spent.values()) + seconds)
        log.write(done)
    account.add(arm.name, done.seconds)
    return done


def _told(ground: Ground, step: Step) -> str:
    best = max(step.candidates, key=lambda c: share(ground, c), default=None)
    return step.says if best is None else f"{best.name}, {share(ground, best):+.1%}; {step.says}"


def _better_half(
    ground: Ground, going: Sequence[Arm], steps: Sequence[Step], ends: dict[str, tuple[str, str]]
) -> list[Arm]:  # fmt: skip
    """The arms that go on, in their order; the others are stopped."""
    best = best_of(ground, steps)
    reached = 0.0 if best is None else share(ground, best)
    may = {a.name: _may_reach(ground, a.name, steps) for a in going}
    most = math.ceil(len(going) / 2)
    chosen = sorted(going, key=lambda a: -may[a.name])[:most]
    for arm in going:
        if may[arm.name] < reached:
            ends[arm.name] = ("stopped", f"may reach {may[arm.name]:+.1%}, another arm has {reached:+.1%}")
        elif arm not in chosen:
            ends[arm.name] = ("stopped", f"may reach {may[arm.name]:+.1%}, other arms more")
    return [a for a in going if a in chosen and a.name not in ends]


def _may_reach(ground: Ground, name: str, steps: Sequence[Step]) -> float:
    """The gain of an arm so far, and what it expects to gain still, as a share of the original's metric."""
    own = [s for s in steps if s.arm == name]
    best = best_of(ground, own)
    return (0.0 if best is None else share(ground, best)) + (own[-1].hope if own else math.inf)
