"""A small job that loads the Java classes that typical jobs need, so that Java can archive them for faster starts.

python -m sparkdiff.cli.warm_up_job FOLDER
"""

import csv
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sparkdiff import jvm
from sparkdiff.cli.config import load_config
from sparkdiff.cli.starting import run
from sparkdiff.errors import InputError

ROWS = 2000


def prepare() -> Path:
    """Write the class archive of this machine, and return its path.

    Raises:
        InputError: there is no suitable Java; Spark's own scripts choose it here, so that sparkdiff could not use the
            archive; or no archive can be written.
    """
    java = jvm.check_java()
    if not java:
        raise InputError(
            "Spark's own scripts choose its Java here (spark-env.sh, spark-submit), and sparkdiff starts none"
        )
    with tempfile.TemporaryDirectory() as folder:
        return jvm.write_archive(["-m", "sparkdiff.cli.warm_up_job", folder], java)


def pipeline(_rows: Any) -> Any:
    """An unfitted pipeline of typical stages: text and numbers, indexed, encoded, scaled, rotated, and a regression."""
    from pyspark.ml import Pipeline
    from pyspark.ml.feature import PCA, OneHotEncoder, StandardScaler, StringIndexer, VectorAssembler
    from pyspark.ml.regression import GeneralizedLinearRegression

    return Pipeline(
        stages=[
            StringIndexer(inputCol="kind", outputCol="kindIndex"),
            OneHotEncoder(inputCol="kindIndex", outputCol="kindVector"),
            VectorAssembler(inputCols=["kindVector", "a", "b", "c"], outputCol="assembled"),
            StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
            PCA(inputCol="scaled", outputCol="components", k=2),
            GeneralizedLinearRegression(featuresCol="components", labelCol="count", family="poisson"),
        ]
    )


def main(folder: Path) -> None:
    """Run a job that reads a CSV file, and then a second job that loads the first job's model."""
    generator = np.random.default_rng(0)
    numbers = generator.normal(size=(ROWS, 3)) * [3, 2, 1]
    counts = generator.poisson(np.exp(numbers @ [0.02, 0.1, 0.4]))
    with (folder / "rows.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["a", "b", "c", "kind", "count"])
        for x, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            rows.writerow([*x, "uvw"[count % 3], count])
    read = {
        "format": "csv",
        "options": {"header": True},
        "schema": "a double, b double, c double, kind string, count double",
    }
    job = {
        "data": {"train": {"path": "rows.csv", **read}},
        "spark": {"spark.sql.shuffle.partitions": 2, "spark.ui.enabled": False},
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    for number, given in enumerate(("sparkdiff.cli.warm_up_job:pipeline", folder / "0" / "model")):
        run(load_config(folder / "job.yaml", [f"pipeline={given}", f"output.path={folder / str(number)}"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
