"""What `connect/test_training.py` runs in a process of its own: wide sparse columns, trees and two processes over Spark Connect.

    python -m tests.support.training_over_connect FOLDER

leaves FOLDER/rows (Parquet), FOLDER/sparse, FOLDER/trees and, in FOLDER/facts.json, what the tests compare.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from pyspark.ml import Pipeline
from pyspark.ml.classification import LogisticRegression
from pyspark.ml.feature import HashingTF, Tokenizer, VectorAssembler
from pyspark.ml.regression import GBTRegressor
from pyspark.sql import DataFrame, SparkSession, functions as F

import sparkdiff
from tests.support.over_connect import ROOT, connected, predictions, without_jvm

QUICK: dict[str, Any] = {"maxEpochs": 2, "recipe": "fast", "verbosity": 0, "stream": "arrow", "rowsAreNew": True}


def rows_of(spark: SparkSession, folder: Path) -> DataFrame:
    """2,000 hours, with words for their hour, day and temperature, and a label that has grown since the trees were fitted."""
    hours = spark.read.option("header", True).option("inferSchema", True).csv(f"file://{ROOT}/data/bikeshare.csv")
    said = [F.concat(F.lit(letter), F.col(name).cast("string")) for letter, name in (("h", "hr"), ("d", "day"))]
    made = hours.limit(2000).select(
        F.concat_ws("-", "day", "hr").alias("id"),
        "temp",
        "hum",
        F.col("bikers").cast("double"),
        F.concat_ws(" ", *said, F.concat(F.lit("t"), F.round("temp", 1).cast("string"))).alias("words"),
        (F.col("bikers") > 100).cast("double").alias("busy"),
        (F.col("bikers") * 1.5).alias("more"),
    )
    made.coalesce(2).write.parquet(f"file://{folder}/rows")
    return spark.read.parquet(f"file://{folder}/rows")


def main(folder: Path) -> None:
    spark = connected()
    without_jvm()
    facts: dict[str, Any] = {"session": type(spark).__module__}
    df, options = rows_of(spark, folder), {**QUICK, "cacheDir": f"{folder}/cache"}

    words = (
        Tokenizer(inputCol="words", outputCol="tokens"),
        HashingTF(inputCol="tokens", outputCol="f", numFeatures=1 << 18),
    )
    wide = Pipeline(stages=[*words, LogisticRegression(featuresCol="f", labelCol="busy", maxIter=1, regParam=0.5)]).fit(
        df
    )
    found = [sparkdiff.FineTuner(wide, labelCol="busy", numProcesses=n, **options).fit(df) for n in (1, 2)]
    facts["sparse"] = [[m.summary.decision, m.summary.metrics["validation"]] for m in found]
    one, two = (sparkdiff.translate(m.pipelineModel).parameters() for m in found)
    facts["apart"] = max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))

    assembler = VectorAssembler(inputCols=["temp", "hum"], outputCol="v")
    grown = Pipeline(stages=[assembler, GBTRegressor(featuresCol="v", labelCol="bikers", maxIter=3, maxDepth=3)]).fit(
        df
    )
    trees = sparkdiff.FineTuner(grown, labelCol="more", **options).fit(df)
    facts["trees"] = [trees.summary.decision, trees.summary.parity["after"]["ok"]]

    for name, model in (("sparse", found[1]), ("trees", trees)):
        model.pipelineModel.write().save(f"file://{folder}/{name}")
        facts[f"{name} predictions"] = predictions(model.pipelineModel, df)
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # as over_connect
