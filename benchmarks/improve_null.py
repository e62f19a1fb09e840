"""How often does an improvement replace a pipeline that nothing beats?

As in growth_null.py, labels are drawn from the original's own predictive distribution, so that what is better is so by chance.
All arms race in each draw, within a budget of passes over the 1,500 rows, so that no clock decides, and finalists are proven by
folds. Counted is how often `Improver` decides "improved". Fails where more than 3 of 40 are. With --boosted the originals end in
boosted trees. Each draw is kept in --cells as soon as it is decided, so that a run that is stopped goes on there.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/improve_null.py --cells improve_null.jsonl
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import append_lines, exit_code, markdown, parse, parser, read_lines, write
from growth import spent
from growth_null import BOOSTED, ENTITY, FAMILIES, ROWS, Original
from pyspark.sql import SparkSession

import sparkdiff
from sparkdiff.data.loading import start_session
from sparkdiff.growth.growth_options import KINDS

MOST = 3 / 40  # of the level of 2.5%, and two standard errors of 40 draws
PARTS = tuple(kind for kind in KINDS if kind != "trees")


def draw(spark: SparkSession, original: Original, number: int, budget: str) -> dict[str, Any]:
    """One improvement on labels of its own; the arm that grows tries one kind of parts, in turn."""
    table = original.table.assign(label=original.labels(np.random.default_rng([3, number])))
    before = spent(spark)
    data = spark.createDataFrame(table.drop(columns="id")).coalesce(1)
    improver = sparkdiff.Improver(
        original.model,
        labelCol="label",
        entityCols=[ENTITY],
        parts=[PARTS[number // len(FAMILIES) % len(PARTS)]],
        budget=budget,
        seed=number,
        maxEpochs=3,
        patience=3,
    )
    s = improver.fit(data).summary
    best = next(iter(s.race), {"arm": None, "gain": 0.0})
    return {
        "draw": number,
        "family": original.family,
        "improved": s.decision == "improved",
        "p": s.p,
        "best": best["arm"],
        "gain": best["gain"],
        "offers": sorted(s.offers),
        "states": {a["arm"]: a["state"] for a in s.arms},
        "rival": s.proof["rival"],
        "proven": [(r["arm"], r["p"]) for r in s.table if r["folds"]],
        "cpu": spent(spark) - before,
    }


def table(found: Sequence[dict[str, Any]]) -> str:
    """A line per family, and one of all."""
    lines = []
    for family in (*dict.fromkeys(c["family"] for c in found), "all"):
        own = [c for c in found if family in ("all", c["family"])]
        gains = sum(c["gain"] > 0 for c in own)
        improved, simpler = sum(c["improved"] for c in own), sum("simpler" in c["offers"] for c in own)
        cpu = sum(c["cpu"] for c in own) / len(own)
        lines.append([family, str(len(own)), str(gains), str(improved), str(simpler), f"{cpu:.1f}"])
    head = [
        "family",
        "draws",
        "some arm is better on rows that explore",
        "improved",
        "a simpler one offered",
        "CPU s per draw",
    ]
    arms = Counter(c["best"] for c in found)
    return f"{markdown(head, lines)}\n\nbest arm: {', '.join(f'{k} {v}' for k, v in arms.most_common())}"


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the draws that are done")
    flags.add_argument("--draws", type=int, default=40)
    flags.add_argument("--budget", default="120 passes")
    flags.add_argument(
        "--boosted", action="store_true", help="originals that end in boosted trees, in place of linear ones"
    )
    given = parse(flags, draws=1)
    found = read_lines(given.cells)
    families = BOOSTED if given.boosted else FAMILIES
    found = [c for c in found if c["family"] in families]
    done = {c["draw"] for c in found}
    conf = {"spark.master": "local[1]", "spark.sql.shuffle.partitions": "1", "spark.ui.enabled": "false"}
    spark = start_session(conf, "sparkdiff.estimators.improver", 0)
    originals: dict[str, Original] = {}
    for number in range(given.draws):
        if number in done:
            continue
        family = families[number % len(families)]
        if family not in originals:
            originals[family] = Original(spark, family, ROWS)
        one = draw(spark, originals[family], number, given.budget)
        found.append(one)
        told = f"draw {number}: {'improved' if one['improved'] else 'kept'}, p {one['p']:.3g}, {one['cpu']:.1f} CPU s"
        print(told, file=sys.stderr, flush=True)
        append_lines(given.cells, one)
    found = [c for c in found if c["draw"] < given.draws]
    print(table(found))
    improved = sum(c["improved"] for c in found)
    missed = improved > MOST * len(found)
    if missed and not given.smoke:
        print(f"{improved} of {len(found)} are improved, more than {MOST:.1%}")
    write(given, found, {"improvement without a gain, improved": improved / len(found)})
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
