"""The phases of a fine-tuning run, one function each: cache, verify, check, train, judge, write back.

`judge_by_rows` applies the guard, the statistical test on held-out rows that decides whether the trained pipeline is accepted.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkdiff import jvm
from sparkdiff.data import cache as caches
from sparkdiff.data.fingerprint import SHARDS, Request, versions_of
from sparkdiff.data.splits import REFERENCE, TRAIN, VALIDATION, Boundaries, Source
from sparkdiff.data.stream.batches import Stream
from sparkdiff.data.stream.order import copies
from sparkdiff.evaluation import cached_parity, paired_rows, row_warnings as datachecks
from sparkdiff.evaluation.acceptance import check_options, judge, unit_of, ways_to_decide
from sparkdiff.evaluation.feature_names import FeatureNames
from sparkdiff.evaluation.guard import MIN_UNITS, why_untested
from sparkdiff.evaluation.pipeline_warnings import dropped_late
from sparkdiff.evaluation.row_checks import (
    all_labels,
    check_finite,
    check_repeats,
    check_stored,
    check_varies,
    trained_score,
    training_labels,
)
from sparkdiff.evaluation.row_margins import RecordedMargins
from sparkdiff.evaluation.scores import Score, score
from sparkdiff.evaluation.split_batches import Data, rows_at_once
from sparkdiff.fine_tuning.task import (
    FitResults,
    Goal,
    GuardDecision,
    JointSetting,
    PipelineScores,
    Run,
    Task,
    TrainingResult,
    key_of,
)
from sparkdiff.jvm import stores
from sparkdiff.machine import resources
from sparkdiff.objectives.label_checks import check_label
from sparkdiff.objectives.metric import Metric
from sparkdiff.options import Options, without_effect
from sparkdiff.pipeline.network import Network
from sparkdiff.pipeline.schema import is_plain
from sparkdiff.pipeline.write_back import write_back
from sparkdiff.report import Phases, counted
from sparkdiff.store.checkpoint_folder import UNTOLD, CheckpointFolder, open_checkpoint_folder
from sparkdiff.store.files import folder_size, room
from sparkdiff.training import monotone
from sparkdiff.training.distributed import choice, launch
from sparkdiff.training.distributed.attempt import OnEpoch
from sparkdiff.training.distributed.worker import Assignment
from sparkdiff.training.preparation import Start, network_identity, request_of, resolve_objectives, start_of
from sparkdiff.training.recipes import FEW_ROWS, FEWEST, Recipe
from sparkdiff.training.training_run import Training

OF_TRAINING = (
    *("recipe", "optimizer", "learningRate", "learningRates", "regAnchor", "schedule", "ema", "gradientClip"),
    *("maxEpochs", "patience", "minDelta", "maxSeconds", "batchSize", "numProcesses", "localSteps", "slowMomentum"),
    *("localMode", "timeout", "device", "penalties", "unfreeze", "numFolds"),
)
"""Options that only a training reads."""


@contextlib.contextmanager
def open_run(
    task: Task,
    sources: Sequence[Source],
    phases: Phases,
    *,
    shared: FitResults | None = None,
    boundaries: Boundaries | None = None,
    allTrain: bool = False,
    keyed: bool = False,
    lasting: bool = True,
    written: Task | None = None,
    comparedRows: int = cached_parity.PARITY_ROWS,
) -> Iterator[Run]:
    """Write the cache or find an existing one, and yield a `Run` that reads it; the cache is closed when the context
    ends.

    Args:
        shared: results of other fits on the same rows.
        boundaries: times that divide the rows into splits, if already known.
        allTrain, keyed, lasting: see `Request`.
        written: the task for which the cache is written, if not `task`; its columns include those of `task`.
        comparedRows: see `Run`.
    """
    # Each batch takes the same number of rows from every virtual shard.
    o = dataclasses.replace(task.options, batchSize=-(-task.options.batchSize // SHARDS) * SHARDS)
    task, shared, key = dataclasses.replace(task, options=o), shared or FitResults(), (*key_of(task, sources), keyed)
    if (
        o.checkpointDir is not None
        and jvm.stores.url_of(where := jvm.folder("checkpointDir", o.checkpointDir)) is not None
    ):
        jvm.check_writable("checkpointDir", o.checkpointDir, where)  # fail before anything runs
    with phases.phase("cache") as say:
        weight = task.weightCol if task.soft is None else task.soft.weightCol
        writes = task if written is None else written
        request = Request(writes.cut, list(sources), o, task.labelCol, weight, boundaries, allTrain, keyed, lasting)
        place = (*key_of(writes, sources), keyed)
        cache = shared.cache(place, request, lambda folder: say.show_periodically(caches.CacheProgress(folder).message))
        counts = ", ".join(f"{cache.rows(s):,} {s}" for s in cache.splits if not (allTrain and s == VALIDATION))
        say(
            f"{'reused' if cache.hit else 'written'}: {counts} rows, {counted(len(task.plan.cacheCols), 'column')}, "
            f"{_size(cache.folder)}"
        )
    network = Network(task.cut.graph, task.cut.live)
    # Before the network processes rows, because some stages then store the spread of the rows.
    computed = network_identity(network)
    # If other processes train, this process reads the rows only twice, to measure before and after training.
    held = in_memory(o, cache) and o.processes == 1
    kept = o.localCacheLimit is None  # the limit bounds the bytes on this disk
    with Stream(cache.folder, backend=o.stream, inMemory=held, seed=o.seed, decoded=kept) as stream:
        data = Data(stream, cache.columns(task.cut), rows=rows_at_once(network, stream))
        divided = all(s.split != VALIDATION for s in sources)
        goal = _goal(task, cache, network, reference=any(s.split == REFERENCE for s in sources), divided=divided)
        yield Run(
            task=task,
            phases=phases,
            shared=shared,
            key=key,
            cache=cache,
            network=network,
            computed=computed,
            data=data,
            goal=goal,
            versions=versions_of(sources),
            divided=divided,
            comparedRows=comparedRows,
        )


def in_memory(options: Options, cache: caches.Cache) -> bool:
    several = options.numProcesses == choice.AUTO  # then this process holds a copy of the rows, too
    return options.cacheInMemory and cache.fits_in_memory(copies(SHARDS, options.processes) + several)


def _goal(task: Task, cache: caches.Cache, network: Network, *, reference: bool, divided: bool) -> Goal:
    """Resolve the loss and the metric, and check the labels and the options against them.

    Args:
        reference: True if there are reference rows, on which the result must not be significantly worse.
        divided: see `Run`.
    """
    head, stats = network.head, cache.manifest["stats"]
    label = training_labels(stats, task.options, reference=reference, divided=divided)
    check_options(task.options, head)
    objective, metric = resolve_objectives(task.options, network, label)
    labels, fractional = all_labels(stats)
    for bound in (objective, metric):
        if task.labelCol is not None and head.labelled:
            check_label(bound, head, labels, task.labelCol, fractional)
    return Goal(
        label=label,
        labels=labels if task.labelCol else None,
        objective=objective,
        metric=metric,
        warnings=check_varies(stats, task.options, head, task.labelCol),
    )


def too_few(run: Run) -> str:
    """Text on why there are too few held-out rows, groups or blocks of time for the guard to decide, whatever is predicted; empty
    if there may be enough, or if guard=1.
    """
    o = run.task.options
    if o.guard >= 1:
        return ""
    units = paired_rows.held_out_units(run.data, run.goal.metric, unit_of(o))
    ways = ways_to_decide(o, folds=True, divided=run.divided)
    return "" if units.number >= MIN_UNITS else f"not tested: {why_untested(units, o.groupCol)}; {ways}"


def verify_original(run: Run, *, decides: bool = True) -> PipelineScores:
    """Measure the original pipeline's metric on each split, and check that its network computes the same as Spark.

    Args:
        decides: whether the validation rows will decide, so that the metric must be finite on them.
    """
    task, cache, network, data = run.task, run.cache, run.network, run.data
    own = callable(task.options.loss) and task.options.metric is None
    with run.phases.phase("verify") as say:
        same = data.stream.manifest.all_train
        scores = {s: score(network, data, s, run.goal.metric) for s in cache.splits if s != VALIDATION or not same}
        scores |= {VALIDATION: scores[TRAIN]} if same else {}
        resources.trim_memory()
        looked_at = {s: found for s, found in scores.items() if decides or s != VALIDATION}
        check_finite(looked_at, run.goal.metric, task.model.uid, run.goal.labels, own=own)
        if own:
            check_repeats(run.goal.metric, network, data)
        parity = run.once(
            "parity",
            lambda: cached_parity.check(
                task.model, network, cached_parity.sample_of(network, data, run.comparedRows), cache, _reuse_key(run)
            ),
        )
        say(f"the network reproduces Spark: {parity}")
        return PipelineScores(scores, parity)


def _reuse_key(run: Run) -> dict[str, Any] | None:
    """Values that determine the outputs of the pipeline's stages, so that a later run may reuse Spark's outputs.

    None if a stage is not Spark's own or can't be identified, because its code may change.
    """
    plain = all(is_plain(vertex.stage) for vertex in run.network.graph.vertices)
    return run.computed if plain and not run.computed["pipeline"].startswith(UNTOLD) else None


def check_data(run: Run) -> list[str]:
    """Run the phase `check`: warnings about the rows, and about options without effect."""
    cache, o, label = run.cache, run.task.options, run.goal.label
    with run.phases.phase("check") as say:
        found = run.once(
            "check",
            lambda: datachecks.check(
                run.network,
                run.data,
                cache.manifest_entries(run.task.cut),
                o,
                label,
                cache.splits,
                copies=run.task.soft is not None,
            ),
        )
        doubts: list[str] = found + run.goal.warnings + dropped_late(run.task.cut)
        say(f"{counted(len(doubts), 'warning') if doubts else 'no warnings'} about the data")
        return doubts + idle_options(run)


def train(
    run: Run,
    original: PipelineScores,
    recipes: Sequence[Recipe] | None,
    *,
    replace: bool,
    epochs: int | None = None,
    member: JointSetting | None = None,
) -> TrainingResult:
    """Train all candidates (copies of the parameters, trained side by side), or resume a training run with the same
    runId.

    Args:
        recipes: the candidates; None: those of `options.recipe`.
        replace: start again if `options.runId` was started with other settings, instead of raising.
        epochs: train one candidate for exactly this number of epochs, and return its parameters after the last one.
        member: set if several settings train together (see `JointTraining`): this run's setting among them.
    """
    with run.phases.phase("train") as say:
        check_stored(run.network, run.data)
        if member is None:
            return _train_candidates(
                run, original, recipes, say.now, run.phases.on_epoch, replace=replace, epochs=epochs
            )[0]
        settings = member.together.settings
        fitted, start, training = run.shared.once(
            ("trained", run.key, member.together),
            lambda: _train_candidates(
                run, original, None, say.now, lambda _row: None, replace=replace, settings=settings
            ),
        )
        own = training.among(start.each[member.position])
        for row in own.history:
            run.phases.on_epoch(row)
        say(f"{len(settings)} settings trained together, in one pass over the rows an epoch")
        return dataclasses.replace(
            fitted, found=own.result(run.network), best=own.best.metric, recipes=tuple(own.recipes)
        )


def _train_candidates(
    run: Run,
    original: PipelineScores,
    recipes: Sequence[Recipe] | None,
    say: Callable[[str], None],
    on_epoch: OnEpoch,
    *,
    replace: bool,
    epochs: int | None = None,
    settings: Sequence[Options] = (),
) -> tuple[TrainingResult, Start, Training]:
    """Train the candidates of all `settings`, by default those of the task's options; arguments as of `train`."""
    o, cache, network, data, goal = run.task.options, run.cache, run.network, run.data, run.goal
    single = cached_parity.check_single_precision(network, data) if o.precision == "float32" else None
    start = start_of(network, data, goal.label, o, cache.rows(VALIDATION), recipes, settings)
    resources.trim_memory()
    wishes = _slope_signs(run) if "monotone" in o.penalties else None
    penalty = None if wishes is None else wishes.penalty(start.stats, goal.label)
    assignment = Assignment(
        network=network,
        cache=cache.folder,
        backend=data.stream.backend,
        inMemory=in_memory(o, cache),
        columns=data.columns,
        label=goal.label,
        original=original.scores[VALIDATION],
        start=start,
        options=o,
        metric=goal.metric.name,
        monotone=penalty,
        epochs=epochs,
    )
    with (
        open_checkpoints(run, o.runId, recipes=recipes, epochs=epochs, replace=replace) as folder,
        _explain_interruption(o.runId, say),
    ):
        training, lost = launch.run(assignment, data.stream, folder, say, on_epoch)
        folder.check()
        note = choice.DeviceNote.read(folder.path) or choice.DeviceNote()
        several = choice.ProcessNumber.read(folder.path) if o.numProcesses == choice.AUTO else None
    unsaved = training.unsaved or folder.send_failure
    training.release()
    _fill_in_first_losses(training, run, original)
    fitted = TrainingResult(
        found=training.result(network),
        best=training.best.metric,
        frozen=start.frozen,
        lost=lost,
        unsaved=unsaved,
        endedEarly=training.ended_early,
        wishes=wishes,
        folder=folder,
        device=note.trainedOn,
        fallbacks=training.fallbacks,
        single=single,
        recipes=start.recipes,
        processes=several,
    )
    return fitted, start, training


def _fill_in_first_losses(training: Training, run: Run, original: PipelineScores) -> None:
    """Take the original's training loss as the loss at epoch 0 of candidates that never gained.

    It is compared with the losses of later epochs; without it, divergence of such a candidate could not be recognised.
    """
    never_gained = {number for number, standing in enumerate(training.standings) if standing.column < 0}
    objective = run.goal.objective
    if never_gained and objective.rows is not None:
        loss = original.scores[TRAIN].mean
        if run.goal.metric.rows is not objective.rows:
            loss = score(run.network, run.data, TRAIN, Metric(objective.name, rows=objective.rows)).mean
        for row in training.history:
            if not row["epoch"] and row["candidate"] in never_gained:
                row["trainLoss"] = loss


@contextlib.contextmanager
def _explain_interruption(runId: str | None, say: Callable[[str], None]) -> Iterator[None]:
    """Show how to continue the training run if the user interrupts it."""
    try:
        yield
    except KeyboardInterrupt:
        later = (
            "with a runId, the same fit would go on from here"
            if runId is None
            else f"runId={runId!r} goes on from here"
        )
        say(f"interrupted; {later}")
        raise


def _size(folder: Path) -> str:
    """Total size of the files in a folder, as text; empty if another process renames files in the folder meanwhile."""
    with contextlib.suppress(OSError):
        return f"{folder_size(folder) / 1e6:,.1f} MB"
    return ""


@contextlib.contextmanager
def open_checkpoints(
    run: Run,
    runId: str | None,
    *,
    replace: bool,
    recipes: Sequence[Recipe] | None = None,
    epochs: int | None = None,
    beside: Mapping[str, Any] | None = None,
) -> Iterator[CheckpointFolder]:
    """Open the checkpoint folder of a training run on these rows; remove it at the end unless `runId` is set (after an error,
    see `CheckpointFolder.keep_for_resume`).

    Args:
        replace: start again if `runId` was started with other settings, instead of raising.
        recipes, epochs: see `train`.
        beside: further values that determine the result, by name; a run that differs in one of them is not resumed.
    """
    o = run.task.options
    where = jvm.folder("checkpointDir", o.checkpointDir) if o.checkpointDir else run.cache.folder.parent / "checkpoints"
    computed = run.computed if runId is not None else {}
    request = request_of(o, run.cache.fingerprint, computed, recipes, epochs) | dict(beside or {})
    with (
        open_checkpoint_folder(
            where, runId, request, replace=replace, own=o.checkpointDir is None, wait=o.waitForRun
        ) as folder,
        folder.keep_for_resume(always=runId is not None),
    ):
        yield folder


def _slope_signs(run: Run) -> monotone.SlopeSigns:
    values = run.data.values(run.data.stream.nothing())
    run.network.margin(values)
    names = FeatureNames(run.network, run.cache.manifest_entries(run.task.cut), values)
    return monotone.SlopeSigns(run.task.options.penalties["monotone"], run.network, names)


def judge_by_rows(
    run: Run, original: PipelineScores, fitted: TrainingResult, given: RecordedMargins | None
) -> GuardDecision:
    """Run the phase `judge`: decide by held-out rows whether the trained network may replace the original.

    Args:
        original: the original's metrics.
        given: the recorded margins of the pipeline as passed, if the run starts from its refit; see `judge`.
    """
    found, metric, held_out = fitted.found, run.goal.metric, original.scores[VALIDATION]
    with run.phases.phase("judge"):
        o, ledger = run.task.options, found.ledger
        tuned = trained_score(run.task.model.uid, o, fitted.best, metric, found.network, run.data)
        # Training measures slightly different values than those of the network that would be returned: on float32 rows,
        # and for rank metrics, where equal sums of leaves may differ if added in another order. The guard must judge
        # that network.
        if o.precision == "float32" or metric.ranks:
            ledger = ledger.measured_again(held_out.blocks - tuned.blocks)
        networks, reference = (run.network, found.network), bool(run.cache.rows(REFERENCE))
        judged = judge(run.task.options, run.data, metric, networks, ledger, reference=reference, given=given)
        warnings = datachecks.too_few_rows(ledger.gains, ledger.weights, judged.verdict, held_out.mean)
        if fitted.wishes is not None and judged.accepted:
            warnings = [*warnings, *fitted.wishes.violations(found.network)]
        return GuardDecision(judged, tuned, warnings)


def write_back_and_verify(
    run: Run, original: PipelineScores, network: Network, known: Mapping[str, Score], made: Task | None = None
) -> tuple[Any, PipelineScores]:
    """Write the trained network back to Spark stages, check that they compute the same, and measure the network's
    metrics.

    Args:
        original: the original's metrics; the new ones are measured on the same splits.
        known: scores of the trained network by split, as far as they were measured before.
        made: the new pipeline, if nothing trained.

    Returns:
        The new pipeline, and its metrics and parity.
    """
    model, data, cache = run.task.model, run.data, run.cache
    with run.phases.phase("write back") as say:
        scores = {s: known.get(s) or score(network, data, s, run.goal.metric) for s in original.scores}
        resources.trim_memory()
        network = network if made is None else Network(made.cut.graph, made.cut.live)
        sample = cached_parity.sample_of(network, data, run.comparedRows)
        data.stream.close()  # the rows are not read again: frees memory for Spark
        resources.trim_memory()
        where = cache.folder.parent
        with jvm.scratch(where), room("the data of the new Spark model", where, caches.ROOM):
            model = write_back(model, network) if made is None else made.model
        parity = cached_parity.check(model, network, sample, cache)
        say(f"Spark reproduces the network: {parity}")
        return model, PipelineScores(scores, parity)


def idle_options(run: Run) -> list[str]:
    """A sentence for each option that is set but has no effect in this run."""
    o, default, rows, end = run.task.options, Options(), run.cache.rows(VALIDATION), run.task.options.maxEpochs
    few = rows < FEW_ROWS * (1 if o.recipe == "fast" else FEWEST)
    lbfgs, alone, any_gain = o.optimizer == "lbfgs", o.numProcesses == 1, o.guard == 1
    one_step = (lbfgs, "lbfgs takes one step an epoch, with the gradient of all rows")
    one_process = (alone, "one process trains, that of the driver")
    not_kept = (o.storeDir is None, "without storeDir the run is not kept")
    reasons = {
        "recipe": (
            few,
            f"with {rows:,} validation rows a choice among candidates mostly finds chance: only the most careful one "
            "trained",
        ),
        "schedule": one_step,
        "ema": one_step,
        "gradientClip": one_step,
        "batchSize": one_step,
        "patience": (min(o.patience, default.patience) >= end, f"training ends after maxEpochs={end} epochs"),
        "minDelta": (
            o.patience >= end,
            f"training ends after maxEpochs={end} epochs, before patience={o.patience} can end it",
        ),
        "fleetSize": (any_gain, "guard=1 accepts any gain"),
        "guardCols": (
            any_gain and "parityGap" not in o.penalties,
            "guard=1 accepts any gain, so slices are only reported",
        ),
        "timeout": one_process,
        "localMode": one_process,
        "localSteps": one_process,
        "slowMomentum": (alone or o.localSteps == 1, "it needs several processes and localSteps of 2 or more"),
        "localCacheLimit": (stores.url_of(run.cache.folder) is None, "the folder of the caches is on this machine"),
        "cacheMaxAge": (stores.url_of(run.cache.folder) is not None, "the folder of the caches is not on this machine"),
        "reuseStages": (not run.task.cut.stages, "no stage runs in Spark before training"),
        "waitForRun": (o.runId is None, "no other process can use this run, which has no runId"),
        "tags": not_kept,
        "redact": not_kept,
    }
    found = without_effect(
        o,
        reasons
        | dict.fromkeys(
            OF_TRAINING if o.tune == "threshold" else (),
            (True, "tune='threshold' trains nothing, and held-out rows decide"),
        ),
    )
    trained = {i for i, stage in enumerate(run.task.plan.stages) if stage.trainable}
    for option, trains, what in (
        (
            "freeze",
            run.task.roles.trainable,
            "only keeps it from being fitted anew, searched or deleted where a run does that",
        ),
        ("learningRates", trained, "has no effect"),
    ):
        graph = run.task.cut.graph
        unused = [name for name in getattr(o, option) if not graph.select([name], option) & trains]
        found += [f"{option} names {name!r}, which {what}: no parameter of it trains" for name in unused]
    return found
