"""The one list of options: what is taken, what is refused and in which words."""

import dataclasses
import functools
import json
from typing import Any

import numpy as np
import pytest

from sparkdiff.errors import InputError, SparkdiffError, did_you_mean
from sparkdiff.options import Options, callable_name


def test_defaults() -> None:
    options = Options.of({})
    assert options == Options()
    contract = {
        "validationFraction": 0.2,
        "loss": "auto",
        "optimizer": "adam",
        "learningRate": 1e-3,
        "regAnchor": 1e-3,
        "maxEpochs": 120,
        "patience": 20,
        "batchSize": 128,
        "guard": 0.025,
        "stream": "auto",
        "cacheInMemory": True,
        "seed": 0,
    }
    assert {name: getattr(options, name) for name in contract} == contract
    for name in (
        "labelCol",
        "weightCol",
        "predictionCol",
        "validationIndicatorCol",
        "groupCol",
        "timeCol",
        "metric",
        "cacheDir",
    ):
        assert getattr(options, name) is None


@pytest.mark.parametrize("field", dataclasses.fields(Options), ids=lambda f: f.name)
def test_every_option_has_a_valid_default_and_a_help_line(field: dataclasses.Field[Any]) -> None:
    default = field.default if field.default is not dataclasses.MISSING else {}
    assert getattr(Options.of({field.name: default}), field.name) == default
    assert field.metadata["help"] == field.metadata["help"].strip() != ""


class Stage:
    uid = "pca_1"


@pytest.mark.parametrize(
    ("name", "given", "taken"),
    [
        ("maxEpochs", 5.0, 5),
        ("learningRate", 1, 1.0),
        ("gradientClip", 2, 2.0),
        ("gradientClip", None, None),
        ("freeze", "PCAModel", ("PCAModel",)),
        ("freeze", ["PCAModel", "scaled"], ("PCAModel", "scaled")),
        ("lossParams", {"delta": 2}, {"delta": 2.0}),
        ("lossParams", {"costs": np.array([[0, 1], [5, 0]])}, {"costs": [[0.0, 1.0], [5.0, 0.0]]}),
        ("lossParams", {"classWeights": "balanced"}, {"classWeights": "balanced"}),
        ("metricParams", {"metricLabel": 1, "beta": np.float64(2)}, {"metricLabel": 1.0, "beta": 2.0}),
        ("loss", {"logLoss": 1, "mmce": 2.5}, {"logLoss": 1.0, "mmce": 2.5}),
        (
            "penalties",
            {"parityGap": {"sex": 1}, "monotone": {"age": -2}},
            {"parityGap": {"sex": 1.0}, "monotone": {"age": -2.0}},
        ),
        ("penalties", {"parityGap": {}}, {}),
        ("metric", "areaUnderROC", "areaUnderROC"),
        ("guard", 1, 1.0),
        ("labelCol", None, None),
        ("loss", max, max),
        ("seed", 0, 0),
        ("seed", 2**63 - 1, 2**63 - 1),
        ("seed", np.int64(7), 7),
        ("learningRate", np.float32(0.5), 0.5),
        ("learningRates", {"PCAModel": 0}, {"PCAModel": 0.0}),
        ("device", "cuda:1", "cuda:1"),
        ("freeze", Stage(), ("pca_1",)),
        ("freeze", [Stage(), "scaled"], ("pca_1", "scaled")),
        ("freeze", {"b", "a"}, ("a", "b")),
    ],
)
def test_values_are_converted(name: str, given: Any, taken: Any) -> None:
    found = getattr(Options.of({name: given}), name)
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("maxEpochs", "5", "The 'maxEpochs' option must be a whole number. Got '5' instead."),
        ("maxEpochs", 2.5, "The 'maxEpochs' option must be a whole number. Got 2.5 instead."),
        ("maxEpochs", True, "The 'maxEpochs' option must be a whole number. Got True instead."),
        ("maxEpochs", None, "The 'maxEpochs' option must be a whole number. Got None instead."),
        ("maxEpochs", float("inf"), "The 'maxEpochs' option must be a whole number. Got inf instead."),
        ("maxEpochs", float("nan"), "The 'maxEpochs' option must be a whole number. Got nan instead."),
        ("maxEpochs", 0, r"The 'maxEpochs' option must be in \[1, inf\). Got 0 instead."),
        ("batchSize", 0, "must be in"),
        ("patience", 0, "must be in"),
        ("minDelta", -0.01, r"The 'minDelta' option must be in \[0, inf\). Got -0.01 instead."),
        ("minDelta", "small", "must be a finite number"),
        ("minDelta", None, "must be a finite number"),
        ("maxSeconds", 0, r"The 'maxSeconds' option must be in \(0, inf\). Got 0.0 instead."),
        ("maxSeconds", float("inf"), "must be a finite number"),
        ("maxSeconds", "1h", "The 'maxSeconds' option must be a finite number. Got '1h' instead."),
        ("seed", -1, "must be in"),
        ("seed", 2**63, "must be in"),
        ("learningRate", 0, r"must be in \(0, inf\). Got 0.0 instead."),
        ("learningRate", float("nan"), "must be a finite number"),
        ("learningRate", "fast", "must be a finite number"),
        ("regAnchor", -1e-9, "must be in"),
        ("gradientClip", 0, "must be in"),
        ("validationFraction", 0, r"must be in \(0, 1\). Got 0.0 instead."),
        ("validationFraction", 1, r"must be in \(0, 1\). Got 1.0 instead."),
        ("guard", 0, r"must be in \(0, 1\]. Got 0.0 instead."),
        ("guard", 1.01, "must be in"),
        ("verbosity", 2, "must be in"),
        ("labelCol", "", "must be a non-empty string"),
        ("labelCol", 3, "must be a non-empty string"),
        ("cacheInMemory", "yes", "must be true or false"),
        ("cacheInMemory", 1, "must be true or false"),
        ("freeze", 3, "must be a list of stages or their names"),
        ("freeze", [3], "must be a list of stages or their names"),
        ("lossParams", [1], "must be a mapping of names to finite numbers"),
        ("lossParams", {"delta": "wide"}, "must be a mapping of names to finite numbers"),
        ("learningRates", {"PCAModel": None}, "must be a mapping of names to finite numbers"),
        ("learningRates", {"PCAModel": -1.0}, "The 'learningRates' option must hold numbers >= 0"),
        ("lossParams", {"delta": float("nan")}, "must be a mapping of names to finite numbers"),
        ("loss", "possion", "can't be 'possion'. Did you mean 'poisson'. It must be one of auto, squared, "),
        ("loss", 3, "'loss'.*Got 3 instead"),
        ("metric", "auto", "must be one of squared"),
        ("metric", "expectedCalibrationError", "can't decide: .* Set metric to logLoss or brier"),
        ("metric", "auc", "can't be 'auc'. Did you mean 'areaUnderROC'. It must be one of squared"),
        ("metric", "areaUnderRoc", "can't be 'areaUnderRoc'. Did you mean 'areaUnderROC'. It must"),
        ("loss", "contrastive", "must be one of auto, .*mmce, .*Got 'contrastive' instead.$"),
        ("loss", {}, "a weighted sum of losses without any"),
        ("loss", {"logloss": 1}, "names an unknown loss 'logloss'. Did you mean 'logLoss'"),
        ("loss", {"logLoss": 0}, "must give 'logLoss' a finite weight > 0. Got 0 instead"),
        ("loss", {"logLoss": float("inf")}, "Got inf instead"),
        ("loss", {"logLoss": True}, "Got True instead"),
        ("lossParams", {"costs": []}, r"lists of them or 'balanced'. Got \[\] in it"),
        ("lossParams", {"costs": [[0, float("nan")]]}, "Got nan in it"),
        ("lossParams", {"costs": ["balanced"]}, "Got \\['balanced'\\] in it"),
        ("metricParams", 3, "must be a mapping of names to finite numbers, lists"),
        (
            "penalties",
            {"parityGap": 3},
            r"must be a mapping {penalty: {column: strength}}. Got {'parityGap': 3} instead",
        ),
        ("penalties", [1], "must be a mapping"),
        ("penalties", {"paritygap": {"sex": 1}}, "unknown penalty 'paritygap'. Did you mean 'parityGap'"),
        ("penalties", {"parityGap": {"sex": -1}}, "must give parityGap.sex a finite strength > 0. Got -1 instead"),
        ("penalties", {"monotone": {"age": 0}}, "monotone.age a finite strength other than 0, whose sign"),
        ("penalties", {"monotone": {"age": "up"}}, "Got 'up' instead"),
        ("metric", max, "'metric'"),
        (
            "device",
            "gpu",
            "The 'device' option must be auto, cpu, cuda or cuda:<number>, such as cuda:1. Got 'gpu' instead.",
        ),
        ("device", "CUDA", "must be auto, cpu, cuda or cuda:<number>"),
        ("device", "cuda:-1", "Got 'cuda:-1' instead"),
        ("device", "cuda:01", "Got 'cuda:01' instead"),
        ("device", "cpu\n", "must be auto, cpu"),
        ("device", 1, "The 'device' option must be a non-empty string. Got 1 instead."),
        ("precision", "float16", "can't be 'float16'. Did you mean .*It must be one of float64, float32.$"),
        ("optimizer", "rmsprop", "must be one of adam, adamw, sgd, lbfgs"),
        ("stream", "csv", "must be one of auto, petastorm, arrow"),
    ],
)
def test_values_are_refused(name: str, value: Any, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Options.of({name: value})


def test_an_unknown_option_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"unknown option 'learningrate'. Did you mean 'learningRate'\?$"):
        Options.of({"learningrate": 1})
    with pytest.raises(InputError, match=r"unknown option 'zzz'. Known: .*batchSize.*weightCol"):
        Options.of({"zzz": 1})


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(InputError) as caught:
        Options.of({"maxEpoch": 3, "batchSize": 0, "guard": "x", "seed": 1})
    assert all(part in str(caught.value) for part in ("'maxEpoch'", "'maxEpochs'", "'batchSize'", "'guard'"))
    assert "seed" not in str(caught.value)
    assert isinstance(caught.value, SparkdiffError)


@pytest.mark.parametrize(
    "pair",
    [{"validationIndicatorCol": "held", "validationFraction": 0.3}, {"groupCol": "user", "timeCol": "when"}],
)
def test_options_that_exclude_each_other(pair: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exclude each other") as caught:
        Options.of(pair)
    assert all(f"{name}={value!r}" in str(caught.value) for name, value in pair.items())
    for name in pair:
        Options.of({name: pair[name]})


def test_several_processes_have_a_gpu_each() -> None:
    with pytest.raises(
        InputError, match="device='cuda:1' is one GPU, but numProcesses=2 need one each: set device='cuda'"
    ):
        Options.of({"device": "cuda:1", "numProcesses": 2})
    Options.of({"device": "cuda", "numProcesses": 2})


def test_none_is_as_good_as_unset() -> None:
    assert Options.of({"groupCol": None, "timeCol": "when", "gradientClip": None}) == Options.of({"timeCol": "when"})


def test_as_json() -> None:
    options = Options.of({"freeze": ["a"], "lossParams": {"tau": 0.9}, "loss": "quantile"})
    assert json.loads(json.dumps(options.asdict())) == options.asdict()
    assert options.asdict()["freeze"] == ["a"]
    assert Options.of({"loss": test_as_json}).asdict()["loss"].endswith(":test_as_json")
    assert Options.of(options.asdict()) == options
    summed = Options.of({"loss": {"logLoss": 1, "auc": 2}, "lossParams": {"classWeights": [1, 2]}, "metric": "f1"})
    assert Options.of(json.loads(json.dumps(summed.asdict()))) == summed


class Weighted:
    def __call__(self, outputs: Any, label: Any, weight: Any) -> Any:
        return label

    def method(self, outputs: Any, label: Any, weight: Any) -> Any:
        return label


def test_every_callable_has_a_name() -> None:
    assert callable_name(test_defaults) == f"{__name__}:test_defaults"
    assert callable_name(Weighted.method) == f"{__name__}:Weighted.method"
    for loss in (Weighted(), functools.partial(max, 1), Weighted().method):
        assert ":" in callable_name(loss)
        assert Options.of({"loss": loss}).asdict()["loss"] == callable_name(loss)


def test_options_cannot_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Options().seed = 1  # type: ignore[misc]


def test_did_you_mean() -> None:
    assert did_you_mean("bikrs", ["bikers", "hum"]) == "Did you mean 'bikers'?"
    assert did_you_mean("zzz", ["b", "a"]) == "Known: a, b."


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learningRate": 10**400}, "The 'learningRate' option must be a finite number"),
        ({"guardCols": 3}, "The 'guardCols' option must be a list of column names. Got 3 instead"),
        ({"guardCols": ["a", 1]}, "The 'guardCols' option must be a list of column names"),
        ({"maxFlipRate": 1.5}, r"The 'maxFlipRate' option must be in \[0, 1\]. Got 1.5 instead"),
        ({"fleetSize": 0}, r"The 'fleetSize' option must be in \[1, inf\). Got 0 instead"),
        ({"fleetSize": 2.5}, "The 'fleetSize' option must be a whole number"),
    ],
)
def test_what_guards_is_checked(given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Options.of(given)


def test_a_single_guard_column_needs_no_list() -> None:
    assert Options.of({"guardCols": "country", "maxFlipRate": 0}).guardCols == ("country",)
