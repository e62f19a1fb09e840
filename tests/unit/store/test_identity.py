"""Identities of callables: no two different ones equal, equal ones equal, in another process too."""

import functools
import importlib
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

import sparkdiff.store.identity as modules
from sparkdiff.store.identity import UnidentifiableError, identity

MODULE = """
import dataclasses
import enum
import functools

import numpy as np
import torch
import torch.nn.functional as NN

import {helpers} as helpers
from {helpers} import LIMITS

SCALE = {scale}
KINDS = {{"a", "b", "ccc", "dd"}}


class Kind(enum.Enum):
    one = 1
    two = "two"


@dataclasses.dataclass(frozen=True)
class Huber:
    delta: float = 1.0
    kinds: tuple = (Kind.one, 2)

    def __call__(self, outputs, label, weight):
        return NN.huber_loss(outputs["prediction"], label, reduction="none", delta=self.delta)


class Network(torch.nn.Module):
    def __init__(self, k):
        super().__init__()
        self.k = torch.nn.Parameter(torch.full((2,), k))

    def forward(self, outputs, label, weight):
        return super().forward(outputs) * self.k


def plain(outputs, label, weight):
    return SCALE * (outputs["prediction"] - label) ** 2


def reaching(outputs, label, weight):
    return helpers.squared(outputs["prediction"] - label)


def importing(outputs, label, weight):
    import {helpers} as mine
    return mine.squared(outputs["prediction"] - label)


def choosing(outputs, label, weight):
    return outputs["prediction"] if "a" in KINDS and label in {{"x", "y", "z"}} else LIMITS


def power(k):
    return lambda outputs, label, weight: (outputs["prediction"] - label) ** k


def even(n):
    return n == 0 or odd(n - 1)


def odd(n):
    return n != 0 and even(n - 1)


@functools.lru_cache
def cached(n):
    return n * SCALE


@functools.wraps(plain)
def wrapped(*args):
    return plain(*args) + 1


ALL = {{
    "plain": plain, "reaching": reaching, "importing": importing, "choosing": choosing, "wrapped": wrapped, "cached": cached,
    "even": even, "odd": odd, "power 1": power(1), "power 1.0": power(1.0), "power True": power(True), "power 2": power(2),
    "partial": functools.partial(plain, weight=1.0), "partial 2": functools.partial(plain, weight=2.0),
    "partial of another": functools.partial(reaching, weight=1.0), "nested": functools.partial(functools.partial(plain), 1),
    "huber": Huber(), "huber 2": Huber(2.0), "huber of kinds": Huber(kinds=(Kind.two, 2)), "class": Huber,
    "bound": Huber().__call__,
    "network": Network(1.0), "network 2": Network(2.0), "forward": Network(1.0).forward,
    "mse": torch.nn.MSELoss(), "mse none": torch.nn.MSELoss(reduction="none"), "exp": torch.exp, "numpy exp": np.exp, "len": len,
    "lambda": lambda o, l, w: o, "lambda of l": lambda o, l, w: l, "default": lambda o, l=1: o, "default 2": lambda o, l=2: o,
    "array": power(np.arange(3)), "array of floats": power(np.arange(3.0)), "tensor": power(torch.ones(2)),
    "set": power({{1, 2}}),
    "dict": power({{"a": 1, "b": 2}}), "dict in another order": power({{"b": 2, "a": 1}}),
    "minus zero": power(-0.0), "zero": power(0.0),
}}
"""
HELPERS = """
LIMITS = {limits}

def _of(x):
    return x ** {exponent}

def squared(x):
    return _of(x)
"""
SHOW = """
import importlib, json, sys
from sparkdiff.store.identity import identity
for folder in sys.argv[1:]:
    sys.path.insert(0, folder)
    for name in ("losses", "helpers"):
        sys.modules.pop(name, None)
    losses = importlib.import_module("losses")
    print(json.dumps({name: identity(loss) for name, loss in losses.ALL.items()}))
"""


def written(folder: Path, *, scale: float = 2.0, limits: Any = (1, 2), exponent: int = 2) -> Path:
    folder.mkdir()
    (folder / "losses.py").write_text(MODULE.format(helpers="helpers", scale=scale))
    (folder / "helpers.py").write_text(HELPERS.format(limits=limits, exponent=exponent))
    return folder


def told(seed: int, *folders: Path) -> list[dict[str, str]]:
    """The identities of all callables of the modules in these folders, as another process tells them."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW, *map(str, folders)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={"PYTHONHASHSEED": str(seed), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_equal_and_different_stay_so_in_another_process(tmp_path: Path) -> None:
    (first,) = told(1, written(tmp_path / "one"))
    assert len({*first.values()}) == len(first)
    second, other, limited = told(
        2,
        written(tmp_path / "two"),
        written(tmp_path / "three", scale=3.0, exponent=3),
        written(tmp_path / "four", limits=(1, 3)),
    )
    assert second == first  # in another folder, with other hashes of strings
    reads = {
        "plain",
        "reaching",
        "importing",
        "wrapped",
        "cached",
        "partial",
        "partial 2",
        "partial of another",
        "nested",
    }
    assert {name for name in first if other[name] != first[name]} == reads
    # A function's helpers may hold what it doesn't name, so that their file counts too.
    assert {name for name in first if limited[name] != first[name]} == {
        "choosing",
        "reaching",
        "importing",
        "partial of another",
    }


SIMPLE = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3) | st.binary(max_size=3)
)
VALUES = st.recursive(
    SIMPLE,
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text(max_size=2), inner, max_size=2)
    ),
    max_leaves=5,
)


def exactly(value: Any) -> str:
    """A text that tells values apart which are equal, as 1 and 1.0."""
    return repr(value)


def closing_over(value: Any) -> Callable[..., Any]:
    return lambda outputs, label, weight: (outputs, value)


MAKERS: list[Callable[[Any], Any]] = [
    closing_over,
    lambda value: functools.partial(max, value),
    lambda value: functools.partial(max, key=value),
    lambda value: eval("lambda x, y=value: x", {"value": value}),
    lambda value: eval("lambda x: value", {"value": value}),
]


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(MAKERS) - 1), st.integers(0, len(MAKERS) - 1), VALUES, VALUES)
def test_equal_callables_are_made_alike_of_equal_values(i: int, j: int, a: Any, b: Any) -> None:
    same = identity(MAKERS[i](a)) == identity(MAKERS[j](b))
    assert same == (i == j and exactly(a) == exactly(b))


@pytest.mark.parametrize("value", [threading.Lock(), threading.local(), (x for x in ()), torch.eye(2).to_sparse()])
def test_what_cannot_be_told(value: Any) -> None:
    with pytest.raises(UnidentifiableError, match=r"an object of|a tensor of layout"):
        identity(functools.partial(closing_over(value), 1))


def test_values_that_hold_themselves() -> None:
    knot: list[Any] = []
    knot.append(knot)
    assert identity(knot) == identity(knot) != identity([[]])
    deep: list[Any] = []
    for _ in range(1000):
        deep = [deep]
    with pytest.raises(UnidentifiableError, match="nested too deeply"):
        identity(deep)


def test_arrays_of_all_kinds() -> None:
    kinds = [
        np.zeros(2),
        np.zeros(2, "f4"),
        np.zeros((1, 2)),
        np.array([0.0, -0.0]),
        np.array(["a", 1], object),
        np.float64(0),
    ]
    kinds += [
        torch.zeros(2),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.bool),
        torch.zeros(2).requires_grad_(),
    ]
    assert len({identity(kind) for kind in kinds}) == len(kinds)
    assert identity(torch.arange(6).view(2, 3).T) == identity(torch.arange(6).view(2, 3).T.contiguous())


def test_names_that_do_not_count() -> None:
    assert identity(["pca_1__output"], bare=lambda text: text.replace("pca_1", "")) == identity(["__output"])


def doubled(x: torch.Tensor) -> torch.Tensor:
    return x * 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script. is deprecated")
def test_a_scripted_function_cannot_be_told() -> None:
    with pytest.raises(UnidentifiableError, match=r"an object of torch\.jit"):
        identity(torch.jit.script(doubled))


@pytest.mark.parametrize(
    "code", ["raise RuntimeError('no GPU')", "import sys; sys.exit(1)", "1 / 0", "import not_there"]
)
def test_an_import_inside_a_function_may_fail_as_it_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    (tmp_path / "fails_to_load.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))

    def lazy(outputs: Any, label: Any, weight: Any) -> Any:
        import fails_to_load  # type: ignore[import-not-found]

        return fails_to_load.squared(label)

    assert identity(lazy) == identity(lazy)


def test_imports_of_a_function_of_many_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python writes an operand above 255 in two instructions."""
    (tmp_path / "many_helpers.py").write_text("def squared(x):\n    return x**2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = "\n".join(f"    name{i}" for i in range(300))
    own: dict[str, Any] = {}
    exec(f"def many(x):\n{names}\n    from many_helpers import squared\n    return squared(x)", own)
    first = identity(own["many"])
    monkeypatch.setattr(sys.modules["many_helpers"], "squared", lambda x: x**3)
    assert identity(own["many"]) != first


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int, str | None], str]]:
    """The identity of a loss in an installed package without `__version__`, whose helper raises to a power."""
    libraries, paths = (*modules._libraries(), f"{tmp_path.resolve()}/lib"), list(sys.path)
    monkeypatch.setattr(modules, "_libraries", lambda: libraries)

    def forget() -> None:
        for name in ("inhouse", "inhouse.losses", "inhouse.helpers"):
            sys.modules.pop(name, None)
        modules._releases.cache_clear()
        modules._distributions.cache_clear()

    def install(exponent: int, version: str | None) -> str:
        site = tmp_path / f"lib{len(list(tmp_path.iterdir()))}"  # Python keeps listings of folders
        monkeypatch.setattr(sys, "path", [str(site), *paths])
        (site / "inhouse").mkdir(parents=True)
        (site / "inhouse" / "__init__.py").write_text("")
        (site / "inhouse" / "losses.py").write_text(
            "from inhouse.helpers import power\n\n\ndef loss(o, l, w):\n    return power(o - l)\n"
        )
        (site / "inhouse" / "helpers.py").write_text(f"def power(x):\n    return x**{exponent}\n")
        if version is not None:
            info = site / f"in_house-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: in-house\nVersion: {version}\n")
            (info / "top_level.txt").write_text("inhouse\n")
        forget()
        return identity(importlib.import_module("inhouse.losses").loss)

    yield install
    forget()


def test_a_package_without_a_version_is_told_by_its_code(package: Callable[[int, str | None], str]) -> None:
    first = package(2, None)
    assert package(2, None) == first
    assert package(3, None) != first  # in a module beside that of the loss


def test_a_package_is_told_by_the_version_that_was_installed(package: Callable[[int, str | None], str]) -> None:
    first = package(2, "1.0")
    assert package(2, "1.0") == first
    assert package(3, "1.1") != first
    assert modules._is_installed("inhouse.losses")


def test_a_package_edited_in_place_is_told_by_its_code(
    package: Callable[[int, str | None], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(2, "1.0")
    # As `pip install -e` has it: the version among the installed ones, the code elsewhere.
    shutil.move(tmp_path / "lib0" / "inhouse", tmp_path / "edited" / "inhouse")
    monkeypatch.syspath_prepend(str(tmp_path / "edited"))
    for name in ("inhouse", "inhouse.losses", "inhouse.helpers"):
        del sys.modules[name]
    loss = importlib.import_module("inhouse.losses").loss
    first = identity(loss)
    assert not modules._is_installed("inhouse.losses")
    assert modules._releases("inhouse") == ("in-house 1.0",)
    monkeypatch.setattr(sys.modules["inhouse.losses"], "power", lambda x: x**3)
    assert identity(loss) != first
