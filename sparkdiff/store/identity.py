"""The identity of a callable: a hash of its code, its closure, its defaults, and the globals that it reads.

A name does not identify a callable: every lambda is `<lambda>`, every partial is `functools:partial`. Two callables
have the same hash, in this process or in different ones, only if everything that determines their result is equal. For
a callable that cannot be identified, `UnidentifiableError` is raised.
"""

import contextlib
import copyreg
import dis
import functools
import hashlib
import importlib
import importlib.metadata
import importlib.util
import pickle
import site
import sys
import sysconfig
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEEPEST = 120
"""Largest depth of nested values; deeper nesting raises UnidentifiableError."""
ATOMS = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis), type(NotImplemented))
UNSPOKEN = frozenset(
    {
        "__dict__",
        "__weakref__",
        "__doc__",
        "__module__",
        "__qualname__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
    }
    | {"__annotations_cache__", "__firstlineno__", "__static_attributes__", "__slotnames__", "_abc_impl"}
)
"""Attributes of a class that have no effect on results, or that Python adds later; they are not hashed."""

UNINSTALLED = ("sparkdiff", "pyspark")
"""Packages that count as installed in whatever folder they are, and are identified by their `__version__`."""

ALONE = ("numpy", "torch")
"""Modules whose distribution has the same name. Almost every network uses them, so the slow search for the name is
skipped.
"""


class UnidentifiableError(Exception):
    """The error that a value cannot be identified by a hash of its content. It never leaves the package."""


def identity(value: Any, *, bare: Callable[[str], str] = str) -> str:
    """Hash of a value; two values have the same hash only if everything that determines their behaviour is equal.

    Args:
        bare: function that removes from each hashed string the parts that do not matter, such as uids.

    Raises:
        UnidentifiableError: a part of the value cannot be identified (a lock, a session, an open file); the message names it.
    """
    teller = _ValueDigest(bare)
    teller.tell(value)
    return teller.digest.hexdigest()


class _ValueDigest:
    """A digest to which all parts of a value are fed, recursively; an object that was fed before is fed as its number."""

    def __init__(self, bare: Callable[[str], str]) -> None:
        self.bare = bare
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, Any]] = {}  # keeps the object alive, so that its id stays unique
        self.modules: set[tuple[int, frozenset[str]]] = set()
        self.depth = 0

    def feed(self, tag: str, content: bytes | str = b"") -> None:
        data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
        self.digest.update(f"{tag} {len(data)}:".encode() + data)

    def tell(self, value: Any) -> None:
        if type(value) in ATOMS:
            text = self.bare(value) if isinstance(value, str) else value if isinstance(value, bytes) else repr(value)
            self.feed(type(value).__name__, text)
            return
        self.depth += 1
        if self.depth > DEEPEST:
            raise UnidentifiableError("values nested too deeply")
        if type(value) is tuple:
            self.all("tuple", value)
        elif type(value) is frozenset:
            self.set(value)
        elif isinstance(value, types.CodeType):
            self.code(value)
        elif id(value) in self.seen:
            self.feed("again", str(self.seen[id(value)][0]))
        else:
            self.seen[id(value)] = (len(self.seen), value)
            self.once(value)
        self.depth -= 1

    def once(self, value: Any) -> None:
        kind = type(value)
        if kind is list:
            self.all("list", value)
        elif kind in (dict, types.MappingProxyType):
            self.all("dict", [part for item in value.items() for part in item])  # the order may matter, too
        elif kind is set:
            self.set(value)
        elif isinstance(value, torch.Tensor):
            self.tensor(value)
        elif isinstance(value, (np.ndarray, np.generic)):
            self.array(value)
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, types.ModuleType):
            self.module(value, frozenset())
        elif isinstance(value, type):
            self.type(value)
        elif isinstance(value, functools.partial):
            self.all("partial", (type(value), value.func, value.args, value.keywords, vars(value)))
        elif isinstance(value, (staticmethod, classmethod)):
            self.all(kind.__name__, (value.__func__,))
        elif isinstance(value, property):
            self.all("property", (value.fget, value.fset, value.fdel))
        elif isinstance(value, functools.cached_property):
            self.all("cached_property", (value.func,))
        elif isinstance(value, (types.MemberDescriptorType, types.GetSetDescriptorType)):
            self.feed("slot", value.__name__)
        else:
            self.object(value)

    def all(self, tag: str, values: Any) -> None:
        self.feed(tag, str(len(values)))
        for value in values:
            self.tell(value)

    def set(self, values: Any) -> None:
        """Feed a set. Each entry is hashed separately and the hashes are sorted, as the set's order differs between
        processes.
        """
        if self.depth > DEEPEST // 4:  # separate hashes of entries start again
            raise UnidentifiableError("sets nested too deeply")
        found = []
        for value in values:
            other = _ValueDigest(self.bare)
            other.depth = self.depth * 4
            other.tell(value)
            found.append(other.digest.hexdigest())
        self.feed(type(values).__name__, " ".join(sorted(found)))

    def tensor(self, value: torch.Tensor) -> None:
        if value.layout is not torch.strided or value.is_meta:
            raise UnidentifiableError(f"a tensor of layout {value.layout} on {value.device}")
        self.feed(
            "tensor", f"{type(value).__name__} {value.dtype} {tuple(value.shape)} {value.device} {value.requires_grad}"
        )
        content = value.detach().cpu().resolve_conj().resolve_neg()
        if content.dtype.is_floating_point and content.dtype.itemsize < 4:  # numpy lacks some of them
            content = content.double()
        self.feed("content", content.numpy().tobytes())

    def array(self, value: Any) -> None:
        self.feed("array", f"{type(value).__name__} {value.dtype.descr if value.dtype.names else value.dtype.str}")
        self.feed("shape", str(value.shape))
        if value.dtype.hasobject:
            self.tell(value.tolist())
        else:
            self.feed("content", value.tobytes())

    def function(self, value: types.FunctionType) -> None:
        if self.library(value):
            return
        self.feed("function", f"{value.__module__}:{value.__qualname__}")
        self.tell(value.__code__)
        self.all("defaults", (value.__defaults__, value.__kwdefaults__, vars(value)))
        for cell in value.__closure__ or ():
            try:
                self.tell(cell.cell_contents)
            except ValueError:
                self.feed("empty")
        names, attributes = set(), set()
        for code in _codes(value.__code__):
            names |= {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
            attributes |= {*code.co_names}
            for module in _imported_modules(code, value.__globals__.get("__package__")):
                self.feed_module(module, frozenset(code.co_names))
        for name in sorted(names):
            self.feed("global", name)
            if isinstance(found := value.__globals__.get(name), types.ModuleType):
                self.feed_module(found, frozenset(attributes))
            elif name in value.__globals__:
                self.tell(found)

    def code(self, code: types.CodeType) -> None:
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        self.feed("code", code.co_code)
        self.all("names", (counts, code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars))
        self.all("constants", (code.co_consts, getattr(code, "co_exceptiontable", b"")))

    def feed_module(self, module: types.ModuleType | None, attributes: frozenset[str]) -> None:
        """Feed a module that a function reaches, with the module's `attributes` that the function may use."""
        if module is None:
            self.feed("missing")
        elif (id(module), attributes) not in self.modules:
            self.modules.add((id(module), attributes))
            self.module(module, attributes)

    def module(self, module: types.ModuleType, attributes: frozenset[str]) -> None:
        self.feed("module", _facts(module.__name__))
        if _is_installed(module.__name__):
            return
        for name in sorted(attributes & vars(module).keys()):
            self.feed("attribute", name)
            found = vars(module)[name]
            if isinstance(found, types.ModuleType):
                self.feed_module(found, attributes)
            else:
                self.tell(found)

    def type(self, value: type) -> None:
        if self.library(value):
            return
        self.feed("class", f"{value.__module__}:{value.__qualname__}")
        self.all("bases", (type(value), value.__bases__))
        for name in sorted(vars(value).keys() - UNSPOKEN):
            self.feed("attribute", name)
            self.tell(vars(value)[name])

    def library(self, value: Any) -> bool:
        """Feed a function or class of an installed package as its name and the package's version, and return True; feed
        nothing for any other value, and return False.
        """
        module, name = value.__module__, value.__qualname__
        if module is None or not _is_installed(module) or _object_at(module, name) is not value:
            return False
        self.feed("library", f"{_facts(module)}:{name}")
        return True

    def object(self, value: Any) -> None:
        """Feed an object as its class and its state, which are determined as pickle does."""
        try:
            reducer = copyreg.dispatch_table.get(type(value))
            reduced = value.__reduce_ex__(4) if reducer is None else reducer(value)
            parts = (
                reduced if isinstance(reduced, str) else [list(p) if isinstance(p, Iterator) else p for p in reduced]
            )
        except (TypeError, ValueError, AttributeError, RuntimeError, pickle.PickleError) as e:
            raise UnidentifiableError(f"an object of {type(value).__module__}.{type(value).__qualname__}") from e
        if not isinstance(parts, str):
            self.all("object", parts)
            return
        module, own = _home(value, parts), getattr(value, "__dict__", None)
        if not own and _object_at(module, parts) is not value:
            raise UnidentifiableError(f"an object that is known as {module}:{parts} only")
        self.feed("named", f"{_facts(module)}:{parts}")
        self.tell(own or None)  # for a cached function, its attributes contain the function itself


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code of a function and of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _imported_modules(code: types.CodeType, package: str | None) -> Iterator[types.ModuleType | None]:
    """The modules that a function imports in its body; None for a module that cannot be imported."""
    # An operand above 255 is preceded by an instruction with its upper bits.
    steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
    for i, step in enumerate(steps):
        if step.opname == "IMPORT_NAME":
            level = steps[i - 2].argval
            try:
                name = importlib.util.resolve_name("." * (level or 0) + step.argval, package)
                yield importlib.import_module(name)
            except (Exception, SystemExit):  # whatever its code raises
                yield None


def _object_at(module: str, name: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), sys.modules[module])
    except (KeyError, AttributeError):
        return None


def _home(value: Any, name: str) -> str:
    """Name of the module that contains a value implemented in C under this name; if several do, the shortest name."""
    own = getattr(value, "__module__", None)
    if own is not None and _object_at(own, name) is value:
        return str(own)
    has = [m for m, found in list(sys.modules.items()) if getattr(found, "__dict__", {}).get(name) is value]
    return min(has, key=lambda m: (len(m), m), default=str(own))


def _file(module: str) -> str:
    return getattr(sys.modules.get(module), "__file__", None) or ""


@functools.cache
def _libraries() -> tuple[str, ...]:
    paths = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    return tuple({f"{Path(p).resolve()}/" for p in [*paths, *site.getsitepackages(), site.getusersitepackages()] if p})


def _is_installed(module: str) -> bool:
    """True if a module belongs to Python, an installed package or this package, so that a version identifies its code.

    A package in editable mode does not count, because its code can change without its version; it is in another folder.
    """
    top = module.partition(".")[0]
    if top in ("builtins", *UNINSTALLED):
        return True
    if top == "__main__" or module not in sys.modules:
        return False
    file = _file(module)
    if module in sys.builtin_module_names:
        return True
    known = top in sys.stdlib_module_names or bool(_version(top))
    return known and bool(file) and str(Path(file).resolve()).startswith(_libraries())


def _version(top: str) -> str:
    """The version of a package, from `__version__` and from its metadata; "" if it has neither, as most modules of Python."""
    own = getattr(sys.modules.get(top), "__version__", "")
    releases = () if top in UNINSTALLED else _releases(top)
    return " ".join([*([own] if isinstance(own, str) and own else []), *releases])


@functools.cache
def _releases(top: str) -> tuple[str, ...]:
    out = []
    # To find the packages to which a module belongs, Python reads the metadata of all packages, which takes a second.
    owners = (top,) if top in ALONE else _distributions().get(top, ())
    for name in sorted({name for name in owners if name}):  # None: its metadata are damaged
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            if version := importlib.metadata.version(name):
                out.append(f"{name} {version}")
    return tuple(out)


_distributions = functools.cache(importlib.metadata.packages_distributions)


def _facts(module: str) -> str:
    """A module's name, its package's version and the hash of its file, as text; sparkdiff's files are not hashed, because
    the version identifies them.
    """
    top = module.partition(".")[0]
    return f"{module} {_version(top)} {'' if top == 'sparkdiff' else _hash(_file(module))}"


@functools.lru_cache(maxsize=256)
def _hash_of(path: str, _size: int, _changed: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _hash(path: str) -> str:
    try:
        stat = Path(path).stat()
        return _hash_of(path, stat.st_size, stat.st_mtime_ns) if path else ""
    except OSError:
        return ""
