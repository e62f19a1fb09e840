"""Hashes of the content of models, saved or in memory. Equal models have equal hashes, whatever their uids and the time
of saving.
"""

import contextlib
import hashlib
import json
import re
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyspark.ml import Model, PipelineModel
from pyspark.ml.feature import SQLTransformer
from pyspark.ml.param import Param, Params

from sparkdiff import jvm
from sparkdiff.store.identity import UnidentifiableError


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
DIVIDED = ("userFactors", "itemFactors", "globalTopicTotals", "topicCounts", "tokenCounts")
"""Tables of ALSModel and DistributedLDAModel. Spark saves such a table in one file per partition, in the order of the
current partitions, so a model that was loaded and saved again has other files with the same rows.
"""


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


def hash_of_folder(path: Path) -> str:
    """A hash of a saved model's classes, Params and weights that does not depend on uids or the time of saving."""
    return hashlib.sha256("\n".join(digest_of_folder(path, by_whom=False)).encode()).hexdigest()


def digest_of_folder(folder: Path, *, by_whom: bool = True) -> list[str]:
    """Digests of a saved model's files, without the values that differ each time a model is saved: uids, file names,
    time.

    With by_whom=False, values that depend on the process that fits and saves are left out, too: Spark's version, and
    the default seed, which each Python process draws anew.
    """
    metas = {p: json.loads(p.read_text()) for p in sorted(folder.rglob("metadata/part-*"))}
    # Some models (BisectingKMeans) store a saved model of spark.mllib as their data, which has no uid.
    uids = {uid: f"uid{i}" for i, meta in enumerate(metas.values()) if (uid := meta.get("uid"))}

    anonymous = _UidReplacer(uids, _default_outputs(metas.values(), uids))

    def of_metadata(meta: dict[str, Any]) -> bytes:
        meta = {k: v for k, v in meta.items() if k != "timestamp" and (by_whom or k != "sparkVersion")}
        if "defaultParamMap" in meta:
            # The default outputCol of a fitted stage contains the stage's uid; after loading, it contains another,
            # random uid.
            usual = {k: v for k, v in meta["defaultParamMap"].items() if by_whom or k != "seed"}
            own = f"{meta['uid']}__output"
            bare = {k: "__output" for k, v in usual.items() if v == own or _is_drawn_output(v)}
            meta["defaultParamMap"] = usual | bare
        return json.dumps(anonymous.value(meta), sort_keys=True).encode()

    parts = [p for p in folder.rglob("part-*") if p.is_file()]
    # FPGrowthModel's table is divided, too, but its folder's name could be any model's.
    itemsets = {p.parents[1] / "data" for p, meta in metas.items() if meta.get("class", "").endswith(".FPGrowthModel")}
    tables = itemsets.union(p.parent for p in parts if p.parent.name in DIVIDED)
    out = []
    for path in sorted({p.parent if p.parent in tables else p for p in parts}):
        divided = path in tables
        if path in metas:
            digest = hashlib.sha256(of_metadata(metas[path]))
        elif divided or path.suffix == ".parquet":
            # The order of a file's key-value metadata is arbitrary; the table is what counts.
            table = pq.read_table(path, partitioning=None)
            table = (_in_order(table) if divided else table).combine_chunks()
            if path.parent.name == "treesMetadata":  # of an id, JSON and a weight, by names that Spark 4.3 leaves out
                (i,) = (i for i, kind in enumerate(table.schema.types) if pa.types.is_string(kind))
                metadata = [{**json.loads(text), "uid": "tree"} for text in table.column(i).to_pylist()]
                table = table.set_column(
                    i, table.column_names[i], pa.array([of_metadata(m).decode() for m in metadata])
                )
            digest = hashlib.sha256()
            for name, column in zip(table.column_names, table.columns, strict=True):
                kind = str(column.type)
                if divided:  # by its type, a loaded table may hold nulls
                    kind = kind.replace(" not null", "")
                digest.update(f"{name} {kind} {len(column)};".encode())
                for chunk in column.chunks:
                    _feed(digest, chunk)
        else:
            digest = hashlib.sha256(path.read_bytes())
        where = path if divided else path.parent
        out.append(f"{anonymous.path(where.relative_to(folder))}:{digest.hexdigest()}")
    return sorted(out)


RANDOM = re.compile(r"\w+_[0-9a-f]{12}")
"""Pattern of a uid that Spark generated, which occurs in a text only as that uid."""


@dataclass(frozen=True)
class _UidReplacer:
    """A conversion of saved values that replaces the uids of stages by numbers.

    A uid chosen by a user may also be the name of a column: it is replaced only where the text must be a uid, and in
    the name of a default output column.

    Attributes:
        uids: the replacement of each uid.
        outputs: the replacements of default output columns that contain another uid than that of their stage. If no
            stage here writes a column of such a name, it is a column of the rows, and is not replaced.
    """

    uids: Mapping[str, str]
    outputs: Mapping[str, str]

    def value(self, value: Any, key: str = "") -> Any:
        """A value as JSON has it, with all uids replaced; `key` is the value's name in its mapping."""
        if isinstance(value, dict):
            return {k: self.value(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [self.value(v, key) for v in value]
        return self.text(value, is_uid=key in ("uid", "stageUids", "parent")) if isinstance(value, str) else value

    def text(self, text: str, *, is_uid: bool = False) -> str:
        if is_uid and text in self.uids:
            return self.uids[text]
        for uid, number in self.uids.items():
            if RANDOM.fullmatch(uid):
                text = text.replace(uid, number)
            elif text == f"{uid}__output":
                text = f"{number}__output"
        for name, other in self.outputs.items():
            text = text.replace(name, other)
        return text

    def path(self, path: Path) -> str:
        """The path of a file below the model's folder, with uids replaced; a stage's folder is named `<place>_<uid>`."""
        parts = []
        for part in path.parts:
            place, _, uid = part.partition("_")
            parts.append(f"{place}_{self.uids[uid]}" if place.isdigit() and uid in self.uids else self.text(part))
        return "/".join(parts)


def _default_outputs(metas: Iterable[Mapping[str, Any]], uids: Mapping[str, str]) -> dict[str, str]:
    """The attribute `outputs` of `_UidReplacer`."""
    usual = ((meta["uid"], value) for meta in metas for value in meta.get("defaultParamMap", {}).values())
    return {v: f"{uids[uid]}__output" for uid, v in usual if _is_drawn_output(v) and v[: -len("__output")] not in uids}


def _is_drawn_output(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(rf"{RANDOM.pattern}__output", value) is not None


def _in_order(table: pa.Table) -> pa.Table:
    """The table with its rows sorted by all columns that are not nested, and by the column "items" of FPGrowthModel as
    text.
    """
    keys = {f.name: table.column(f.name) for f in table.schema if not pa.types.is_nested(f.type)}
    if "items" in table.column_names:
        with contextlib.suppress(pa.ArrowInvalid, pa.ArrowNotImplementedError):  # items that are not plain values
            keys["items"] = pc.binary_join(table.column("items").cast(pa.list_(pa.string())), "\x1f")
    return table.take(pc.sort_indices(pa.table(keys), [(name, "ascending") for name in keys])) if keys else table


def _feed(digest: Any, array: pa.Array) -> None:
    """Feed the values of an array to a digest, in a form that does not depend on the version of Arrow."""
    digest.update(np.packbits(np.asarray(array.is_valid())).tobytes())
    if pa.types.is_struct(array.type):
        for i in range(array.type.num_fields):
            _feed(digest, pa.StructArray.field(array, i))
    elif pa.types.is_list(array.type):
        digest.update(np.asarray(array.value_lengths().fill_null(0)).astype(np.int64).tobytes())
        _feed(digest, array.flatten())
    elif pa.types.is_floating(array.type) or pa.types.is_integer(array.type) or pa.types.is_boolean(array.type):
        numbers = array.cast(pa.int8()) if pa.types.is_boolean(array.type) else array
        digest.update(np.ascontiguousarray(numbers.fill_null(0).to_numpy(zero_copy_only=False)).tobytes())
    else:
        digest.update(json.dumps(array.to_pylist(), default=str).encode())
