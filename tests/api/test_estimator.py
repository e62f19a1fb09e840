"""FineTuner and FineTunerModel as a pyspark.ml Estimator and Model: Params, copies, saving, nested models."""

import dataclasses
import functools
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.ml import Model, Pipeline, PipelineModel
from pyspark.ml.tuning import CrossValidatorModel, TrainValidationSplitModel
from pyspark.sql import DataFrame, SparkSession
from torch import Tensor

import sparkdiff
from sparkdiff import FineTuner, FineTunerModel, Grower, InputError
from sparkdiff.options import Options
from tests.support.small_data import QUICK, Losses, pinball, predictions, same, tune, unfitted


def test_params_can_be_set_got_and_explained(numeric: PipelineModel) -> None:
    tuner = FineTuner(pipeline=numeric, maxEpochs=7)
    assert (tuner.getMaxEpochs(), tuner.getLearningRate(), tuner.getLabelCol()) == (7, 1e-3, None)
    assert tuner.setLearningRate(0.5).setFreeze("scaled") is tuner
    assert tuner.getLearningRate() == 0.5
    assert tuner.getFreeze() == ["scaled"]
    assert tuner.setParams(batchSize=np.int64(9), freeze=[numeric.stages[2]]) is tuner
    assert (tuner.getBatchSize(), tuner.getFreeze()) == (9, [numeric.stages[2].uid])
    assert tuner.getPipeline() is numeric
    options = {f.name for f in dataclasses.fields(sparkdiff.options.Options)}
    assert {p.name for p in tuner.params} == options | {"pipeline", "referenceData"}
    text = tuner.explainParams()
    for name in (*options, "pipeline"):
        assert f"{name}: " in text
    assert (
        "batchSize: rows per optimizer step, counted over all processes; rounded up to a multiple of 8 (default: 128, current: 9)"
        in text
    )
    assert all(hasattr(tuner, f"{verb}{n[0].upper()}{n[1:]}") for n in options for verb in ("get", "set"))
    assert FineTuner.setSeed.__doc__
    with pytest.raises(InputError, match="'maxEpochs' option must be a whole number"):
        tuner.setMaxEpochs("many")
    with pytest.raises(InputError, match=r"unknown option 'maxEpoch'. Did you mean .*'maxEpochs'"):
        FineTuner(pipeline=numeric, maxEpoch=3)
    assert tuner.getMaxEpochs() == 7
    with pytest.raises(InputError, match="FineTuner has no pipeline"):
        FineTuner().fit(None)


@pytest.mark.nightly
def test_params_of_one_fit(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    tuner = FineTuner(pipeline=numeric, cacheDir=str(shared), **QUICK)
    one = tuner.fit(df, {tuner.maxEpochs: 2, tuner.learningRate: 0.005})
    assert (len(one.summary.history), one.summary.options["learningRate"]) == (3, 0.005)
    assert tuner.getMaxEpochs() == QUICK["maxEpochs"]
    copied = tuner.copy({tuner.maxEpochs: 2, tuner.learningRate: 0.005})
    assert copied.uid == tuner.uid
    assert same(copied.fit(df).pipelineModel, one.pipelineModel)
    models = tuner.fit(df, [{tuner.maxEpochs: 1}, {tuner.maxEpochs: 3}])
    assert [len(m.summary.history) for m in models] == [2, 4]
    with pytest.raises(InputError, match="'maxEpochs'"):
        tuner.fit(df, {tuner.maxEpochs: 0})


def test_whatever_sets_a_param_checks_it(numeric: PipelineModel) -> None:
    tuner = FineTuner(pipeline=numeric)
    tuner.set(tuner.freeze, (numeric.stages[1],))
    tuner.set(tuner.maxEpochs, 3.0)
    copied = tuner.copy({tuner.target: "prediction", tuner.lossParams: {"delta": 1}, tuner.labelCol: None})
    assert (tuner.getFreeze(), repr(tuner.getMaxEpochs())) == ([numeric.stages[1].uid], "3")
    assert (copied.getTarget(), copied.getLossParams(), copied.getLabelCol()) == (["prediction"], {"delta": 1.0}, None)
    assert "freeze: stages whose parameters do not change" in copied.explainParam("freeze")
    for wrong in (
        lambda: tuner.set(tuner.maxEpochs, 0),
        lambda: tuner.setMaxEpochs(0),
        lambda: tuner.setParams(maxEpochs=0),
        lambda: tuner.copy({tuner.maxEpochs: 0}),
        lambda: FineTuner(maxEpochs=0),
    ):
        with pytest.raises(InputError, match=r"'maxEpochs' option must be in \[1, inf\). Got 0 instead"):
            wrong()
    with pytest.raises(InputError, match=r"'maxEpochs'.*; .*'loss'"):
        tuner.setParams(maxEpochs=0, loss="possion")  # all at once
    with pytest.raises(ValueError, match="does not belong"):
        tuner.set(FineTuner().maxEpochs, 3)
    assert repr(tuner.getMaxEpochs()) == "3"
    assert tuner.hasParam("learningRate")
    assert not tuner.hasParam("setParams")
    assert tuner.extractParamMap()[tuner.maxEpochs] == 3
    tuner.clear(tuner.freeze)
    assert tuner.getFreeze() == []


def test_a_copy_has_values_of_its_own(numeric: PipelineModel) -> None:
    tuner = FineTuner(pipeline=numeric, freeze=["scaled"], learningRates={"scaled": 0.1})
    copied = tuner.copy()
    copied.getFreeze().append("x")
    copied.getLearningRates()["x"] = 1.0
    copied.getTarget().append("x")  # a default
    copied.setMaxEpochs(3)
    assert (tuner.getFreeze(), tuner.getLearningRates(), tuner.getTarget()) == (["scaled"], {"scaled": 0.1}, [])
    assert (tuner.getMaxEpochs(), FineTuner().getTarget()) == (120, [])
    assert copied.getPipeline() is numeric


def test_what_holds_no_stage_can_be_pickled(tuned: FineTunerModel) -> None:
    tuner = pickle.loads(pickle.dumps(FineTuner(maxEpochs=3, loss=pinball, freeze=["scaled"])))
    assert (tuner.getMaxEpochs(), tuner.getLoss(), tuner.getFreeze()) == (3, pinball, ["scaled"])
    assert tuner.copy({tuner.maxEpochs: 4}).getMaxEpochs() == 4
    summary = pickle.loads(pickle.dumps(tuned.summary))
    assert (str(summary), summary.asdict()) == (str(tuned.summary), tuned.summary.asdict())
    assert summary.history.equals(tuned.summary.history)


def test_a_loss_may_be_given_by_its_name(df: DataFrame, numeric: PipelineModel, shared: Path) -> None:
    tuner = FineTuner(loss="tests.support.small_data:Losses.squared")
    assert tuner.getLoss() is Losses.squared
    assert Options.of({"loss": "tests.support.small_data:pinball"}) == Options.of({"loss": pinball})
    found = tune(numeric, df, shared, loss="tests.support.small_data:pinball", maxEpochs=1)
    assert (
        found.summary.metric == found.summary.options["loss"] == found.getLoss() == "tests.support.small_data:pinball"
    )
    for name in (
        "tests.support.small_data:gone",
        "gone:pinball",
        "tests.support.small_data:",
        ":pinball",
        ":",
        "a b:c",
    ):
        with pytest.raises(InputError, match=f"loss={name} can't be found"):
            FineTuner(loss=name)


@pytest.mark.nightly
def test_a_tuner_can_be_saved_and_loaded(df: DataFrame, numeric: PipelineModel, shared: Path, tmp_path: Path) -> None:
    tuner = FineTuner(
        pipeline=numeric,
        cacheDir=str(shared),
        freeze=("scaled",),
        lossParams={},
        learningRates={"PCAModel": 0.02},
        **QUICK,
    )
    tuner.write().save(f"file://{tmp_path}/tuner")
    loaded = FineTuner.load(f"file://{tmp_path}/tuner")
    assert loaded.uid == tuner.uid
    assert loaded.options() == tuner.options()
    assert {p.name for p in loaded.params if loaded.isSet(p)} == {p.name for p in tuner.params if tuner.isSet(p)}
    assert same(loaded.fit(df).pipelineModel, tuner.fit(df).pipelineModel)
    with pytest.raises(Exception, match="exist"):
        tuner.write().save(f"file://{tmp_path}/tuner")
    FineTuner(pipeline=unfitted(), seed=3).write().overwrite().save(f"file://{tmp_path}/tuner")
    again = FineTuner.load(f"file://{tmp_path}/tuner")
    assert isinstance(again.getPipeline(), Pipeline)
    assert len(again.getPipeline().getStages()) == 6
    assert (again.getSeed(), again.getFreeze()) == (3, [])
    with pytest.raises(InputError, match=r"holds a sparkdiff\.FineTuner, not a sparkdiff\.Grower"):
        Grower.load(f"file://{tmp_path}/tuner")
    with pytest.raises(InputError, match=r"holds a (pyspark\.ml\.|org\.apache\.)\S+, not a sparkdiff\.FineTuner"):
        FineTuner.load(f"file://{tmp_path}/tuner/pipeline")
    FineTuner(maxEpochs=2).save(str(tmp_path / "bare"))
    assert not FineTuner.load(str(tmp_path / "bare")).isSet("pipeline")


def test_sums_and_their_parameters_are_saved(spark: SparkSession, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "loss": {"logLoss": 1.0, "cost": 2.0},
        "lossParams": {"costs": [[0.0, 1.0], [5.0, 0.0]], "classWeights": "balanced"},
        "metric": "recallByLabel",
        "metricParams": {"metricLabel": 1.0},
        "penalties": {"parityGap": {"user": 2.0}},
    }
    tuner = FineTuner(**given)
    assert "recallByLabel" in tuner.explainParams()
    tuner.save(f"file://{tmp_path}/tuner")
    loaded = FineTuner.load(f"file://{tmp_path}/tuner")
    assert {name: loaded.getOrDefault(name) for name in given} == given
    assert loaded.options() == tuner.options()


@pytest.mark.parametrize("loss", [pinball, Losses.squared])
def test_a_loss_of_ones_own_is_saved_by_name(loss: Any, tmp_path: Path) -> None:
    tuner = FineTuner(loss=loss)
    tuner.save(str(tmp_path / "tuner"))
    assert FineTuner.load(str(tmp_path / "tuner")).getLoss() is loss
    metadata = "".join(p.read_text() for p in (tmp_path / "tuner" / "metadata").glob("part-*"))
    assert f"tests.support.small_data:{loss.__qualname__}" in metadata


class Callables:
    def __call__(self, outputs: dict[str, Tensor], label: Tensor, weight: Tensor) -> Tensor:
        return pinball(outputs, label, weight)


def test_a_loss_without_a_name_cannot_be_saved(tmp_path: Path) -> None:
    def local(outputs: Any, label: Any, weight: Any) -> Any:
        return label

    for i, loss in enumerate((lambda outputs, label, weight: label, local, Callables(), functools.partial(pinball))):
        with pytest.raises(InputError, match="cannot be saved: define it as a function at the top level of a module"):
            FineTuner(loss=loss).save(str(tmp_path / f"tuner-{i}"))
        assert not (tmp_path / f"tuner-{i}").exists()


def test_a_loss_that_is_gone_is_an_error_that_says_so(tmp_path: Path) -> None:
    FineTuner(loss=pinball).save(str(tmp_path / "tuner"))
    part = next((tmp_path / "tuner" / "metadata").glob("part-*"))
    part.write_text(part.read_text().replace(":pinball", ":gone"))
    (part.parent / f".{part.name}.crc").unlink()
    with pytest.raises(InputError, match=r"loss=.*:gone can't be found"):
        FineTuner.load(str(tmp_path / "tuner"))


def test_a_tuned_model_can_be_saved_and_loaded(df: DataFrame, tuned: FineTunerModel, tmp_path: Path) -> None:
    tuned.write().save(f"file://{tmp_path}/tuned")
    loaded = FineTunerModel.load(f"file://{tmp_path}/tuned")
    assert loaded.uid == tuned.uid
    assert same(loaded.pipelineModel, tuned.pipelineModel)
    assert same(loaded.originalModel, tuned.originalModel)
    assert str(loaded.summary) == str(tuned.summary)
    assert loaded.summary.asdict() == tuned.summary.asdict()
    assert loaded.summary.history.equals(tuned.summary.history)
    np.testing.assert_array_equal(predictions(loaded, df), predictions(tuned, df))
    for folder in ("tuned", "tuned/pipelineModel"):  # without sparkdiff
        plain = PipelineModel.load(f"file://{tmp_path}/{folder}")
        assert [s.uid for s in plain.stages] == [s.uid for s in tuned.pipelineModel.stages]
        assert same(plain, tuned.pipelineModel)
    kept = FineTunerModel(
        tuned.originalModel, tuned.originalModel, dataclasses.replace(tuned.summary, decision="kept original")
    )
    kept.write().save(f"file://{tmp_path}/kept")
    again = FineTunerModel.load(f"file://{tmp_path}/kept")
    assert again.pipelineModel is again.originalModel


def test_a_model_shows_its_decision_and_the_way_on(tuned: FineTunerModel) -> None:
    assert repr(tuned).startswith("<FineTunerModel: tuned, poisson ") and repr(tuned).endswith("is plain Spark ML>")
    assert str(tuned) == f"{tuned.summary}\n" + (
        "pipelineModel.write().save(path) saves the plain pipeline; summary.toHTML(path) writes the report"
    )
    assert "<strong>decision: tuned" in (tuned._repr_html_() or "")
    kept = dataclasses.replace(tuned.summary, decision="kept original")
    model = FineTunerModel(tuned.originalModel, tuned.originalModel, kept)
    assert repr(model).endswith("is the original>") and "pipelineModel is the original itself;" in str(model)


def test_transform_is_the_pipelines(df: DataFrame, tuned: FineTunerModel) -> None:
    np.testing.assert_array_equal(predictions(tuned, df), predictions(tuned.pipelineModel, df))
    copied = tuned.copy()
    assert copied is not tuned
    assert copied.uid == tuned.uid
    assert copied.pipelineModel is tuned.pipelineModel
    assert copied.summary is tuned.summary


def test_a_model_keeps_the_params_of_its_fit(df: DataFrame, tuned: FineTunerModel) -> None:
    assert isinstance(tuned, Model)
    assert (tuned.getMaxEpochs(), tuned.getLearningRate(), tuned.getLoss()) == (8, QUICK["learningRate"], "auto")
    assert tuned.isSet("maxEpochs")
    assert not tuned.isSet("seed")
    assert not tuned.hasParam("pipeline")
    assert "maxEpochs: largest number of epochs (default: 120, current: 8)" in tuned.explainParams()
    copied = tuned.copy({tuned.maxEpochs: 9})
    assert (copied.getMaxEpochs(), tuned.getMaxEpochs()) == (9, 8)
    assert copied.pipelineModel is tuned.pipelineModel


def test_transform_takes_params_of_the_stages(df: DataFrame, tuned: FineTunerModel) -> None:
    head = tuned.pipelineModel.stages[-1]
    other = tuned.transform(df, {head.predictionCol: "expected", FineTuner().maxEpochs: 3})
    assert "expected" in other.columns
    assert "prediction" not in other.columns
    assert "prediction" in tuned.transform(df).columns
    expected = tuned.pipelineModel.transform(df, {head.predictionCol: "expected"})
    assert other.select("expected").toPandas().equals(expected.select("expected").toPandas())
    inside = PipelineModel([tuned]).transform(df, {head.predictionCol: "expected"})
    assert "expected" in inside.columns
    copied = tuned.copy({head.predictionCol: "expected"})
    assert (copied.uid, copied.pipelineModel.uid) == (tuned.uid, tuned.pipelineModel.uid)


def test_plain(df: DataFrame, numeric: PipelineModel, tuned: FineTunerModel) -> None:
    assert sparkdiff.plain(tuned) is tuned.pipelineModel
    assert sparkdiff.plain(numeric) is numeric
    outer = PipelineModel([PipelineModel([tuned]), numeric.stages[0]])
    found = sparkdiff.plain(outer)
    assert found.uid == outer.uid
    assert found.stages[0].uid == outer.stages[0].uid
    assert found.stages[0].stages == [tuned.pipelineModel]
    assert found.stages[1] is numeric.stages[0]
    assert outer.stages[0].stages == [tuned]  # the argument is untouched
    searched = CrossValidatorModel(tuned, [1.0, 2.0], subModels=[[tuned, outer]])
    best = sparkdiff.plain(searched)
    assert type(best) is CrossValidatorModel
    assert best.uid == searched.uid
    assert best.bestModel is tuned.pipelineModel
    assert best.avgMetrics == [1.0, 2.0]
    assert best.subModels[0][0] is tuned.pipelineModel
    assert searched.bestModel is tuned
    np.testing.assert_array_equal(predictions(best, df), predictions(tuned, df))
    for model in (CrossValidatorModel(outer, [1.0]), TrainValidationSplitModel(tuned, [1.0])):  # without sub-models
        found = sparkdiff.plain(PipelineModel([model])).stages[0]
        assert (type(found), found.uid, found.subModels) == (type(model), model.uid, None)
        assert found.bestModel is not model.bestModel
    untouched = CrossValidatorModel(numeric, [1.0], subModels=[[numeric]])
    assert sparkdiff.plain(untouched) is untouched


@pytest.mark.nightly
def test_a_tuned_model_can_be_tuned_again(df: DataFrame, tuned_numeric: FineTunerModel, shared: Path) -> None:
    first = tuned_numeric
    second = tune(first, df, shared, maxEpochs=2)
    assert second.originalModel is first.pipelineModel
    assert second.summary.metrics["validation"]["before"] == pytest.approx(first.summary.metrics["validation"]["after"])
