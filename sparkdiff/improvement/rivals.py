"""The rival of an improvement: the fitted original, or its refit where a test shows that it was fitted on these rows."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

from sparkdiff.data.splits import TRAIN, VALIDATION
from sparkdiff.evaluation.seen_rows import (
    LinearRows,
    Penalty,
    RowCount,
    SeenRows,
    p_of_equations,
    p_of_losses,
    reproduces,
    rows_of_roots,
    seen_rows,
)
from sparkdiff.improvement.ground import Ground, measure
from sparkdiff.stages.forest import Trees
from sparkdiff.tensors.rows import taken


def evidence(ground: Ground, explores: Ground, refit: Callable[[], Any]) -> SeenRows:
    """Find out whether the original was fitted on these rows, before any fold is measured.

    Args:
        ground: of the original, on all rows.
        explores: of its refit, on the rows that explore.
        refit: fits it to all rows.
    """
    count, rows = row_count(ground), ground.rows[TRAIN]
    if count is not None and count.exceeds(rows):
        return seen_rows(rows, count=count)
    equations = _equations(ground)
    if equations is not None:
        return seen_rows(rows, count=count, equations=equations)
    original, every = measure(explores, ground.model), measure(explores, refit())
    unseen, weights = explores.start.scores[VALIDATION], explores.start.scores[VALIDATION].weights
    one, all_rows = (m.scores[VALIDATION].blocks for m in (original, every))
    losses = p_of_losses(
        count, explores.rows[TRAIN], original=one, seen=all_rows, unseen=unseen.blocks, weights=weights,
        squared=ground.metric.name in ("squared", "mse"),
    )  # fmt: skip
    same = reproduces(original.recorded.margins, every.recorded.margins)
    return seen_rows(rows, reproduced=same, count=count, losses=losses)


def row_count(ground: Ground) -> RowCount | None:
    """The number of rows that the last stage was fitted on; None if nothing tells."""
    head = ground.plan.cut.graph.head
    stage: Any = head.stage
    if isinstance(head.module, Trees):
        counts = head.module.nodes.rawCount[head.module.nodes.offsets[:-1]]
        drawn = stage.hasParam("bootstrap") and stage.getBootstrap()
        rate = stage.getSubsamplingRate() if stage.hasParam("subsamplingRate") else 1.0
        return rows_of_roots(torch.from_numpy(counts), rate, bootstrap=drawn)
    summary = stage.summary if getattr(stage, "hasSummary", False) else None
    rows = getattr(summary, "numInstances", None)
    return None if rows is None else RowCount(float(rows))


def _equations(ground: Ground) -> float | None:
    """See `p_of_equations`; None of other last stages than linear ones."""
    head = ground.plan.cut.graph.head
    stage: Any = head.stage
    ridge, mixed = (stage.getOrDefault(p) if stage.hasParam(p) else 0.0 for p in ("regParam", "elasticNetParam"))
    standardized = stage.hasParam("standardization") and stage.getOrDefault("standardization")
    with ground.begun(ground.plan) as run, torch.no_grad():

        def batches() -> Iterator[LinearRows]:
            for batch, label, weight, _ in run.data.batches(TRAIN):
                values, used = run.data.values(batch), (weight > 0).nonzero()[:, 0]
                margin = run.network.margin(values)
                run.network.run(values, [v for v in head.reads[:1] if v not in values])
                features = taken(values[head.reads[0]], used)
                yield LinearRows(features, margin[used], label[used], weight[used])

        return p_of_equations(
            run.network.head, batches, Penalty(ridge * (1 - mixed), ridge * mixed, bool(standardized))
        )
