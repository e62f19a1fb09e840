"""The job as a stranger runs it: spark-submit, a second run, and the result served without torch and sparkdiff."""

import importlib.util
import json
import math
import shutil
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from sparkdiff.cli.app import main
from sparkdiff.store.saved_digests import hash_of_folder
from tests.support import plain_spark
from tests.support.spark_submit import ROOT, submit, summary

FEW = "fineTuner.maxEpochs=12"
pytestmark = pytest.mark.slow

COMMANDS = """
import contextlib, io, json, sys, time
from sparkdiff.cli.app import main

for arguments in sys.argv[1:]:
    begin = time.time()
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(json.loads(arguments))
    print("RAN " + json.dumps([code, out.getvalue(), err.getvalue(), begin, time.time()]), flush=True)
sys.exit(code)
"""


class Ran(NamedTuple):
    """A command that a process ran: its exit code, what it wrote, and when."""

    code: int
    out: str
    err: str
    begin: float
    end: float


def queries_over(source: str, log: Path, begin: float = 0, end: float = math.inf) -> tuple[int, int]:
    """How many of a run's SQL executions, or of those that began in this time, read a file, and how many there were."""
    plans = [
        event["physicalPlanDescription"]
        for path in log.iterdir()
        for event in map(json.loads, path.read_text().splitlines())
        if event["Event"].endswith("SparkListenerSQLExecutionStart") and begin <= event["time"] / 1000 <= end
    ]
    return sum(source in plan for plan in plans), len(plans)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the source file, which a test may spoil."""
    return Path(shutil.copy(ROOT / "data" / "bikeshare.csv", tmp_path_factory.mktemp("data")))


def told(data: Path, *arguments: str) -> list[str]:
    """The shipped job's arguments, on that copy."""
    paths = [f"data.{split}.path={data}" for split in ("train", "validation", "test")]
    return ["--config", "conf/bikeshare.yaml", *paths, *arguments]


def job(data: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return submit(ROOT / "jobs" / "finetune.py", *told(data, *arguments), **options)


@pytest.fixture(scope="module")
def demo(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("runs")
    done = job(data, FEW, f"output.path={folder / 'bikeshare'}", log=folder / "events")
    return folder / "bikeshare", done


@pytest.fixture(scope="module")
def first(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> dict[str, Any]:
    """What it left, before a second run."""
    run = demo[0]
    return {
        "summary": summary(run),
        "history": (run / "history.csv").read_text(),
        "cached": modified(run.parent / ".cache"),
    }


def modified(folder: Path) -> dict[Path, int]:
    """When each Parquet file was written."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*.parquet")}


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
    # conf/log4j2.properties leaves out what is harmless, and log4j itself takes it as it is
    assert [line for line in done.stderr.splitlines() if " ERROR " in line or " WARN " in line] == []
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
    written = [".sparkdiff", "history.csv", "model", "plan.json", "report.html", "summary.json"]
    assert sorted(p.name for p in run.iterdir()) == written
    assert found["saved"]["rows"] >= 1000 and not found["saved"].keys() & {"why", "differs"}


def test_the_summary_names_the_parent_by_path_and_hash(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    found = summary(demo[0])
    parent, model = found["parent"], found["model"]
    assert set(parent) == {"path", "hash", "function"}
    assert parent["function"] == "pipelines:bikeshare"
    assert Path(parent["path"]).parents[1] == demo[0].parent / ".cache"
    assert hash_of_folder(Path(parent["path"])) == parent["hash"] != model["hash"]
    assert hash_of_folder(demo[0] / model["path"]) == model["hash"]


def test_petastorm_reads_where_it_is_installed(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    expected = "petastorm" if importlib.util.find_spec("petastorm") else "arrow"
    assert summary(demo[0])["stream"] == expected


@pytest.mark.nightly
def test_fine_tuning_costs_at_most_twice_the_fit(data: Path, tmp_path: Path) -> None:
    job(data, f"output.path={tmp_path / 'timed'}", timed=True)
    timings = summary(tmp_path / "timed")["timings"]
    ours = sum(seconds for phase, seconds in timings.items() if phase not in ("load", "fit"))
    print(f"fine-tuning over fit: {ours / timings['fit']:.2f} ({timings})")
    assert set(timings) == {"load", "fit", "plan", "cache", "verify", "check", "train", "judge", "write back", "save"}
    assert ours <= 2 * timings["fit"]


def test_the_saved_model_is_made_of_sparks_own_classes(demo: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    files = sorted((demo[0] / "model" / "stages").glob("*/metadata/part-*"))
    classes = [json.loads(file.read_text())["class"].rpartition(".") for file in files]
    assert {package for package, _, _ in classes} <= {"org.apache.spark.ml.feature", "org.apache.spark.ml.regression"}
    assert [name for _, _, name in classes][-3:] == [
        "StandardScalerModel",
        "PCAModel",
        "GeneralizedLinearRegressionModel",
    ]


@pytest.mark.nightly  # on each commit test_routes serves tuned stages in such a process
def test_the_result_is_served_without_torch_and_sparkdiff(demo: Any, tmp_path: Path, spark: Any) -> None:
    """And so is an imported model, where the library that made it can't be imported."""
    import yaml
    from pyspark.ml import PipelineModel
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F
    from sklearn.ensemble import HistGradientBoostingRegressor

    from sparkdiff import from_sklearn

    schema = yaml.safe_load((ROOT / "conf" / "bikeshare.yaml").read_text())["data"]["train"]["schema"]
    hours = spark.read.schema(schema).option("header", True).csv(f"file://{ROOT}/data/bikeshare.csv")
    hours.coalesce(1).withColumn("id", F.monotonically_increasing_id()).write.parquet(f"file://{tmp_path}/rows")
    model = PipelineModel.load(f"file://{demo[0]}/model")
    assert all(type(stage).__module__.startswith("pyspark.ml.") for stage in model.stages)
    *before, head = model.stages
    features = head.getFeaturesCol()
    shown = model.transform(spark.read.parquet(f"file://{tmp_path}/rows")).orderBy("id")
    rows = shown.select("prediction", "bikers", vector_to_array(features).alias("x")).toPandas()
    x = np.stack(rows["x"].to_list())
    boosted = HistGradientBoostingRegressor(loss="poisson", max_iter=5).fit(x, rows["bikers"])
    PipelineModel([*before, from_sklearn(boosted, featuresCol=features)]).write().save(f"file://{tmp_path}/home")

    there = plain_spark.predictions([demo[0] / "model", tmp_path / "home"], tmp_path / "rows")
    assert there[0] == rows["prediction"].to_list()
    np.testing.assert_allclose(there[1], boosted.predict(x), rtol=1e-12)
    assert len(there[0]) == 8645


WRONG = [
    (["fineTuner.maxEpoch=5"], "Did you mean 'maxEpochs'"),  # before a session starts
    (["data.validation.where=day < 0"], "validation rows"),  # with the rows
    (
        ["fineTuner.freeze=[PCAModel, StandardScalerModel, GeneralizedLinearRegressionModel]"],
        "nothing to train",
    ),  # and the model
]
WRONG_TOO = [
    (["fineTuner.maxEpochs=many"], "must be a whole number"),
    (["fineTuner.labelCol=biker"], "Did you mean 'bikers'"),
    (["data.train.path=nowhere.csv"], "cannot be read"),
    (["pipeline=pipelines:bikes"], "Did you mean"),
    (["nothing"], "no Spark ML model can be loaded from"),
    (["fineTuner.device=cuda"], "device='cuda', but "),  # which is hidden from the process, if there is a GPU
]
"""By night; on each commit test_options, test_config, test_wrong_inputs and test_devices ask for the same words."""


def in_one_process(commands: list[list[str]], folder: Path, expect: int) -> list[Ran]:
    """What commands do in one new process, whose exit code is the last one's; Spark's events go to `folder`/events."""
    shim = folder / "command.py"
    shim.write_text(COMMANDS)
    done = submit(shim, *map(json.dumps, commands), expect=expect, log=folder / "events", CUDA_VISIBLE_DEVICES="")
    assert "Traceback" not in done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("RAN ")]
    assert len(lines) == len(commands)
    return [Ran(*json.loads(line.removeprefix("RAN "))) for line in lines]


def command(
    demo: tuple[Path, subprocess.CompletedProcess[str]], data: Path, folder: Path, *arguments: str
) -> list[str]:
    caches = f"fineTuner.cacheDir={demo[0].parent / '.cache'}"  # the demo's, which spares the fit
    return ["finetune", *told(data, FEW, f"output.path={folder}", caches), *arguments]


def test_a_second_run_reuses_all(
    demo: tuple[Path, subprocess.CompletedProcess[str]],
    first: dict[str, Any],
    data: Path,
    spark: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """That it reads no source row: test_cache, and by night below."""
    run = demo[0]
    monkeypatch.chdir(ROOT)
    assert main(["finetune", *told(data, FEW, f"output.path={run}")]) == 0
    said = capsys.readouterr()
    second = summary(run)
    assert second["cache"] == first["summary"]["cache"] | {"hit": True}
    for name in ("metrics", "z", "p"):
        assert second[name] == first["summary"][name]
    assert (second["options"]["device"], second["device"], second["precision"]) == ("auto", "cpu", "float64")
    assert "device='auto'" not in said.out + said.err  # no GPU is here
    assert (run / "history.csv").read_text() == first["history"]
    assert "reused: the same pipeline" in said.err
    assert modified(run.parent / ".cache") == first["cached"]


def assert_refused(code: int, out: str, err: str, said: str) -> None:
    assert code == 2
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said in line
    assert "Traceback" not in out + err


def test_wrong_input_ends_with_2_and_leaves_nothing(
    demo: Any,
    data: Path,
    spark: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(ROOT)
    (tmp_path / "taken").mkdir()
    commands = [
        *((command(demo, data, tmp_path / "out", *arguments), said) for arguments, said in WRONG),
        (command(demo, data, tmp_path / "taken", "output.mode=error"), "exists"),
    ]
    for arguments, said in commands:
        code = main(arguments)
        assert_refused(code, *capsys.readouterr(), said)
    assert not (tmp_path / "out").exists()
    assert list((tmp_path / "taken").iterdir()) == []  # left alone
    assert not [p for p in (demo[0].parent / ".cache").iterdir() if p.name.startswith(".")]


@pytest.mark.nightly  # in the tests' process, on other models: test_plan_command, test_places (verify), test_difference (diff)
def test_the_command_plans_verifies_and_compares_saved_models(demo: Any, data: Path, tmp_path: Path) -> None:
    """In one new process, whose first command is the demo again: it reads no row of the source."""
    import yaml

    run, found = demo[0], summary(demo[0])
    schema = yaml.safe_load((ROOT / "conf" / "bikeshare.yaml").read_text())["data"]["train"]["schema"]
    csv = ["--format", "csv", "--options", json.dumps({"schema": schema, "header": "true"})]
    commands = [
        command(demo, data, tmp_path / "again"),
        *(command(demo, data, tmp_path / "out", *arguments) for arguments, _ in WRONG_TOO),
        ["plan", str(run), "--json"],  # a run's folder stands for its model
        ["verify", str(run), "--data", str(ROOT / "data" / "bikeshare.csv"), *csv],
        ["diff", found["parent"]["path"], str(run), "--json"],
        ["plan", str(tmp_path / "nowhere")],
        ["plan"],
        ["plan", str(run / "model"), "--strict"],
    ]
    again, *every = in_one_process(commands, tmp_path, expect=3)
    first_reads, _ = queries_over("bikeshare.csv", run.parent / "events")
    reads, queries = queries_over("bikeshare.csv", tmp_path / "events", again.begin, again.end)
    assert (again.code, reads) == (0, 0)
    assert first_reads > 0 and queries > 0
    for done, (_, said) in zip(every, WRONG_TOO, strict=False):
        assert_refused(done.code, done.out, done.err, said)
    assert not (tmp_path / "out").exists()
    every = every[len(WRONG_TOO) :]
    assert [r.code for r in every] == [0, 0, 0, 2, 2, 3]
    tuned = ["StandardScalerModel", "PCAModel", "GeneralizedLinearRegressionModel"]
    assert [s["stageClass"] for s in json.loads(every[0].out)["stages"] if s["trainable"]] == tuned
    assert "ok: 8,645 rows" in every[1].out
    differs = json.loads(every[2].out)
    assert [s["stageClass"] for s in differs["stages"] if s["what"] == "differs"] == tuned
    assert (differs["oldHash"], differs["newHash"]) == (found["parent"]["hash"], found["model"]["hash"])


@pytest.mark.nightly  # the same words and code, by the command: test_wrong_input_ends_with_2_and_leaves_nothing
def test_a_wrong_job_ends_with_2(tmp_path: Path, data: Path) -> None:
    done = job(data, f"output.path={tmp_path / 'out'}", "fineTuner.maxEpoch=5", expect=2)
    assert "Did you mean 'maxEpochs'" in done.stdout + done.stderr


@pytest.mark.nightly
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
