"""Is an improvement with all arms as good as the best arm that has the whole budget for itself, and when does it find its winner?

The sets, their rows and their originals are those of benchmarks/gap.py; the budget of each run is --seconds of CPU of this
process and its JVM, one thread. An arm alone stops where it has no further step. Losses are those of the test rows, which no run
has seen. Fails where the improvement is worse than the best single arm by more than half a percent of the loss. Each run is kept
in --cells as soon as it is done, so that a benchmark that is stopped goes on there.

    SPARK_CONF_DIR=conf OMP_NUM_THREADS=1 python benchmarks/single_arms.py --cells single_arms.jsonl
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import append_lines, exit_code, markdown, parse, parser, read_lines, write
from gap import ORIGINALS, SETS, Runner, cpu_clock, improved, of_spark
from growth import spent

from sparkdiff.data.loading import start_session
from sparkdiff.improvement.improvement_options import ARMS

ALL = "all"
NEAR = 0.005
"""Share of the loss by which an improvement may be worse than the best single arm."""


def run(runner: Runner, name: str, kind: str, seed: int, arm: str) -> dict[str, Any]:
    """An improvement by one arm, or by all, and its loss on the test rows."""
    runner.take(name, seed)
    fitted, base = runner.start(kind)
    before = spent(runner.spark)
    with cpu_clock(runner.spark):
        arms = () if arm == ALL else (arm,)
        model, told = improved(runner.set, runner.rows, fitted, runner.seconds, seed, arms)
    cpu = spent(runner.spark) - before
    loss = of_spark(runner.set.task, runner.set.loss(kind), model, runner.rows.test)
    accepted = [row["name"] for row in told["table"] if row["accepted"]]
    return {
        "set": name,
        "kind": kind,
        "seed": seed,
        "arm": arm,
        "value": float(loss.mean()),
        "original": float(base.mean()),
        "cpu": cpu,
        "decision": told["decision"],
        "won": accepted[0] if accepted else "",
        "foundAt": told.get("foundAt"),
    }


def shown(done: Sequence[dict[str, Any]]) -> str:
    lines = [
        [
            f"{d['set']}, {d['kind']}, {d['seed']}",
            d["arm"],
            f"{d['original']:.4g}",
            f"{d['value']:.4g}",
            d["won"][:50],
            f"{d['cpu']:.0f}",
            "" if d["foundAt"] is None else f"{d['foundAt']:.0f}",
        ]
        for d in done
    ]
    return markdown(["set, original, seed", "arm", "original", "improved", "what won", "CPU s", "found at, s"], lines)


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--cells", type=Path, metavar="FILE", help="JSON lines of the runs that are done")
    flags.add_argument("--sets", nargs="+", default=["bikeshare", "digits"], choices=[*SETS])
    flags.add_argument("--originals", nargs="+", default=["linear"], choices=ORIGINALS)
    flags.add_argument("--arms", nargs="+", default=[ALL, *ARMS], choices=[ALL, *ARMS])
    flags.add_argument("--seeds", type=int, default=1)
    flags.add_argument("--seconds", type=float, default=300.0, help="CPU seconds of an improvement")
    given = parse(flags, sets=["diabetes"], arms=[ALL, "refit", "finetune"], seconds=10.0)
    done = read_lines(given.cells)
    conf = {"spark.master": "local[1]", "spark.sql.shuffle.partitions": "1", "spark.ui.enabled": "false"}
    runner = Runner(start_session(conf, "sparkdiff.estimators.improver"), given.seconds)
    have = {(d["set"], d["kind"], d["seed"], d["arm"]) for d in done}
    wanted = [(n, k, s, a) for s in range(given.seeds) for n in given.sets for k in given.originals for a in given.arms]
    for key in (k for k in wanted if k not in have):
        done.append(run(runner, *key))
        append_lines(given.cells, done[-1])
    own = [d for d in done if (d["set"], d["kind"], d["seed"], d["arm"]) in wanted]
    print(shown(own))
    missed, figures = [], dict[str, float]()
    for name, kind, seed in dict.fromkeys(w[:3] for w in wanted):
        values = {d["arm"]: d["value"] for d in own if (d["set"], d["kind"], d["seed"]) == (name, kind, seed)}
        single = {a: v for a, v in values.items() if a != ALL}
        if ALL in values and single:
            best = min(single, key=lambda a: single[a])
            worse = values[ALL] / single[best] - 1
            figures[f"{name}, {kind}, {seed}: against the best arm alone"] = worse
            print(f"{name}, {kind}, {seed}: {worse:+.2%} against the best arm alone, {best}")
            missed += [f"{name}, {kind}, {seed}: {worse:+.2%} against {best}"] if worse > NEAR else []
    print("\n".join(f"missed: {m}" for m in missed if not given.smoke))
    write(given, done, figures)
    return exit_code(given, missed)


if __name__ == "__main__":
    sys.exit(main())
