"""Whether a change of the code moved a training: the same trainings by an earlier commit and by this checkout, bit for bit.

    .venv/bin/python tools/same_bits.py [COMMIT]      HEAD by default; the folder of another checkout is taken, too

Both sides are computed here and now, because the processor, the libraries and their versions decide the last bits. Then this
checkout's code loads the models that the earlier one saved, reads its caches and returns its finished runs. A change that is
meant to move trainings, or to make caches anew, is told here; the exit code is 1.
"""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ROWS = 1500
OPTIONS: dict[str, Any] = {"maxEpochs": 3, "batchSize": 64, "schedule": "cosine", "recipe": "thorough", "verbosity": 0}


def rows(spark: Any) -> Any:
    """Labels that depend on `c` and `d` most, which a PCA to two of four dimensions passes over."""
    import numpy as np

    random = np.random.default_rng(5)
    x = random.normal(size=(ROWS, 4)) @ np.array([[3.0, 3, 0, 0], [0.5, -0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    size = 1 + 0.1 * x[:, 0] + 0.6 * x[:, 2] - 0.4 * x[:, 3]
    table = {name: np.round(x[:, i], 3) for i, name in enumerate("abcd")} | {
        "count": np.maximum(np.round(2 * size + random.normal(size=ROWS)), 0.0),
        "class": (size + random.normal(size=ROWS) > 1) * 1.0,
        "group": np.arange(ROWS) // 10,
    }
    return spark.createDataFrame([*zip(*(column.tolist() for column in table.values()), strict=True)], [*table])


def unfitted() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Pipelines and the options of their trainings."""
    from pyspark.ml import Pipeline
    from pyspark.ml.classification import LogisticRegression
    from pyspark.ml.feature import PCA, StandardScaler, VectorAssembler
    from pyspark.ml.regression import GBTRegressor, GeneralizedLinearRegression

    assembler = VectorAssembler(inputCols=[*"abcd"], outputCol="assembled")
    before = [
        assembler,
        StandardScaler(inputCol="assembled", outputCol="scaled", withMean=True),
        PCA(inputCol="scaled", outputCol="components", k=2),
    ]
    counts = GeneralizedLinearRegression(featuresCol="components", labelCol="count", family="poisson")
    trees = GBTRegressor(featuresCol="assembled", labelCol="count", maxIter=5, maxDepth=3, seed=1)
    return {
        "counts": (Pipeline(stages=[*before, counts]), {"groupCol": "group"}),
        "classes": (Pipeline(stages=[*before, LogisticRegression(featuresCol="components", labelCol="class")]), {}),
        "trees": (Pipeline(stages=[assembler, trees]), {}),
    }


def train(folder: Path, earlier: Path) -> dict[str, Any]:
    """What each training finds, by the code that is on the path; the first side fits the originals for both."""
    from pyspark.ml import PipelineModel
    from pyspark.sql import SparkSession

    import sparkdiff

    quiet = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}
    spark = SparkSession.builder.master("local[2]").config(map=quiet).getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    if folder == earlier:
        rows(spark).coalesce(1).write.parquet(f"file://{folder}/rows")
    df = spark.read.parquet(f"file://{earlier}/rows")
    found = {}
    for name, (pipeline, more) in unfitted().items():
        if folder == earlier:
            pipeline.fit(df).write().save(f"file://{folder}/{name}-original")
        original = PipelineModel.load(f"file://{earlier}/{name}-original")

        def tune(caches: Path) -> Any:
            return sparkdiff.FineTuner(original, runId=name, cacheDir=str(caches), **OPTIONS, **more).fit(df)  # noqa: B023

        tuned = tune(folder)
        found[name] = told(tuned)
        if folder == earlier:
            tuned.write().save(f"file://{folder}/{name}-tuned")
            continue
        loaded = told(sparkdiff.FineTunerModel.load(f"file://{earlier}/{name}-tuned"))
        state = earlier / "checkpoints" / name / "state.pt"
        written = state.stat().st_mtime_ns
        try:
            returned, refused = told(tune(earlier)), ""
        except sparkdiff.InputError as e:
            returned, refused = {}, str(e)
        anew = state.stat().st_mtime_ns != written
        found[name] |= {"loaded": loaded, "returned": returned, "refused": refused, "anew": anew}
    spark.stop()
    return found


def told(tuned: Any) -> dict[str, Any]:
    """What has to be the same, as text."""
    import sparkdiff

    summary = tuned.summary
    weights = sparkdiff.translate(tuned.pipelineModel).state_dict()
    return {
        "decision": [summary.decision, summary.reason],
        "the cache's fingerprint": summary.cache.get("fingerprint"),
        "history": [
            {k: v.hex() if isinstance(v, float) else v for k, v in record.items() if "econds" not in k}
            for record in summary.records
        ],
        "weights": {k: hashlib.sha256(v.detach().numpy().tobytes()).hexdigest() for k, v in weights.items()},
    }


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [name for name in one if name in other and one[name] != other[name]]


def side(code: Path, folder: Path, earlier: Path) -> Any:
    """What `train` tells, in a process with that code."""
    folder.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(code), "PYSPARK_PYTHON": sys.executable}
    command = [sys.executable, __file__, "--train", str(folder), str(earlier)]
    subprocess.run(command, env=environment, cwd=folder, check=True)
    return json.loads((folder / "found.json").read_text())


def main(given: str) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        code = Path(given).resolve()
        if not (code / "sparkdiff").is_dir():
            code = here / "code"
            packed = subprocess.run(["git", "archive", given, "sparkdiff"], cwd=ROOT, check=True, capture_output=True)
            with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
                archive.extractall(code, filter="data")
        then = side(code, here / "then", here / "then")
        now = side(ROOT, here / "now", here / "then")
    failed = False
    for name, was in then.items():
        found = {f"{given} and this checkout differ in": differing(was, now[name])}
        found["what was saved is loaded with other"] = differing(was, now[name]["loaded"])
        found["the finished run is returned with other"] = differing(was, now[name]["returned"])
        found["the finished run is trained"] = ["anew"] * now[name]["anew"]
        found["the finished run is refused:"] = [now[name]["refused"]] * bool(now[name]["refused"])
        for sentence, what in found.items():
            failed |= bool(what)
            if what:
                print(f"{name}: {sentence} {', '.join(what)}")
        if not any(found.values()):
            print(f"{name}: the same bits; what was saved is read")
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--train"]:
        out, first = map(Path, sys.argv[2:])
        (out / "found.json").write_text(json.dumps(train(out, first)))
    else:
        sys.exit(main(*sys.argv[1:] or ["HEAD"]))
