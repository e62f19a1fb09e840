"""The configuration of a job: a YAML file, flags and overrides. Imports neither torch nor pandas."""

import dataclasses
import datetime
import hashlib
import io
import json
import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sparkdiff import jvm
from sparkdiff.cli.job_options import FIELDS, SETTINGS, check as check_settings, check_names, places_of
from sparkdiff.cli.tracking_section import SERVERS, check as check_tracking
from sparkdiff.data.loading import function, is_function, parse_source
from sparkdiff.data.splits import SPLITS, TRAIN, VALIDATION
from sparkdiff.errors import InputError, check_keys, kind_of, outline_of
from sparkdiff.machine import paths, secrets
from sparkdiff.options import Options

SECTIONS = ("pipeline", "data", "search", "grower", "improver", "fineTuner", "spark", "tracking", "output")
KEEPING = ("storeDir", "tags", "redact")
OUTSIDE = (
    "verbosity",
    "waitForRun",
    "timeout",
    "localMode",
    "device",
    "localCacheLimit",
    "reuseStages",
    "cacheMaxAge",
    *KEEPING,
)
"""Options that do not affect the result of a job, so that a finished job is recognised whatever their values are."""
CONF = (
    "spark.",
    "fs.",
    "dfs.",
    "mapreduce.",
    "mapred.",
    "yarn.",
    "parquet.",
    "orc.",
    "hive.",
    "javax.",
    "google.",
    "io.",
    "textinputformat.",
)
"""Prefixes of complete names in Spark's conf, including names that a session passes on to Hadoop and Hive.

In an override `spark.<name>`, the prefix `spark.` is added to a name that begins with none of these.
"""
SHORTENED = (
    "app",
    "default",
    "driver",
    "executor",
    "hadoop",
    "jars",
    "local",
    "master",
    "remote",
    "shuffle",
    "sql",
    "ui",
)
"""First words of Spark's settings after `spark.`. Spark would ignore a setting that begins with such a word."""
COMMANDS = {"search": "search", "grower": "grow", "improver": "improve"}
"""Sections of a job that belong to a command other than `finetune`, and the command of each."""
MISSING = {
    "pipeline": "name the model as the first argument, such as models/churn, or set pipeline in the YAML file",
    "data": "name the rows by --data, or set data in the YAML file",
    "output": "name a new folder by --output, or set output in the YAML file",
}
"""What to do about a required section that is missing."""


@dataclasses.dataclass(frozen=True)
class Config:
    """The settings of a job: its YAML with the overrides of the command line and absolute paths.

    Attributes:
        folder: the folder from which modules are imported first.
        options: the section `fineTuner`.
        search, grower, improver: the sections of these names; if all are None, the job fine-tunes.
        tracking: the section of this name. It does not affect the result, so a finished run is recognised whatever it
            contains.
        url: the output folder's URL, if the folder is not on this machine; `output` is then not valid before Spark has
            started.
        given: the arguments of the job's command line, without secrets.
    """

    folder: Path
    pipeline: str
    data: Mapping[str, Any]
    options: Mapping[str, Any]
    spark: Mapping[str, Any]
    output: Path
    overwrite: bool
    search: Mapping[str, Any] | None = None
    grower: Mapping[str, Any] | None = None
    improver: Mapping[str, Any] | None = None
    tracking: Mapping[str, Any] | None = None
    given: tuple[str, ...] = ()
    url: str | None = None

    @property
    def where(self) -> str:
        """The output folder: its URL, as the user named it, or its absolute path on this machine."""
        return self.url or str(self.output)

    @property
    def command(self) -> str:
        """The `sparkdiff` command that runs this job."""
        return next((name for section, name in COMMANDS.items() if getattr(self, section) is not None), "finetune")


def load_config(
    path: Path | None, overrides: Sequence[str], flags: Mapping[str, str] | None = None, command: str = ""
) -> Config:
    """Read a YAML file, if any, and apply first the flags and then the overrides `section.key=value`.

    Relative paths in the file are relative to the folder of the file; paths in a flag or an override are relative to
    the current directory. The value of a flag is text. The value of an override is parsed as YAML; it is text if it is
    not YAML, or if it is not quoted and the setting expects text.

    Args:
        path: the YAML file; None: start from empty settings.
        flags: texts by `section.key`.
        command: the command that will run the job; without a file, its section has all defaults.

    Raises:
        InputError: the file cannot be read, a key is unknown, a value has the wrong type, or a section is missing.
    """
    here = path.parent.absolute() if path is not None else Path.cwd()
    tree: Any = (
        {section: {} for section, name in COMMANDS.items() if name == command}
        if path is None
        else _with_resolved_numbers(_read(path)) or {}
    )
    if not isinstance(tree, dict):
        raise InputError(f"--config {path} must hold the sections {', '.join(SECTIONS)}")
    tree = _with_absolute_paths(tree, here)
    for key, text in (flags or {}).items():
        _put(tree, tuple(key.split(".")), text, secrets.without_secret(f"{key}={text}"))
    for override in overrides:
        place, value = _parse_override(override)
        _put(tree, place, value, f"override {secrets.without_secret(override)!r}")
    _check_sections(tree)
    output = _output(tree["output"])
    remote = paths.local(output["path"]) is None
    data, options, spark = tree["data"], dict(tree.get("fineTuner") or {}), tree.get("spark") or {}
    if isinstance(options.get("loss"), str) and is_function(options["loss"]):
        options["loss"] = function(options["loss"], here)
    _check_options(options, data)
    verbs = _verbs(tree, options, data)
    return Config(
        here,
        tree["pipeline"],
        data,
        options,
        {str(key): value for key, value in spark.items() if value is not None},
        Path() if remote else jvm.folder("output", output["path"]).resolve(),
        output.get("mode") == "overwrite",
        **verbs,
        tracking=check_tracking(tree.get("tracking") or {}),
        given=_command_arguments(path, overrides, flags or {}),
        url=output["path"].rstrip("/") if remote else None,
    )


def _check_sections(tree: Mapping[str, Any]) -> None:
    """Raise InputError if a section is unknown or missing, or has invalid content."""
    check_names("unknown section", tree, SECTIONS)
    for key, way in MISSING.items():
        if not tree.get(key):
            raise InputError(f"the job has no {key!r}: {way}")
    pipeline, data = tree["pipeline"], tree["data"]
    if not isinstance(pipeline, str):
        raise InputError(f"pipeline must be the path of a saved model, or module:function. Got {pipeline!r} instead")
    if not isinstance(data, dict) or "train" not in data:
        others = ", ".join(map(repr, SPLITS[1:]))
        raise InputError(
            f"data must be a mapping with 'train' and, optionally, {others}. Got {outline_of(data)} instead"
        )
    check_keys("unknown data", data, SPLITS)
    for split, given in data.items():
        parse_source(split, given)
    for section in (*COMMANDS, "fineTuner", "spark", "tracking"):
        if not isinstance(tree.get(section) or {}, dict):
            raise InputError(f"{section} must be a mapping of names to values. Got {outline_of(tree[section])} instead")
    for key, value in (tree.get("spark") or {}).items():
        name = secrets.without_value(str(key))
        if isinstance(value, (dict, list)):
            raise InputError(f"spark: {name} must be text, a number, true or false. Got {kind_of(value)} instead")
        if name.partition(".")[0] in SHORTENED:
            raise InputError(
                f"spark: {name} is no setting of Spark, whose names start with 'spark.': write spark.{name}"
            )


def _verbs(tree: Mapping[str, Any], options: Mapping[str, Any], data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Check the section `search`, `grower` or `improver` of a job, and return it as {name: section}; {} if the job
    fine-tunes.

    An empty section `grower` or `improver` means all defaults.

    Raises:
        InputError: there are several such sections, or the section is invalid.
    """
    found = {name: dict(tree[name] or {}) for name in COMMANDS if name in tree}
    if tree.get("search") is None:
        found.pop("search", None)  # it has no defaults
    if len(found) > 1:
        names = " and ".join(map(repr, found))
        count = {2: "two", 3: "three"}[len(found)]
        raise InputError(f"the job has the sections {names}, which are {count} jobs: leave all but one out")
    if "search" in found:
        from sparkdiff.cli.search_section import check  # only here: it imports much of pyspark.ml

        check(found["search"], data)
    for section in found.keys() & {"grower", "improver"}:
        check_settings(section, found[section], options)
    return found


def _output(given: Any) -> dict[str, str]:
    """The section `output` as a mapping."""
    output = {"path": given} if isinstance(given, str) else given
    good = isinstance(output, dict) and set(output) <= {"path", "mode"} and isinstance(output.get("path"), str)
    if not good or not output["path"] or output.get("mode", "error") not in ("error", "overwrite"):
        raise InputError(f"output must be a folder, or {{path, mode: error|overwrite}}. Got {output!r} instead")
    return output


def _check_options(options: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise InputError if an option is unknown or wrong, or contradicts the data."""
    checked = Options.of(options)
    if VALIDATION in data and checked.numFolds not in (0, "auto"):
        raise InputError(
            f"fineTuner.numFolds={checked.numFolds} lets all rows of data.train decide, but data.validation holds "
            "validation rows: leave one of them out"
        )
    for name in ("validationIndicatorCol", "validationFraction"):
        if VALIDATION in data and name in options and getattr(checked, name) is not None:
            raise InputError(
                f"fineTuner.{name}={options[name]!r} would take validation rows from data.train, but data.validation holds them "
                f"already: leave out fineTuner.{name} or data.validation"
            )


def _read(path: Path) -> Any:
    try:
        return _yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as e:
        raise InputError(f"--config {path}: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise InputError(f"--config {path} is not UTF-8 text ({e.reason} at byte {e.start}): save it as UTF-8") from e
    except ValueError as e:
        raise InputError(f"--config {path} is not YAML: {' '.join(str(e).split())}") from e


@dataclasses.dataclass(frozen=True)
class _Number:
    """A value such as 1e-3, which is a number in YAML 1.2 but text for PyYAML; `_with_resolved_numbers` decides by the place of
    the value.
    """

    text: str


class _Loader(yaml.SafeLoader):
    """A YAML loader that raises an error for repeated keys of a mapping, all but the last of which PyYAML would drop."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Keys are checked before keys of other mappings are merged (`<<`), which this mapping may repeat.
        node = super().compose_mapping_node(anchor)
        known = set()
        for key, _ in node.value:
            if key.tag == _Number.__name__:
                key.tag = self.DEFAULT_SCALAR_TAG  # a key is a name
            name = key.tag, key.value if isinstance(key, yaml.ScalarNode) else key
            if name in known and key.tag != "tag:yaml.org,2002:merge":
                raise ValueError(
                    f"the key {secrets.without_value(key.value)!r} is repeated in line {key.start_mark.line + 1}: leave one out"
                )
            known.add(name)
        return node


_Loader.add_implicit_resolver(
    _Number.__name__,
    re.compile(r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)[eE][-+]?[0-9]+|[-+]\.[0-9]+)$"),
    list("-+.0123456789"),
)
_Loader.add_constructor(_Number.__name__, lambda _loader, node: _Number(node.value))


def _yaml(text: str) -> Any:
    """The value of a YAML text, in which some numbers are `_Number`.

    Raises:
        ValueError: the text is not YAML.
    """
    try:
        value = _Loader(io.StringIO(text)).get_single_data()  # from a stream, since errors for a str would quote lines
        json.dumps(value, default=str, skipkeys=True)  # raises if a value contains itself
    # Besides its own errors, PyYAML passes on those of the code behind its tags (`!!int x`, `!!bool 3`, `[[[[...`).
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as e:
        # A password that begins with ! or * reads like a tag or an alias.
        raise ValueError(re.sub(r"(tag|alias) '[^']*'", r"\1", str(e))) from e
    return value


Place = tuple[Any, ...]
"""The keys that lead to a value in the tree of settings, such as ("data", "train", "path")."""


def _wants_text(place: Place) -> bool:
    match place:
        case (
            ("pipeline" | "data" | "output",)
            | ("search", "current" | "runDir" | "storeDir")
            | ("output", _)
            | ("spark" | "tracking", _)
            | ("data", _)
            | ("data", _, "options", _)
            | ("fineTuner" | "search", "tags", _)
        ):
            return True
        case ("data", _, key):
            return key != "options"
        case ("tracking", "mlflow", key):
            return key != "registerOriginal"
        case ("fineTuner", name):
            rules = FIELDS["fineTuner"][name].metadata if name in FIELDS["fineTuner"] else {}
            return rules.get("kind") is str and "choices" not in rules
    return False


def _is_name(place: Place) -> bool:
    """True if this is the place of an option whose value is text or a list of texts."""
    section, name = place if len(place) == 2 else ("", "")
    field = FIELDS.get(section, {}).get(name)
    return field is not None and field.metadata["kind"] in (str, tuple)


def _with_resolved_numbers(value: Any, place: Place = ()) -> Any:
    """A copy of a value of the settings in which each `_Number` became text or a number, whichever is expected at its
    place.
    """
    if isinstance(value, dict):
        return {key: _with_resolved_numbers(inner, (*place, key)) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_with_resolved_numbers(inner, place) for inner in value)
    if isinstance(value, _Number):
        return value.text if _wants_text(place) or _is_name(place) else float(value.text)
    return value


def _value(text: str, place: Place) -> Any:
    """The value of an override: the text parsed as YAML; the text itself if it is not YAML, is a date, or is a scalar without
    quotes where a text is expected.
    """
    try:
        value = _yaml(text)
    except ValueError:
        return text
    if isinstance(value, (datetime.date, bytes)):
        return text
    quoted = isinstance(value, str) and text.lstrip().startswith(("'", '"'))
    # `null` and `#` mean no value; a reader's option and a tag may be these texts.
    nothing = value is None and not (text.strip() and place[-2:-1] in (("options",), ("tags",)))
    structured = nothing or isinstance(value, (dict, list, set))
    return _with_resolved_numbers(value, place) if quoted or structured or not _wants_text(place) else text.strip()


def _with_absolute_paths(value: Any, folder: Path, place: Place = ()) -> Any:
    """A copy of a value of the tree in which every relative path is resolved against a folder; rows that are named by a text
    alone are those of `train`.
    """
    if isinstance(value, dict):
        return {key: _with_absolute_paths(inner, folder, (*place, key)) for key, inner in value.items()}
    if not isinstance(value, str) or not value:
        return value
    match place:
        case ("data",):
            return {TRAIN: _with_absolute_paths(value, folder, ("data", TRAIN))}
        case ("data", _) | ("pipeline",) if is_function(value):
            return value
        case ("data", _) | ("data", _, "path"):
            return paths.data_path(_name(value, place), folder)
        case ("pipeline",):
            where = paths.local(_name(value, place))
            return value if where is None else str(folder / where)
        case ("tracking", "mlflow", "uri") if ":" in value.split("/")[0] or value in SERVERS:
            return value
        case (
            ("output",)
            | ("output", "path")
            | ("fineTuner", "cacheDir" | "checkpointDir" | "storeDir")
            | ("search", "runDir" | "current" | "storeDir")
            | ("tracking", "jsonLines" | "tensorboard")
            | ("tracking", "mlflow", "uri")
        ):
            where = None if paths.unusable("", _name(value, place)) else paths.local(value)
            return value if where is None else str(folder / where)
    return value


def _name(path: str, place: Place) -> str:
    try:
        good = b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        good = False
    if not good:
        raise InputError(
            f"{'.'.join(place)}={path!r} cannot be a path: it contains characters that file names cannot have"
        )
    return path


def model_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """The model among the arguments of a command, None if there is none, and the overrides `section.key=value`.

    Raises:
        InputError: the model is named twice.
    """
    models, overrides = [w for w in words if not _is_override(w)], [w for w in words if _is_override(w)]
    if len(named := [*models, *(word for word in overrides if models and word.startswith("pipeline="))]) > 1:
        raise InputError(f"the model is given twice, {named[0]!r} and {named[1]!r}: leave one out (--data names rows)")
    return next(iter(models), None), overrides


def _is_override(word: str) -> bool:
    """True if an argument is an override section.key=value, perhaps misspelt; False if it is a path, which may contain
    `=`.
    """
    key, equals, _ = word.partition("=")
    return bool(equals) and (
        "/" not in word
        or key.partition(".")[0] in SECTIONS
        or bool(re.fullmatch(r"\w+\.[\w.-]+", key) or places_of(key))
    )


def _parse_override(override: str) -> tuple[Place, Any]:
    """The place and the value of an override."""
    key, equals, text = override.partition("=")
    section, dot, rest = key.partition(".")
    if section == "spark" and rest:
        # Names of Spark's conf contain dots, and start like the section: `spark.sql.x` means `spark.spark.sql.x`.
        place: Place = (section, rest if rest.startswith(CONF) else f"spark.{rest}")
    else:
        # Names of a reader's options contain dots, too.
        place = (section, *rest.split(".", 2 if section == "data" else -1)) if dot else (section,)
    if not equals or not all(place):
        raise InputError(
            f"override {secrets.without_secret(override)!r} must be section.key=value, such as fineTuner.maxEpochs=50"
        )
    return place, _value(text, place)


def options_of(overrides: Sequence[str]) -> dict[str, Any]:
    """The options in overrides of the form `fineTuner.option=value`.

    Raises:
        InputError: an override has another form.
    """
    tree: dict[str, Any] = {}
    for override in overrides:
        place, value = _parse_override(override)
        if place[0] != "fineTuner" or len(place) < 2:
            raise InputError(
                f"{secrets.without_secret(override)!r} must be fineTuner.option=value, such as fineTuner.maxEpochs=50"
            )
        _put(tree, place, value, f"override {secrets.without_secret(override)!r}")
    return dict(tree.get("fineTuner", {}))


def _put(tree: dict[str, Any], place: Place, value: Any, given: str) -> None:
    """Put a value into the tree of settings; `given` describes the value in error messages."""
    for i, part in enumerate(place[:-1]):
        below = {} if tree.get(part) is None else tree[part]
        if isinstance(below, str) and (place[: i + 1] == ("output",) or (i == 1 and place[0] == "data")):
            below = below if is_function(below) else {"path": below}
        if not isinstance(below, dict):
            raise InputError(f"{given}: {part!r} is of type {kind_of(below)}, not a mapping with keys")
        tree[part] = below
        tree = below
    tree[place[-1]] = _with_absolute_paths(value, Path.cwd(), place)


def _command_arguments(path: Path | None, overrides: Sequence[str], flags: Mapping[str, str]) -> tuple[str, ...]:
    words = [*(f"{key}={value}" for key, value in flags.items()), *overrides]
    return (*(() if path is None else ("--config", str(path))), *map(secrets.without_secret, words))


def command_of(config: Config) -> str:
    """The command that runs the job again, in a shell in the same folder."""
    return shlex.join(["sparkdiff", config.command, *config.given])


def request_of(config: Config) -> str:
    """Hash of all settings that determine the result of a job."""
    options = Options.of(config.options)
    named = {k: v for k, v in options.asdict().items() if k not in OUTSIDE}
    if callable(options.loss):
        from sparkdiff.store.checkpoint_folder import text_or_reason
        from sparkdiff.store.identity import identity  # only here: they import torch

        named["loss"] = text_or_reason(lambda: identity(options.loss))
    settings = [config.pipeline, config.data, named, config.where]
    search = None if config.search is None else {k: v for k, v in config.search.items() if k not in KEEPING}
    settings += [] if search is None else [search]
    for section, given in (("grower", config.grower), ("improver", config.improver)):
        if given is not None:
            settings.append({section: dataclasses.asdict(SETTINGS[section].of(given))})
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
