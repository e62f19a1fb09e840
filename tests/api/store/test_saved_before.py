"""What an earlier version saved is loaded, and gone on with, by today's code.

`saved_before.tar.xz` holds what a user of commit 7088858 had on disk, before the modules were moved into rooms: a saved
FineTuner, FineTunerModels alone, in a pipeline and in a search, a cache, a training that had ended and one that was killed, a
job's folder, pickles, and a network's weights. `made_by.py` in it made them.
"""

import dataclasses
import hashlib
import io
import json
import pickle
import platform
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pyspark
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.tuning import CrossValidatorModel
from pyspark.ml.util import DefaultParamsReader
from pyspark.sql import DataFrame, SparkSession
from small_data import cached, same, weights

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel, FineTuningSummary
from sparkdiff.cli import DONE, main
from sparkdiff.store.digests import hash_of_folder

pytestmark = pytest.mark.once  # files of Spark 4.0

SCHEMA = "a DOUBLE, b DOUBLE, c DOUBLE, d DOUBLE, count DOUBLE, group INT"
OPTIONS: dict[str, Any] = {
    "groupCol": "group", "validationFraction": 0.75, "recipe": "thorough", "maxEpochs": 3, "learningRate": 0.01,
    "schedule": "cosine", "batchSize": 64, "stream": "arrow",
}  # fmt: skip
SPARK = "4.0.5"
"""The version that is part of the caches' fingerprints."""
TRAINED_BEFORE = -123.0
"""What the killed training's checkpoint says of the loss of its first epoch, so that one sees whether it was read."""


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder as it was left, with its own module on the path."""
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(Path(__file__).with_name("saved_before.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield folder
        sys.modules.pop("own", None)


@pytest.fixture(scope="module")
def rows(spark: SparkSession, before: Path) -> Iterator[DataFrame]:
    """The rows in memory, whose content decides the name of their cache, in the time zone of then."""
    zone = str(spark.conf.get("spark.sql.session.timeZone"))
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    yield spark.createDataFrame(pd.read_csv(before / "rows.csv", dtype={"group": "int32"}), SCHEMA)
    spark.conf.set("spark.sql.session.timeZone", zone)


@pytest.fixture(scope="module")
def tuned(spark: SparkSession, before: Path) -> FineTunerModel:
    return FineTunerModel.load((before / "tuned").as_uri())


def class_of(saved: Path) -> str:
    """The class that a saved stage's metadata name, by which Spark imports it."""
    (part,) = (saved / "metadata").glob("part-*")
    return str(json.loads(part.read_text())["class"])


LATER = {"device", "precision", "folds", "processes", "order"}
"""What a summary holds since then."""


def versions() -> dict[str, str]:
    found = {m.__name__: str(m.__version__) for m in (torch, pyspark, np, pyarrow, sparkdiff)}
    return found | {"python": platform.python_version(), "cpu": torch.backends.cpu.get_cpu_capability()}


OTHERS = {("6", "167", "1")}
"""Processors (family, model, stepping) with the instructions of then, on which the code of then ends in other last bits."""


def processor() -> tuple[str, ...]:
    """Family, model and stepping; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().partition("\n\n")[0].splitlines()
    except FileNotFoundError:
        return ()
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return tuple(told.get(name, "") for name in ("cpu family", "model", "stepping"))


def check_same_training(found: FineTunerModel, tuned: FineTunerModel, before: Path) -> None:
    """Weights and history are those of then: bit for bit on the same versions and processor, else up to rounding."""
    now, then = found.summary.history, tuned.summary.history
    rounding = 1e-7
    if versions() == json.loads((before / "versions.json").read_text()):
        rounding = 1e-13
        if processor() not in OTHERS:
            assert now.equals(then)
            assert same(found.pipelineModel, tuned.pipelineModel)
    pd.testing.assert_frame_equal(now, then, rtol=rounding)
    expected = weights(tuned.pipelineModel)
    for name, value in weights(found.pipelineModel).items():
        np.testing.assert_allclose(value, expected[name], rtol=rounding, atol=1e-12, err_msg=name)
    assert found.summary.decision == tuned.summary.decision == "tuned"


def test_a_tuner_is_loaded(spark: SparkSession, before: Path, tmp_path: Path) -> None:
    tuner = FineTuner.load((before / "tuner").as_uri())
    assert class_of(before / "tuner") == "sparkdiff.tuner.FineTuner"
    assert {p.name: tuner.getOrDefault(p) for p in tuner.params if tuner.isSet(p) and p.name != "pipeline"} == {
        "labelCol": "count", "loss": sys.modules["own"].pinball, "metric": "quantile", "metricParams": {"tau": 0.9},
        "maxEpochs": 7, "freeze": ["scaled"], "learningRates": {"PCAModel": 0.02}, "penalties": {"monotone": {"c": 1.0}},
        "guard": 0.05, "seed": 3,
    }  # fmt: skip
    assert len(tuner.getPipeline().getStages()) == 4
    within = Pipeline.load((before / "pipeline").as_uri()).getStages()[0]
    assert type(within) is FineTuner
    assert (within.uid, within.options()) == (tuner.uid, tuner.options())
    FineTuner(seed=3).save(str(tmp_path / "now"))
    assert class_of(tmp_path / "now") == "sparkdiff.FineTuner"
    by_name: Any = DefaultParamsReader.loadParamsInstance((tmp_path / "now").as_uri(), spark.sparkContext)
    assert (type(by_name), by_name.getSeed()) == (FineTuner, 3)


def test_a_tuned_model_is_loaded(rows: DataFrame, before: Path, tuned: FineTunerModel) -> None:
    stored = json.loads(next((before / "tuned" / "metadata").glob("part-*")).read_text())
    assert stored["class"] == "sparkdiff.tuner.FineTunerModel"
    assert tuned.uid == stored["uid"]
    assert dataclasses.asdict(tuned.summary).keys() - LATER == json.loads(stored["summary"]).keys()
    assert "decision: tuned" in str(tuned.summary)
    assert (tuned.getRecipe(), tuned.getMaxEpochs(), tuned.getRunId()) == ("thorough", 3, "whole")
    plain = PipelineModel.load((before / "tuned" / "pipelineModel").as_uri())
    within = PipelineModel.load((before / "holding").as_uri()).stages[0].stages[0]
    search = CrossValidatorModel.load((before / "searched").as_uri())
    assert type(search.bestModel) is FineTunerModel
    assert type(search.getEstimator()) is FineTuner
    assert same(tuned.pipelineModel, plain)
    assert same(within.pipelineModel, plain)
    found = [m.transform(rows).agg({"prediction": "sum"}).first()[0] for m in (plain, tuned, within)]
    assert found == [found[0]] * 3


def test_a_cache_is_read_and_training_is_the_same(rows: DataFrame, before: Path, tuned: FineTunerModel) -> None:
    """Which is also how a move of modules, or a rewriting, is seen to leave every bit of a training as it was."""
    found = FineTuner(tuned.originalModel, cacheDir=str(before / "caches"), **OPTIONS).fit(rows)
    assert len(found.summary.records) == 40  # ten candidates
    check_same_training(found, tuned, before)
    if rows.sparkSession.version == SPARK:
        assert found.summary.cache.items() >= {"hit": True, "fingerprint": tuned.summary.cache["fingerprint"]}.items()
        behind_formula = cached(PipelineModel.load((before / "formula").as_uri()), rows, before / "formulas")
        assert (
            behind_formula.hit
        )  # of the label's stage, too, which is sparkdiff's own, the saved bytes are those of then


def test_a_killed_training_goes_on(rows: DataFrame, before: Path, tuned: FineTunerModel) -> None:
    folder = before / "caches" / "checkpoints" / "half"
    head, _, content = (folder / "state.pt").read_bytes().partition(b"\n")
    assert head == b"sparkdiff checkpoint 1 " + hashlib.sha256(content).hexdigest().encode()
    state = torch.load(io.BytesIO(content), weights_only=True)
    assert (state["epoch"], state["step"], state["ended"]) == (2, 3, False)
    state["history"][10]["trainLoss"] = TRAINED_BEFORE
    out = io.BytesIO()
    torch.save(state, out)
    digest = hashlib.sha256(out.getvalue()).hexdigest().encode()
    (folder / "state.pt").write_bytes(b"sparkdiff checkpoint 1 " + digest + b"\n" + out.getvalue())
    found = FineTuner(tuned.originalModel, runId="half", cacheDir=str(before / "caches"), **OPTIONS).fit(rows)
    assert found.summary.records[10]["trainLoss"] == TRAINED_BEFORE
    found.summary.records[10]["trainLoss"] = tuned.summary.records[10]["trainLoss"]
    check_same_training(found, tuned, before)


def test_a_training_that_had_ended_is_returned(
    rows: DataFrame, before: Path, tuned: FineTunerModel, capsys: pytest.CaptureFixture[str]
) -> None:
    given = OPTIONS | {"cacheDir": str(before / "caches"), "verbosity": 1}
    found = FineTuner(tuned.originalModel, runId="whole", **given).fit(rows)
    assert "this run was already finished" in capsys.readouterr().err
    check_same_training(found, tuned, before)


def test_a_jobs_folder_is_read(spark: SparkSession, before: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = before / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert hash_of_folder(run / "model") == summary["model"]["hash"] == summary["parent"]["hash"]
    known = {f.name for f in dataclasses.fields(FineTuningSummary)}
    assert known - summary.keys() - LATER == {"records"}
    records: Any = pd.read_csv(run / "history.csv").to_dict("records")
    assert "kept original" in str(
        FineTuningSummary(**{k: v for k, v in summary.items() if k in known}, records=records)
    )
    assert main(["plan", "--json", str(run)]) == DONE
    found, saved = json.loads(capsys.readouterr().out), json.loads((run / "plan.json").read_text())
    assert saved == {key: found[key] for key in saved}  # keys may be added


def test_pickles_are_read(spark: SparkSession, before: Path, tuned: FineTunerModel) -> None:
    found = {p.stem: pickle.loads(p.read_bytes()) for p in before.glob("*.pickle")}
    assert (found["tuner"].getMaxEpochs(), found["tuner"].getLoss()) == (7, sys.modules["own"].pinball)
    assert found["summary"].history.equals(tuned.summary.history)
    assert found["summary"].asdict() == tuned.summary.asdict()
    assert str(found["plan"]) == str(sparkdiff.plan(tuned.originalModel))
    assert found["parity"].ok
    assert isinstance(found["error"], sparkdiff.InputError)


def test_a_networks_weights_are_read(spark: SparkSession, before: Path, tuned: FineTunerModel) -> None:
    network = sparkdiff.translate(tuned.originalModel)
    stored = torch.load(before / "network.pt", weights_only=True)
    assert all(torch.equal(value, stored[name]) for name, value in network.state_dict().items())
    network.load_state_dict(stored)
