"""The arm that takes stages away.

What folds exactly goes without a change of the outputs. Then each single stage is deleted in turn and those after it are fitted
anew on the training rows; the best of these is trained together.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from sparkdiff import jvm
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.ledger import LedgerTrial
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.arms.refitting import fitted_to_label, refitted
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, Step, best_of, nothing, one_column
from sparkdiff.improvement.folding import folded, folding, gone
from sparkdiff.improvement.ground import Ground, measure
from sparkdiff.pipeline.unfitted import AS_FITTED, Unfitted, unfitted
from sparkdiff.serving.deletion import Deletion, deletions


def possible(ground: Ground) -> list[tuple[Deletion, Unfitted]]:
    """The stages that can be deleted, and the unfitted forms of what is left."""
    found = []
    for one in deletions(ground.model, ground.sources[0].df.schema):
        form = fitted_to_label(ground, unfitted(one.pipeline, keep=ground.stay))
        kept = {s.uid for s in form.stages if s.role == AS_FITTED}
        if one.uid not in ground.stay and form.learns and not kept & set(one.mustRefit):
            found.append((one, form))
    return found


def _refused(ground: Ground) -> str:
    if folding(ground, ground.model) is not None:
        return ""
    if ground.plan.labelCol is None:
        return "clusters are measured by distances, which another stage before them would change"
    return (
        ""
        if possible(ground)
        else "no stage folds into another one, and there is none that the others could do without"
    )


def _run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        best = best_of(ground, [s for s in steps if s.arm == "simplify"])
        if best is None:
            return nothing(ground, "simplify", number, "no deletion gains")
        name, changes = f"{best.name}, fine-tuned", best.changes
        return fine_tuned(
            ground, best.found, limit, recipe="default", arm="simplify", number=number, name=name, changes=changes
        )
    begun, found, failed, late = time.monotonic(), list[Candidate](), list[str](), False
    ways: list[Callable[[], Candidate | None]] = [lambda: _compacted(ground)]
    if ground.plan.labelCol is not None:
        ways += [partial(_without, ground, one, form, limit) for one, form in possible(ground)]
    for way in ways:
        if found and limit.seconds is not None and time.monotonic() - begun > limit.seconds:
            late = True
            break
        try:
            candidate = way()
        except TimeoutError:
            late = True
            break
        except (InputError, ParityError, *jvm.SparkError) as e:
            failed.append(jvm.cause(e) if isinstance(e, jvm.SparkError) else str(e))
            continue
        found += [] if candidate is None else [replace(candidate, column=len(found))]
    says = "; ".join([*(c.name for c in found), *failed, *(["out of time"] if late else [])])
    if not found:
        ended = "stopped" if late else "failed" if failed else ""
        return nothing(ground, "simplify", 0, says or "nothing folds that would serve cheaper", ended=ended, late=late)
    columns = torch.cat([one_column(ground, c.found) for c in found])
    trials = [LedgerTrial(c.column, 0, c.changes) for c in found]
    trains = not all(c.exact for c in found)
    return Step("simplify", 0, columns, trials, tuple(found), 0.0, says, trains=trains, learned={"late": late})


def _compacted(ground: Ground) -> Candidate | None:
    """The original with fewer stages and the same outputs; None where nothing folds, or the run started from a refit of it."""
    plan, model = folding(ground, ground.model), folded(ground, ground.model)
    if plan is None or model is None or ground.given is not None:
        return None
    found = measure(ground, model)
    if bool(one_column(ground, found).any()):
        raise ParityError(f"{ground.model.uid}: its compacted form has another {ground.metric.name}")
    return Candidate("simplify", "compacted", found, 0, f"without {', '.join(gone(plan))}", exact=True)


def _without(ground: Ground, one: Deletion, form: Unfitted, limit: Limit) -> Candidate:
    """The pipeline that is fitted without this stage."""
    name = f"refitted without {one.stageClass.removesuffix('Model')}"
    found = refitted(ground, form, limit)
    return Candidate("simplify", name, found, 0, f"without {one.uid}")


ARM = Arm("simplify", 2, 0.5, _refused, _run)
