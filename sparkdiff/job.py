"""A job: from a YAML file to a run folder with the plain model, the plan, the summary and the history."""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from pyspark.ml import Estimator, Pipeline, PipelineModel
from pyspark.sql import SparkSession

from sparkdiff import jvm
from sparkdiff.data.cache import ROOM as ROOM_OF_CACHES, root
from sparkdiff.data.fingerprint import source_facts
from sparkdiff.data.splits import (
    REFERENCE,
    SPLITS,
    TEST,
    TRAIN,
    VALIDATION,
    Boundaries,
    Source,
    find_boundaries,
    fit_on_training_rows,
    rule,
)
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.finetune import Outcome, fine_tune, prepare
from sparkdiff.loading import (
    check_there,
    function,
    is_function,
    load_data,
    load_model,
    model_path,
    named_source,
    start_session,
)
from sparkdiff.machine import paths
from sparkdiff.options import FIELDS, Options
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.report import FineTuningSummary, Phases
from sparkdiff.store import files
from sparkdiff.store.digests import check_reads_its_input_only, hash_of, hash_of_folder, params_of
from sparkdiff.store.files import moved
from sparkdiff.store.identity import UntoldError, identity
from sparkdiff.store.lease import Lease, held
from sparkdiff.store.run_folder import UNTOLD, told

ROOM = (
    "free some space and repeat the command, which continues where it stopped, or set output to a folder on a disk "
    "with more space"
)
SECTIONS = ("pipeline", "data", "fineTuner", "spark", "output")


@dataclasses.dataclass(frozen=True)
class Config:
    """The YAML of a job with the overrides of the command line and absolute paths; modules in `folder` come first."""

    folder: Path
    pipeline: str
    data: Mapping[str, Any]
    options: Mapping[str, Any]
    spark: Mapping[str, Any]
    output: Path
    overwrite: bool


def load_config(path: Path | None, overrides: Sequence[str], flags: Mapping[str, str] | None = None) -> Config:
    """Read a YAML file (or nothing), and apply first the flags and then the overrides `section.key=value`.

    A relative path in the file starts at the folder of the file, a relative path in a flag or an override at the current
    directory. The value of a flag is text. So is the value of an override that is not YAML, or that is not quoted where
    text is expected.

    Args:
        flags: text by `section.key`.

    Raises:
        InputError: the file cannot be read, a key is unknown, a value has the wrong type, or a section is missing.
    """
    here = path.parent.absolute() if path is not None else Path.cwd()
    tree = {} if path is None else _read(path) or {}
    if not isinstance(tree, dict):
        raise InputError(f"--config {path} must hold the sections {', '.join(SECTIONS)}")
    tree = _anchored(tree, here)
    for key, text in (flags or {}).items():
        _put(tree, tuple(key.split(".")), text, f"{key}={text}")
    for override in overrides:
        place, value = _parsed(override)
        _put(tree, place, value, f"override {override!r}")
    for key in tree:
        if key not in SECTIONS:
            raise InputError(f"unknown section {key!r}. {did_you_mean(str(key), SECTIONS)}")
    for key in ("pipeline", "data", "output"):
        if not tree.get(key):
            raise InputError(f"the job has no {key!r}: set it in the YAML file or as {key}=...")
    pipeline, data, output = tree["pipeline"], tree["data"], tree["output"]
    if not isinstance(pipeline, str):
        raise InputError(f"pipeline must be the path of a saved model, or module:function. Got {pipeline!r} instead")
    if not isinstance(data, dict) or "train" not in data:
        raise InputError(f"data must be a mapping with 'train' and, optionally, {', '.join(map(repr, SPLITS[1:]))}")
    for split, given in data.items():
        if split not in SPLITS:
            raise InputError(f"unknown data {split!r}. {did_you_mean(str(split), SPLITS)}")
        named_source(split, given)
    for section in ("fineTuner", "spark"):
        if not isinstance(tree.get(section) or {}, dict):
            raise InputError(f"{section} must be a mapping of names to values. Got {tree[section]!r} instead")
    output = {"path": output} if isinstance(output, str) else output
    good = isinstance(output, dict) and set(output) <= {"path", "mode"} and isinstance(output.get("path"), str)
    if not good or not output["path"] or output.get("mode", "error") not in ("error", "overwrite"):
        raise InputError(f"output must be a folder, or {{path, mode: error|overwrite}}. Got {output!r} instead")
    options, spark = dict(tree.get("fineTuner") or {}), tree.get("spark") or {}
    for key, value in spark.items():
        if isinstance(value, (dict, list)):
            raise InputError(f"spark: {key} must be text, a number, true or false. Got {value!r} instead")
    if isinstance(options.get("loss"), str) and is_function(options["loss"]):
        options["loss"] = function(options["loss"], here)
    Options.of(options)
    return Config(
        here,
        pipeline,
        data,
        options,
        {str(key): value for key, value in spark.items() if value is not None},
        jvm.folder("output", output["path"]).resolve(),
        output.get("mode") == "overwrite",
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


def _yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ValueError: it is not YAML.
    """
    try:
        value = yaml.safe_load(text)
        json.dumps(value, default=str, skipkeys=True)  # no value that holds itself
    # Beside its own errors PyYAML lets those of the code behind its tags through (`!!int x`, `!!bool 3`, `[[[[...`).
    except (yaml.YAMLError, LookupError, AttributeError, TypeError, OverflowError, RecursionError) as e:
        raise ValueError(str(e)) from e
    return value


Place = tuple[Any, ...]
"""The keys that lead to a value: ("data", "train", "path")."""


def _wants_text(place: Place) -> bool:
    match place:
        case ("pipeline" | "output",) | ("output", _) | ("spark", _) | ("data", _) | ("data", _, "options", _):
            return True
        case ("data", _, key):
            return key != "options"
        case ("fineTuner", name):
            rules = FIELDS[name].metadata if name in FIELDS else {}
            return rules.get("kind") is str and "choices" not in rules
    return False


def _value(text: str, place: Place) -> Any:
    """The value of an override: parsed as YAML, or the text itself if it is not YAML, or unquoted where text is
    expected.
    """
    try:
        value = _yaml(text)
    except ValueError:
        return text
    if isinstance(value, (datetime.date, bytes)):
        return text
    quoted = isinstance(value, str) and text.lstrip().startswith(("'", '"'))
    structured = value is None or isinstance(value, (dict, list, set))
    return value if quoted or structured or not _wants_text(place) else text.strip()


def _anchored(value: Any, folder: Path, place: Place = ()) -> Any:
    """A copy of a value of the tree in which every relative path is resolved against a folder."""
    if isinstance(value, dict):
        return {key: _anchored(inner, folder, (*place, key)) for key, inner in value.items()}
    if not isinstance(value, str) or not value:
        return value
    match place:
        case ("data", _) | ("pipeline",) if is_function(value):
            return value
        case ("data", _) | ("data", _, "path"):
            return paths.joined(_name(value, place), folder)
        case ("pipeline",):
            where = paths.local(_name(value, place))
            return value if where is None else str(folder / where)
        case ("output",) | ("output", "path") | ("fineTuner", "cacheDir" | "checkpointDir"):
            where = None if paths.not_local("", _name(value, place)) else paths.local(value)
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


def _parsed(override: str) -> tuple[Place, Any]:
    """The place and the value of an override."""
    key, equals, text = override.partition("=")
    section, dot, rest = key.partition(".")
    # Keys of Spark's conf have dots of their own.
    place: Place = (section, *([rest] if section == "spark" else rest.split("."))) if dot else (section,)
    if not equals or not all(place):
        raise InputError(f"override {override!r} must be section.key=value, such as fineTuner.maxEpochs=50")
    return place, _value(text, place)


def _put(tree: dict[str, Any], place: Place, value: Any, given: str) -> None:
    """Put a value into the tree; `given` names it in errors."""
    for i, part in enumerate(place[:-1]):
        below = {} if tree.get(part) is None else tree[part]
        if isinstance(below, str) and (place[: i + 1] == ("output",) or (i == 1 and place[0] == "data")):
            below = below if is_function(below) else {"path": below}
        if not isinstance(below, dict):
            raise InputError(f"{given}: {part!r} is {below!r}, not a mapping with keys")
        tree[part] = below
        tree = below
    tree[place[-1]] = _anchored(value, Path.cwd(), place)


def run(config: Config) -> FineTuningSummary:
    """Run the job and write its folder. If the folder contains a finished run of the same runId, options, data and
    pipeline, return it.

    Raises:
        InputError: wrong configuration or data; only caches are written in this case.
        HeldError: another process is writing this output.
        SparkdiffError: it failed while running.
    """
    _check_places(config)
    with _alone(config) as lease:
        return _run(config, lease)


@contextlib.contextmanager
def _alone(config: Config) -> Iterator[Lease]:
    """Within this context, no other process writes the output of the job."""
    output = config.output
    missing = [folder for folder in output.parents if not folder.exists()]
    where, wait = output.with_name(f".{output.name}.lease"), Options.of(config.options).waitForRun
    try:
        with contextlib.ExitStack() as stack:
            try:
                lease = stack.enter_context(held(where, f"output {output}", wait=wait))
            except OSError as e:
                raise InputError(f"output {output} cannot be written ({e.strerror}): choose another folder") from e
            yield lease
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):  # something was written into it
                folder.rmdir()


def _run(config: Config, lease: Lease) -> FineTuningSummary:
    found = _finished(config)
    if found is None and config.output.exists() and not config.overwrite:
        raise InputError(f"output {config.output} exists: choose another folder, or set output.mode=overwrite")
    if config.output.exists() and not ((config.output / "summary.json").exists() or not any(config.output.iterdir())):
        raise InputError(
            f"output {config.output} contains other files than a run, and overwrite does not delete them: "
            "choose another folder"
        )
    spark = start_session(config.spark)
    own = f"{config.output.name}-{hashlib.sha256(str(config.output).encode()).hexdigest()[:8]}"
    cache = str(config.output.parent / ".cache")
    options = Options.of({"cacheDir": cache, "verbosity": 1, "runId": own, **config.options})
    phases = Phases(options.verbosity > 0)
    with phases.phase("load") as say:
        sources = [
            Source(load_data(spark, d, config.folder, s), None if s == TRAIN and VALIDATION not in config.data else s)
            for s, d in config.data.items()
        ]
        say(f"data: {', '.join(config.data)}")
        made, path = _made(spark, config, sources)
    with files.room("the fitted pipeline", root(options), ROOM_OF_CACHES):
        content = None if isinstance(made, Estimator) else hash_of(made, path, root(options))
    inputs = _inputs(sources, made, content) if "runId" in config.options else {}
    if found is not None:
        before = found["fingerprints"].get("inputs", {})
        changed = [name for name in sorted({*before, *inputs}) if before.get(name) != inputs.get(name)]
        if not changed:
            return _read_summary(found, config)
        if not config.overwrite:
            why = "; ".join(
                f"{k} {inputs[k].rpartition(' ')[0]}" for k in changed if str(inputs.get(k)).startswith(UNTOLD)
            )
            raise InputError(
                f"output {config.output} contains the finished run of runId={options.runId!r}, but its "
                f"{', '.join(changed)} changed since{f' ({why})' if why else ''}: choose another folder and "
                "runId, or set output.mode=overwrite and another runId"
            )
    parent: dict[str, Any] = {"path": path and path.removeprefix("file://"), "hash": content}
    # Once, for the fit and the cache.
    boundaries = find_boundaries(sources, options) if isinstance(made, Estimator) else None
    if path is None:
        parent = {"path": None, "function": config.pipeline, "hash": content}
        if isinstance(made, Estimator):
            rows = [s for s in sources if s.split not in (TEST, REFERENCE)]
            with files.room("the fitted pipeline", root(options), ROOM_OF_CACHES), phases.phase("fit") as say:
                made, folder = _fitted(made, rows, options, say, boundaries)
                parent |= {"path": str(folder), "hash": hash_of_folder(folder)}
    with phases.phase("plan"):
        task = prepare(made, options, sources[0].df)
    if options.verbosity:
        print(task.plan, flush=True)
    mine = options.runId == own
    outcome = fine_tune(task, sources, phases, replace=mine, boundaries=boundaries)
    with phases.phase("save") as say:
        write_run(outcome, config, phases, parent, inputs, lease)
        say(str(config.output))
    if mine:
        outcome.folder.remove()  # the same command, interrupted before this line, goes on; after it, it begins anew
    return outcome.summary


def _check_places(config: Config) -> None:
    """Raise InputError if an input of the job does not exist or its output cannot be written. Does not start Spark."""
    jvm.check_writable("output", config.output, config.output.parent)
    for name in ("cacheDir", "checkpointDir"):
        if given := config.options.get(name):
            jvm.check_writable(name, given, jvm.folder(name, given))
    models = [] if is_function(config.pipeline) else [model_path(config.pipeline, config.folder)]
    check_there(models, config.data, config.folder, config.spark)


def _request(config: Config) -> str:
    """Hash of all settings of a job."""
    options = Options.of(config.options)
    named = {k: v for k, v in options.asdict().items() if k not in ("verbosity", "waitForRun", "timeout", "localMode")}
    if callable(options.loss):
        named["loss"] = told(lambda: identity(options.loss))
    request = [config.pipeline, config.data, named, str(config.output)]
    return hashlib.sha256(json.dumps(request, sort_keys=True, default=str).encode()).hexdigest()


def _inputs(sources: list[Source], made: Any, content: str | None) -> dict[str, str]:
    """Hashes of the inputs of a job, by name: the content of the data, the session's settings, and the pipeline.

    Args:
        content: the content hash of a fitted pipeline; None if it cannot be saved.
    """

    def pipeline() -> str:
        if isinstance(made, Estimator):
            return params_of(made)
        stages = [stage for _, stage in flatten(made)]
        for stage in stages:
            check_reads_its_input_only(stage)
        own = [type(s) for s in stages if not type(s).__module__.startswith(("pyspark.ml.", "sparkdiff."))]
        if content is None:
            raise UntoldError("it cannot be saved")
        return f"{content} {identity(own)}"

    facts: dict[str, Any] = {s.split or TRAIN: source_facts(s.df) for s in sources}
    facts["settings"] = [f.pop("settings") for f in facts.values()]
    facts["pipeline"] = told(pipeline)
    return {
        k: v
        if k == "pipeline" and v.startswith(UNTOLD)
        else hashlib.sha256(json.dumps(v, default=str).encode()).hexdigest()
        for k, v in facts.items()
    }


def _finished(config: Config) -> dict[str, Any] | None:
    """The summary.json of the output folder, if it contains a run with the same settings."""
    path = config.output / "summary.json"
    if "runId" not in config.options or not path.exists():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found if found.get("fingerprints", {}).get("request") == _request(config) else None


def _read_summary(found: Mapping[str, Any], config: Config) -> FineTuningSummary:
    records: Any = pd.read_csv(config.output / "history.csv").to_dict("records")
    known = {f.name for f in dataclasses.fields(FineTuningSummary)}
    return FineTuningSummary(**{k: v for k, v in found.items() if k in known}, records=records)


def _made(spark: SparkSession, config: Config, sources: list[Source]) -> tuple[Any, str | None]:
    """The pipeline of the job, fitted or not, and the path that it was loaded from."""
    if not is_function(config.pipeline):
        path = model_path(config.pipeline, config.folder)
        return load_model(spark, path), path
    train = next(s for s in sources if s.split in (None, TRAIN))
    return function(config.pipeline, config.folder)(train.df), None


def _fitted(
    made: Estimator[Any], sources: list[Source], options: Options, say: Any, boundaries: Boundaries | None = None
) -> tuple[Any, Path]:
    """The pipeline fitted on the training rows, and its path in the cache folder, where the next run with the same
    rows finds it.

    A pipeline that its classes and Params do not describe completely is fitted each time.
    """
    pipeline = made if isinstance(made, Pipeline) else Pipeline(stages=[made])
    boundaries = find_boundaries(sources, options) if boundaries is None else boundaries
    why, divided = "", [*rule(options), *boundaries.deciding]
    try:
        facts = [[s.split, source_facts(s.df)] for s in sources]
        key = json.dumps([params_of(pipeline), facts, divided], default=str)
        folder = root(options) / f"fitted-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    except UntoldError as e:
        folder, why = root(options) / f"fitted-{uuid.uuid4().hex[:16]}", f"; not reused by other jobs: {e}"
    if folder.exists():
        say("reused: the same pipeline was fitted on the same rows before")
        return PipelineModel.load(jvm.model_at(folder)), folder
    fitted = fit_on_training_rows(pipeline, sources, options, boundaries)
    temporary = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    try:
        fitted.write().save(f"file://{temporary}")
        if not moved(temporary, folder):
            say("reused: meanwhile another process fitted the same pipeline on the same rows")
            return PipelineModel.load(jvm.model_at(folder)), folder
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    say(f"fitted {len(fitted.stages)} stages on the training rows{why}")
    return fitted, folder


def write_run(
    outcome: Outcome, config: Config, phases: Phases, parent: Mapping[str, Any], inputs: Mapping[str, str], lease: Lease
) -> None:  # fmt: skip
    """Write the run folder under a temporary name and rename it. An old run is deleted once the new one is complete."""
    start, output, original = time.perf_counter(), config.output, Path(str(parent.get("path")))
    temporary, old = (output.with_name(f".{output.name}-{uuid.uuid4().hex[:8]}{end}") for end in ("", ".old"))

    def needed() -> str:
        return f"about {files.folder_size(original):,} bytes, like the original model" if original.is_dir() else ""

    with files.room("the run", output, ROOM, needed):
        output.parent.mkdir(parents=True, exist_ok=True)
        try:
            outcome.model.write().save(f"file://{temporary}/model")
            (temporary / "plan.json").write_text(outcome.plan.toJSON() + "\n")
            pd.DataFrame(outcome.summary.records).to_csv(temporary / "history.csv", index=False)
            summary = outcome.summary.asdict()
            timings = {**phases.timings, "save": time.perf_counter() - start}
            summary |= {
                "timings": {k: round(v, 3) for k, v in timings.items()},
                "fingerprints": {
                    "cache": outcome.summary.cache["fingerprint"], "request": _request(config),
                    **({"inputs": inputs} if inputs else {}),
                },
                "parent": parent,
                "model": {"path": "model", "hash": hash_of_folder(temporary / "model")},
            }  # fmt: skip
            (temporary / "summary.json").write_text(json.dumps(summary, indent=2, allow_nan=False) + "\n")
            lease.check()
            if output.exists():
                os.rename(output, old)
            os.rename(temporary, output)
        finally:
            if not output.exists() and old.exists():
                os.rename(old, output)
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)
