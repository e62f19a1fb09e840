"""How long does a user wait from the start to the decision, and in which phase?

The bike-sharing demo (6,903 rows that train and decide), as a command and in a session:
- `command, first` and `command, second`: `sparkdiff finetune --config conf/bikeshare.yaml` in a new process, from its start to
  its end: without a cache, and again, when the fitted pipeline and the cache are there.
- `session, first`, `second` and `warm`: `FineTuner.fit` in a session that has fitted the pipeline and done nothing else: without
  a cache, the same again, and once more without a cache (another split), when Spark's JVM has compiled what it needs.
- `help` and `plan`: `sparkdiff --help`, and `sparkdiff plan` of the saved pipeline; beside it `load`, a process that starts Spark
  and loads the pipeline, and nothing else.

With --prepare, `sparkdiff prepare` has run before, once.
With --against FOLDER, another checkout, both take turns; prints the median of each in seconds, the median of the ratios of
neighbouring turns with an interval that covers it with at least 95% (order statistics; none with fewer than six rounds), and
writes JSON.

    python benchmarks/decision.py --rounds 7 --against ../before --out decision.json
"""

import atexit
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, parse, parser, write

Times = dict[str, dict[str, float]]
"""Seconds by arm and phase; the phase `all` is the whole."""

CACHES = Path(tempfile.mkdtemp(prefix="decision-caches-"))
"""Where `sparkdiff prepare` writes, and where nothing is without it."""
SESSION = """
import json, sys, time
from pathlib import Path
from pyspark.sql import SparkSession
from sparkdiff import FineTuner
try:
    from sparkdiff.cli import config as _
    from sparkdiff.cli.config import load_config
    from sparkdiff.data.loading import function, load_data
except ImportError:  # a checkout from before the room `job`
    from sparkdiff.job import load_config
    from sparkdiff.loading import function, load_data
spark = SparkSession.builder.config("spark.sql.shuffle.partitions", 4).getOrCreate()
config = load_config(Path("conf/bikeshare.yaml"), [])
data = {split: load_data(spark, given, config.folder, split) for split, given in config.data.items()}
rows = data["train"].union(data["validation"])
model = function(config.pipeline, config.folder)(data["train"])
model = model.fit(data["train"]) if hasattr(model, "fit") else model
found = {}
for name, seed in (("first", 0), ("second", 0), ("warm", 1)):
    start = time.perf_counter()
    tuned = FineTuner(pipeline=model, seed=seed, cacheDir=sys.argv[1], maxEpochs=int(sys.argv[2])).fit(rows)
    found[f"session, {name}"] = {**tuned.summary.timings, "all": time.perf_counter() - start}
print("FOUND " + json.dumps(found))
"""
LOAD = """
import sys
from pyspark.sql import SparkSession
from pyspark.ml import PipelineModel
spark = SparkSession.builder.getOrCreate()
PipelineModel.load(sys.argv[1])
"""


def timed(checkout: Path, *arguments: str) -> tuple[float, str]:
    """Seconds and output of a Python process that imports the package from this checkout."""
    # As installed: without the settings of this repository's `make`.
    environment = {k: v for k, v in os.environ.items() if k != "SPARK_CONF_DIR"}
    environment |= {"PYTHONPATH": str(checkout), "XDG_CACHE_HOME": str(CACHES)}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=checkout,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} in {checkout} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return seconds, done.stdout


def command(checkout: Path, folder: Path, epochs: int) -> dict[str, float]:
    output = folder / "run"
    told = ["--config", "conf/bikeshare.yaml", f"output.path={output}", f"fineTuner.cacheDir={folder / 'caches'}"]
    told.append(f"fineTuner.maxEpochs={epochs}")
    seconds, _ = timed(checkout, "-m", "sparkdiff", "finetune", *told)
    phases: dict[str, float] = json.loads((output / "summary.json").read_text())["timings"]
    return {"start": seconds - sum(phases.values()), **phases, "all": seconds}


def arms(checkout: Path, epochs: int, commands: bool) -> Times:
    """All arms of one checkout, or the first three, once."""
    with tempfile.TemporaryDirectory(prefix="decision-") as name:
        folder, found = Path(name), {}
        found["help"] = {"all": timed(checkout, "-m", "sparkdiff", "--help")[0]}
        found["command, first"] = command(checkout, folder, epochs)
        found["command, second"] = command(checkout, folder, epochs)
        if commands:
            return found
        model = str(folder / "run" / "model")
        found["load"] = {"all": timed(checkout, "-c", LOAD, model)[0]}
        found["plan"] = {"all": timed(checkout, "-m", "sparkdiff", "plan", model)[0]}
        _, said = timed(checkout, "-c", SESSION, str(folder / "others"), str(epochs))
        (line,) = (line for line in said.splitlines() if line.startswith("FOUND "))
        return found | json.loads(line.removeprefix("FOUND "))


def interval(values: list[float]) -> tuple[float, float] | None:
    """Two of the values, between which the median lies with a probability of at least 0.95; None if they are too few."""
    n, tail, k = len(values), 0.0, 0
    while (tail := tail + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    return (sorted(values)[k - 1], sorted(values)[n - k]) if k else None


def table(rounds: list[list[Times]]) -> list[str]:
    """A line per arm and phase, from rounds of one or two checkouts."""
    lines = []
    for arm in rounds[0][0]:
        phases = dict.fromkeys(p for one in rounds for times in one for p in times[arm])
        for phase in sorted(phases, key=lambda p: p == "all"):
            each = [[times[arm].get(phase, 0.0) for times in one] for one in rounds]
            line = f"| {arm} | {phase} | " + " | ".join(f"{statistics.median(c):.2f}" for c in zip(*each, strict=True))
            if len(each[0]) == 2 and all(old > 0.05 for _, old in each):
                ratios = [new / old for new, old in each]
                span = interval(ratios)
                line += f" | {statistics.median(ratios):.2f}" + (f" ({span[0]:.2f} to {span[1]:.2f})" if span else "")
            lines.append(line + " |")
    return lines


def figures(rounds: list[list[Times]]) -> dict[str, float]:
    """The median seconds of every arm of this checkout, and over those of the other."""
    out = {}
    for arm in rounds[0][0]:
        each = [[times[arm]["all"] for times in one] for one in rounds]
        out[f"{arm}, s"] = statistics.median(seconds[0] for seconds in each)
        if len(each[0]) == 2:
            out[f"{arm}, ratio"] = statistics.median(new / old for new, old in each)
    return out


def main() -> None:
    p = parser(__doc__)
    p.add_argument("--rounds", type=int, default=7)
    p.add_argument("--against", type=Path, metavar="FOLDER", help="a checkout of another version")
    p.add_argument("--epochs", type=int, default=120)
    p.add_argument("--prepare", action="store_true")
    p.add_argument("--commands", action="store_true", help="only `help` and the two commands")
    given = parse(p, rounds=1, epochs=1)
    atexit.register(shutil.rmtree, CACHES)
    if given.prepare:
        print(f"prepare: {timed(ROOT, '-m', 'sparkdiff', 'prepare')[0]:.1f} s")
    checkouts = [ROOT, *([given.against.resolve()] if given.against else [])]
    rounds: list[list[Times]] = []
    for i in range(given.rounds):
        order = checkouts if i % 2 == 0 else checkouts[::-1]
        times = {checkout: arms(checkout, given.epochs, given.commands) for checkout in order}
        rounds.append([times[checkout] for checkout in checkouts])
        write(given, rounds, figures(rounds))
    print("| arm | phase | seconds |" + (" before | ratio |" if given.against else ""))
    print("|---|---|---|" + ("---|---|" if given.against else ""))
    print("\n".join(table(rounds)))


if __name__ == "__main__":
    main()
