"""The one list of options: Estimator Params, YAML keys and command-line overrides all derive from it."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import numbers
import re
from collections.abc import Callable, Mapping
from typing import Any

from sparkdiff import places
from sparkdiff.errors import InputError, did_you_mean

LOSSES = (
    *("auto", "squared", "absolute", "huber", "quantile", "poisson", "gamma", "tweedie"),
    *("logLoss", "hinge", "focal", "cost", "auc", "mmce"),
    *("weibull", "oneVsRest", "inertia", "logLikelihood"),
)
METRICS = (
    *(name for name in LOSSES if name not in ("auto", "auc", "mmce")),  # the last two are no means over rows
    *("rmse", "mse", "r2", "mae", "var", "areaUnderROC", "areaUnderPR"),
    *("f1", "accuracy", "weightedPrecision", "weightedRecall", "weightedTruePositiveRate", "weightedFalsePositiveRate"),
    *("weightedFMeasure", "truePositiveRateByLabel", "falsePositiveRateByLabel", "precisionByLabel", "recallByLabel"),
    *("fMeasureByLabel", "hammingLoss", "poissonDeviance", "expectedCost", "brier"),
)
"""Losses, and the metrics of Spark's evaluators by their names there."""
REPORTED = {
    "expectedCalibrationError": "metric='expectedCalibrationError' can't decide: chance alone makes it larger, the more so the "
    "more of its bins are filled, so a model that shows fewer different probabilities seems better. Set metric to logLoss or "
    "brier, which are smaller for better calibrated probabilities; `compatibility` in the summary has the calibration error "
    "before and after"
}
"""Metrics that are reported and can't decide, and why."""
PENALTIES = ("parityGap", "monotone")
ELSEWHERE = {
    "areaUnderROC": ("auc", "auroc", "rocauc", "rocaucscore"),
    "areaUnderPR": ("aucpr", "auprc", "prauc", "averageprecision", "averageprecisionscore"),
    "logLoss": ("crossentropy", "binarycrossentropy", "bce", "nll", "logloss"),
    "squared": ("mse", "meansquarederror", "l2"), "absolute": ("mae", "meanabsoluteerror", "l1"),
    "rmse": ("rootmeansquarederror",), "mse": ("meansquarederror",), "mae": ("meanabsoluteerror",), "r2": ("r2score",),
    "f1": ("f1score", "fscore"), "accuracy": ("accuracyscore", "acc"),
    "weightedPrecision": ("precision", "precisionscore"), "weightedRecall": ("recall", "recallscore", "sensitivity"),
    "poisson": ("meanpoissondeviance",), "gamma": ("meangammadeviance",), "tweedie": ("meantweediedeviance",),
    "quantile": ("pinball", "meanpinballloss"), "brier": ("brierscore", "brierscoreloss"),
}  # fmt: skip
"""What losses and metrics are called in other libraries: lower case, without `_`, `-` and a leading `neg`."""


def option(default: Any, help: str, **rules: Any) -> Any:
    """A field with its help and its rules: kind, low, high, openLow, openHigh, choices, refused, callable, sum, lists, nested, folder."""
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"help": help, "kind": dict, **rules})
    return dataclasses.field(default=default, metadata={"help": help, "kind": type(default), **rules})


@dataclasses.dataclass(frozen=True)
class Options:
    """Resolved options of one fine-tuning run. Build it by `Options.of`, which checks all of them and raises once."""

    # fmt: off
    labelCol: str | None = option(None, "label column; the predictor's own where unset", kind=str)
    weightCol: str | None = option(None, "row weights; the predictor's own where unset; weight 0 counts nowhere", kind=str)
    predictionCol: str | None = option(None, "prediction column of the predictor to train for, where there are several", kind=str)
    validationIndicatorCol: str | None = option(None, "boolean column, true for validation rows", kind=str)
    validationFraction: float = option(0.2, "share of rows held out, by a hash of the row", low=0, high=1, openLow=True, openHigh=True)
    groupCol: str | None = option(None, "all rows of a group stay on one side, and the gain is tested by group", kind=str)
    timeCol: str | None = option(None, "the latest part is held out, and the gain is tested by contiguous blocks", kind=str)
    loss: str | Callable[..., Any] | Mapping[str, float] = option("auto", "what training minimises: a name, a weighted sum {name: weight}, or a callable loss(outputs, label, weight) or its module:qualname", choices=LOSSES, callable=True, sum=True)
    lossParams: Mapping[str, Any] = option({}, "parameters of the loss: delta (huber), tau (quantile), power (tweedie), gamma (focal), costs (cost), classWeights (losses of classes)", lists=True)
    metric: str | None = option(None, "what picks the epoch and is tested: the name of a loss or of a metric of Spark's evaluators; the loss itself where unset", kind=str, choices=METRICS, refused=REPORTED)
    metricParams: Mapping[str, Any] = option({}, "parameters of the metric: those of its loss, costs, beta, metricLabel; lossParams' where unset", lists=True)
    penalties: Mapping[str, Mapping[str, float]] = option({}, "terms added in training only: {parityGap: {column: strength}, monotone: {feature: strength, its sign the coefficient's}}", nested=PENALTIES)
    freeze: tuple[str, ...] = option((), "stages that keep their parameters: uid, class name or output column")
    unfreeze: tuple[str, ...] = option((), "parameters to train that do so on request only: <uid, class name or output column>.<parameter>", items="names of parameters")
    reference: tuple[str, ...] = option((), "stages to leave in Spark")
    target: tuple[str, ...] = option((), "the only stages to train")
    recipe: str = option("default", "candidates that train together: fast is one, default four, thorough more of them, with augmentation", choices=("fast", "default", "thorough"))
    optimizer: str = option("adam", "torch optimizer; lbfgs takes one step an epoch along the gradient of all rows", choices=("adam", "adamw", "sgd", "lbfgs"))
    learningRate: float = option(1e-3, "step size of the gentlest candidate, in natural units; the others' are in proportion", low=0, openLow=True)
    learningRates: Mapping[str, float] = option({}, "step sizes of single stages, by uid, class name or output column", low=0)
    regAnchor: float = option(1e-3, "pull of the gentlest candidate towards the original parameters (L2-SP), in natural units; the others' are in proportion", low=0)
    schedule: str = option("constant", "learning rate over the epochs: constant, or falling to 0 at maxEpochs by a cosine", choices=("constant", "cosine"))
    ema: float = option(0.0, "decay of the average over steps that is validated and written back; 0 takes the weights of the last step", low=0, high=1, openHigh=True)
    gradientClip: float | None = option(None, "largest norm of the gradient in natural units", kind=float, low=0, openLow=True)
    maxEpochs: int = option(120, "epochs at the most", low=1)
    patience: int = option(20, "epochs without a better validation metric before a candidate stops", low=1)
    batchSize: int = option(128, "rows per optimizer step, over all processes; rounded up to a multiple of 8", low=1)
    guard: float = option(0.025, "p-value needed to accept the tuned pipeline; 1 accepts any gain", low=0, high=1, openLow=True)
    guardCols: tuple[str, ...] = option((), "columns whose values are slices of the validation rows: one that gets worse keeps the original", items="column names")
    maxFlipRate: float = option(1.0, "largest share of validation rows whose predicted label may change (classifiers)", low=0, high=1)
    fleetSize: int = option(1, "pipelines times runs that share the guard: the p-value needed is guard / fleetSize", low=1)
    numProcesses: int = option(1, "processes that train together, whose number changes no result; 1 trains in the driver's process", low=1, high=4096)
    localMode: str = option("auto", "start the processes on the driver's machine (true) or as tasks of a barrier stage (false); auto: true where the master is local", choices=("auto", "true", "false"))
    timeout: float = option(300.0, "seconds without progress after which several processes count as stalled and are started again", low=1)
    stream: str = option("auto", "reader of the cache; auto = petastorm where it is installed", choices=("auto", "petastorm", "arrow"))
    cacheDir: str | None = option(None, "folder of the caches, seen by Spark and by this process as the same files", kind=str, folder=True)
    cacheInMemory: bool = option(True, "keep the cached rows in memory while training; false reads the files in every epoch")
    checkpointDir: str | None = option(None, "folder of the checkpoints; `checkpoints` in the folder of the caches where unset", kind=str, folder=True)
    runId: str | None = option(None, "name of this training: what was interrupted under it goes on, what was finished is returned; new where unset", kind=str)
    waitForRun: float = option(0.0, "seconds to wait while another process trains under this runId or writes this output; 0 fails at once", low=0)
    seed: int = option(0, "seed of the split, of the order of rows and of the test", low=0, high=2**63 - 1)
    verbosity: int = option(0, "0 is silent, 1 shows the phases", low=0, high=1)
    # fmt: on

    @staticmethod
    def of(given: Mapping[str, Any]) -> Options:
        """Options from names and values as they come from Params, YAML or the command line.

        Raises:
            InputError: names every unknown key (with the nearest known one), every value of a wrong type or out of
                bounds, and every pair that excludes each other.
        """
        fields = {f.name: f for f in dataclasses.fields(Options)}
        problems, values = [], {}
        for name, value in given.items():
            if name not in fields:
                problems.append(f"unknown option {name!r}. {did_you_mean(str(name), fields)}")
                continue
            try:
                values[name] = convert(fields[name], value)
            except (TypeError, ValueError) as e:
                problems.append(str(e))
        for one, other in (("validationIndicatorCol", "validationFraction"), ("groupCol", "timeCol")):
            if values.get(one) and values.get(other):
                problems.append(
                    f"{one}={values[one]!r} and {other}={values[other]!r} exclude each other: set one of them"
                )
        if problems:
            raise InputError("; ".join(problems))
        return Options(**values)

    def asdict(self) -> dict[str, Any]:
        """As JSON-ready values, for the report."""
        out = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        out["loss"] = callable_name(self.loss) if callable(self.loss) else self.loss
        return {
            k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for k, v in out.items()
        }


def callable_name(f: Callable[..., Any]) -> str:
    """`module:qualname` of a callable; of an object that has no name (a functools.partial, say), its class's."""
    named = f if hasattr(f, "__qualname__") else type(f)
    return f"{named.__module__}:{named.__qualname__}"


def named_callable(name: str) -> Callable[..., Any]:
    """The object `module:qualname`.

    Raises:
        ValueError: there is none, or it can't be called.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"loss={name} can't be found ({e}): put its module on the Python path") from e
    if not callable(found):
        raise ValueError(f"loss={name} is {found!r}, which can't be called")
    return found  # type: ignore[no-any-return]


def convert(field: dataclasses.Field[Any], value: Any) -> Any:
    """`value` as the field wants it.

    Raises:
        TypeError, ValueError: with scikit-learn's sentence: what it must be and what was got.
    """
    rules, name = field.metadata, field.name
    if value is None and field.default is None:
        return None
    if rules.get("callable") and callable(value):
        return value
    if rules.get("callable") and isinstance(value, str) and ":" in value:
        return named_callable(value)
    if rules.get("sum") and isinstance(value, Mapping):
        return _weights(name, value, rules["choices"])
    if "nested" in rules:
        return _strengths(name, value, rules["nested"])
    if rules.get("lists"):
        if not isinstance(value, Mapping):
            raise TypeError(f"The {name!r} option must be a mapping of names to {_LISTS}. Got {value!r} instead.")
        return {str(k): _numbers(name, v) for k, v in value.items()}
    kind = rules["kind"]
    if kind is tuple:
        given = [value] if isinstance(value, str) or hasattr(value, "uid") else value
        names = [getattr(v, "uid", v) for v in given] if isinstance(given, (list, tuple, set, frozenset)) else [None]
        if not all(isinstance(v, str) for v in names):
            items = rules.get("items", "stages or their names")
            raise TypeError(f"The {name!r} option must be a list of {items}. Got {value!r} instead.")
        return tuple(sorted(names) if isinstance(given, (set, frozenset)) else names)
    if kind is dict:
        if not isinstance(value, Mapping) or not all(is_number(v) and math.isfinite(v) for v in value.values()):
            raise TypeError(f"The {name!r} option must be a mapping of names to finite numbers. Got {value!r} instead.")
        if any(v < rules.get("low", -math.inf) for v in value.values()):
            raise ValueError(f"The {name!r} option must hold numbers >= {rules['low']}. Got {value!r} instead.")
        return {str(k): float(v) for k, v in value.items()}
    if isinstance(value, bool) and str(value).lower() in rules.get("choices", ()):
        return str(value).lower()  # localMode: true in YAML
    good = {
        str: isinstance(value, str) and value != "",
        bool: isinstance(value, bool),
        int: (isinstance(value, numbers.Integral) and is_number(value))
        or (isinstance(value, float) and value.is_integer()),
        float: is_number(value) and math.isfinite(value),
    }[kind]
    if not good:
        raise TypeError(f"The {name!r} option must be {a(kind)}. Got {value!r} instead.")
    value = kind(value)
    if value in rules.get("refused", ()):
        raise ValueError(rules["refused"][value])
    if rules.get("folder") and (refused := places.not_local(name, value)):
        raise ValueError(refused)
    if "choices" in rules and value not in rules["choices"]:
        plain = re.sub(r"^neg(?=_)|[_-]", "", value.lower())
        same = [repr(n) for n, names in ELSEWHERE.items() if plain in names and n in rules["choices"]]
        hint = f"Did you mean {' or '.join(same)}?" if same else did_you_mean(value, rules["choices"])
        near = f" {hint}" if hint.startswith("Did") else ""
        raise ValueError(
            f"The {name!r} option must be one of {', '.join(rules['choices'])}. Got {value!r} instead.{near}"
        )
    low, high = rules.get("low", -math.inf), rules.get("high", math.inf)
    if kind in (int, float) and (
        value < low
        or value > high
        or (rules.get("openLow") and value == low)
        or (rules.get("openHigh") and value == high)
    ):
        left, right = "(" if rules.get("openLow") else "[", ")" if rules.get("openHigh") or high == math.inf else "]"
        raise ValueError(f"The {name!r} option must be in {left}{low}, {high}{right}. Got {value!r} instead.")
    return value


_LISTS = "finite numbers, lists of them or 'balanced'"


def _numbers(name: str, value: Any) -> Any:
    """A number, a list of numbers or of such lists, or 'balanced'; numpy's arrays become lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if is_number(value) and math.isfinite(value):
        return float(value)
    if value == "balanced":
        return value
    if isinstance(value, (list, tuple)) and value and "balanced" not in value:
        return [_numbers(name, v) for v in value]
    raise TypeError(f"The {name!r} option must be a mapping of names to {_LISTS}. Got {value!r} in it.")


def _weights(name: str, value: Mapping[Any, Any], choices: tuple[str, ...]) -> dict[str, float]:
    """A weighted sum of losses: {name: weight > 0}."""
    if not value:
        raise ValueError(f"The {name!r} option is a sum of nothing: give names and weights.")
    for key, weight in value.items():
        if key not in choices:
            raise ValueError(f"The {name!r} option names an unknown loss {key!r}. {did_you_mean(str(key), choices)}")
        if not is_number(weight) or not math.isfinite(weight) or weight <= 0:
            raise ValueError(f"The {name!r} option must give {key!r} a finite weight > 0. Got {weight!r} instead.")
    return {str(k): float(v) for k, v in value.items()}


def _strengths(name: str, value: Any, known: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Penalties: {penalty: {column or feature: strength}}; a parity gap's strength is > 0, a monotone one's not 0."""
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise TypeError(
            f"The {name!r} option must be a mapping {{penalty: {{column: strength}}}}. Got {value!r} instead."
        )
    for penalty, strengths in value.items():
        if penalty not in known:
            raise ValueError(
                f"The {name!r} option names an unknown penalty {penalty!r}. {did_you_mean(str(penalty), known)}"
            )
        rule = "> 0" if penalty == "parityGap" else "other than 0, whose sign is the coefficient's"
        for column, strength in strengths.items():
            good = is_number(strength) and math.isfinite(strength) and strength != 0
            if not good or (penalty == "parityGap" and strength < 0):
                raise ValueError(
                    f"The {name!r} option must give {penalty}.{column} a finite strength {rule}. Got {strength!r} instead."
                )
    return {str(p): {str(c): float(v) for c, v in of.items()} for p, of in value.items() if of}


def is_number(value: Any) -> bool:
    """Whether it is a real number, numpy's included; a boolean is none."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def a(kind: type) -> str:
    return {str: "a non-empty string", bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
