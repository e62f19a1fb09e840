"""Options that are set and have no effect in a run, so that nobody takes what ran for what was asked."""

from sparkdiff.data.splits import VALIDATION
from sparkdiff.fine_tuning.values import Run
from sparkdiff.jvm import stores
from sparkdiff.options import Options, without_effect
from sparkdiff.training.recipes import FEW_ROWS, FEWEST


def idle_options(run: Run) -> list[str]:
    """A sentence for each option that was set and has no effect in this run."""
    o, default, rows, end = run.task.options, Options(), run.cache.rows(VALIDATION), run.task.options.maxEpochs
    few = rows < FEW_ROWS * (1 if o.recipe == "fast" else FEWEST)
    lbfgs, alone, any_gain = o.optimizer == "lbfgs", o.numProcesses == 1, o.guard == 1
    one_step = (lbfgs, "lbfgs takes one step an epoch, with the gradient of all rows")
    one_process = (alone, "one process trains, that of the driver")
    not_kept = (o.storeDir is None, "without storeDir the run is not kept")
    reasons = {
        "recipe": (few, f"with {rows:,} validation rows a choice among candidates mostly finds chance: only the most careful one "
                   "trained"),
        "schedule": one_step, "ema": one_step, "gradientClip": one_step, "batchSize": one_step,
        "patience": (min(o.patience, default.patience) >= end, f"training ends after maxEpochs={end} epochs"),
        "minDelta": (o.patience >= end, f"training ends after maxEpochs={end} epochs, before patience={o.patience} can end it"),
        "fleetSize": (any_gain, "guard=1 accepts any gain"),
        "guardCols": (any_gain and "parityGap" not in o.penalties, "guard=1 accepts any gain, so slices are only reported"),
        "timeout": one_process, "localMode": one_process, "localSteps": one_process,
        "slowMomentum": (alone or o.localSteps == 1, "it needs several processes and localSteps of 2 or more"),
        "localCacheLimit": (stores.url_of(run.cache.folder) is None, "the folder of the caches is on this machine"),
        "reuseStages": (not run.task.cut.stages, "no stage runs in Spark before training"),
        "waitForRun": (o.runId is None, "no other process can use this run, which has no runId"),
        "tags": not_kept, "redact": not_kept,
    }  # fmt: skip
    found = without_effect(o, reasons)
    trained = {i for i, stage in enumerate(run.task.plan.stages) if stage.trainable}
    for option, trains, what in (
        ("freeze", run.task.roles.trainable, "only keeps it from being fitted anew, searched or deleted where a run does that"),
        ("learningRates", trained, "has no effect"),
    ):  # fmt: skip
        graph = run.task.cut.graph
        unused = [name for name in getattr(o, option) if not graph.select([name], option) & trains]
        found += [f"{option} names {name!r}, which {what}: no parameter of it trains" for name in unused]
    return found
