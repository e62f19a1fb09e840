"""Storage of a scorer in two files that run no code when they are read: JSON, and the arrays to which the JSON refers.

An object is stored as the name of its class and its attributes. Only classes of this package, registered stages and
torch's ModuleList are recreated; of these, only constructors of dataclasses are called.
"""

import dataclasses
import io
import itertools
import json
import math
import mmap
import os
import re
import reprlib
import sys
import unicodedata
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparkdiff.errors import InputError, SparkdiffError, check_type
from sparkdiff.machine import atomic_files
from sparkdiff.stages.base import REGISTRY
from sparkdiff.store import files

FORMAT = 1
JSON, ARRAYS = "scorer.json", "arrays.npz"
ROOMS = ("sparkdiff.stages.", "sparkdiff.serving.")
OTHERS = ("sparkdiff.jvm.nodes.Nodes", "sparkdiff.jvm.encoders.Statistics", "torch.nn.modules.container.ModuleList")
"""Classes outside of ROOMS that stages hold and that may be stored."""
_MODULE = frozenset(vars(nn.Module()))
"""Attributes that every torch module has; of these, only `_parameters`, `_buffers` and `_modules` are stored."""
NESTING = 100
WEIGHTS = {b",": 64, b":": 128, b"[": 256, b"{": 256}
"""Memory in bytes that a JSON value and its decoded object take in addition to the text, by the character that marks
one.

Used to estimate, before decoding, whether a file fits into `maxBytes`.
"""
ENTRY = re.compile(rb"PK\x01\x02(?=.{24}(..)(..)(..))", re.DOTALL)
"""An entry in an archive's directory, and the lengths of the entry's name, extra field and comment."""
ENTRY_BYTES, NAME_BYTES = 512, 16
"""Upper bounds of the memory that zipfile takes for an entry, and for each byte of its name, extra field and comment."""


@dataclasses.dataclass
class _Writer:
    """Encoder of objects to JSON; collects arrays."""

    arrays: list["np.ndarray[Any, Any]"] = dataclasses.field(default_factory=list)

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
        if kind in (tuple, set, frozenset):
            return {kind.__name__: [self.encode(v) for v in (value if kind is tuple else sorted(value))]}
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


@dataclasses.dataclass
class _Reader:
    """Decoder of JSON to objects.

    Attributes:
        trail: keys and values on the path to the current value, for error messages.
    """

    arrays: dict[str, "np.ndarray[Any, Any]"] = dataclasses.field(default_factory=dict)
    trail: list[tuple[Any, Any]] = dataclasses.field(default_factory=list)

    def read(self, path: Path, described: Any) -> None:
        """Read the arrays of an archive, after checking that each matches its description and fits into the archive.

        Raises:
            ValueError: a member differs from its description; zipfile and numpy raise other errors on damaged files.
        """
        with zipfile.ZipFile(path) as archive:
            if len(archive.NameToInfo) < len(archive.filelist):
                raise ValueError(f"{path.name} holds a member that is there twice")
            room = path.stat().st_size
            for i, one in enumerate(described):
                self.trail = [("arrays", described), (i, one)]
                member = archive.getinfo(f"a{i}.npy")
                member.compress_type = zipfile.ZIP_STORED  # as all are; compressed data then have no header
                with archive.open(member) as f:
                    version = np.lib.format.read_magic(f)
                    shape, fortran, kind = np.lib.format.read_array_header_1_0(f)
                    size = member.compress_size - f.tell()
                found = {"dtype": kind.str, "fortran": fortran, "shape": [*shape]}
                room -= size
                if (
                    (version, found) != ((1, 0), one)
                    or size != kind.itemsize * math.prod(shape)
                    or kind.kind not in "biuf"
                    or room < 0  # members that share bytes
                ):
                    raise ValueError(f"{member.filename} holds {size:,} bytes of {found}, not the described array")
            self.arrays = {
                f"a{i}": np.asarray(np.lib.format.read_array(archive.open(f"a{i}.npy"))) for i in range(len(described))
            }

    def decode(self, value: Any, key: Any) -> Any:
        self.trail.append((key, value))
        if len(self.trail) > NESTING:
            raise ValueError(f"it is nested more than {NESTING} deep")
        kind = next(iter(value), None) if isinstance(value, dict) else type(value)
        found = _MADE[kind](self, value) if isinstance(value, (dict, list)) else value
        self.trail.pop()
        return found

    def decode_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return dict(zip(values, map(self.decode, values.values(), values), strict=True))

    def object(self, value: Mapping[str, Any]) -> Any:
        kind = _class_of(value["object"])
        if kind is None:
            raise InputError(
                f"it needs the class {value['object']}, which is not registered here: import the module that registers it first"
            )
        if "fields" in value:
            return kind._make(map(self.decode, value["fields"], itertools.count()))  # type: ignore[attr-defined]
        if dataclasses.is_dataclass(kind):
            return files.check_types(kind(**self.decode_values(value["state"])))
        made: Any = object.__new__(kind)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
            for place in ("_parameters", "_buffers", "_modules"):
                vars(made)[place].update(self.decode_values(value["module"][place]))
            made.training = False
        vars(made).update(self.decode_values(value["state"]))
        return made

    def tensor(self, value: Mapping[str, Any]) -> Tensor:
        found = torch.from_numpy(self.arrays[value["tensor"]])
        return nn.Parameter(found, requires_grad=False) if value["parameter"] else found


_MADE: dict[Any, Callable[[_Reader, Any], Any]] = {
    list: lambda reader, v: [*map(reader.decode, v, itertools.count())],
    "float": lambda _reader, v: float(v["float"]),
    "tuple": lambda reader, v: tuple(map(reader.decode, v["tuple"], itertools.count())),
    "set": lambda reader, v: set(map(reader.decode, v["set"], itertools.count())),
    "frozenset": lambda reader, v: frozenset(map(reader.decode, v["frozenset"], itertools.count())),
    "dict": lambda reader, v: dict(map(reader.decode, v["dict"], itertools.count())),
    "tensor": _Reader.tensor,
    "array": lambda reader, v: reader.arrays[v["array"]],
    "object": _Reader.object,
}


def _class_of(name: str) -> type | None:
    """Class with this full name, if a scorer may hold objects of it and its module is imported; else None."""
    known = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in REGISTRY.values()}
    if name in known:
        return known[name]
    if name in OTHERS or name.startswith(ROOMS):
        module, _, own = name.rpartition(".")
        found = getattr(sys.modules.get(module), own, None)
        return found if isinstance(found, type) and found.__module__ == module else None
    return None


def save(value: Any, version: str, origin: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Write an object to a new folder, completely or not at all.

    Args:
        origin: versions of Spark and Java and the time zone under which the object was made, for the description.

    Raises:
        InputError: the folder exists, or it is not on this machine's file systems.
        SparkdiffError: a class cannot be stored, or the folder cannot be written.
    """
    folder = files.new_path("path", os.fspath(path))
    writer = _Writer()
    try:
        content = writer.encode(value)
    except TypeError as e:
        raise SparkdiffError(
            f"the scorer cannot be saved: a stage holds {e}, which is not stored without pickle"
        ) from e
    buffer = io.BytesIO()
    np.savez(buffer, **{f"a{i}": a for i, a in enumerate(writer.arrays)})  # type: ignore[arg-type]
    described = {
        "format": FORMAT,
        "sparkdiff": version,
        "unicode": unicodedata.unidata_version,
        **origin,
        "arrays": [{"dtype": a.dtype.str, "fortran": bool(a.flags.fnc), "shape": [*a.shape]} for a in writer.arrays],
        "scorer": content,
    }
    try:
        with (
            files.room("the scorer", folder, "free some space, or choose a folder on a disk with more space"),
            atomic_files.new_folder(folder) as temporary,
        ):
            temporary.mkdir(parents=True)
            files.write_bytes(temporary / ARRAYS, buffer.getvalue())
            files.write_bytes(temporary / JSON, json.dumps(described, ensure_ascii=True).encode())
    except OSError as e:
        raise SparkdiffError(f"the scorer cannot be written to {folder}: {e}; choose another folder") from e


def load(version: str, path: str | os.PathLike[str], maxBytes: int, make: Callable[[Any], None]) -> dict[str, str]:
    """Read the object from a folder that `save` wrote, pass it to `make`, and return the stored `origin` (see `save`).

    Raises:
        InputError: the folder holds no scorer; the scorer is damaged, needs more than `maxBytes` or was written by a
            sparkdiff with another major or minor version; or `make` fails on it.
    """
    check_type("maxBytes", maxBytes, int, "a number of bytes")
    folder = files.local_path("path", os.fsdecode(path))
    again = "save it again, by Scorer(model).save(path) where Spark runs"
    if lacks := [name for name in (JSON, ARRAYS) if not os.path.isfile(folder / name)]:
        raise InputError(
            f"there is no scorer in {folder}, which lacks {' and '.join(lacks)}: Scorer.save writes {JSON} and {ARRAYS}"
            + (
                "; Scorer(PipelineModel.load(path)) makes one of a pipeline that Spark saved"
                if os.path.exists(folder / "metadata")
                else ""
            )
        )
    reader = _Reader()
    try:
        took = os.path.getsize(folder / JSON) + os.path.getsize(folder / ARRAYS)
        text = (folder / JSON).read_bytes() if took <= maxBytes else b""
        took += 3 * len(text) + sum(text.count(mark) * w for mark, w in WEIGHTS.items())
        took += _directory_bytes(folder / ARRAYS) if text else 0
        if took > maxBytes:
            raise InputError(f"{JSON} and {ARRAYS} take {took:,} bytes, more than maxBytes={maxBytes:,}")
        described = json.loads(text)
        found = described.get("format") if isinstance(described, dict) else None
        if type(found) is not int or found != FORMAT:
            raise InputError(f"it has format {reprlib.repr(found)}, and this version reads format {FORMAT}")
        wrote = reprlib.repr(described.get("sparkdiff")).strip("'")
        if wrote.split(".")[:2] != version.split(".")[:2]:  # between others, attributes of stages change their names
            raise InputError(f"sparkdiff {wrote} wrote the scorer, and this is {version}")
        reader.read(folder / ARRAYS, described["arrays"])
        reader.trail = []
        made = reader.decode(described["scorer"], "scorer")
        _check_unicode(made, described.get("unicode"))
        make(made)
    except Exception as e:  # a foreign file may cause any error
        at = (
            f" at {'.'.join(str(key)[:40] for key, _ in reader.trail)} of {JSON}, {reprlib.repr(reader.trail[-1][1])},"
            if reader.trail
            else ""
        )
        why = e if isinstance(e, InputError) else f"it is damaged ({type(e).__name__}: {str(e)[:300]})"
        raise InputError(f"the scorer in {folder} cannot be read{at}: {why}; {again}") from e
    return {k: v for k, v in described.items() if k in ("sparkVersion", "javaVersion", "timeZone") and type(v) is str}


def _check_unicode(scorer: Any, wrote: Any) -> None:
    """Raise InputError if a stage lowers text, and the Python that saved the scorer had another version of Unicode.

    The scorer stores which characters Java and that Python lower differently; for this Python, these may be others.
    """
    lowers = any(getattr(getattr(step, "stage", None), "lowers_text", False) for step in getattr(scorer, "steps", ()))
    if lowers and wrote != unicodedata.unidata_version:
        raise InputError(
            f"it lowers text by Unicode {str(wrote)[:20]}, and this Python has {unicodedata.unidata_version}; save it with a "
            "Python of this version"
        )


def _directory_bytes(path: Path) -> int:
    """Upper bound of the memory that zipfile takes for the directory of an archive."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return sum(
            ENTRY_BYTES + NAME_BYTES * sum(int.from_bytes(length, "little") for length in entry.groups())
            for entry in ENTRY.finditer(content)
        )
