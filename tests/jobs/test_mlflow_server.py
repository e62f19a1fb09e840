"""A job, a tracking server of its own on SQLite, and a place that has MLflow and Spark, but no sparkdiff."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from tests.support.small_data import NUMBERS, riders

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("flask", reason="needs MLflow's server: pip install mlflow")
pytestmark = [pytest.mark.nightly, pytest.mark.slow, pytest.mark.filterwarnings("default")]

PIPELINES = f"""
from pyspark.ml import Pipeline
from pyspark.ml.feature import PCA, VectorAssembler
from pyspark.ml.regression import GeneralizedLinearRegression

def rides(train):
    return Pipeline(stages=[
        VectorAssembler(inputCols={NUMBERS}, outputCol="x"), PCA(inputCol="x", outputCol="c", k=2),
        GeneralizedLinearRegression(featuresCol="c", labelCol="riders", family="poisson"),
    ])
"""
AUTOLOGGING = """
import sys
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.set_experiment("rides")
mlflow.pyspark.ml.autolog(silent=True)
from sparkdiff.cli.app import main
raise SystemExit(main(sys.argv[2:]))
"""
SERVE = """
import sys
absent = ("sparkdiff", "torch", "petastorm")
sys.modules.update(dict.fromkeys(absent))
for name in absent:
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"{name} can be imported")
import json
import mlflow
from pyspark.ml import PipelineModel
from pyspark.sql import SparkSession

uri, rows, saved = sys.argv[1:]
spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
mlflow.set_tracking_uri(uri)
models = mlflow.spark.load_model("models:/rides@challenger"), PipelineModel.load(saved)
df = spark.read.parquet(rows)
print("SERVED " + json.dumps([[r.prediction for r in m.transform(df).orderBy("number").collect()] for m in models]))
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with open(folder / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, start_new_session=True)
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                time.sleep(0.5)
        else:
            pytest.fail((folder / "log").read_text())
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def run(*command: object, cwd: Path) -> str:
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable}
    if command[2] == SERVE:
        environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, *map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_job_logs_one_run_whose_model_loads_without_sparkdiff(server: str, tmp_path: Path) -> None:
    pq.write_table(riders(), tmp_path / "rows.parquet", coerce_timestamps="us")
    (tmp_path / "rides.py").write_text(PIPELINES)
    out = run(
        "-c",
        AUTOLOGGING,
        server,
        "finetune",
        "--json",
        "pipeline=rides:rides",
        "--data",
        "rows.parquet",
        "--label",
        "riders",
        "--output",
        "run",
        "fineTuner.maxEpochs=4",
        "fineTuner.recipe=fast",
        "fineTuner.stream=arrow",
        f"tracking.mlflow.uri={server}",
        "tracking.mlflow.experiment=rides",
        "tracking.mlflow.registeredModelName=rides",
        "tracking.jsonLines=events.jsonl",
        cwd=tmp_path,
    )
    result = json.loads(out)
    assert result["accepted"] and result["model"] == str(tmp_path / "run" / "model")
    events = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert events[-1] != "epoch" and events.count("decision") == 1 and events.count("epoch") >= 5

    client = mlflow.MlflowClient(server, server)
    experiment = client.get_experiment_by_name("rides")
    [found] = client.search_runs(
        [experiment.experiment_id]
    )  # none of the fit of the pipeline, which MLflow would log itself
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    check(client, found, summary, result)
    served = run("-c", SERVE, server, f"file://{tmp_path}/rows.parquet", f"file://{tmp_path}/run/model", cwd=tmp_path)
    [line] = [line for line in served.splitlines() if line.startswith("SERVED ")]
    registered, saved = json.loads(line.removeprefix("SERVED "))
    assert registered == saved and len(saved) == 1500


def check(client: Any, found: Any, summary: dict[str, Any], result: dict[str, Any]) -> None:
    assert found.info.status == "FINISHED"
    assert found.data.params["maxEpochs"] == "4" and found.data.params["labelCol"] == "riders"
    assert found.data.tags["sparkdiff.decision"] == summary["decision"] == result["decision"]
    assert found.data.tags["sparkdiff.modelHash"] == summary["model"]["hash"]
    assert found.data.metrics["validation.poisson.after"] == result["metrics"]["validation"]["after"]
    curve = client.get_metric_history(found.info.run_id, "candidate0/validationMetric")
    assert sorted(m.step for m in curve) == [0, 1, 2, 3, 4]
    names = {f.path for f in client.list_artifacts(found.info.run_id)}
    assert {"report.html", "plan.svg", "plan.txt", "summary.json"} <= names
    version = client.get_model_version_by_alias("rides", "challenger")
    assert version.run_id == found.info.run_id and version.tags["sparkdiff.decision"] == "tuned"
    assert client.get_registered_model("rides").aliases.keys() == {"challenger"}
