"""The job as a stranger runs it: spark-submit, a second run, and the result served without torch and sparkdiff."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import plain_spark
import pytest

from sparkdiff.store.digests import hash_of_folder

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

COMMANDS = """
import contextlib, io, json, sys
from sparkdiff.cli import main

for arguments in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(json.loads(arguments))
    print("RAN " + json.dumps([code, out.getvalue()]), flush=True)
sys.exit(code)
"""


def submit(
    script: Path,
    *arguments: str,
    expect: int | None = 0,
    log: Path | None = None,
    bare: tuple[str, ...] | None = None,
    timed: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run a script by spark-submit; Spark's events go to the folder `log`.

    Args:
        bare: without our settings of the launch, but with these.
        timed: by a JVM as users have it, not by one that starts quickly.
    """
    environment = {
        **os.environ, "PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable, "PYTHONPATH": str(ROOT),
        "SPARK_CONF_DIR": str(ROOT / "conf"), "SPARK_HOME": spark_home(),
    }  # fmt: skip
    command = [str(Path(spark_home()) / "bin" / "spark-submit"), "--master", "local[2]"]
    if bare is not None:
        environment.pop("SPARK_CONF_DIR")
        command += [part for setting in bare for part in ("--conf", setting)]
    if timed:
        for name in ("JDK_JAVA_OPTIONS", "OMP_NUM_THREADS"):
            environment.pop(name)
    if log is not None:
        log.mkdir()
        events = {"enabled": "true", "dir": log.as_uri(), "compress": "false", "rolling.enabled": "false"}
        command += [part for key, value in events.items() for part in ("--conf", f"spark.eventLog.{key}={value}")]
    command += [str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert expect is None or done.returncode == expect, done.stdout + done.stderr
    return done


def spark_home() -> str:
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def queries_over(source: str, log: Path) -> tuple[int, int]:
    """How many of a run's SQL executions read a file, and how many there were."""
    plans = [
        event["physicalPlanDescription"]
        for path in log.iterdir()
        for event in map(json.loads, path.read_text().splitlines())
        if event["Event"].endswith("SparkListenerSQLExecutionStart")
    ]
    return sum(source in plan for plan in plans), len(plans)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source file, which a test may spoil."""
    return Path(shutil.copy(ROOT / "data" / "bikeshare.csv", tmp_path_factory.mktemp("data")))


def job(data: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """The shipped job on that copy."""
    paths = [f"data.{split}.path={data}" for split in ("train", "validation", "test")]
    return submit(ROOT / "jobs" / "finetune.py", "--config", "conf/bikeshare.yaml", *paths, *arguments, **options)


@pytest.fixture(scope="module")
def demo(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("runs")
    done = job(data, f"output.path={folder / 'bikeshare'}", log=folder / "events")
    return folder / "bikeshare", done


def summary(run: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"summary.json holds {name}")

    return json.loads((run / "summary.json").read_text(), parse_constant=refuse)  # type: ignore[no-any-return]


def test_the_demo_tunes_and_says_so(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, done = demo
    for phase in ("load", "fit", "cache", "verify", "check", "train", "write back", "save"):
        assert any(line.startswith(phase) for line in done.stdout.splitlines()), phase
    for text in (
        "trains",
        "PCAModel",
        "train",
        "validation",
        "test",
        "original",
        "tuned",
        "decision: tuned",
        " z ",
        " p ",
    ):
        assert text in done.stdout
    found = summary(run)
    assert found["decision"] == "tuned"
    assert found["metric"] == "poisson"
    assert {s: m["after"] < 0.5 * m["before"] for s, m in found["metrics"].items()} == dict.fromkeys(
        found["metrics"], True
    )
    assert set(found["metrics"]) == {"train", "validation", "test"}
    assert found["p"] < 0.025 < 2 < found["z"]
    assert all(p["ok"] and p["rows"] > 5000 for p in found["parity"].values())
    assert set(found["parity"]) == {"before", "after"}
    assert sorted(p.name for p in run.iterdir()) == ["history.csv", "model", "plan.json", "summary.json"]


def test_the_summary_names_the_parent_by_path_and_hash(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    found = summary(demo[0])
    parent, model = found["parent"], found["model"]
    assert set(parent) == {"path", "hash", "function"}
    assert parent["function"] == "pipelines:bikeshare"
    assert Path(parent["path"]).parent == demo[0].parent / ".cache"
    assert hash_of_folder(Path(parent["path"])) == parent["hash"] != model["hash"]
    assert hash_of_folder(demo[0] / model["path"]) == model["hash"]


def test_petastorm_reads_where_it_is_installed(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    expected = "petastorm" if importlib.util.find_spec("petastorm") else "arrow"
    assert summary(demo[0])["stream"] == expected


@pytest.mark.once
@pytest.mark.nightly
def test_fine_tuning_costs_at_most_twice_the_fit(data: Path, tmp_path: Path) -> None:
    job(data, f"output.path={tmp_path / 'timed'}", timed=True)
    timings = summary(tmp_path / "timed")["timings"]
    ours = sum(seconds for phase, seconds in timings.items() if phase not in ("load", "fit"))
    print(f"fine-tuning over fit: {ours / timings['fit']:.2f} ({timings})")
    assert set(timings) == {"load", "fit", "plan", "cache", "verify", "check", "train", "judge", "write back", "save"}
    assert ours <= 2 * timings["fit"]


@pytest.mark.once
def test_a_second_run_reuses_all_and_reads_no_source_row(
    demo: tuple[Path, subprocess.CompletedProcess[str]], data: Path, tmp_path: Path
) -> None:
    run, _ = demo
    first = summary(run)
    cached = {p: p.stat().st_mtime_ns for p in (run.parent / ".cache").rglob("*.parquet")}
    done = job(data, f"output.path={run}", log=tmp_path / "events")
    second = summary(run)
    assert second["cache"] == {"hit": True, "fingerprint": first["cache"]["fingerprint"]}
    assert (second["metrics"], second["z"], second["p"]) == (first["metrics"], first["z"], first["p"])
    assert "reused: the same pipeline" in done.stdout
    assert {p: p.stat().st_mtime_ns for p in (run.parent / ".cache").rglob("*.parquet")} == cached
    first_reads, _ = queries_over("bikeshare.csv", run.parent / "events")
    reads, queries = queries_over("bikeshare.csv", tmp_path / "events")
    assert first_reads > 0
    assert reads == 0
    assert queries > 0


def test_the_result_is_served_without_torch_and_sparkdiff(demo: Any, tmp_path: Path, spark: Any) -> None:
    import yaml
    from pyspark.ml import PipelineModel
    from pyspark.sql import functions as F

    schema = yaml.safe_load((ROOT / "conf" / "bikeshare.yaml").read_text())["data"]["train"]["schema"]
    hours = spark.read.schema(schema).option("header", True).csv((ROOT / "data" / "bikeshare.csv").as_uri())
    hours.coalesce(1).withColumn("id", F.monotonically_increasing_id()).write.parquet(f"file://{tmp_path}/rows")
    (there,) = plain_spark.predictions([demo[0] / "model"], tmp_path / "rows")
    model = PipelineModel.load((demo[0] / "model").as_uri())
    assert all(type(stage).__module__.startswith("pyspark.ml.") for stage in model.stages)
    rows = model.transform(spark.read.parquet(f"file://{tmp_path}/rows")).orderBy("id").select("prediction").collect()
    assert there == [row["prediction"] for row in rows]
    assert len(there) == 8645


WRONG = [
    (["fineTuner.maxEpoch=5"], "Did you mean 'maxEpochs'"),
    (["fineTuner.maxEpochs=many"], "must be a whole number"),
    (["fineTuner.labelCol=biker"], "Did you mean 'bikers'"),
    (["data.train.path=nowhere.csv"], "cannot be read"),
    (["data.validation.where=day < 0"], "validation rows"),
    (["pipeline=pipelines:bikes"], "Did you mean"),
    (["nothing"], "section.key=value"),
    (["fineTuner.freeze=[PCAModel, StandardScalerModel, GeneralizedLinearRegressionModel]"], "nothing to train"),
]


@pytest.mark.once
def test_wrong_input_ends_with_2_and_leaves_nothing(tmp_path: Path, demo: Any, data: Path) -> None:
    shim = tmp_path / "command.py"
    shim.write_text(COMMANDS)
    # The demo's cache folder spares the fit.
    caches = demo[0].parent / ".cache"
    usual = [
        "finetune",
        "--config",
        "conf/bikeshare.yaml",
        f"output.path={tmp_path / 'out'}",
        f"fineTuner.cacheDir={caches}",
    ]
    usual += [f"data.{split}.path={data}" for split in ("train", "validation", "test")]
    done = submit(shim, *(json.dumps([*usual, *arguments]) for arguments, _ in WRONG), expect=2)
    output = done.stdout + done.stderr  # spark-submit sends a job's stderr to its own stdout
    ran = [json.loads(line.removeprefix("RAN ")) for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert [code for code, _ in ran] == [2] * len(WRONG)
    told = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(told) == len(WRONG)
    for line, (_, said) in zip(told, WRONG, strict=True):
        assert said in line
    assert "Traceback" not in output
    assert not (tmp_path / "out").exists()
    assert not [p for p in caches.iterdir() if p.name.startswith(".")]


@pytest.mark.once
def test_a_wrong_job_ends_with_2(tmp_path: Path, demo: Any, data: Path) -> None:
    done = job(data, f"output.path={tmp_path / 'out'}", "fineTuner.maxEpoch=5", expect=2)
    assert "Did you mean 'maxEpochs'" in done.stdout + done.stderr


@pytest.mark.once
def test_an_existing_output_is_refused_and_left_alone(demo: Any, data: Path) -> None:
    before = (demo[0] / "summary.json").read_bytes()
    done = job(data, f"output.path={demo[0]}", "output.mode=error", expect=2)
    assert "exists" in done.stdout + done.stderr
    assert (demo[0] / "summary.json").read_bytes() == before


@pytest.mark.once
def test_digits(tmp_path: Path) -> None:
    """Without our conf folder, as on a cluster: Spark is quiet, and what spark-submit was told stands over the job's own."""
    arguments = ["--config", "conf/digits.yaml", f"output.path={tmp_path / 'digits'}"]
    events = ["spark.spark.eventLog.enabled=true", "spark.spark.eventLog.dir=file:///nowhere"]
    told = ("spark.eventLog.enabled=false", "spark.ui.enabled=false")
    done = submit(ROOT / "jobs" / "finetune.py", *arguments, *events, bare=told)
    assert len(done.stderr.splitlines()) <= 60  # the JVM's; a job's own lines are on stdout
    assert " INFO " not in done.stdout + done.stderr
    found = summary(tmp_path / "digits")
    assert found["decision"] == "tuned"
    assert found["metric"] == "logLoss"
    assert found["metrics"]["test"]["after"] < 0.8 * found["metrics"]["test"]["before"]


@pytest.mark.once
def test_the_command_plans_verifies_and_compares_saved_models(demo: Any, tmp_path: Path) -> None:
    import yaml

    shim = tmp_path / "command.py"
    shim.write_text(COMMANDS)
    model, parent = str(demo[0] / "model"), summary(demo[0])["parent"]
    schema = yaml.safe_load((ROOT / "conf" / "bikeshare.yaml").read_text())["data"]["train"]["schema"]
    options = json.dumps({"schema": schema, "header": "true"})
    commands = [
        ["plan", str(demo[0]), "--json"],  # a run's folder stands for its model
        [
            "verify",
            str(demo[0]),
            "--data",
            str(ROOT / "data" / "bikeshare.csv"),
            "--format",
            "csv",
            "--options",
            options,
        ],
        ["diff", parent["path"], str(demo[0]), "--json"],
        ["plan", str(tmp_path / "nowhere")],
        ["plan"],
        ["plan", model, "--strict"],  # the last one's code is the process's
    ]
    done = submit(shim, *map(json.dumps, commands), expect=3)
    ran = [json.loads(line.removeprefix("RAN ")) for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert [code for code, _ in ran] == [0, 0, 0, 2, 2, 3]
    tuned = ["StandardScalerModel", "PCAModel", "GeneralizedLinearRegressionModel"]
    assert [s["stageClass"] for s in json.loads(ran[0][1])["stages"] if s["trainable"]] == tuned
    assert "ok: 8,645 rows" in ran[1][1]
    differs = json.loads(ran[2][1])
    assert [s["stageClass"] for s in differs["stages"] if s["what"] == "differs"] == tuned
    assert (differs["oldHash"], differs["newHash"]) == (parent["hash"], summary(demo[0])["model"]["hash"])
