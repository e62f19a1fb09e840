"""What do settings of a FineTuner save that train together?

The bike-sharing demo with eight learning rates: `fit` with one after the other, and `fitMultiple` with all of them, in turns,
over one cache. CPU seconds of all processes; the ratio is that of the medians. Prints a line, writes JSON, fails where a setting
has another gain than alone, or where together they take longer.

    SPARK_CONF_DIR=conf python benchmarks/joint_training.py --turns 3 --out joint_training.json
"""

import statistics
import sys
import tempfile
from typing import Any

from common import CONFIG, exit_code, parse, parser, write
from pyspark.sql import DataFrame

from sparkdiff import FineTuner
from sparkdiff.cli.config import load_config
from sparkdiff.data.loading import function, load_data, start_session
from sparkdiff.machine import resources

RATES = (0.001, 0.002, 0.003, 0.006, 0.01, 0.02, 0.03, 0.06)
EQUAL = 1e-9
"""By which two gains may differ."""


def gains(tuner: FineTuner, rows: DataFrame, rates: list[float], together: bool) -> tuple[list[float], float]:
    """The gain with each rate, and the CPU seconds of all."""
    before, grid = resources.cpu_seconds(), [{tuner.learningRate: rate} for rate in rates]
    fitted: dict[int, Any] = (
        dict(tuner.fitMultiple(rows, grid)) if together else {i: tuner.fit(rows, one) for i, one in enumerate(grid)}
    )
    return [fitted[i].summary.gain for i in range(len(grid))], resources.cpu_seconds() - before


def main() -> int:
    flags = parser(__doc__)
    flags.add_argument("--turns", type=int, default=3)
    flags.add_argument("--rates", type=int, default=len(RATES), help="how many learning rates")
    flags.add_argument("--epochs", type=int, default=60)
    given = parse(flags, turns=1, rates=2, epochs=1)
    config = load_config(CONFIG, [])
    spark = start_session(config.spark)
    spark.sparkContext.setLogLevel("ERROR")
    data = {name: load_data(spark, told, config.folder, name) for name, told in config.data.items()}
    rows, estimator = data["train"].union(data["validation"]), function(config.pipeline, config.folder)(data["train"])
    rates, results = [*RATES[: given.rates]], list[dict[str, Any]]()
    with tempfile.TemporaryDirectory() as folder:
        tuner = FineTuner(estimator.fit(data["train"]), cacheDir=folder, maxEpochs=given.epochs, verbosity=0)
        tuner.fit(rows)  # writes the cache
        for _ in range(given.turns):
            for together in (False, True):
                found, seconds = gains(tuner, rows, rates, together)
                results.append({"together": together, "gains": found, "seconds": seconds})
    alone, joint = (
        statistics.median(r["seconds"] for r in results if r["together"] == which) for which in (False, True)
    )
    apart = max(abs(a - b) for r in results for a, b in zip(r["gains"], results[0]["gains"], strict=True))
    print(
        f"{len(rates)} settings: {joint:.1f} CPU s together, {alone:.1f} one after the other ({joint / alone:.2f}); gains differ "
        f"by at most {apart:.1g}"
    )
    write(given, results, {"together": joint, "alone": alone, "ratio": joint / alone})
    return exit_code(given, apart > EQUAL or joint >= alone)


if __name__ == "__main__":
    sys.exit(main())
