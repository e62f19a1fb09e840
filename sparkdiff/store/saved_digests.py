"""Hashes of the content of saved models, from their files alone: equal models have equal hashes, whatever their uids and the
time of saving. Imports neither Spark nor torch.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sparkdiff.errors import as_read_error

DIVIDED = ("userFactors", "itemFactors", "globalTopicTotals", "topicCounts", "tokenCounts")
"""Tables of ALSModel and DistributedLDAModel. Spark saves such a table in one file per partition, in the order of the
current partitions, so a model that was loaded and saved again has other files with the same rows.
"""


def hash_of_folder(path: Path) -> str:
    """A hash of a saved model's classes, Params and weights that does not depend on uids or the time of saving.

    Raises:
        DamagedFileError: the model is damaged.
        SparkdiffError: it cannot be read at this time.
    """
    with as_read_error(f"the model in {path}"):
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
