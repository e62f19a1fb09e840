"""The threshold of a LogisticRegression, trained on request by the cost of decisions."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRestModel
from pyspark.ml.evaluation import MulticlassClassificationEvaluator
from pyspark.ml.feature import Binarizer, Bucketizer, VectorAssembler
from pyspark.ml.functions import vector_to_array
from pyspark.sql import DataFrame, functions as F

import sparkdiff
from sparkdiff import InputError, jvm
from sparkdiff.evaluation.feature_names import entering
from sparkdiff.evaluation.model_differences import ParamDifference, between
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import analyse
from sparkdiff.pipeline.network import Network
from sparkdiff.store import files
from sparkdiff.training.distributed import launch
from tests.support.small_data import NUMBERS, tune

COSTS = {"costs": [[0.0, 1.0], [8.0, 0.0]]}
THRESHOLD = ["LogisticRegressionModel.threshold"]


@pytest.fixture(scope="module")
def rain(df: DataFrame) -> PipelineModel:
    stages = [
        VectorAssembler(inputCols=NUMBERS, outputCol="features"),
        LogisticRegression(labelCol="rain", regParam=0.1, maxIter=5),
    ]
    return Pipeline(stages=stages).fit(df)


def cost(model: PipelineModel, df: DataFrame) -> float:
    wrong = F.when(F.col("prediction") == F.col("rain"), 0.0).when(F.col("rain") == 1, 8.0).otherwise(1.0)
    return float(model.transform(df).agg(F.avg(wrong)).first()[0])  # type: ignore[index]


def test_it_moves_with_the_cost_of_decisions(rain: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path) -> None:
    plan = sparkdiff.plan(rain)
    assert plan.stages[1].numParameters == 5  # without what trains on request only
    found = tune(
        rain,
        df,
        shared,
        labelCol="rain",
        loss="cost",
        lossParams=COSTS,
        unfreeze=THRESHOLD,
        maxEpochs=15,
        learningRate=1e-2,
    )
    summary, old, new = found.summary, rain.stages[1], found.pipelineModel.stages[1]
    assert summary.decision == "tuned"
    assert summary.metric == "expectedCost"
    assert 0 < new.getThreshold() < 0.5  # a false alarm is cheap
    assert not old.isSet("threshold")
    assert old.getThreshold() == 0.5
    assert any(name.endswith(".threshold") for name in summary.stages)
    found.pipelineModel.save(f"{tmp_path}/model")
    loaded = PipelineModel.load(f"{tmp_path}/model")
    assert loaded.stages[1].getThreshold() == new.getThreshold()
    assert cost(loaded, df) < cost(rain, df)
    held = summary.metrics["validation"]
    assert held["after"] < held["before"]
    # All that is shown is of one margin: probability = sigmoid(margin), and the decision is by the new threshold.
    shown = loaded.transform(df).select(
        vector_to_array("rawPrediction")[1], vector_to_array("probability")[1], "prediction"
    )
    raw, p, prediction = np.array([tuple(r) for r in shown.collect()]).T
    assert np.allclose(p, 1 / (1 + np.exp(-raw)), rtol=0, atol=1e-12)
    assert np.array_equal(prediction, (raw > np.log(new.getThreshold() / (1 - new.getThreshold()))).astype(float))
    assert sparkdiff.verify(loaded, df).ok


def test_accuracy_may_choose(rain: PipelineModel, df: DataFrame, shared: Path) -> None:
    found = tune(
        rain,
        df,
        shared,
        labelCol="rain",
        loss="cost",
        lossParams={"costs": [[0.0, 1.0], [1.0, 0.0]]},
        metric="accuracy",
        unfreeze=THRESHOLD,
        maxEpochs=3,
    )
    best = MulticlassClassificationEvaluator(labelCol="rain", metricName="accuracy")
    assert best.evaluate(found.pipelineModel.transform(df)) >= best.evaluate(rain.transform(df)) - 0.02


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {},
            "loss='auto' does not depend on the threshold, which trains only on the cost of decisions: set loss='cost'",
        ),
        ({"loss": {"cost": 1.0, "logLoss": 1.0}, "lossParams": COSTS}, "does not depend on the threshold"),
        ({"loss": "cost", "lossParams": COSTS, "metric": "logLoss"}, "metric='logLoss' does not depend on decisions"),
    ],
)
def test_what_doesn_t_see_it_is_refused(
    rain: PipelineModel, df: DataFrame, shared: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        tune(rain, df, shared, labelCol="rain", unfreeze=THRESHOLD, **options)


def test_thresholds_of_both_classes_stay(rain: PipelineModel) -> None:
    last = rain.stages[1].copy()
    last._set(thresholds=[0.3, 0.7])
    both, uid = PipelineModel([rain.stages[0], last]), last.uid
    said = (
        rf"{uid} can't train it: thresholds is set: clear it with setThreshold\(0\.7\d*\) on the model, then unfreeze"
    )
    for name in ("threshold", "thresholds"):
        with pytest.raises(InputError, match=said):
            sparkdiff.plan(both, unfreeze=[f"{uid}.{name}"])
    assert "trains on request" not in sparkdiff.plan(both).stages[1].reason
    shown = sparkdiff.translate(both).head.decides_at
    last.setThreshold(shown)  # the way out
    assert sparkdiff.plan(both, unfreeze=THRESHOLD).stages[1].numParameters == 6
    with pytest.raises(InputError, match=r"without its stage. Did you mean 'LogisticRegressionModel\.threshold'\?"):
        sparkdiff.plan(both, unfreeze=["threshold"])
    assert sparkdiff.translate(both).head.decides_at == shown
    with pytest.raises(
        InputError,
        match=rf"{uid} can't train it: for two classes they are equivalent to one number, threshold: unfreeze that",
    ):
        sparkdiff.plan(both, unfreeze=[f"{uid}.thresholds"])
    last.setThreshold(1.0)
    with pytest.raises(
        InputError, match=rf"{uid} can't train it: at 1.0 all rows get the same class: set a threshold between"
    ):
        sparkdiff.plan(both, unfreeze=THRESHOLD)


def test_several_classes_have_none(df: DataFrame) -> None:
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="features")
    for label, family in (("kind", "auto"), ("rain", "multinomial")):
        last = LogisticRegression(labelCol=label, family=family, maxIter=1)
        model = Pipeline(stages=[assembler, last]).fit(df.limit(200))
        for name in ("threshold", "thresholds"):
            said = rf"{model.stages[1].uid} can't train it: each class has its own row of coefficients, and only these train"
            with pytest.raises(InputError, match=said):
                sparkdiff.plan(model, unfreeze=[f"LogisticRegressionModel.{name}"])
        assert "trains on request" not in sparkdiff.plan(model).stages[1].reason


def test_one_against_the_rest_decides_without_them(rain: PipelineModel) -> None:
    last = OneVsRestModel(models=[rain.stages[1], rain.stages[1].copy()])._set(classifier=LogisticRegression())
    assert "threshold" not in sparkdiff.plan(last).stages[0].reason
    with pytest.raises(InputError, match=rf"of {last.uid} are: none"):
        sparkdiff.plan(last, unfreeze=["OneVsRestModel.threshold"])


# Who asks for nothing gets nothing ------------------------------------------------------------------------------------


def test_no_param_moves_unasked(df: DataFrame) -> None:
    """Where all parameters move, only what Spark keeps in a model's data does."""
    model = Pipeline(
        stages=[
            Binarizer(inputCol="temp", outputCol="warm", threshold=0.3),
            Binarizer(inputCols=["wind", "hum"], outputCols=["windy", "humid"], thresholds=[0.1, 0.2]),
            Bucketizer(inputCol="hum", outputCol="bin", splits=[-np.inf, 0.0, np.inf]),
            Bucketizer(inputCols=["hum"], outputCols=["bins"], splitsArray=[[-np.inf, 0.0, 1.0, np.inf]]),
            VectorAssembler(inputCols=["warm", "windy", "humid", "bin", "bins", "wind"], outputCol="features"),
            LogisticRegression(labelCol="rain", threshold=0.4, maxIter=1),
        ]
    ).fit(df.limit(200))
    network = sparkdiff.translate(model)
    assert [name for name, _ in network.named_parameters()] == [
        "stages.5.coefficientMatrix",
        "stages.5.interceptVector",
    ]
    assert {name for name, _ in entering(network)} == {
        "temp",
        "wind",
        "hum",
    }  # features, though no parameter reads them yet
    with torch.no_grad():
        for p in network.parameters():
            p += 0.5
    new = sparkdiff.write_back(model, network)
    assert new.stages[5].intercept == model.stages[5].intercept + 0.5
    assert new.stages[:5] == model.stages[:5]
    assert jvm.defined_params(new.stages[5]) == jvm.defined_params(model.stages[5])


def test_what_was_unfrozen_goes_wherever_the_network_goes(rain: PipelineModel, df: DataFrame) -> None:
    graph = analyse(rain, Options(unfreeze=THRESHOLD)).graph
    network = Network(graph, list(graph.modules))
    untouched = sparkdiff.translate(rain)
    x = {
        c: torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(i))
        for i, c in enumerate(NUMBERS)
    }
    assert torch.equal(network(x)["probability"], untouched(x)["probability"])
    with torch.no_grad():
        network.head.threshold.fill_(0.2)
    copies = [network.clone(), pickle.loads(pickle.dumps(network.without_spark()))]
    copies.append(Network(graph, list(graph.modules)))
    copies[-1].load_state_dict(network.state_dict())
    values = network.given(x)
    for other in (network, *copies):
        shown, margin = other(x), other.margin(dict(values))
        assert torch.equal(shown["probability"], untouched(x)["probability"])
        assert torch.equal(shown["prediction"], (shown["probability"][:, 1] > 0.2).double())
        assert shown["prediction"].sum() - untouched(x)["prediction"].sum() > 0
        # What losses and metrics see decides likewise, and is shown likewise.
        assert torch.equal(other.head.decision(margin), shown["prediction"])
        assert torch.equal(other.head.decision_margin(margin) > 0, shown["prediction"] == 1)
        columns = dict(zip(other.head.shown, other.head.columns(margin), strict=True))
        assert torch.equal(columns["predictionCol"], shown["prediction"])
        torch.testing.assert_close(columns["probabilityCol"], shown["probability"], rtol=1e-12, atol=0)
    new = sparkdiff.write_back(rain, network.clone())
    assert new.stages[1].getThreshold() == 0.2
    assert new.stages[1].coefficientMatrix == rain.stages[1].coefficientMatrix
    assert new.stages[0] is rain.stages[0] and not rain.stages[1].isSet("threshold")
    with torch.no_grad():
        network.head.threshold.fill_(1.5)
    with pytest.raises(InputError, match=rf"{rain.stages[1].uid}: threshold must be from 0 to 1, but is 1.5"):
        sparkdiff.write_back(rain, network)


class Broken(launch.Checkpoints):
    """A training that ends in its third epoch, after a checkpoint."""

    calls = 0

    def __call__(self, training: Any) -> None:
        self.calls += 1
        if self.calls == 25:
            files.save(self.path, training.state())
            raise KeyboardInterrupt


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_processes_and_runs_that_go_on_change_nothing(
    rain: PipelineModel, df: DataFrame, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    given: dict[str, Any] = {
        "labelCol": "rain",
        "loss": "cost",
        "lossParams": COSTS,
        "unfreeze": THRESHOLD,
        "maxEpochs": 4,
        "guard": 1.0,
        "learningRate": 1e-2,
        "checkpointDir": str(tmp_path),
    }
    with monkeypatch.context() as patched:
        patched.setattr(launch, "Checkpoints", Broken)
        with pytest.raises(KeyboardInterrupt):
            tune(rain, df, shared, runId="broken", **given)
    resumed, whole = (
        tune(rain, df, shared, numProcesses=n, runId=run, **given) for n, run in ((1, "broken"), (processes, "whole"))
    )
    thresholds = [found.pipelineModel.stages[1].getThreshold() for found in (resumed, whole)]
    assert thresholds[0] != 0.5
    np.testing.assert_allclose(thresholds[1], thresholds[0], rtol=0, atol=1e-12 if processes > 1 else 0)
    whole.write().overwrite().save(f"{tmp_path}/tuned")
    loaded = sparkdiff.FineTunerModel.load(f"{tmp_path}/tuned")
    assert loaded.pipelineModel.stages[1].getThreshold() == thresholds[1]
    told = between(rain, loaded.pipelineModel, tmp_path).stages[1]
    assert told.params == (ParamDifference("threshold", ("default", 0.5), ("set", thresholds[1])),)
    # Another run starts at the new threshold; who doesn't ask leaves it there.
    more = tune(
        loaded.pipelineModel, df, shared, labelCol="rain", maxEpochs=2, guard=1.0, learningRate=1e-2
    ).pipelineModel.stages[1]
    assert more.getThreshold() == thresholds[1]
    assert more.coefficients != loaded.pipelineModel.stages[1].coefficients
