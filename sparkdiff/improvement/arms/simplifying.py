"""The arm that deletes a stage, fits the others anew on the training rows, and then trains the best of these together."""

import time
from collections.abc import Sequence
from typing import Any

import torch

from sparkdiff import jvm
from sparkdiff.data.splits import fit_on_training_rows
from sparkdiff.errors import InputError, ParityError
from sparkdiff.evaluation.ledger import Trial
from sparkdiff.improvement.arm import Arm
from sparkdiff.improvement.arms.fine_tuning import fine_tuned
from sparkdiff.improvement.arms.refitting import expected, label_stages
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Candidate, Step, best_of, nothing, one_column
from sparkdiff.improvement.ground import Ground, measure
from sparkdiff.pipeline.unfitted import AS_FITTED, Unfitted, unfitted, with_uids_of
from sparkdiff.serving.deletion import Deletion, deletions


def possible(ground: Ground) -> list[tuple[Deletion, Unfitted]]:
    """The stages that can be deleted, and the unfitted forms of what is left."""
    stay = (*ground.keeps, *label_stages(ground))
    found = []
    for one in deletions(ground.model, ground.sources[0].df.schema):
        form = unfitted(one.pipeline, keep=[uid for uid in stay if uid != one.uid])
        kept = {s.uid for s in form.stages if s.role == AS_FITTED}
        if one.uid not in stay and form.learns and not kept & set(one.mustRefit):
            found.append((one, form))
    return found


def _refused(ground: Ground) -> str:
    if ground.plan.labelCol is None:
        return "clusters are measured by distances, which another stage before them would change"
    return "" if possible(ground) else "there is no stage that the others could do without"


def _run(ground: Ground, number: int, limit: Limit, steps: Sequence[Step]) -> Step:
    if number:
        best = best_of(ground, [s for s in steps if s.arm == "simplify"])
        if best is None:
            return nothing(ground, "simplify", number, "no deletion gains")
        name, changes = f"{best.name}, fine-tuned", best.changes
        return fine_tuned(
            ground, best.found, limit, recipe="default", arm="simplify", number=number, name=name, changes=changes
        )
    columns, trials, candidates, failed = list[torch.Tensor](), list[Trial](), list[Candidate](), list[str]()
    tried, begun = possible(ground), time.monotonic()
    for one, form in tried:
        if candidates and limit.seconds is not None and time.monotonic() - begun > limit.seconds:
            failed.append("out of time")
            break
        try:
            found = measure(ground, _fitted(ground, one, form))
        except (InputError, ParityError, *jvm.SparkError) as e:
            failed.append(f"without {one.uid}: {jvm.cause(e) if isinstance(e, jvm.SparkError) else e}")
            continue
        name = f"refitted without {one.stageClass.removesuffix('Model')}"
        candidates.append(Candidate("simplify", name, found, len(columns), f"without {one.uid}"))
        trials.append(Trial(len(columns), 0, one.uid))
        columns.append(one_column(ground, found))
    if not candidates:
        return nothing(ground, "simplify", 0, "; ".join(failed), failed=True)
    says = f"{len(candidates)} of {len(tried)} deletions tried" + "".join(f"; {why}" for why in failed)
    return Step("simplify", 0, torch.cat(columns), trials, tuple(candidates), expected(ground, steps), says)


def _fitted(ground: Ground, one: Deletion, form: Unfitted) -> Any:
    model = fit_on_training_rows(form.estimator, ground.sources, ground.options, ground.boundaries)
    return with_uids_of(one.pipeline, model)


ARM = Arm("simplify", 2, 0.5, _refused, _run)
