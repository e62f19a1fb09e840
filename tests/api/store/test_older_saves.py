"""What an earlier version saved names other modules and lacks what came later: both are made here, from what today's code saves.

Whether today's code goes on with what an earlier commit wrote, and finds the same bits, is what `tools/same_bits.py` asks.
"""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.evaluation import RegressionEvaluator
from pyspark.ml.tuning import CrossValidator, CrossValidatorModel
from pyspark.ml.util import DefaultParamsReader
from pyspark.sql import DataFrame, SparkSession
from small_data import pinball, predictions, same

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel

LATER = ("device", "precision", "folds", "processes", "order")
"""What a summary holds since it was first saved."""
MOVED = {
    "FineTuner": "tuner", "FineTunerModel": "tuner", "FineTuningSummary": "summary", "Plan": "planning",
    "StagePlan": "planning", "Parity": "parity", "InputError": "errors",
}  # fmt: skip
"""The module in which a class first was."""
Saved = Callable[[Any], str]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Saves a stage, then changes its files to those of the first version; where they are."""

    def save(stage: Any) -> str:
        folder = tmp_path / stage.uid
        stage.write().save(f"file://{folder}")
        for part in folder.rglob("metadata/part-*"):
            told = json.loads(part.read_text())
            package, _, name = told["class"].rpartition(".")
            if package == "sparkdiff":
                told["class"] = f"sparkdiff.{MOVED[name]}.{name}"
                summary = json.loads(told.get("summary", "{}"))
                if "summary" in told:
                    assert summary.keys() & {*LATER}
                    told["summary"] = json.dumps({k: v for k, v in summary.items() if k not in LATER})
                part.write_text(json.dumps(told))
                part.with_name(f".{part.name}.crc").unlink()
        return f"file://{folder}"

    return save


def test_a_tuner(spark: SparkSession, numeric: PipelineModel, saved: Saved, tmp_path: Path) -> None:
    tuner = FineTuner(pipeline=numeric, loss="small_data:pinball", maxEpochs=7, freeze=["scaled"], seed=3)
    tuner.save(f"file://{tmp_path}/now")
    (now,) = (tmp_path / "now" / "metadata").glob("part-*")
    assert json.loads(now.read_text())["class"] == "sparkdiff.FineTuner"
    path = saved(tuner)
    by_its_class = DefaultParamsReader.loadParamsInstance(path, spark.sparkContext)
    within = Pipeline.load(saved(Pipeline(stages=[tuner]))).getStages()[0]
    for found in (FineTuner.load(path), by_its_class, within):
        assert type(found) is FineTuner
        assert (found.uid, found.options()) == (tuner.uid, tuner.options())
        assert [s.uid for s in found.getPipeline().stages] == [s.uid for s in numeric.stages]


def test_a_tuned_model(tuned_numeric: FineTunerModel, df: DataFrame, saved: Saved) -> None:
    tuner = FineTuner(pipeline=tuned_numeric.originalModel)
    search = CrossValidator(estimator=tuner, estimatorParamMaps=[{}], evaluator=RegressionEvaluator(), numFolds=2)
    searched = search._copyValues(CrossValidatorModel(tuned_numeric, avgMetrics=[1.0], stdMetrics=[0.5]))
    for found in (
        FineTunerModel.load(saved(tuned_numeric)),
        PipelineModel.load(saved(PipelineModel([PipelineModel([tuned_numeric])]))).stages[0].stages[0],
        CrossValidatorModel.load(saved(searched)).bestModel,
    ):
        assert type(found) is FineTunerModel
        assert found.uid == tuned_numeric.uid
        assert same(found.pipelineModel, tuned_numeric.pipelineModel)
        was, now = tuned_numeric.summary.asdict(), found.summary.asdict()
        assert {k for k in was if now[k] != was[k]} <= {*LATER}
        assert found.summary.history.equals(tuned_numeric.summary.history)
        assert f"decision: {tuned_numeric.summary.decision}" in str(found.summary)
    assert (predictions(found, df) == predictions(tuned_numeric, df)).all()


def older(thing: Any) -> Any:
    """What comes of its pickle, if that names the classes as the first version did."""
    text = pickle.dumps(thing, protocol=0)  # in which a class is a line for its module and one for its name
    renamed = text
    for name, module in MOVED.items():
        renamed = renamed.replace(f"csparkdiff\n{name}\n".encode(), f"csparkdiff.{module}\n{name}\n".encode())
    assert renamed != text or isinstance(thing, Exception)  # errors still are where they were
    return pickle.loads(renamed)


def test_pickles(numeric: PipelineModel, tuned_numeric: FineTunerModel, df: DataFrame) -> None:
    tuner = older(FineTuner(maxEpochs=7, loss=pinball))
    assert (tuner.getMaxEpochs(), tuner.getLoss()) == (7, pinball)
    assert older(sparkdiff.plan(numeric)) == sparkdiff.plan(numeric)
    parity = sparkdiff.verify(numeric, df.limit(10))
    assert older(parity) == parity and parity.ok
    error = older(sparkdiff.InputError("no such column"))
    assert isinstance(error, sparkdiff.InputError) and str(error) == "no such column"
    summary = pickle.loads(pickle.dumps(tuned_numeric.summary))
    for name in LATER:
        vars(summary).pop(name, None)  # `order` is there only where there is one
    summary = older(summary)
    assert summary.history.equals(tuned_numeric.summary.history)
    assert {k for k, v in summary.asdict().items() if v != tuned_numeric.summary.asdict()[k]} <= {*LATER}


def test_a_networks_weights_have_the_names_under_which_they_were_saved(numeric: PipelineModel) -> None:
    assert set(sparkdiff.translate(numeric).state_dict()) == {
        "stages.1.std", "stages.1.mean", "stages.1.moves", "stages.2.pc", "stages.2.explainedVariance", "stages.3.coefficients",
        "stages.3.intercept",
    }  # fmt: skip
