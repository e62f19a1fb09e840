"""What was made before is taken again only where it is known to be the same: fitted pipelines, trainings, finished jobs."""

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Estimator, Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRest
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.feature import SQLTransformer, StandardScaler, VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.ml.tuning import CrossValidator, ParamGridBuilder
from pyspark.sql import DataFrame, SparkSession

from sparkdiff import InputError
from sparkdiff.cli import starting, steps
from sparkdiff.cli.config import load_config
from sparkdiff.data.splits import Source
from sparkdiff.history import caches
from sparkdiff.options import Options
from sparkdiff.store.checkpoint_folder import NotResumable
from sparkdiff.store.identity import UnidentifiableError
from sparkdiff.store.lease import LeaseHeldError
from sparkdiff.store.model_digests import params_of
from tests.support.small_data import NUMBERS, tune

# Fitted pipelines -----------------------------------------------------------------------------------------------------


class Ridge(Estimator):  # type: ignore[type-arg]
    """An estimator of one's own, that can't be saved unfitted."""

    def __init__(self, regParam: float, inputs: list[str]) -> None:
        super().__init__()
        self.regParam, self.inputs = regParam, inputs

    def _fit(self, dataset: DataFrame) -> Any:
        assembler = VectorAssembler(inputCols=self.inputs, outputCol="assembled")
        linear = LinearRegression(featuresCol="assembled", labelCol="riders", regParam=self.regParam)
        return Pipeline(stages=[assembler, linear]).fit(dataset)


class Doubled(LinearRegression):
    """A stage of Spark's with code of one's own, which isn't saved."""


def of_spark(regParam: float = 0.0, **more: Any) -> Pipeline:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="assembled")
    return Pipeline(
        stages=[assembler, LinearRegression(featuresCol="assembled", labelCol="riders", regParam=regParam, **more)]
    )


def searched(regParam: float) -> Pipeline:
    linear = LinearRegression(featuresCol="assembled", labelCol="riders")
    grid = ParamGridBuilder().addGrid(linear.regParam, [0.0, regParam]).build()
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="assembled")
    return Pipeline(
        stages=[assembler, CrossValidator(estimator=linear, estimatorParamMaps=grid, evaluator=RegressionEvaluator())]
    )


def nested(regParam: float) -> Pipeline:
    return Pipeline(stages=[OneVsRest(classifier=LogisticRegression(regParam=regParam), labelCol="kind")])


def by_default_names() -> Pipeline:
    assembler = VectorAssembler(inputCols=NUMBERS)
    return Pipeline(stages=[assembler, StandardScaler(inputCol=assembler.getOutputCol())])


@contextlib.contextmanager
def elsewhere(spark: SparkSession) -> Iterator[None]:
    """In another time zone."""
    zone = str(spark.conf.get("spark.sql.session.timeZone"))
    spark.conf.set("spark.sql.session.timeZone", "Asia/Tokyo")
    try:
        yield
    finally:
        spark.conf.set("spark.sql.session.timeZone", zone)


@pytest.fixture
def fitted(df: DataFrame, folder: Path) -> Callable[[Pipeline], tuple[Any, str]]:
    def fit(pipeline: Pipeline) -> tuple[Any, str]:
        said: list[str] = []
        model, path = steps.fit_or_reuse(
            pipeline, [Source(df)], Options(cacheDir=str(folder), runId="mine"), said.append
        )
        assert path.exists()
        return model, said[-1]

    return fit


def test_a_pipeline_that_cannot_be_told_is_fitted_each_time(fitted: Callable[[Pipeline], tuple[Any, str]]) -> None:
    found = [fitted(Pipeline(stages=[Ridge(*told)])) for told in ((0.0, NUMBERS), (100.0, NUMBERS[:2]))]
    first, second = (model.stages[0].stages[1] for model, _ in found)
    assert (first.numFeatures, second.numFeatures) == (4, 2)
    assert all("not reused by other jobs: the code of Ridge_" in said for _, said in found)


def test_settings_of_the_session_are_part_of_the_key(
    spark: SparkSession, fitted: Callable[[Pipeline], tuple[Any, str]], folder: Path
) -> None:
    assert fitted(of_spark())[1].startswith("fitted 2 stages")
    assert fitted(of_spark())[1].startswith("reused")
    [made] = caches.entries(folder)
    assert (made.kind, made.run, made.uses) == (caches.FITTED, "mine", 2) and made.seconds > 0
    with elsewhere(spark):
        assert fitted(of_spark())[1].startswith("fitted 2 stages")


@pytest.mark.parametrize(
    ("made", "other"),
    [
        (of_spark, functools.partial(of_spark, 0.1)),
        (of_spark, functools.partial(of_spark, elasticNetParam=0.5)),
        (functools.partial(searched, 0.1), functools.partial(searched, 0.2)),
        (functools.partial(nested, 0.1), functools.partial(nested, 0.2)),
        (by_default_names, of_spark),
    ],
)
def test_params_tell_a_pipeline_of_sparks(
    spark: SparkSession, made: Callable[[], Any], other: Callable[[], Any]
) -> None:
    assert params_of(made()) == params_of(made()) != params_of(other())


@pytest.mark.parametrize(
    ("stage", "why"),
    [
        (lambda: Ridge(0.0, NUMBERS), "the code of Ridge_"),
        (lambda: Doubled(), "the code of Doubled_"),
        (lambda: OneVsRest(classifier=Doubled()), "the code of Doubled_"),
        (lambda: SQLTransformer(statement="SELECT *, f(a) FROM __THIS__"), "may call functions and read tables"),
    ],
)
def test_what_params_do_not_tell(spark: SparkSession, stage: Callable[[], Any], why: str) -> None:
    with pytest.raises(UnidentifiableError, match=why):
        params_of(Pipeline(stages=[Pipeline(stages=[stage()])]))


# Trainings ------------------------------------------------------------------------------------------------------------


def power(k: float) -> Callable[..., torch.Tensor]:
    return lambda outputs, label, weight: (outputs["prediction"] - label).abs() ** k


def test_a_run_belongs_to_one_loss(df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path) -> None:
    given = {"runId": "mine", "checkpointDir": str(tmp_path), "maxEpochs": 1, "metric": "absolute"}
    first = tune(numeric, df, shared, loss=power(2.0), **given)
    written = (tmp_path / "mine" / "state.pt").stat().st_mtime_ns
    again = tune(numeric, df, shared, loss=power(2.0), **given)
    assert again.summary.history.equals(first.summary.history)
    assert (tmp_path / "mine" / "state.pt").stat().st_mtime_ns == written  # it was returned
    with pytest.raises(InputError, match="runId='mine' was started with other loss"):
        tune(numeric, df, shared, loss=power(1.5), **given)


def test_a_run_of_a_loss_that_cannot_be_told(
    df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path
) -> None:
    lock = threading.Lock()

    def locked(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with lock:
            return (outputs["prediction"] - label) ** 2

    written = []
    for _ in range(2):
        with pytest.warns(NotResumable, match=r"its loss can't be told: \(an object of _thread.lock\)"):
            tune(numeric, df, shared, loss=locked, runId="mine", checkpointDir=str(tmp_path), maxEpochs=1)
        written.append((tmp_path / "mine" / "state.pt").stat().st_mtime_ns)
    assert written[0] < written[1]


def test_a_run_belongs_to_one_threshold(df: DataFrame, shared: Path, tmp_path: Path) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    unfitted = Pipeline(stages=[assembler, LogisticRegression(labelCol="rain", maxIter=3)])
    given: dict[str, Any] = {"runId": "mine", "checkpointDir": str(tmp_path), "maxEpochs": 1, "metric": "f1"}
    model = unfitted.fit(df)
    tune(model, df, shared, **given)
    written = (tmp_path / "mine" / "state.pt").stat().st_mtime_ns
    model.write().save(f"file://{tmp_path}/saved")
    tune(PipelineModel.load(f"file://{tmp_path}/saved"), df, shared, **given)
    assert (tmp_path / "mine" / "state.pt").stat().st_mtime_ns == written
    other = model.copy()
    other.stages[-1].setThreshold(0.3)
    with pytest.raises(InputError, match=r"stages.1 LogisticRegressionModel.threshold: 0.5, now 0.3"):
        tune(other, df, shared, **given)


# Two at a time --------------------------------------------------------------------------------------------------------

OWNER = """
import sys
from pathlib import Path
from sparkdiff.store.lease import hold_lease
with hold_lease(Path(sys.argv[1]), "runId='mine'"):
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def owner() -> Iterator[Callable[[Path], subprocess.Popen[str]]]:
    """Starts a process that holds a lease until it is ended."""
    begun: list[subprocess.Popen[str]] = []

    def start(path: Path) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        begun.append(subprocess.Popen([sys.executable, "-c", OWNER, str(path)], stdin=pipe, stdout=pipe, text=True))
        assert begun[-1].stdout is not None
        assert begun[-1].stdout.readline() == "held\n"
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_a_run_of_another_process(
    df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path, owner: Callable[[Path], subprocess.Popen[str]]
) -> None:
    other, given = owner(tmp_path / ".mine.lease"), {"runId": "mine", "checkpointDir": str(tmp_path), "maxEpochs": 1}
    with pytest.raises(LeaseHeldError, match=rf"runId='mine' is in use by process {other.pid} on .*waitForRun"):
        tune(numeric, df, shared, **given)
    threading.Timer(1.0, other.terminate).start()
    assert tune(numeric, df, shared, waitForRun=300, **given).summary.records
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


def test_who_loses_its_run_returns_nothing(df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path) -> None:
    """As after a suspension, in which another process has taken over."""
    lease = tmp_path / ".mine.lease"

    def overtaken(outputs: dict[str, torch.Tensor], label: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if lease.exists() and "another's" not in lease.read_text():
            os.unlink(lease)
            lease.write_text(
                '{"owner": "another\'s", "pid": 1, "host": "elsewhere", "begun": "today", "machine": null}'
            )
        return (outputs["prediction"] - label) ** 2

    with pytest.raises(LeaseHeldError, match=r"no longer belongs to this process.*process 1 on elsewhere"):
        tune(numeric, df, shared, loss=overtaken, runId="mine", checkpointDir=str(tmp_path), maxEpochs=2)
    assert (tmp_path / "mine").exists()
    assert not (tmp_path / "mine" / "state.pt").exists()


# Jobs -----------------------------------------------------------------------------------------------------------------


def test_only_equal_data_and_pipeline_reuse_a_finished_job(
    spark: SparkSession,
    table: pa.Table,
    numeric: PipelineModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    owner: Callable[[Path], subprocess.Popen[str]],
) -> None:
    def write(rows: pa.Table) -> None:
        pq.write_table(rows, tmp_path / "rows.parquet", coerce_timestamps="us")

    def job(*more: str) -> Any:
        told = [f"pipeline={tmp_path}/model", f"data.train={tmp_path}/rows.parquet", f"output={tmp_path}/run"]
        told += [
            "fineTuner.runId=mine",
            "fineTuner.maxEpochs=1",
            "fineTuner.verbosity=0",
            "fineTuner.rowsAreNew=true",
            f"fineTuner.cacheDir={tmp_path}/cache",
        ]
        return starting.run(load_config(None, [*told, *more]))

    numeric.write().save(f"file://{tmp_path}/model")
    write(table)
    first = job()
    trained: list[Any] = []
    fine_tune = steps.fine_tune
    monkeypatch.setattr(steps, "fine_tune", lambda *a, **k: trained.append(a) or fine_tune(*a, **k))
    assert job(f"tracking.jsonLines={tmp_path}/events.jsonl").metrics == first.metrics
    told = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in told] == ["phase", "phase", *["epoch"] * len(first.records), "decision"]
    assert job("fineTuner.waitForRun=1").metrics == first.metrics  # how it runs is no part of what it does
    (tmp_path / "run" / "README").touch()  # nothing is replaced, so what else is there doesn't matter
    assert job().metrics == first.metrics
    (tmp_path / "run" / "README").unlink()
    assert not trained
    part = next((tmp_path / "run" / "model" / "metadata").glob("part-*"))
    part.write_text("{")
    with pytest.raises(InputError, match="contains the finished run of runId='mine', but its model changed since"):
        job()
    assert not trained
    shutil.rmtree(tmp_path / "run" / "model")
    job("output.mode=overwrite")
    assert trained and PipelineModel.load(f"file://{tmp_path}/run/model").stages
    with elsewhere(spark), pytest.raises(InputError, match=r"settings.* changed since: choose another folder"):
        job()
    write(table.slice(0, 1000))
    with pytest.raises(InputError, match="contains the finished run of runId='mine', but its train changed since"):
        job()
    write(table)
    os.utime(tmp_path / "rows.parquet", ns=(0, 0))
    PipelineModel(
        [*numeric.stages, PipelineModel.load(f"file://{tmp_path}/model").stages[1].setOutputCol("once more")]
    ).write().overwrite().save(f"file://{tmp_path}/model")
    with pytest.raises(InputError, match="but its pipeline, train changed since"):
        job()
    with pytest.raises(InputError, match="runId='mine' was started with other"):
        job("output.mode=overwrite")
    other = owner(tmp_path / ".run.lease")
    with pytest.raises(LeaseHeldError, match=rf"output {tmp_path}/run is in use by process {other.pid} on"):
        job()


def test_a_finished_job_whose_sql_reads_tables_is_not_returned(spark: SparkSession, numeric: PipelineModel) -> None:
    """Its statement stays as it is while the table changes."""
    sql = SQLTransformer(statement="SELECT t.*, m.mean FROM __THIS__ t JOIN means m ON t.hour = m.hour")
    plain, joined = (
        steps.inputs_of([], made, "content")["pipeline"] for made in (numeric, PipelineModel([sql, numeric]))
    )
    assert plain == steps.inputs_of([], numeric, "content")["pipeline"]
    assert f"the statement of {sql.uid} (SQLTransformer) may call functions and read tables of the session" in joined
    assert joined != steps.inputs_of([], PipelineModel([sql, numeric]), "content")["pipeline"]
