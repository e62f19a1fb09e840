"""A scorer as two files that run no code when they are read: JSON, and the arrays that it names.

An object is stored as the name of its class and its attributes. Only classes of this package, and of stages that `register`
knows, are made again, without calling them.
"""

import dataclasses
import io
import json
import math
import os
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.machine import paths, whole
from sparkdiff.stages.base import REGISTRY
from sparkdiff.store import files

FORMAT = 1
JSON, ARRAYS = "scorer.json", "arrays.npz"
ROOMS = ("sparkdiff.stages.", "sparkdiff.serving.")
OTHERS = ("sparkdiff.jvm.nodes.Nodes", "sparkdiff.jvm.encoders.Statistics", "torch.nn.modules.container.ModuleList")
"""Classes elsewhere that stages hold."""
_MODULE = frozenset(vars(nn.Module()))
"""What every module of torch has; of these only the three collections below are stored."""


class _Writer:
    """Objects to JSON; arrays are collected."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray[Any, Any]] = []

    def array(self, value: "np.ndarray[Any, Any]") -> str:
        self.arrays.append(value)
        return f"a{len(self.arrays) - 1}"

    def encode(self, value: Any) -> Any:
        kind = type(value)
        if value is None or kind in (bool, int, str):
            return value
        if kind is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if kind is list:
            return [self.encode(v) for v in value]
        if kind is tuple:
            return {"tuple": [self.encode(v) for v in value]}
        if kind in (set, frozenset):
            return {kind.__name__: [self.encode(v) for v in sorted(value)]}
        if kind is dict:
            return {"dict": [[self.encode(k), self.encode(v)] for k, v in value.items()]}
        if isinstance(value, Tensor):
            return {"tensor": self.array(value.detach().cpu().numpy()), "parameter": isinstance(value, nn.Parameter)}
        if kind is np.ndarray and value.dtype.kind in "biuf":
            return {"array": self.array(value)}
        if isinstance(value, np.generic):
            return self.encode(value.item())
        return self.object(value)

    def object(self, value: Any) -> Any:
        kind = type(value)
        name = f"{kind.__module__}.{kind.__qualname__}"
        if _class_of(name) is not kind:
            raise TypeError(f"an attribute of class {name}")
        if isinstance(value, tuple):
            return {"object": name, "fields": [self.encode(v) for v in value]}
        state = {k: v for k, v in vars(value).items() if not (isinstance(value, nn.Module) and k in _MODULE)}
        if dataclasses.is_dataclass(value):
            state = {f.name: state[f.name] for f in dataclasses.fields(value)}
        out: dict[str, Any] = {"object": name, "state": {k: self.encode(v) for k, v in state.items()}}
        if isinstance(value, nn.Module):
            held = {k: dict(vars(value)[k]) for k in ("_parameters", "_buffers", "_modules")}
            out["module"] = {k: {n: self.encode(v) for n, v in named.items()} for k, named in held.items()}
        return out


class _Reader:
    def __init__(self, arrays: Mapping[str, Any]):
        self.arrays = arrays

    def decode(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.decode(v) for v in value]
        if not isinstance(value, dict):
            return value
        kind = next(iter(value))
        return self.object(value) if kind == "object" else _PLAIN[kind](self, value)

    def object(self, value: Mapping[str, Any]) -> Any:
        kind = _class_of(value["object"])
        if kind is None:
            raise InputError(
                f"it needs the class {value['object']}, which is not registered here: import the module that registers it first"
            )
        if "fields" in value:
            return tuple.__new__(kind, map(self.decode, value["fields"]))
        made: Any = object.__new__(kind)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            for place, named in value["module"].items():
                vars(made)[place].update({n: self.decode(v) for n, v in named.items()})
            made.training = False
        vars(made).update({k: self.decode(v) for k, v in value["state"].items()})
        return made

    def tensor(self, value: Mapping[str, Any]) -> Tensor:
        found = torch.from_numpy(np.array(self.arrays[value["tensor"]]))
        return nn.Parameter(found, requires_grad=False) if value["parameter"] else found


_PLAIN: dict[str, Callable[[_Reader, Any], Any]] = {
    "float": lambda reader, v: float(v["float"]),
    "tuple": lambda reader, v: tuple(map(reader.decode, v["tuple"])),
    "set": lambda reader, v: set(map(reader.decode, v["set"])),
    "frozenset": lambda reader, v: frozenset(map(reader.decode, v["frozenset"])),
    "dict": lambda reader, v: {reader.decode(k): reader.decode(x) for k, x in v["dict"]},
    "tensor": lambda reader, v: reader.tensor(v),
    "array": lambda reader, v: reader.arrays[v["array"]],
}


def _class_of(name: str) -> type | None:
    """The class of this name, if it is one that a scorer may hold and its module is imported."""
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in REGISTRY.values()}
    if name in known:
        return known[name]
    if name in OTHERS or name.startswith(ROOMS):
        module, _, own = name.rpartition(".")
        found = getattr(sys.modules.get(module), own, None)
        return found if isinstance(found, type) and found.__module__ == module else None
    return None


def encoded(value: Any) -> tuple[Any, dict[str, "np.ndarray[Any, Any]"]]:
    """An object as JSON and arrays.

    Raises:
        TypeError: it holds what cannot be stored so; names the class.
    """
    writer = _Writer()
    content = writer.encode(value)
    return content, {f"a{i}": a for i, a in enumerate(writer.arrays)}


def decoded(content: Any, arrays: Mapping[str, Any]) -> Any:
    """The object that `encoded` was given."""
    return _Reader(arrays).decode(content)


def save(value: Any, version: str, path: str | os.PathLike[str]) -> None:
    """Write an object to a new folder, which is there whole or not at all.

    Raises:
        InputError: the folder exists, or it is not on this machine's file systems.
        SparkdiffError: a class cannot be stored, or the folder cannot be written.
    """
    folder = files.new_path("path", os.fspath(path))
    try:
        content, arrays = encoded(value)
    except TypeError as e:
        raise SparkdiffError(
            f"the scorer cannot be saved: a stage holds {e}, which is not stored without pickle"
        ) from e
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    described = {"format": FORMAT, "sparkdiff": version, "unicode": unicodedata.unidata_version, "scorer": content}
    try:
        with (
            files.room("the scorer", folder, "free some space, or choose a folder on a disk with more space"),
            whole.new_folder(folder) as temporary,
        ):
            temporary.mkdir(parents=True)
            files.write_bytes(temporary / ARRAYS, buffer.getvalue())
            files.write_bytes(temporary / JSON, json.dumps(described, ensure_ascii=True).encode())
    except OSError as e:
        raise SparkdiffError(f"the scorer cannot be written to {folder}: {e}; choose another folder") from e


def load(version: str, path: str | os.PathLike[str]) -> Any:
    """The object in a folder that `save` wrote.

    Raises:
        InputError: there is none, it is damaged, or another version wrote it.
    """
    folder = Path(os.path.abspath(str(paths.local(os.fspath(path)))))
    again = "save it again, by Scorer(model).save(path) where Spark runs"
    try:
        described = json.loads((folder / JSON).read_bytes())
    except FileNotFoundError:
        way = (
            "; Scorer(PipelineModel.load(path)) makes one of a pipeline that Spark saved"
            if (folder / "metadata").exists()
            else ""
        )
        raise InputError(f"there is no scorer in {folder}: Scorer.save writes {JSON} and {ARRAYS}{way}") from None
    except (OSError, ValueError) as e:
        raise InputError(f"{folder / JSON} cannot be read: {e}; {again}") from e
    if not isinstance(described, dict) or described.get("format") != FORMAT:
        found = described.get("format") if isinstance(described, dict) else None
        raise InputError(
            f"the scorer in {folder} has format {found!r}, and this version reads format {FORMAT}: {again}"
        )
    if _release(described.get("sparkdiff", "")) != _release(version):
        wrote = described.get("sparkdiff")
        raise InputError(f"sparkdiff {wrote} wrote the scorer in {folder}, and this is {version}: {again}")
    try:
        with np.load(folder / ARRAYS) as arrays:  # which unpickles nothing
            found = decoded(described["scorer"], {name: arrays[name] for name in arrays.files})
        _check_unicode(found, described.get("unicode"), again)
        return found
    except InputError as e:
        raise InputError(f"the scorer in {folder} cannot be made: {e}") from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration, EOFError, zipfile.BadZipFile) as e:
        raise InputError(f"the scorer in {folder} is damaged ({type(e).__name__}: {e}): {again}") from e


def _check_unicode(scorer: Any, wrote: Any, again: str) -> None:
    """Lower case differs between versions of Unicode, and a scorer holds how this Java's differs from that Python's.

    Raises:
        InputError: a stage lowers text, and Python had another version of Unicode where the scorer was made.
    """
    lowers = any(getattr(getattr(step, "stage", None), "lowers_text", False) for step in getattr(scorer, "steps", ()))
    if lowers and wrote != unicodedata.unidata_version:
        raise InputError(
            f"it lowers text by Unicode {wrote}, and this Python has {unicodedata.unidata_version}: {again} and a Python "
            "of this version"
        )


def _release(version: str) -> list[str]:
    """The part of a version in which attributes of stages keep their names."""
    return str(version).split(".")[:2]
