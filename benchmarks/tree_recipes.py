"""Which candidates should train trees? A grid of learning rates, anchors and input noise, on training and validation rows only.

Boosted trees of 20 to 200 and a forest as Spark fitted them (the cases of tree_gains.py), leaves only. Per run a candidate
counts as its best epoch's relative gain on the validation rows; a set of candidates counts as its best. Test rows are never
read, and the splits aren't those of docs/measured/gains.md. Prints the grid and the best sets, writes JSON; what that holds isn't
run again.

    SPARK_CONF_DIR=conf python benchmarks/tree_recipes.py --seeds 2 --out tree_recipes.json --folder runs/tree_recipes
"""

import dataclasses
import re
import sys
from pathlib import Path

import torch
from common import CONFIG, earlier, folder_of, parse, parser, write
from recipes import FIRST_SEED, gains, report
from tree_gains import CASES, ODD, SQUARED, Case, Split, rows_for

from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import start_session
from sparkdiff.options import Options
from sparkdiff.training.recipes import Recipe

RATES, ANCHORS, NOISE = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (0.0, 1e-3, 1e-2, 1e-1), (0.05, 0.2)
GRID = [Recipe(rate, anchor) for rate in RATES for anchor in ANCHORS]
GRID += [Recipe(rate, 1e-3, noise=noise) for rate in RATES[1:4] for noise in NOISE]
BEHIND = CASES[-1]
MORE = (
    Case("hours, GBT 50, squared", SQUARED, 50, "squared"),
    Case("hours, GBT 100, squared", SQUARED, 100, "squared"),
    Case("odd digits, GBT 100, log-loss", ODD, 100, "logLoss", "odd"),
    dataclasses.replace(BEHIND, name=f"{BEHIND.name}, through the trees", freeze=()),
)


def main() -> int:
    p = parser(__doc__)
    p.add_argument("--seeds", type=int, default=2)
    p.add_argument("--cases", default="", help="only cases that match this regular expression")
    p.add_argument("--epochs", type=int, default=Options().maxEpochs)
    p.add_argument("--folder", type=Path, help="where fitted models and caches are kept")
    given = parse(p, seeds=1, epochs=1, cases="GBT 20, squared|odd digits, GBT 20")
    folder = folder_of(given)
    runs: dict[str, dict[str, list[float]]] = earlier(given) or {}
    configs = {name: load_config(CONFIG.with_name(f"{name}.yaml"), []) for name in ("bikeshare", "digits")}
    spark = start_session(configs["bikeshare"].spark)
    spark.sparkContext.setLogLevel("ERROR")
    spark.sparkContext.setCheckpointDir(f"file://{folder}/checkpoints")
    torch.set_num_threads(1)
    for seed in range(FIRST_SEED, FIRST_SEED + given.seeds):
        for case in (*CASES, *MORE):
            known = runs.setdefault(case.name, {})
            if str(seed) in known or not re.search(given.cases, case.name):
                continue
            split = Split(case, seed, *rows_for(spark, configs, case, seed), folder)
            cache = str(folder / "cache")
            options = {"labelCol": case.label, "loss": case.loss, "lossParams": dict(case.lossParams)}
            options["maxEpochs"] = given.epochs
            known[str(seed)] = gains(
                split.original(), split.rows.learning, seed, cache, GRID, freeze=case.freeze, **options
            )
            write(given, runs, {n: max(map(max, each.values())) for n, each in runs.items() if each})
            print(f"seed {seed}, {case.name}: best {max(known[str(seed)]):+.2%}", file=sys.stderr, flush=True)
    measured = {name: list(each.values()) for name, each in runs.items() if each}
    print(report(measured, GRID, (1, 2, 3, 4)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
