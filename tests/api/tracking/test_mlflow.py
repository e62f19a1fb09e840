"""`sparkdiff.mlflow` against a store in SQLite: what a run holds, what is registered, and that nothing else is logged."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.regression import GeneralizedLinearRegression
from pyspark.sql import DataFrame

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel, Improver, InputError, Search
from sparkdiff.machine.autologging import pause_autologging
from tests.support.small_data import NUMBERS, QUICK, files

mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
pytest.importorskip("sqlalchemy", reason="MLflow's store needs it")
pytestmark = pytest.mark.filterwarnings("default")


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # MLflow makes a folder `mlruns` where it is
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("tests", artifact_location=f"file://{folder}/artifacts")
        mlflow.set_experiment("tests")
        yield mlflow.MlflowClient()
        sparkdiff.mlflow.autolog(disable=True)
        mlflow.set_tracking_uri(before)


@pytest.fixture
def runs(client: Any) -> Any:
    """The runs since the test began, the first one first."""
    experiment = client.get_experiment_by_name("tests").experiment_id
    known = {r.info.run_id for r in client.search_runs([experiment])}

    def new() -> list[Any]:
        found = client.search_runs([experiment], order_by=["attributes.start_time ASC"])
        return [r for r in found if r.info.run_id not in known]

    return new


@pytest.mark.nightly
def test_a_result_is_a_run_with_a_registered_challenger(
    client: Any, tuned_numeric: FineTunerModel, df: DataFrame, runs: Any, tmp_path: Path
) -> None:
    run_id = sparkdiff.mlflow.log(tuned_numeric, registeredModelName="riders")
    [run] = runs()
    assert run.info.run_id == run_id and run.info.status == "FINISHED" and mlflow.active_run() is None
    summary = tuned_numeric.summary
    assert run.data.params["maxEpochs"] == str(QUICK["maxEpochs"]) and "patience" not in run.data.params
    assert run.data.params["stages"].endswith("PCAModel, GeneralizedLinearRegressionModel")
    assert summary.metrics["validation"] is not None
    assert run.data.metrics["validation.poisson.after"] == summary.metrics["validation"]["after"]
    assert run.data.metrics["p"] == summary.p and run.data.metrics["gain"] == summary.gain
    curve = client.get_metric_history(run_id, "candidate0/validationMetric")
    assert [(m.step, m.value) for m in curve] == [
        (r["epoch"], r["validationMetric"]) for r in summary.records if r["candidate"] == 0
    ]
    assert {f.path for f in client.list_artifacts(run_id)} >= {"report.html", "plan.svg", "plan.txt", "summary.json"}
    told = json.loads(Path(client.download_artifacts(run_id, "summary.json", str(tmp_path))).read_text())
    assert told["decision"] == run.data.tags["sparkdiff.decision"] == "tuned"
    [rows] = run.inputs.dataset_inputs
    assert summary.cache["fingerprint"].startswith(rows.dataset.digest) and len(rows.dataset.digest) == 36
    version = client.get_model_version_by_alias("riders", "challenger")
    assert str(version.version) == "1" and version.tags["sparkdiff.modelHash"] == run.data.tags["sparkdiff.modelHash"]
    assert client.get_registered_model("riders").aliases.keys() == {"challenger"}
    info = mlflow.models.get_model_info("models:/riders@challenger")
    assert set(info.signature.inputs.input_names()) == set(NUMBERS)
    assert info.signature.outputs.input_names() == ["prediction"]
    assert info.saved_input_example_info is not None
    loaded = mlflow.spark.load_model("models:/riders@challenger")
    assert isinstance(loaded, PipelineModel)
    one, other = (m.transform(df).select("prediction").collect() for m in (loaded, tuned_numeric))
    assert one == other


@pytest.mark.nightly
def test_the_run_of_the_original_is_found_by_its_content(
    client: Any, tuned_numeric: FineTunerModel, shared: Path, df: DataFrame, runs: Any
) -> None:
    first = sparkdiff.mlflow.log(tuned_numeric)
    rows = df.sparkSession.read.option("versionAsOf", 12).parquet(files(df)[0])
    kept = FineTuner(tuned_numeric.pipelineModel, cacheDir=str(shared), guard=1e-9, **{**QUICK, "maxEpochs": 1}).fit(
        rows
    )
    assert kept.summary.decision == "kept original"
    [version] = kept.summary.cache["versions"]
    assert (version["split"], version["versionAsOf"]) == ("train", "12")
    with mlflow.start_run() as active:
        assert sparkdiff.mlflow.log(kept, registeredModelName="kept") == active.info.run_id
    second = client.get_run(active.info.run_id)
    assert json.loads(second.inputs.dataset_inputs[0].dataset.source)["versions"] == [version]
    assert second.data.tags["sparkdiff.decision"] == "kept original"
    assert second.data.tags["sparkdiff.parentRunId"] == first
    assert second.data.tags["sparkdiff.parentHash"] == second.data.tags["sparkdiff.modelHash"]
    assert not client.search_registered_models("name = 'kept'")
    sparkdiff.mlflow.log(kept, registeredModelName="kept", registerOriginal=True, alias="asked")
    assert client.get_registered_model("kept").aliases.keys() == {"asked"}


@pytest.fixture
def autologging(client: Any) -> Iterator[None]:
    """MLflow's own: a run for each call of an estimator's fit."""
    mlflow.pyspark.ml.autolog(log_models=False, log_datasets=False, silent=True)
    yield
    mlflow.pyspark.ml.autolog(disable=True)
    sparkdiff.mlflow.autolog(disable=True)


def test_a_fit_is_one_run_whatever_else_logs_by_itself(
    autologging: None, numeric: PipelineModel, shared: Path, df: DataFrame, runs: Any, client: Any
) -> None:
    head = GeneralizedLinearRegression(featuresCol="assembled", labelCol="riders", family="poisson", maxIter=2)
    pipeline = Pipeline(stages=[numeric.stages[0], head])
    tuner = FineTuner(pipeline, cacheDir=str(shared), **{**QUICK, "maxEpochs": 1})
    with pause_autologging():
        pipeline.fit(df)
        with pause_autologging():
            pass
        pipeline.fit(df)
    assert runs() == []
    pipeline.fit(df)
    assert len(runs()) == 1
    tuner.fit(df)  # which fits the pipeline
    [_, own] = runs()
    assert own.data.tags["estimator_name"] == "FineTuner" and "sparkdiff.decision" not in own.data.tags
    sparkdiff.mlflow.autolog(registeredModelName="each fit", registerOriginal=True)
    tuner.fit(df)
    [_, _, both] = runs()
    assert both.data.tags["estimator_name"] == "FineTuner" and both.data.tags["sparkdiff.decision"]
    assert "candidate0/validationMetric" in both.data.metrics
    assert client.get_model_version_by_alias("each fit", "challenger").run_id == both.info.run_id
    info = mlflow.models.get_model_info("models:/each fit@challenger")
    assert set(info.signature.inputs.input_names()) == {*NUMBERS} and info.saved_input_example_info is not None
    mlflow.pyspark.ml.autolog(disable=True)
    FineTuner(tuner.getPipeline(), cacheDir=str(shared), **{**QUICK, "maxEpochs": 1}).fit(df)
    [_, _, _, ours] = runs()
    assert ours.info.status == "FINISHED" and ours.info.run_name == "FineTuner" and ours.data.tags["sparkdiff.decision"]


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["search", "improver"])
def test_a_search_and_an_improvement_are_one_run_each(
    autologging: None, numeric: PipelineModel, shared: Path, df: DataFrame, runs: Any, client: Any, kind: str
) -> None:
    """Both fit dozens of Spark's estimators, some of them in threads."""
    head = GeneralizedLinearRegression(featuresCol="assembled", labelCol="riders", family="poisson", maxIter=3)
    pipeline = Pipeline(stages=[numeric.stages[0], head])
    if kind == "search":
        space = {head.regParam: [0.0, 0.1, 1.0], head.fitIntercept: [True, False]}
        estimator: Any = Search(
            pipeline, space=space, evaluator=RegressionEvaluator(labelCol="riders"), sampler="grid", parallelism=2
        )
        curve = "trials/rmse"
    else:
        estimator = Improver(
            numeric,
            arms=["refit", "finetune"],
            budget="60 passes",
            parallelism=2,
            baseline=False,
            cacheDir=str(shared),
            recipe="fast",
            maxEpochs=2,
            stream="arrow",
            rowsAreNew=True,
        )
        curve = "finetune0/candidate0/validationMetric"
    estimator.fit(df)
    assert len(runs()) == 1  # MLflow's own
    sparkdiff.mlflow.autolog()
    found = estimator.fit(df)
    [_, run] = runs()
    assert run.data.tags["sparkdiff.decision"] == found.summary.decision
    assert client.get_metric_history(run.info.run_id, curve)
    assert {"report.html", "summary.json", "plan.svg"} <= {f.path for f in client.list_artifacts(run.info.run_id)}


def test_a_server_that_is_gone_costs_a_warning_and_log_raises(
    client: Any, tuned_numeric: FineTunerModel, numeric: PipelineModel, shared: Path, df: DataFrame, monkeypatch: Any
) -> None:
    for name, value in {"MAX_RETRIES": 0, "TIMEOUT": 2}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{name}", str(value))
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("http://user:hunter2@127.0.0.1:9")
    try:
        with pytest.raises(mlflow.exceptions.MlflowException):
            sparkdiff.mlflow.log(tuned_numeric)
        sparkdiff.mlflow.autolog()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = FineTuner(numeric, cacheDir=str(shared), **{**QUICK, "maxEpochs": 1}).fit(df)
    finally:
        sparkdiff.mlflow.autolog(disable=True)
        mlflow.set_tracking_uri(before)
    assert found.summary.decision
    said = [str(w.message) for w in told if issubclass(w.category, RuntimeWarning)]
    for start in (
        "the callback Callback.on_phase failed",
        "the callback Callback.on_decision",
        "the fit could not be logged",
    ):
        assert any(text.startswith(start) for text in said), said
    assert not any("hunter2" in text for text in said)


def test_what_cannot_be_logged_is_said_before_anything_is(
    client: Any, tuned_numeric: FineTunerModel, runs: Any
) -> None:
    for given, options, message in (
        (tuned_numeric.pipelineModel, {}, "log takes what fit"),
        (tuned_numeric, {"alias": "Champion"}, "is not set here"),
        (tuned_numeric, {"data": 3}, "data"),
        (tuned_numeric.copy(), {"registeredModelName": "x"}, "needs a signature"),
    ):
        with pytest.raises(InputError, match=message):
            sparkdiff.mlflow.log(given, **options)
    with pytest.raises(InputError, match="is not set here"):
        sparkdiff.mlflow.autolog(alias="champion")
    assert runs() == []
