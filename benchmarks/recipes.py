"""Which candidates should train together, and which one alone?

The choice behind `sparkdiff.training.recipes`, on training and validation rows.

A grid of learning rates and anchors trains on pipelines as Spark fitted them: bike sharing and digits, with slack and without,
on many rows and on few. Per run a candidate counts as its best epoch's relative gain on the validation rows; a set of
candidates counts as its best. Test rows are never read. Prints the grid, the best sets, and what recipe=fast gives up against
recipe=default; writes JSON.

    SPARK_CONF_DIR=conf python benchmarks/recipes.py --seeds 3 --out recipes.json
"""

import itertools
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from common import CONFIG, parse, parser, write
from poster_table import HELD_OUT, VARIANTS, build, rows_of
from pyspark.sql import functions as F

from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import function, load_data, start_session
from sparkdiff.data.splits import Source
from sparkdiff.fine_tuning.fine_tuning_run import fine_tune
from sparkdiff.fine_tuning.task import prepare
from sparkdiff.options import Options
from sparkdiff.report import Phases
from sparkdiff.training.recipes import FEW_ROWS, Recipe, recipes_for

RATES, ANCHORS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2), (0.0, 1e-3, 1e-2, 1e-1)
GRID = [Recipe(rate, anchor) for rate in RATES for anchor in ANCHORS]
FIRST_SEED = 100
"""Splits that docs/measured/gains.md doesn't show."""


def gains(model: Any, rows: Any, seed: int, folder: str, grid: Sequence[Recipe] = GRID, **options: Any) -> list[float]:
    """Per candidate of the grid the relative gain of its best epoch on the validation rows."""
    given = Options.of({"validationIndicatorCol": HELD_OUT, "seed": seed, "cacheDir": folder, "guard": 1.0, **options})
    history = fine_tune(prepare(model, given, rows), [Source(rows)], Phases(), recipes=grid).summary.history
    before = history["validationMetric"][0]
    best = history.groupby("candidate")["validationMetric"].min()
    return [float((before - best[k]) / abs(before)) for k in range(len(grid))]


def report(runs: Mapping[str, Sequence[Sequence[float]]], grid: Sequence[Recipe], sizes: Sequence[int]) -> str:
    """Mean gain of each candidate of the grid on each pipeline, and the best sets of some sizes over all runs."""
    lines = ["| candidate | " + " | ".join(runs) + " |", "|---|" + "---|" * len(runs)]
    for k, recipe in enumerate(grid):
        means = [statistics.fmean(run[k] for run in each) for each in runs.values()]
        lines.append(f"| {recipe} | " + " | ".join(f"{m:+.2%}" for m in means) + " |")
    flat = [run for each in runs.values() for run in each]
    for size in sizes:
        # What is lost against the whole grid, on the mean over runs.
        sets = [
            (statistics.fmean(max(run) - max(run[k] for k in chosen) for run in flat), chosen)
            for chosen in itertools.combinations(range(len(grid)), size)
        ]
        lines.append(f"\nBest sets of {size}, and what they lose against the whole grid:")
        lines += [f"- {'; '.join(str(grid[k]) for k in chosen)}: {lost:.3%}" for lost, chosen in sorted(sets)[:4]]
    return "\n".join(lines)


def given_up(runs: Mapping[str, Sequence[Sequence[float]]], grid: Sequence[Recipe]) -> str:
    """By how many points of gain recipe=fast stays behind recipe=default: on the mean over all runs, by pipeline, and at most."""
    fast, default = (
        [grid.index(r) for r in recipes_for(Options.of({"recipe": recipe}), FEW_ROWS)] for recipe in ("fast", "default")
    )
    lost = {
        name: [100 * (max(run[k] for k in default) - max(run[k] for k in fast)) for run in each]
        for name, each in runs.items()
    }
    flat = list(itertools.chain(*lost.values()))
    parts = ", ".join(f"{name} {statistics.fmean(each):.2f}" for name, each in lost.items())
    return (
        f"recipe=fast gains {statistics.fmean(flat):.2f} points less than recipe=default ({parts}), "
        f"at most {max(flat):.2f} in one of {len(flat)} runs"
    )


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--epochs", type=int, default=Options().maxEpochs)
    given = parse(p, seeds=1, epochs=1)
    variants = VARIANTS[:1] if given.smoke else VARIANTS
    bikes = load_config(CONFIG, [])
    digits = load_config(CONFIG.with_name("digits.yaml"), [])
    spark = start_session({"spark.ui.enabled": "false", "spark.sql.shuffle.partitions": "2"})
    spark.sparkContext.setLogLevel("ERROR")
    runs: dict[str, list[list[float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(FIRST_SEED, FIRST_SEED + given.seeds):
            rows = rows_of(spark, bikes, seed)
            few = rows.learning.where(F.col(HELD_OUT) | F.expr(f"pmod(xxhash64(day, hr, {seed}, 7), 4) = 0"))
            for variant in variants:
                for name, learning in ((variant.name, rows.learning), (f"{variant.name}, a quarter of the rows", few)):
                    train = learning.where(~F.col(HELD_OUT))
                    model = build(bikes, train, pca=variant.pca, regParam=variant.regParam).fit(train)
                    runs.setdefault(name, []).append(gains(model, learning, seed, folder, maxEpochs=given.epochs))
            images = load_data(spark, {**digits.data["train"], "where": "true"}, digits.folder, "train")
            tenth = f"pmod(xxhash64(id, {seed}), 10)"
            learning = images.where(f"{tenth} < 9").withColumn(HELD_OUT, F.expr(f"{tenth} < 6 AND {tenth} >= 0"))
            train = learning.where(~F.col(HELD_OUT))
            model = function(digits.pipeline, digits.folder)(train).fit(train)
            runs.setdefault("digits", []).append(gains(model, learning, seed, folder, maxEpochs=given.epochs))
            print(f"seed {seed} done", file=sys.stderr)
    print(report(runs, GRID, (1, 2, 3, 4)), given_up(runs, GRID), sep="\n\n")
    best = {f"{name}, best candidate's gain": statistics.fmean(max(run) for run in each) for name, each in runs.items()}
    write(given, {"grid": [vars(r) for r in GRID], "gains": runs}, best)
    return 0


if __name__ == "__main__":
    sys.exit(main())
