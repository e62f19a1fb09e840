"""Each known way to be wrong about these predictors, and any change of a parameter however small, gets noticed."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from pyspark.ml.classification import (
    FMClassifier,
    LinearSVC,
    LogisticRegression,
    MultilayerPerceptronClassifier,
    NaiveBayes,
    OneVsRestModel,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import AFTSurvivalRegression, FMRegressor, IsotonicRegression
from pyspark.sql import SparkSession
from torch import Tensor

import sparkdiff
from sparkdiff import jvm
from sparkdiff.jvm import mllib
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.bayes import Bernoulli, Complement, Gaussian, Multinomial
from sparkdiff.stages.factorization_machine import FactorizationMachine, FMClassification
from sparkdiff.stages.isotonic import IsotonicRegression as Curve
from sparkdiff.stages.one_vs_rest import OneVsRest
from sparkdiff.stages.perceptron import MultilayerPerceptron
from sparkdiff.stages.support_vector import LinearSVC as SupportVectors
from sparkdiff.stages.survival import AFTSurvivalRegression as Survival
from sparkdiff.tensors.rows import dense
from sparkdiff.testing import LawBroken, check_stage
from tests.support.changed_entries import MOVED, Outputs
from tests.support.stages_and_rows import sparse

WIDTH = 3
random = np.random.default_rng(2)
W = random.normal(size=(4, WIDTH))
LINEAR = {"intercept": 0.3, "linear": W[0], "factors": W[1:3].T}


def logs(*shape: int) -> np.ndarray:
    shares = random.random(shape) + 0.1
    return np.log(shares / shares.sum(-1, keepdims=True))


def bayes(kind: str, theta: np.ndarray, sigma: np.ndarray | None = None) -> Any:
    none = np.empty((0, 0))
    return jvm.model_with_weights(
        NaiveBayes(modelType=kind), {"pi": logs(3), "theta": theta, "sigma": none if sigma is None else sigma}
    )


def logistic(w: np.ndarray, b: float) -> Any:
    weights = {"coefficientMatrix": w[None], "interceptVector": np.array([b]), "numClasses": 2, "isMultinomial": False}
    return jvm.model_with_weights(LogisticRegression(), weights)


def one_vs_rest() -> Any:
    models = [logistic(w, b) for w, b in zip(W, (0.1, -0.2, 0.3), strict=False)]
    return OneVsRestModel(models=models)._set(classifier=LogisticRegression())


def curve(spark: SparkSession, falls: bool) -> Any:
    base = IsotonicRegression().fit(spark.createDataFrame([(0.0, 0.0), (1.0, 1.0)], ["features", "label"]))
    steps = np.array([-1.0, 0.5, 0.5, 4.0])
    made = mllib.isotonic(base, np.array([0.2, 1.0, 1.5, 2.5]), -steps if falls else steps, not falls)
    return made.copy({made.featureIndex: 1, made.isotonic: not falls})


STAGES: dict[str, Callable[[SparkSession], Any]] = {
    "SVC": lambda spark: jvm.model_with_weights(LinearSVC(threshold=0.8), {"coefficients": W[0], "intercept": 0.3}),
    "multinomial": lambda spark: bayes("multinomial", theta=logs(3, WIDTH)),
    "complement": lambda spark: bayes("complement", theta=-logs(3, WIDTH)),
    "bernoulli": lambda spark: bayes("bernoulli", theta=np.log(random.uniform(0.1, 0.9, (3, WIDTH)))),
    "gaussian": lambda spark: bayes("gaussian", theta=W[:3], sigma=random.random((3, WIDTH)) + 0.2),
    "perceptron": lambda spark: jvm.model_with_weights(
        MultilayerPerceptronClassifier(layers=[WIDTH, 2, 3]), {"weights": random.normal(size=2 * (WIDTH + 1) + 9)}
    ),
    "FM": lambda spark: jvm.model_with_weights(FMRegressor(factorSize=2), LINEAR),
    "FM of classes": lambda spark: jvm.model_with_weights(FMClassifier(factorSize=2, thresholds=[0.7, 0.2]), LINEAR),
    "AFT": lambda spark: jvm.model_with_weights(
        AFTSurvivalRegression(quantilesCol="quantiles", quantileProbabilities=[0.1, 0.9]),
        {"coefficients": W[0] / 2, "intercept": 0.3, "scale": 0.7},
    ),
    "rising": lambda spark: curve(spark, False),
    "falling": lambda spark: curve(spark, True),
    "one against the rest": lambda spark: one_vs_rest(),
}


@pytest.fixture(scope="module")
def made(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outputs]:
    """A stage's outputs by Spark on ordinary rows, computed once."""
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=WIDTH)))
    numbers = random.uniform(0, 3, size=(40, WIDTH)) * random.integers(0, 2, size=(40, WIDTH))
    found: dict[str, Outputs] = {}

    def of(name: str) -> Outputs:
        if name not in found:
            rows = bits if name == "bernoulli" else numbers
            data = [(Vectors.dense(v) if i % 3 else sparse(v),) for i, v in enumerate(rows)]
            df = spark.createDataFrame(data, ["features"]).coalesce(1)
            found[name] = Outputs(STAGES[name](spark), df, tmp_path_factory.mktemp("rows"))
        return found[name]

    return of


@pytest.mark.parametrize("name", STAGES)
def test_every_change_is_seen(made: Callable[[str], Outputs], name: str) -> None:
    outputs = made(name)
    assert outputs.ok(outputs.network)
    changes = list(outputs.changes())
    assert len(changes) >= WIDTH
    for parameter, entry, network in changes:
        assert outputs.moved(network) > MOVED, f"the rows don't exercise {parameter}{list(entry)}"
        assert not outputs.ok(network), f"{parameter}{list(entry)} changed, and parity is still ok"


# The traps ------------------------------------------------------------------------------------------------------------


def wrong_order(self: MultilayerPerceptron, i: int) -> tuple[Tensor, Tensor]:
    matrix, bias = self.get_parameter(f"matrix{i}"), self.get_parameter(f"bias{i}")
    return matrix.T.reshape(matrix.shape), bias  # as if Spark kept it row by row


def sigmoid_of_twice(self: FMClassification, margin: Tensor) -> tuple[Tensor, Tensor]:
    one = torch.sigmoid(2 * margin)
    return torch.stack([-margin, margin], 1), torch.stack([1 - one, one], 1)


def no_clamp(self: Curve, x: Any, nulls: Any = None) -> Tensor:
    b, y, at = (
        self.boundaries,
        self.predictions,
        torch.searchsorted(self.boundaries, dense(x)[:, 1].contiguous()).clamp(1, 3),
    )
    return y[at - 1] + (y[at] - y[at - 1]) * (dense(x)[:, 1] - b[at - 1]) / (b[at] - b[at - 1])


def steps(self: Curve, x: Any, nulls: Any = None) -> Tensor:
    return self.predictions[torch.searchsorted(self.boundaries, dense(x)[:, 1].contiguous()).clamp(0, 3)]


def shape_is_scale(self: Survival, margin: Tensor) -> tuple[Tensor, ...]:
    time = torch.exp(margin[:, 0])
    return time, time[:, None] * torch.exp(torch.log(-torch.log(1 - self.quantiles)) / torch.exp(margin[:, 1:2]))


def survival_to_quantile(self: Survival, margin: Tensor) -> tuple[Tensor, ...]:
    time = torch.exp(margin[:, 0])
    return time, time[:, None] * (-torch.log(self.quantiles)) ** torch.exp(margin[:, 1:2])


def other_side(self: OneVsRest, margin: Tensor) -> Tensor:
    return -margin[:, : self.classes]


def softmaxed(self: OneVsRest, margin: Tensor) -> Tensor:
    return torch.softmax(margin[:, : self.classes], 1)


def without_half(self: FactorizationMachine, x: Any) -> Tensor:
    x = dense(x)
    total, squares = x @ self.factors, (x * x) @ (self.factors * self.factors)
    return self.intercept + x @ self.linear + (total * total - squares).sum(1)


def with_squares(self: FactorizationMachine, x: Any) -> Tensor:
    x = dense(x)
    return self.intercept + x @ self.linear + 0.5 * ((x @ self.factors) ** 2).sum(1)


TRAPS: dict[str, tuple[str, type, str, Any]] = {
    "SVC: a threshold of the probability": (
        "SVC",
        SupportVectors,
        "decision",
        lambda self, m: (torch.sigmoid(m) > self.threshold).to(m.dtype),
    ),
    "SVC: no threshold": ("SVC", SupportVectors, "decision", lambda self, m: (m > 0).to(m.dtype)),
    "multinomial without pi": ("multinomial", Multinomial, "margin", lambda self, x: dense(x) @ self.theta.T),
    "bernoulli as multinomial": ("bernoulli", Bernoulli, "margin", lambda self, x: dense(x) @ self.theta.T + self.pi),
    "bernoulli without log(1 - p)": (
        "bernoulli",
        Bernoulli,
        "margin",
        lambda self, x: dense(x) @ (self.theta - torch.log1p(-self.theta.exp())).T + self.pi,
    ),
    "complement with pi": (
        "complement",
        Complement,
        "margin",
        lambda self, x: torch.log_softmax(dense(x) @ self.theta.T + self.pi, 1),
    ),
    "complement not normalised": ("complement", Complement, "margin", lambda self, x: dense(x) @ self.theta.T),
    "gaussian without log-variances": (
        "gaussian",
        Gaussian,
        "margin",
        lambda self, x: self.pi - self._squares(dense(x)) / 2,
    ),
    "gaussian with standard deviations": (
        "gaussian",
        Gaussian,
        "_squares",
        lambda self, x: (((x[:, None] - self.theta) / self.sigma) ** 2).sum(2),
    ),
    "perceptron row by row": ("perceptron", MultilayerPerceptron, "layer", wrong_order),
    "perceptron raw behind the softmax": (
        "perceptron",
        MultilayerPerceptron,
        "raw_and_probability",
        lambda self, m: (m.softmax(1), m.softmax(1)),
    ),
    "FM without the half": ("FM", FactorizationMachine, "margin", without_half),
    "FM with each feature's own square": ("FM", FactorizationMachine, "margin", with_squares),
    "FM: sigmoid of 2 m": ("FM of classes", FMClassification, "raw_and_probability", sigmoid_of_twice),
    "FM: thresholds ignored": (
        "FM of classes",
        FMClassification,
        "label",
        lambda self, raw, probability: raw.argmax(1),
    ),
    "AFT: shape and scale": ("AFT", Survival, "columns", shape_is_scale),
    "AFT: quantiles of the other end": ("AFT", Survival, "columns", survival_to_quantile),
    "a curve beyond its ends": ("rising", Curve, "margin", no_clamp),
    "a curve of steps": ("falling", Curve, "margin", steps),
    "featureIndex ignored": ("rising", Curve, "_feature", lambda self, x: dense(x)[:, 0]),
    "one against the rest: raw of class 0": ("one against the rest", OneVsRest, "class_scores", other_side),
    "one against the rest: softmax": ("one against the rest", OneVsRest, "class_scores", softmaxed),
}


@pytest.mark.parametrize("trap", TRAPS)
def test_a_planted_trap_is_seen(made: Callable[[str], Outputs], monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    name, module, method, wrong = TRAPS[trap]
    outputs = made(name)
    assert outputs.ok(outputs.network)
    monkeypatch.setattr(module, method, wrong)
    assert not outputs.ok(outputs.network)


def test_check_stage_sees_one(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    df = spark.createDataFrame(
        [(Vectors.dense(1.0, 0.5, 2.0),), (Vectors.dense(0.0, 0.0, 0.0),)], ["features"]
    ).coalesce(1)
    monkeypatch.setattr(FMClassification, "raw_and_probability", sigmoid_of_twice)
    with pytest.raises(LawBroken, match="breaks parity: 'probability' row 0"):
        check_stage(STAGES["FM of classes"](spark), df)
    monkeypatch.setattr(
        SupportVectors, "columns", lambda self, m: (torch.stack([-m, m], 1), torch.sigmoid(m), self.decision(m))
    )
    with pytest.raises(LawBroken, match="returns 3 columns; Spark writes rawPrediction, prediction"):
        check_stage(STAGES["SVC"](spark), df)


WRITES: dict[str, tuple[str, type, str, Any]] = {
    "the perceptron's matrices row by row": (
        "perceptron",
        MultilayerPerceptron,
        "to_spark",
        lambda self, stage: jvm.rebuild(
            stage,
            {"weights": np.concatenate([p.detach().numpy().ravel() for i in range(self.depth) for p in self.layer(i)])},
        ),
    ),
    "models forgotten": (
        "one against the rest",
        OneVsRest,
        "to_spark",
        lambda self, stage: jvm.with_uid(type(stage)(models=stage.models), stage),
    ),
    "models without their Params": (
        "one against the rest",
        OneVsRest,
        "to_spark",
        lambda self, stage: type(stage)(
            models=[m.to_spark(of) for m, of in zip(self._models(), stage.models, strict=True)]
        )._resetUid(stage.uid),
    ),
}


@pytest.mark.parametrize("trap", WRITES)
def test_a_wrong_way_back_is_seen(spark: SparkSession, monkeypatch: pytest.MonkeyPatch, trap: str) -> None:
    name, module, method, wrong = WRITES[trap]
    df = spark.createDataFrame([(Vectors.dense(1.0, 0.5, 2.0),)], ["features"]).coalesce(1)
    stage = STAGES[name](spark)
    monkeypatch.setattr(module, method, wrong)
    with pytest.raises(LawBroken, match=r"breaks (get-put|put-get|parity)"):
        check_stage(stage, df)


# What tolerance at a boundary would hide ------------------------------------------------------------------------------


def test_on_the_threshold(spark: SparkSession) -> None:
    """Strictly above it is class 1; each margin is a sum of halves, so that both sides' are exact."""
    df = spark.createDataFrame([(Vectors.dense(v),) for v in ([0.5], [0.0], [1.0], [np.nan])], ["features"]).coalesce(1)
    column = torch.tensor([[0.5], [0.0], [1.0], [np.nan]], dtype=torch.float64)
    for stage in (
        jvm.model_with_weights(LinearSVC(threshold=0.5), {"coefficients": np.ones(1), "intercept": 0.0}),
        jvm.model_with_weights(
            FMClassifier(factorSize=1), {"intercept": -0.5, "linear": np.ones(1), "factors": np.zeros((1, 1))}
        ),
        OneVsRestModel(models=[logistic(np.ones(1), 0.0), logistic(np.zeros(1), 0.5)])._set(
            classifier=LogisticRegression()
        ),
    ):
        spark_s = [r.prediction for r in stage.transform(df).select("prediction").collect()]
        assert sparkdiff.translate(stage)({"features": column})["prediction"].tolist() == spark_s


# Settings that keep a stage in Spark ----------------------------------------------------------------------------------


def reason(stage: Any) -> str:
    [planned] = sparkdiff.plan(stage).stages
    assert planned.role == "referenced"
    return planned.reason


def test_reasons(spark: SparkSession) -> None:
    theta = np.array([[0.0, -np.inf, -1.0], [-1.0, -2.0, -0.5]])
    zero = jvm.model_with_weights(
        NaiveBayes(smoothing=0.0), {"pi": np.log([0.5, 0.5]), "theta": theta, "sigma": np.empty((0, 0))}
    )
    assert "theta holds infinite values (smoothing=0)" in reason(zero)
    single = jvm.model_with_weights(NaiveBayes(), {"pi": np.zeros(1), "theta": logs(1, 2), "sigma": np.empty((0, 0))})
    assert "it has only one class" in reason(single)
    model = one_vs_rest()
    assert sparkdiff.plan(model).stages[0].trainable
    assert "has featuresCol='features', but the OneVsRestModel has 'x'" in reason(model.copy({model.featuresCol: "x"}))
    unscored = one_vs_rest()
    unscored.models[1]._set(rawPredictionCol="other")
    assert f"its model {unscored.models[1].uid} has rawPredictionCol='other'" in reason(unscored)
    sparse_zero = OneVsRestModel(models=[zero, zero])._set(classifier=NaiveBayes())
    assert f"its model {zero.uid} must stay in Spark: theta holds infinite values" in reason(sparse_zero)
    three = bayes("gaussian", theta=W[:3], sigma=np.ones((3, WIDTH)))
    assert "has 3 classes instead of two" in reason(OneVsRestModel(models=[three, three])._set(classifier=NaiveBayes()))


def test_models_keep_uids_and_params(spark: SparkSession) -> None:
    model = one_vs_rest()
    model.models[2]._set(threshold=0.3, predictionCol="own")
    network = sparkdiff.translate(model)
    with torch.no_grad():
        for p in network.parameters():
            p += 0.5
    new = sparkdiff.write_back(model, network)
    assert new.uid == model.uid
    assert new.getClassifier() is model.getClassifier()
    for j, (before, after) in enumerate(zip(model.models, new.models, strict=True)):
        assert after.uid == before.uid
        assert jvm.defined_params(after) == jvm.defined_params(before)
        assert after.coefficients.toArray().tolist() == (W[j] + 0.5).tolist()
    assert model.models[0].coefficients.toArray().tolist() == W[0].tolist()


def test_a_one_vs_rest_network_is_cloned_with_its_models(spark: SparkSession) -> None:
    network: Network = sparkdiff.translate(one_vs_rest())
    other = network.clone()
    with torch.no_grad():
        for p in other.parameters():
            p += 1
    assert all(bool((a != b).all()) for a, b in zip(network.parameters(), other.parameters(), strict=True))
