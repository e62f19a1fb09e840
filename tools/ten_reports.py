"""Ten runs of different kinds, each with its report, and pictures of these where Chromium is installed.

    python tools/ten_reports.py [--folder runs/reports] [--pictures] [NAME ...]

A run whose report is there already is not repeated. With `--pictures`, each report is drawn 1,280 and 390 pixels wide, in light
and dark. Prints the size of each report, and fails if one has 2 MB or more.

"""

import argparse
import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.clustering import KMeans
from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from sparkdiff.report.page import page

ROOT = Path(__file__).parents[1]
HOURS = """season INT, mnth STRING, day INT, hr INT, holiday INT, weekday INT, workingday INT, weathersit STRING,
    temp DOUBLE, atemp DOUBLE, hum DOUBLE, windspeed DOUBLE, casual INT, registered INT, bikers INT"""
NUMBERS = ["temp", "hum", "windspeed"]
MOST = 2_000_000
"""Bytes of a report."""

Run = Callable[[SparkSession], tuple[dict[str, Any], DataFrame]]
RUNS: dict[str, Run] = {}


def ten(run: Run) -> Run:
    """One of the ten: a function that gives the options of FineTuner, and the rows."""
    RUNS[run.__name__] = run
    return run


def hours(spark: SparkSession) -> DataFrame:
    return spark.read.csv(str(ROOT / "data" / "bikeshare.csv"), header=True, schema=HOURS)


def riders(*last: Any, category: str = "hr") -> Pipeline:
    """Riders per hour: a one-hot category and the weather, then the given stages."""
    return Pipeline(
        stages=[
            StringIndexer(inputCol=category, outputCol="index", handleInvalid="keep"),
            OneHotEncoder(inputCol="index", outputCol="hot"),
            VectorAssembler(inputCols=["hot", *NUMBERS], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            *last,
        ]
    )


def poisson(features: str = "scaled", label: str = "bikers") -> GeneralizedLinearRegression:
    return GeneralizedLinearRegression(featuresCol=features, labelCol=label, family="poisson", regParam=1e-6)


def components(features: str = "scaled") -> PCA:
    return PCA(inputCol=features, outputCol="components", k=5)


@ten
def tuned(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    return {"pipeline": riders(components(), poisson("components")), "labelCol": "bikers"}, hours(spark)


@ten
def kept(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    return {"pipeline": riders(poisson()), "labelCol": "bikers", "patience": 5}, hours(spark)


@ten
def multiclass(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    digits = spark.read.csv(str(ROOT / "data" / "digits.csv"), header=True, inferSchema=True)
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=[f"p{i}" for i in range(64)], outputCol="assembled"),
            PCA(inputCol="assembled", outputCol="components", k=8),
            LogisticRegression(featuresCol="components", family="multinomial"),
        ]
    )
    return {"pipeline": pipeline, "labelCol": "label", "validationFraction": 0.4}, digits


@ten
def quantile(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    trees = Pipeline(
        stages=[
            VectorAssembler(inputCols=["hr", "workingday", *NUMBERS], outputCol="features"),
            GBTRegressor(labelCol="bikers", maxIter=10, seed=0),
        ]
    )
    return {
        "pipeline": trees,
        "labelCol": "bikers",
        "loss": "quantile",
        "lossParams": {"tau": 0.9},
        "maxEpochs": 40,
    }, hours(spark)


@ten
def clusters(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    kmeans = Pipeline(
        stages=[
            VectorAssembler(inputCols=["hr", "workingday", *NUMBERS], outputCol="features"),
            KMeans(k=6, seed=0, maxIter=2),
        ]
    )
    return {"pipeline": kmeans, "maxEpochs": 40}, hours(spark)


@ten
def one_epoch(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    return {"pipeline": riders(components(), poisson("components")), "labelCol": "bikers", "maxEpochs": 1}, hours(spark)


@ten
def failed_candidate(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    pipeline = riders(components(), poisson("components"))
    return {
        "pipeline": pipeline,
        "labelCol": "bikers",
        "learningRate": 0.03,
        "optimizer": "sgd",
        "maxEpochs": 15,
    }, hours(spark)


@ten
def slices_30(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    rows = hours(spark).withColumn("station", F.concat(F.lit("station "), F.pmod(F.xxhash64("day", "hr"), F.lit(30))))
    options = {"pipeline": riders(components(), poisson("components")), "labelCol": "bikers", "guardCols": ["station"]}
    return {**options, "validationFraction": 0.3, "maxEpochs": 60}, rows


@ten
def unicode_names(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    weather = {
        "clear": "晴れ",
        "cloudy/misty": "<script>alert(1)</script>",
        "light rain/snow": "pluie & neige légères 🌧",
    }
    named = F.coalesce(*(F.when(F.col("weathersit") == k, v) for k, v in weather.items()), F.lit("гроза"))
    rows = hours(spark).withColumn("Wetterlage – météo", named).withColumnRenamed("bikers", "ποδηλάτες")
    pipeline = riders(components(), poisson("components", "ποδηλάτες"), category="Wetterlage – météo")
    return {"pipeline": pipeline, "labelCol": "ποδηλάτες", "guardCols": ["Wetterlage – météo"], "maxEpochs": 40}, rows


@ten
def rows_1000000(spark: SparkSession) -> tuple[dict[str, Any], DataFrame]:
    x = [F.randn(seed=i).alias(f"x{i}") for i in range(5)]
    label = sum((F.col(f"x{i}") * (i - 1.5) for i in range(5)), F.randn(seed=9)).alias("y")
    rows = spark.range(0, 1_000_000, 1, 4).select("id", *x).select("*", label)
    pipeline = Pipeline(
        stages=[
            VectorAssembler(inputCols=[f"x{i}" for i in range(5)], outputCol="assembled"),
            PCA(inputCol="assembled", outputCol="components", k=3),
            LinearRegression(featuresCol="components", labelCol="y"),
        ]
    )
    return {"pipeline": pipeline, "labelCol": "y", "maxEpochs": 3, "batchSize": 2048, "recipe": "fast"}, rows


def report(name: str, spark: SparkSession, folder: Path) -> None:
    """Run one of the ten, and write its report as a job does, with the plan."""
    options, rows = RUNS[name](spark)
    fitted = options.pop("pipeline").fit(rows)
    found = sparkdiff.FineTuner(pipeline=fitted, seed=0, cacheDir=str(folder / "cache"), **options).fit(rows)
    summary = found.summary
    plan = dataclasses.asdict(sparkdiff.plan(fitted, schema=rows.schema))
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{name}.tmp"
    temporary.write_text(page(summary.asdict(), summary.records, plan=plan), encoding="utf-8")
    temporary.replace(folder / f"{name}.html")
    diverged = f", {summary.diverged} of {summary.candidates} candidates diverged" if summary.diverged else ""
    print(f"{name}: {summary.decision}{diverged}", flush=True)


def pictures(path: Path) -> None:
    """The report in both widths and schemes."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("--pictures needs Chromium: apt-get install chromium")
    for width, height in ((1280, 3600), (390, 5200)):
        for scheme in ("light", "dark"):
            out = path.with_name(f"{path.stem}_{width}_{scheme}.png")
            shown = path.with_name(f"{path.stem}.{scheme}.html")
            shown.write_text(
                path.read_text("utf-8").replace(
                    "(prefers-color-scheme: dark)", "all" if scheme == "dark" else "not all"
                )
            )
            flags = [
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                f"--window-size={width},{height}",
            ]
            subprocess.run(
                [browser, *flags, f"--screenshot={out}", shown.as_uri()], check=True, capture_output=True, timeout=120
            )
            shown.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(RUNS)}; default: all")
    parser.add_argument("--folder", type=Path, default=ROOT / "runs" / "reports")
    parser.add_argument("--pictures", action="store_true")
    given = parser.parse_args()
    if unknown := [name for name in given.names if name not in RUNS]:
        parser.error(f"no such run: {', '.join(unknown)}; there are {', '.join(RUNS)}")
    spark = None
    folder, sizes = given.folder.resolve(), {}
    for name in given.names or RUNS:
        if not (folder / f"{name}.html").exists():
            spark = spark or SparkSession.builder.config("spark.sql.shuffle.partitions", "4").getOrCreate()
            report(name, spark, folder)
        sizes[name] = (folder / f"{name}.html").stat().st_size
        if given.pictures:
            pictures(folder / f"{name}.html")
    print(json.dumps(sizes, indent=1))
    if large := [name for name, size in sizes.items() if size >= MOST]:
        sys.exit(f"2 MB or more: {', '.join(large)}")


if __name__ == "__main__":
    main()
