"""Hashes of the content of models in memory, and descriptions of unfitted pipelines. Equal models have equal hashes, whatever
their uids and the time of saving (see `saved_digests`).
"""

import contextlib
import json
import re
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyspark.ml import Model, PipelineModel
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.param import Param, Params

from sparkdiff import jvm
from sparkdiff.store.identity import UnidentifiableError
from sparkdiff.store.saved_digests import digest_of_folder, hash_of_folder


def params_of(pipeline: Any) -> str:
    """Classes and Params of an unfitted pipeline, without uids: equal texts mean equal pipelines.

    Raises:
        UnidentifiableError: classes and Params do not describe the pipeline completely, because a stage is not Spark's own, is
            fitted, or reads other data; the message names the stage.
    """
    return json.dumps(_describe_stage(pipeline, []), sort_keys=True)


def _describe_stage(stage: Any, uids: list[str]) -> Any:
    """The class and Params of a stage, evaluator or pipeline of Spark's own, ready for JSON.

    Args:
        uids: the uids of the stages met so far, in order; the stage's own is appended.
    """
    kind = type(stage)
    who = f"{getattr(stage, 'uid', 'one without a uid')} ({kind.__name__})"  # no uid if its __init__ doesn't call that of Params
    if not kind.__module__.startswith("pyspark.ml."):
        raise UnidentifiableError(f"the code of {who} isn't Spark's own")
    if isinstance(stage, Model):
        raise UnidentifiableError(f"{who} is fitted, and its Params do not contain its fitted values")
    check_reads_its_input_only(stage)
    uids.append(stage.uid)
    params = jvm.defined_params(stage)
    params["default"].pop("seed", None)  # differs between two Python processes
    values = {**params["default"], **params["set"]}
    try:
        return [f"{kind.__module__}.{kind.__name__}", {k: _value(values[k], uids) for k in sorted(values)}]
    except TypeError as e:
        raise UnidentifiableError(f"{e} in {who}") from e


def check_reads_its_input_only(stage: Any) -> None:
    """Raise UnidentifiableError if a stage may read other data than its input: these appear neither in its Params nor in its
    saved data.
    """
    if isinstance(stage, SQLTransformer) and jvm.selection_of(stage) is None:
        raise UnidentifiableError(
            f"the statement of {stage.uid} ({type(stage).__name__}) may call functions and read tables of the session"
        )


def _value(value: Any, uids: list[str]) -> Any:
    """The value of a Param, ready for JSON, without uids; different values give different results."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        i = next((i for i, uid in enumerate(uids) if value == f"{uid}__output"), None)
        return value if i is None else {"uid": i, "": "__output"}  # a default output column
    if isinstance(value, (list, tuple)):
        return [_value(v, uids) for v in value]
    if isinstance(value, dict):  # a setting of a search
        return {"map": sorted(([_value(k, uids), _value(v, uids)] for k, v in value.items()), key=json.dumps)}
    if isinstance(value, Param):
        if value.parent not in uids:
            raise TypeError(f"{value.parent}.{value.name}, a Param of another stage,")
        return {"param": [uids.index(value.parent), value.name]}
    if isinstance(value, Params):
        return {"stage": _describe_stage(value, uids)}
    if hasattr(value, "toArray"):
        return {"array": [type(value).__name__, value.toArray().tolist()]}
    raise TypeError(f"a value of {type(value).__module__}.{type(value).__name__}")


def all_params(stages: Sequence[Any]) -> list[dict[str, Any]]:
    """The Params of each fitted stage as JSON-ready values, without uids and Python's random values per process.

    Params whose values JSON cannot hold, such as stages, are left out.
    """
    uids = [stage.uid for stage in stages]
    out = []
    for stage in stages:
        params = jvm.defined_params(stage)
        params["default"].pop("seed", None)
        values = {}
        for name, value in sorted({**params["default"], **params["set"]}.items()):
            with contextlib.suppress(TypeError, UnidentifiableError):  # a nested stage: its model is what counts
                # A loaded stage has another stage's uid in its default output.
                bare = isinstance(value, str) and name not in params["set"]
                values[name] = re.sub(r"^\w+_[0-9a-f]{12}__", "__", value) if bare else _value(value, uids)
        out.append(values)
    return out


def without_uids(uids: Sequence[str]) -> Callable[[str], str]:
    """A function that replaces the uids of these stages in a string by numbers."""
    numbers = {uid: f"uid{i}" for i, uid in enumerate(uids)}
    known = re.compile("|".join([*map(re.escape, sorted(uids, key=len, reverse=True)), r"\w+_[0-9a-f]{12}(?=__)"]))
    # A loaded stage has yet another uid in its default output.
    return lambda text: known.sub(lambda found: numbers.get(found[0], "uid"), text)


_digests: dict[tuple[tuple[weakref.ref[Any], ...], str], list[str]] = {}
MOST = 64
"""Largest number of pipelines (lists of stages) whose digests are cached."""


def digest_of(stages: Sequence[Any], folder: Path) -> list[str] | None:
    """`digest_of_folder` of a pipeline of these fitted stages in their current state; None if it cannot be saved.

    The stages must be Spark's own. The pipeline is saved temporarily below `folder`, which Spark and this process both
    see. The result is cached by the stage objects and their Params, because nothing else of a fitted stage can change;
    stages that contain other stages are not cached.
    """
    try:
        if any(isinstance(held, Params) for stage in stages for held in _nested_values(vars(stage))):
            raise TypeError
        values = [_value(jvm.defined_params(stage), [s.uid for s in stages]) for stage in stages]
        known = tuple(map(weakref.ref, stages)), json.dumps(values, sort_keys=True)
    except (TypeError, UnidentifiableError):
        known = None
    if known in _digests:
        return _digests[known]
    with try_to_save(PipelineModel(list(stages)), folder) as path:
        found = None if path is None else digest_of_folder(path)
    if known is not None and found is not None:
        if len(_digests) >= MOST:
            _digests.clear()
        _digests[known] = found
    return found


def _nested_values(values: Any) -> Iterator[Any]:
    """The values in a mapping or list, including those in nested lists and mappings."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, (Mapping, list, tuple)):
            yield from _nested_values(value)
        else:
            yield value


@contextlib.contextmanager
def try_to_save(model: Any, folder: Path | None) -> Iterator[Path | None]:
    """Save a model temporarily below `folder` (None: the system's temporary folder), and yield the path, or None if the
    model cannot be saved.
    """
    with jvm.temporary(".stages-", folder) as path:
        try:
            model.write().overwrite().save(jvm.stores.address(path))
            jvm.stores.take(path)
        except (*jvm.SparkError, AttributeError, ValueError, TypeError, NotImplementedError):
            yield None
        else:
            yield path


def hash_of(model: Any, path: str | None, folder: Path | None) -> str | None:
    """`hash_of_folder` of a model; None if the model cannot be saved.

    Args:
        path: the folder from which the model was loaded, whose files are hashed if this process can read them; None if
            the model was not loaded.
        folder: the folder below which the model is otherwise saved temporarily; None: the system's temporary folder.
    """
    if path is not None and (local := jvm.stores.fetch_folder(path)) is not None:
        return hash_of_folder(local)
    with try_to_save(model, folder) as copy:
        return None if copy is None else hash_of_folder(copy)
