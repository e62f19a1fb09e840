"""What each arm of `improve` brings, and for how much: the runs from which the learned order of arms starts.

The pipelines are those of benchmarks/fleet.py. Each is fitted on the training rows of one half of its set's rows and improved
on the other half, by each arm alone, all its steps, each within --seconds. Per step are kept: its core-seconds, the gain of its
best candidate, and this gain again where these rows show it. One line of arms.jsonl per pipeline, with its cheap facts; a
collection that is stopped goes on where it was, and with --share several processes make it together. `benchmarks/arm_order.py`
replays it.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/arms.py --folder runs/arms
"""

import contextlib
import dataclasses
import shutil
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import append_lines, exit_code, folder_of, parse, parser, read_lines, write
from fleet import CONF, OPTIONS, PLANTED, ROWS, SETS, Cell, Fits, cells, halves
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import jvm
from sparkdiff.data.loading import start_session
from sparkdiff.data.splits import VALIDATION, Source
from sparkdiff.errors import SparkdiffError
from sparkdiff.evaluation import guard
from sparkdiff.fine_tuning.task import FitResults, prepare
from sparkdiff.history.pipeline_facts import training_facts
from sparkdiff.improvement.arm_context import ArmContext, measure_original
from sparkdiff.improvement.arms import arms_of
from sparkdiff.improvement.budget import Limit
from sparkdiff.improvement.candidate import Arm, Candidate, Step, best_of, candidates_of, share
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.machine import resources
from sparkdiff.options import Options
from sparkdiff.report import Phases

SECONDS = 30.0
"""Of a step, at most."""


def steps_of(arm: Arm, context: ArmContext, limit: Limit) -> list[dict[str, Any]]:
    """All steps of an arm: what each took, and what it reached with those before it."""
    steps, out, spent = list[Step](), list[dict[str, Any]](), 0.0
    for number in range(arm.steps):
        began = resources.cpu_seconds()
        try:
            step = arm.run(context, number, limit, tuple(steps))
        except (SparkdiffError, TimeoutError, jvm.SparkError) as e:
            why = jvm.cause(e) if isinstance(e, jvm.SparkError) else f"{type(e).__name__}: {e}"
            out.append({"seconds": resources.cpu_seconds() - began, "failed": why[:300]})
            break
        spent = resources.cpu_seconds() - began
        steps.append(step)
        best = best_of(context, steps)
        gain = 0.0 if best is None else share(context, best)
        out.append(
            {
                "seconds": spent,
                "gain": gain,
                "says": step.says,
                "kept": gain if best is not None and is_shown(context, steps, best) else 0.0,
                "ended": [k for k in ("failed", "stopped") if step.learned.get(k)],
            }
        )
        if out[-1]["ended"]:
            break
    return out


def is_shown(context: ArmContext, steps: Sequence[Step], best: Candidate) -> bool:
    """Whether the rows that explore show the gain of the best candidate, the test allowing for the choice among all of them."""
    before, found = context.start.scores[VALIDATION], candidates_of(steps)
    gains = torch.stack([before.blocks - each.found.scores[VALIDATION].blocks for each in found])
    chosen = next(i for i, each in enumerate(found) if each is best)
    return guard.decide(gains, before.weights, chosen=chosen, level=context.options.guard).accepted


def run(cell: Cell, model: Any, rows: DataFrame, folder: Path, seconds: float) -> dict[str, Any]:
    """What each arm reaches on a pipeline and these rows."""
    loss = {"loss": "absolute"} if cell.kind == "absolute" else {}
    options = Options.of({**OPTIONS, **loss, "validationIndicatorCol": "held", "cacheDir": str(folder / "cache")})
    began = resources.cpu_seconds()
    facts = training_facts(prepare(model, options, rows), rows, rows.count())
    spent, settings = resources.cpu_seconds() - began, ImprovementSettings()
    own = Path(tempfile.mkdtemp(dir=folder))
    try:
        context = ArmContext(model, options, settings, [Source(rows)], None, Phases(False), FitResults())
        refused = {arm.name: arm.refusal(context) for arm in arms_of(settings)}
        began = resources.cpu_seconds()
        context = dataclasses.replace(measure_original(context), folder=own)
        start = resources.cpu_seconds() - began
        found = {
            a.name: steps_of(a, context, Limit(seconds, None, seconds))
            for a in arms_of(settings)
            if not refused[a.name]
        }
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return dataclasses.asdict(cell) | {
        "cell": cell.name,
        "planted": cell.kind in PLANTED,
        "facts": facts,
        "factsSeconds": spent,
        "originalSeconds": start,
        "arms": found,
        "refused": {k: v for k, v in refused.items() if v},
    }


def line_of(cell: Cell, fits: Fits, spark: SparkSession, folder: Path, seconds: float) -> dict[str, Any]:
    """What is kept of a pipeline; one that is refused is told by its reason."""
    table = SETS[cell.set](ROWS[cell.seed % len(ROWS)])
    one, other = halves(spark, folder, cell, table)
    try:
        return run(cell, fits.fitted(cell, table, one.where("not held")), other, folder, seconds)
    except Exception as e:  # a pipeline that Spark cannot fit, or a refusal: told, and no run
        return {"cell": cell.name, "refusedWhole": f"{type(e).__name__}: {e}"[:500]}


def told(line: dict[str, Any]) -> str:
    if "refusedWhole" in line:
        return f"{line['cell']}: {line['refusedWhole']}"
    arms = (
        f"{name} {steps[-1].get('kept', 0.0):+.1%} {sum(s['seconds'] for s in steps):.1f} s"
        for name, steps in line["arms"].items()
    )
    return f"{line['cell']}: {', '.join(arms)}"


def main() -> int:
    options = parser(__doc__)
    options.add_argument("--folder", type=Path, help="of arms.jsonl; a temporary one if not given")
    options.add_argument("--seconds", type=float, default=SECONDS, help="of a step, at most")
    options.add_argument("--most", type=int, default=10**6, help="pipelines to run at most")
    options.add_argument("--share", default="0/1", metavar="I/N", help="run the I-th of N shares, from 0 on")
    given = parse(options, most=1)
    folder = folder_of(given)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "arms.jsonl"
    done = {line["cell"] for line in read_lines(log)}
    spark, fits = start_session(CONF, size=0), Fits()
    own, shares = map(int, given.share.split("/"))
    waiting: Sequence[Cell] = [c for c in cells()[own::shares] if c.name not in done][: given.most]
    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("ignore")
        for cell in waiting:
            line = line_of(cell, fits, spark, folder, given.seconds)
            append_lines(log, line)
            print(told(line), flush=True)
    found = read_lines(log)
    write(given, found, {"pipelines": float(sum("arms" in line for line in found))})
    return exit_code(given, [])


if __name__ == "__main__":
    sys.exit(main())
