"""The only list of the options of fine-tuning, with their types, bounds and help; Params, YAML keys and command-line
overrides derive from it.
"""

import dataclasses
import functools
import importlib
import math
import numbers
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from sparkdiff.errors import InputError, did_you_mean, outline_of
from sparkdiff.machine import paths

REPORTED = {
    "expectedCalibrationError": "metric='expectedCalibrationError' can't decide: chance makes it larger when more of its bins "
    "are filled, so a model with fewer distinct probabilities seems better. Set metric to logLoss or "
    "brier, which get smaller when probabilities are better calibrated; `compatibility` in the summary has the calibration "
    "error before and after"
}
"""Metrics that are reported but may not be the option `metric`, with the reason."""
PENALTIES = ("parityGap", "monotone")
DEVICE = (r"auto|cpu|cuda(:(0|[1-9]\d*))?", "auto, cpu, cuda or cuda:<number>, such as cuda:1")
"""Pattern of the values of the option `device`, and a description of these values for messages."""
EXCLUSIVE = (
    ("validationIndicatorCol", "validationFraction", ""),
    ("groupCol", "timeCol", ""),
    ("numFolds", "validationIndicatorCol", "with folds all rows decide; "),
)
"""Pairs of options of which at most one may be set, and the reason, as the beginning of a sentence; it may be empty."""
ELSEWHERE = {
    "areaUnderROC": ("auc", "auroc", "rocauc", "rocaucscore"),
    "areaUnderPR": ("aucpr", "auprc", "prauc", "averageprecision", "averageprecisionscore"),
    "logLoss": ("crossentropy", "binarycrossentropy", "bce", "nll", "logloss"),
    "squared": ("mse", "meansquarederror", "l2"),
    "absolute": ("mae", "meanabsoluteerror", "l1"),
    "rmse": ("rootmeansquarederror",),
    "mse": ("meansquarederror",),
    "mae": ("meanabsoluteerror",),
    "r2": ("r2score",),
    "f1": ("f1score", "fscore"),
    "accuracy": ("accuracyscore", "acc"),
    "weightedPrecision": ("precision", "precisionscore"),
    "weightedRecall": ("recall", "recallscore", "sensitivity"),
    "poisson": ("meanpoissondeviance",),
    "gamma": ("meangammadeviance",),
    "tweedie": ("meantweediedeviance",),
    "quantile": ("pinball", "meanpinballloss"),
    "brier": ("brierscore", "brierscoreloss"),
}
"""Names that other libraries use for a loss or metric, for hints: lower case, without `_`, `-` and a leading `neg`."""


def option(default: Any, help: str, **rules: Any) -> Any:
    """A dataclass field for an option, with its help text and the rules that `convert` applies to its values.

    The rules are kind, words, low, high, openLow, openHigh, choices, pattern, refused, callable, sum, lists, texts,
    nested, folder, items and item.
    """
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata={"help": help, "kind": dict, **rules})
    return dataclasses.field(default=default, metadata={"help": help, "kind": type(default), **rules})


@dataclasses.dataclass(frozen=True)
class OptionGroup:
    """Base of dataclasses of options."""

    def asdict(self) -> dict[str, Any]:
        """The value of each option, by name, ready for JSON: lists in place of tuples."""
        values = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {k: list(v) if isinstance(v, tuple) else dict(v) if isinstance(v, Mapping) else v for k, v in values}


@dataclasses.dataclass(frozen=True)
class Options(OptionGroup):
    """Options of one fine-tuning run; created by `Options.of`, which checks all values and raises one error for all
    problems.
    """

    # fmt: off
    labelCol: str | None = option(None, "label column, of numbers or of vectors of class probabilities; if unset, that of the predictor", kind=str)
    weightCol: str | None = option(None, "column of row weights; if unset, that of the predictor; rows with weight 0 are ignored", kind=str)
    predictionCol: str | None = option(None, "prediction column of the predictor to train; needed if there are several predictors", kind=str)
    validationIndicatorCol: str | None = option(None, "boolean column that is true for validation rows", kind=str)
    validationFraction: float = option(0.2, "share of the rows that is held out for validation, chosen by a hash of the row", low=0, high=1, openLow=True, openHigh=True)
    numFolds: int | str = option(0, "folds, 2 to 20: the first explores, the others decide, each by pipelines that were made without it, and all rows make what is returned; by time, stretches of it in place of folds; 0 holds out validation rows instead; auto takes what shows smaller gains (the default where arms are tried)", low=0, high=20, words=("auto",))
    rowsAreNew: bool | None = option(None, "whether no stage of a fitted pipeline was fitted on these rows or was chosen by them; false: it was, so that its refit is what has to be beaten; if unset, fits of Spark show whether it was", kind=bool)
    groupCol: str | None = option(None, "group column: all rows of a group are either trained or held out, and the gain is tested by group", kind=str)
    timeCol: str | None = option(None, "time column: the latest rows are held out, and the gain is tested by blocks of consecutive rows", kind=str)
    loss: str | Callable[..., Any] | Mapping[str, float] = option("auto", "loss that training minimises: a name, a weighted sum {name: weight}, or a function loss(outputs, label, weight) or its module:qualname", choices="sparkdiff.objectives.losses", callable=True, sum=True)
    lossParams: Mapping[str, Any] = option({}, "parameters of the loss by name, such as {'delta': 1.35} for huber; docs/objectives.md lists all", lists=True)
    metric: str | None = option(None, "metric that chooses the epoch and decides: the name of a loss or of a metric of Spark's evaluators; if unset, the loss", kind=str, choices="sparkdiff.objectives.metrics", refused=REPORTED)
    metricParams: Mapping[str, Any] = option({}, "parameters of the metric: those of its loss, costs, beta, metricLabel; if unset, lossParams", lists=True)
    penalties: Mapping[str, Mapping[str, float]] = option({}, "terms that are added in training only: {parityGap: {column: strength}, monotone: {feature: strength}}; the sign of a monotone strength is the sign of the slope", nested=PENALTIES)
    freeze: tuple[str, ...] = option((), "stages whose parameters do not change: uid, class name or output column")
    unfreeze: tuple[str, ...] = option((), "parameters to train that train on request only: <uid, class name or output column>.<parameter>", items="names of parameters")
    reference: tuple[str, ...] = option((), "stages to leave in Spark")
    target: tuple[str, ...] = option((), "the only stages to train, fit anew, search or delete; a stage that also feeds outputs outside the loss changes only if it is named here")
    tune: str = option("weights", "what changes: the weights of the stages, or only the threshold at which the last one decides (with several classes, its thresholds), which is chosen on training rows that it was not fitted on", choices=("weights", "threshold"))
    recipe: str = option("default", "candidates that train together: one (fast; on bike sharing and digits it gains 0.75 points less than default on the mean, 6.4 in the worst run), four (default), or more, some with augmentation (thorough)", choices=("fast", "default", "thorough"))
    optimizer: str = option("adam", "torch optimizer; lbfgs takes one step per epoch, with the gradient of all rows", choices=("adam", "adamw", "sgd", "lbfgs"))
    learningRate: float = option(1e-3, "step size of the most careful candidate, in natural units; those of the other candidates are multiples of it", low=0, openLow=True)
    learningRates: Mapping[str, float] = option({}, "step sizes of single stages: {uid, class name or output column: step size}", low=0)
    regAnchor: float = option(1e-3, "pull of the most careful candidate towards the original parameters (L2-SP), in natural units; those of the other candidates are multiples of it", low=0)
    schedule: str = option("constant", "learning rate over the epochs: constant, or a cosine that falls to 0 at maxEpochs", choices=("constant", "cosine"))
    ema: float = option(0.0, "decay of the average over steps, which is measured and written back; 0 uses the weights of the last step", low=0, high=1, openHigh=True)
    gradientClip: float | None = option(None, "largest norm of the gradient, in natural units; larger gradients are scaled down", kind=float, low=0, openLow=True)
    maxEpochs: int = option(120, "largest number of epochs", low=1)
    patience: int = option(20, "number of epochs without a better validation metric after which a candidate stops", low=1)
    minDelta: float = option(0.0, "least improvement that counts for patience, as a share of the original's metric; 0 counts any. The best epoch decides in any case", low=0)
    maxSeconds: float | None = option(None, "seconds of training (with numFolds, of that which explores) after which no other epoch begins, those before an interruption included; if unset, no limit. The best epoch so far decides", kind=float, low=0, openLow=True)
    batchSize: int = option(128, "rows per optimizer step, counted over all processes; rounded up to a multiple of 8", low=1)
    guard: float = option(0.025, "p-value needed to accept the tuned pipeline; 1 accepts any gain", low=0, high=1, openLow=True)
    guardCols: tuple[str, ...] = option((), "columns whose values define slices of the validation rows; if a slice gets worse, the original is kept", items="column names")
    maxFlipRate: float = option(1.0, "largest share of validation rows whose predicted label may change (classifiers only)", low=0, high=1)
    fleetSize: int = option(1, "number of decisions (pipelines times runs) that share one false-accept rate: the p-value needed is guard / fleetSize", low=1)
    numProcesses: int | str = option(1, "number of training processes, which does not change the result; 1 trains in the driver's process; auto times a step in one process and in several, and takes what ends sooner (docs/processes.md)", low=1, high=4096, words=("auto",))
    localSteps: int = option(1, "steps that each of several processes takes alone before they meet (SlowMo; docs/processes.md); from 2 on the result depends on numProcesses", low=1)
    slowMomentum: float = option(0.5, "decay of the slow momentum with which the processes go on where they meet (localSteps only); 0 takes their mean", low=0, high=1, openHigh=True)
    localMode: str = option("auto", "where to start the processes: on the driver's machine (true) or as tasks of a barrier stage (false); auto is true if the master is local", choices=("auto", "true", "false"))
    device: str = option("auto", "where training computes, which does not change the result beyond rounding: cpu, cuda (a GPU per process) or cuda:<number>; auto takes a GPU if torch sees one and some steps take less time there", pattern=DEVICE)
    precision: str = option("float64", "numbers of the rows in training and of their products with weights; float32 needs half of the memory and changes the result, and the summary says how far its predictions differ. Weights and sums are float64 in any case", choices=("float64", "float32"))
    timeout: float = option(300.0, "seconds without progress after which the processes are restarted (several processes only)", low=1)
    stream: str = option("auto", "reader of the cache; auto uses petastorm if it is installed, else arrow", choices=("auto", "petastorm", "arrow"))
    cacheDir: str | None = option(None, "folder of the caches: one in which Spark and this process see the same files, or one on any file system that Spark knows (hdfs://, s3a://, ...)", kind=str, folder="any")
    localCacheLimit: int | None = option(None, "bytes of local disk that cached rows may take, per process, where cacheDir is not on this machine; if unset, all that is free", kind=int, low=1)
    cacheInMemory: bool = option(True, "whether to keep the cached rows in memory during training; false reads the files in every epoch")
    cacheMaxAge: float | None = option(None, "days without a use after which a run, at its end, removes a cache or a fitted pipeline from cacheDir, unless something reads it; if unset, none", kind=float, low=0, openLow=True)
    reuseStages: bool = option(False, "whether the second run that needs the same rows after the same first stages in Spark keeps these rows in the folder of the caches, so that later runs, of a pipeline edited behind them, start from them")
    checkpointDir: str | None = option(None, "folder of the checkpoints; if unset, `checkpoints` in the folder of the caches", kind=str, folder="any")
    runId: str | None = option(None, "name of this training: an interrupted training of this name continues, a finished one is returned; if unset, a new name", kind=str)
    waitForRun: float = option(0.0, "seconds to wait while another process uses this runId or output; 0 fails at once", low=0)
    storeDir: str | None = option(None, "folder of a store of runs, on any file system that Spark knows, to which each finished run is added; nothing of the rows is in it", kind=str, folder="any")
    tags: Mapping[str, str] = option({}, "texts by name that are kept with the run in storeDir, such as {'team': 'risk'}", texts=True)
    redact: bool = option(True, "whether storeDir gets no values of guardCols, no folders, no command and no texts of warnings")
    seed: int = option(0, "seed of the split, of the order of the rows and of the statistical test", low=0, high=2**63 - 1)
    verbosity: int | None = option(None, "0 shows nothing, 1 shows the phases and their progress; if unset, 1 in a terminal and in a notebook, else 0", kind=int, low=0, high=1)
    # fmt: on

    @staticmethod
    def of(given: Mapping[str, Any]) -> "Options":
        """Options from names and values of Params, YAML or the command line.

        Raises:
            InputError: one message lists every unknown key (with the nearest known key), every value of a wrong type or
                out of bounds, and every pair of options that exclude each other.
        """
        values, problems = convert_all(given, FIELDS)
        for one, other, why in EXCLUSIVE:
            if values.get(one) not in (None, "auto") and values[one] and values.get(other):
                problems.append(
                    f"{one}={values[one]!r} and {other}={values[other]!r} exclude each other: {why}set one of them"
                )
        if values.get("numFolds") == 1:
            problems.append(
                "The 'numFolds' option must be 0, or 2 to 20: one fold explores, and at least one decides. Got 1 instead."
            )
        device, processes = values.get("device", ""), values.get("numProcesses", 1)
        if device.startswith("cuda") and processes == "auto":
            problems.append(f"numProcesses='auto' is for trainings on the CPU, but device={device!r}: set a number")
        elif processes == "auto" and values.get("localSteps", 1) > 1:
            problems.append(
                f"numProcesses='auto', but with localSteps={values['localSteps']} the result depends on their number: set it"
            )
        elif ":" in device and processes > 1:
            problems.append(
                f"device={device!r} is one GPU, but numProcesses={processes} need one each: set device='cuda'"
            )
        refuse(problems)
        return Options(**values)

    @property
    def processes(self) -> int:
        """Value of `numProcesses`; 1 if it is "auto" and the number is not chosen yet."""
        return self.numProcesses if isinstance(self.numProcesses, int) else 1

    def asdict(self) -> dict[str, Any]:
        """The value of each option, by name, ready for JSON; a loss that is a function is replaced by its name."""
        return super().asdict() | ({"loss": callable_name(self.loss)} if callable(self.loss) else {})


FIELDS = {f.name: f for f in dataclasses.fields(Options)}


def callable_name(f: Callable[..., Any]) -> str:
    """`module:qualname` of a callable, or of its class if the object has no name (a functools.partial, for example)."""
    named = f if hasattr(f, "__qualname__") else type(f)
    return f"{named.__module__}:{named.__qualname__}"


def named_callable(name: str) -> Callable[..., Any]:
    """The callable named `module:qualname`.

    Raises:
        ValueError: no such object exists, or it cannot be called.
    """
    module, _, path = name.partition(":")
    try:
        found: Any = functools.reduce(getattr, path.split("."), importlib.import_module(module))
    except (ImportError, AttributeError, ValueError) as e:
        raise ValueError(f"loss={name} can't be found ({e}): add its module to the Python path") from e
    if not callable(found):
        raise ValueError(f"loss={name} is {found!r}, which can't be called")
    return found  # type: ignore[no-any-return]


def refuse(problems: Sequence[str]) -> None:
    """Raise one error for all problems, if there are any."""
    if problems:
        raise InputError("; ".join(problems))


def without_effect(given: Any, reasons: Mapping[str, tuple[bool, str]]) -> list[str]:
    """A sentence for each option that differs from its default but has no effect in this run.

    Args:
        given: the options, a dataclass with defaults.
        reasons: by option, True if it has no effect in this run, and the reason.
    """
    default = type(given)()
    return [
        f"{name}={getattr(given, name)!r} has no effect: {why}"
        for name, (idle, why) in reasons.items()
        if idle and getattr(given, name) != getattr(default, name)
    ]


def convert_all(
    given: Mapping[str, Any], fields: Mapping[str, dataclasses.Field[Any]], owner: str = "", others: Iterable[str] = ()
) -> tuple[dict[str, Any], list[str]]:
    """The values converted to the types of their fields, and a sentence for each unknown name and each wrong value.

    Args:
        fields: the known options, by name.
        owner: the owner of these options as named in messages.
        others: further names that may be suggested in place of an unknown name.
    """
    values, problems, known = dict[str, Any](), list[str](), [*fields, *others]
    for name, value in given.items():
        if name not in fields:
            problems.append(f"unknown option {name!r}{owner and f' of {owner}'}. {did_you_mean(str(name), known)}")
            continue
        try:
            values[name] = convert(fields[name], value)
        except (TypeError, ValueError) as e:
            problems.append(str(e))
    return values, problems


def convert(field: dataclasses.Field[Any], value: Any) -> Any:
    """The value, converted to the type of the field.

    Raises:
        TypeError, ValueError: the value is not valid; the message, in scikit-learn's wording, names the expected and the given
            value.
    """
    rules, name = field.metadata, field.name
    if value is field.default and (value is None or isinstance(value, str)):
        return value
    if rules.get("callable") and callable(value):
        return value
    if isinstance(value, str) and value in rules.get("words", ()):
        return value
    if rules.get("callable") and isinstance(value, str) and ":" in value:
        return named_callable(value)
    if rules.get("sum") and isinstance(value, Mapping):
        return _weights(name, value, _choices(rules))
    if "nested" in rules:
        return _strengths(name, value, rules["nested"])
    if rules.get("lists"):
        if not isinstance(value, Mapping):
            raise TypeError(f"The {name!r} option must be a mapping of names to {_LISTS}. Got {value!r} instead.")
        return {str(k): _numbers(name, v) for k, v in value.items()}
    if rules.get("texts"):
        return _texts(name, value)
    if rules["kind"] is tuple:
        return _names(name, value, rules)
    if rules["kind"] is dict:
        return _parameters(name, value, rules)
    if isinstance(value, bool) and str(value).lower() in _choices(rules):
        return str(value).lower()  # localMode: true in YAML
    return _checked_value(name, _scalar(name, value, rules["kind"], rules.get("words", ())), rules)


def _choices(rules: Mapping[str, Any]) -> tuple[str, ...]:
    """The allowed values of an option. The names of losses and metrics are looked up only here, because they import
    torch.
    """
    given = rules.get("choices", ())
    return importlib.import_module(given).NAMES if isinstance(given, str) else given


def _names(name: str, value: Any, rules: Mapping[str, Any]) -> tuple[str, ...]:
    """A list of names, from a list of stages or names or from a single one; a set is sorted."""
    given = [value] if isinstance(value, str) or hasattr(value, "uid") else value
    names: list[Any] = (
        [getattr(v, "uid", v) for v in given] if isinstance(given, (list, tuple, set, frozenset)) else [None]
    )
    if not all(isinstance(v, str) for v in names):
        items = rules.get("items", "stages or their names")
        raise TypeError(f"The {name!r} option must be a list of {items}. Got {value!r} instead.")
    known = _choices(rules)
    if known and not names:
        raise ValueError(f"{name} is empty: name one or more of {', '.join(known)}")
    if unknown := [v for v in names if known and v not in known]:
        item = rules.get("item", "kind")
        raise ValueError("; ".join(f"{name} names an unknown {item} {v!r}. {did_you_mean(v, known)}" for v in unknown))
    return tuple(sorted(names) if isinstance(given, (set, frozenset)) else names)


def _texts(name: str, value: Any) -> dict[str, str]:
    """A mapping of names to texts; numbers become texts."""
    kinds = (str, int, float, bool)
    if not isinstance(value, Mapping) or not all(isinstance(x, kinds) for pair in value.items() for x in pair):
        raise TypeError(f"The {name!r} option must be a mapping of names to texts. Got {outline_of(value)} instead.")
    return {str(k): str(v) for k, v in value.items()}


def _parameters(name: str, value: Any, rules: Mapping[str, Any]) -> dict[str, float]:
    """A mapping of names to finite numbers, none below the lower bound."""
    if not isinstance(value, Mapping) or not all(is_finite(v) for v in value.values()):
        raise TypeError(f"The {name!r} option must be a mapping of names to finite numbers. Got {value!r} instead.")
    if any(v < rules.get("low", -math.inf) for v in value.values()):
        raise ValueError(f"The {name!r} option must hold numbers >= {rules['low']}. Got {value!r} instead.")
    return {str(k): float(v) for k, v in value.items()}


_KINDS = {str: "a non-empty string", bool: "true or false", int: "a whole number", float: "a finite number"}


def _scalar(name: str, value: Any, kind: type, words: Iterable[str] = ()) -> Any:
    """A string, boolean or number converted to `kind`; `words` are other allowed values, for the message."""
    whole = (isinstance(value, numbers.Integral) and is_number(value)) or (
        isinstance(value, float) and value.is_integer()
    )
    good = {
        str: isinstance(value, str) and value != "",
        bool: isinstance(value, bool),
        int: whole,
        float: is_finite(value),
    }
    if not good[kind]:
        kinds = " or ".join((_KINDS[kind], *words))
        raise TypeError(f"The {name!r} option must be {kinds}. Got {value!r} instead.")
    return kind(value)


def _checked_value(name: str, value: Any, rules: Mapping[str, Any]) -> Any:
    """The value, after checking that it is a usable folder, one of the choices, or within its bounds, as the rules
    require.
    """
    if value in rules.get("refused", ()):
        raise ValueError(rules["refused"][value])
    if (where := rules.get("folder")) and (
        refused := (paths.unusable if where == "any" else paths.not_local)(name, value)
    ):
        raise ValueError(refused)
    if (choices := _choices(rules)) and value not in choices:
        plain = re.sub(r"^neg(?=_)|[_-]", "", value.lower())
        same = [repr(n) for n, names in ELSEWHERE.items() if plain in names and n in choices]
        hint = f"Did you mean {' or '.join(same)}?" if same else did_you_mean(value, choices)
        wanted = f"must be one of {', '.join(choices)}"
        raise ValueError(
            f"The {name!r} option can't be {value!r}. {hint} It {wanted}."
            if hint.startswith("Did")
            else f"The {name!r} option {wanted}. Got {value!r} instead."
        )
    if "pattern" in rules and not re.fullmatch(rules["pattern"][0], value):
        raise ValueError(f"The {name!r} option must be {rules['pattern'][1]}. Got {value!r} instead.")
    low, high = rules.get("low", -math.inf), rules.get("high", math.inf)
    if rules["kind"] in (int, float) and (
        not low <= value <= high or (rules.get("openLow") and value == low) or (rules.get("openHigh") and value == high)
    ):
        left, right = "(" if rules.get("openLow") else "[", ")" if rules.get("openHigh") or high == math.inf else "]"
        raise ValueError(f"The {name!r} option must be in {left}{low}, {high}{right}. Got {value!r} instead.")
    return value


_LISTS = "finite numbers, lists of them or 'balanced'"


def _numbers(name: str, value: Any) -> Any:
    """A number, a nested list of numbers, or 'balanced'; numpy arrays become lists."""
    value = value.tolist() if hasattr(value, "tolist") else value
    if is_finite(value):
        return float(value)
    if value == "balanced":
        return value
    if isinstance(value, (list, tuple)) and value and "balanced" not in value:
        return [_numbers(name, v) for v in value]
    raise TypeError(f"The {name!r} option must be a mapping of names to {_LISTS}. Got {value!r} in it.")


def _weights(name: str, value: Mapping[Any, Any], choices: tuple[str, ...]) -> dict[str, float]:
    """A weighted sum of losses: {name: weight > 0}."""
    if not value:
        raise ValueError(
            f"The {name!r} option is a weighted sum of losses without any: give at least one, with its weight."
        )
    for key, weight in value.items():
        if key not in choices:
            raise ValueError(f"The {name!r} option names an unknown loss {key!r}. {did_you_mean(str(key), choices)}")
        if not is_finite(weight) or weight <= 0:
            raise ValueError(f"The {name!r} option must give {key!r} a finite weight > 0. Got {weight!r} instead.")
    return {str(k): float(v) for k, v in value.items()}


def _strengths(name: str, value: Any, known: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Penalties: {penalty: {column or feature: strength}}; the strength is > 0 for parityGap and not 0 for monotone."""
    if not isinstance(value, Mapping) or not all(isinstance(v, Mapping) for v in value.values()):
        raise TypeError(
            f"The {name!r} option must be a mapping {{penalty: {{column: strength}}}}. Got {value!r} instead."
        )
    for penalty, strengths in value.items():
        if penalty not in known:
            raise ValueError(
                f"The {name!r} option names an unknown penalty {penalty!r}. {did_you_mean(str(penalty), known)}"
            )
        rule = "> 0" if penalty == "parityGap" else "other than 0, whose sign is the sign of the slope"
        for column, strength in strengths.items():
            good = is_finite(strength) and strength != 0
            if not good or (penalty == "parityGap" and strength < 0):
                raise ValueError(
                    f"The {name!r} option must give {penalty}.{column} a finite strength {rule}. Got {strength!r} instead."
                )
    return {str(p): {str(c): float(v) for c, v in of.items()} for p, of in value.items() if of}


def is_number(value: Any) -> bool:
    """True if the value is a real number, including numpy's; False for a boolean."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """True if the value is a real number that a double can hold."""
    # An integer may be too large for a double; numpy 2 warns if a double is compared with one of its narrower floats.
    return is_number(value) and (abs(value) <= sys.float_info.max if isinstance(value, int) else math.isfinite(value))
