"""Who may import whom, read from the sources: one way only, Spark and torch where they belong, py4j in one place."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # reads the sources

PACKAGE = Path(__file__).parents[2] / "sparkdiff"
# From the bottom up: a room, or a module at the package's root, imports those of the lines above its own, and its own room.
ROOMS = [
    ["errors", "machine", "rows"],
    ["team", "jvm", "options", "report"],
    ["stages", "importers", "store"],
    ["pipeline", "objectives"],
    ["data"],
    ["evaluation"],
    ["training", "diagnostics"],
    ["finetune", "loading"],
    ["estimator", "job"],
    ["cli", "testing"],
    ["__main__"],
]
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules and rooms (a prefix stands for all below it) that never import Spark, with those of them that may.
NO_SPARK = ("data.stream", "training", "evaluation", "objectives", "stages", "rows", "team")
SPARK = ("training.distributed.launch", "training.distributed.preflight", "evaluation.cached_parity")
NO_TORCH = ("jvm", "importers", "machine", "options", "errors", "data.splits", "data.quantiles", "pipeline.nesting")


def module_of(path: Path) -> str:
    """`stages.linear` for sparkdiff/stages/linear.py, `stream` for sparkdiff/data/stream/__init__.py, "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def package(module: str) -> str:
    return module.partition(".")[0]


def below(module: str, names: Sequence[str]) -> bool:
    """Whether a module is one of these, or lies in one of them."""
    return any(module == name or module.startswith(f"{name}.") for name in names)


def floor(module: str) -> int:
    for number, rooms in enumerate(ROOMS):
        if package(module) in rooms:
            return number
    pytest.fail(f"sparkdiff/{module.replace('.', '/')}.py is in no room: put it into ROOMS")


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, wherever in it; `from x import y` gives x.y and x."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(path: Path) -> set[str]:
    """The modules of sparkdiff that a file imports."""
    names = {name.removeprefix("sparkdiff.") for name in imported(parsed(path)) if name.startswith("sparkdiff.")}
    return {name for name in names if name in MODULES}


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def one_way(module: str, other: str) -> bool:
    """Whether `module` may import `other`."""
    return package(module) == package(other) or floor(other) < floor(module)


def circle(arrows: Mapping[str, set[str]]) -> list[str] | None:
    """Modules that import one another in a circle; None where there is none."""
    done: set[str] = set()

    def walk(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return None
        done.add(module)
        return next((c for other in sorted(arrows[module]) if (c := walk(other, [*path, module]))), None)

    return next((c for module in sorted(arrows) if (c := walk(module, []))), None)


def test_the_rules_can_fail() -> None:
    assert own_imports(MODULES["finetune"]) >= {"data.cache", "training.loop", "stages.base", "data.stream"}
    assert not one_way("data.cache", "finetune")
    assert not one_way("pipeline.network", "objectives.losses")  # the same floor
    assert not one_way("stages.base", "pipeline.graph")
    assert one_way("stages.linear", "stages.base")
    assert "cache" in named("data") and "layout" not in named("data")
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_a_module_imports_lower_rooms_only(module: str) -> None:
    wrong = {other for other in own_imports(MODULES[module]) if not one_way(module, other)}
    assert not wrong, f"sparkdiff.{module} imports {sorted(wrong)}"


def test_no_circle() -> None:
    # A room's __init__ imports what it names, and is imported first by what it names.
    rooms = {m for m, path in MODULES.items() if path.name == "__init__.py"}
    found = circle({m: own_imports(path) - rooms for m, path in MODULES.items() if m not in rooms})
    assert found is None, " > ".join(found)


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_private_names_stay_in_their_room(module: str) -> None:
    tree = parsed(MODULES[module])
    taken = [
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("sparkdiff")
        for alias in node.names
        if alias.name.startswith("_") and not one_room(module, str(node.module))
    ]
    assert not taken, f"sparkdiff.{module} imports {taken}"


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_a_room_gives_what_its_init_names(module: str) -> None:
    taken = {other for other in own_imports(MODULES[module]) if not one_room(module, other)}
    wrong = sorted(m for m in taken if "." in m and m.split(".")[1] not in (named(package(m)) or [m.split(".")[1]]))
    assert not wrong, f"sparkdiff.{module} imports {wrong}, which the room's __init__ does not name"


@functools.cache
def named(room: str) -> list[str]:
    """The modules in a room's `__all__`; none where the room names functions and classes instead."""
    found = [n.value for n in parsed(MODULES[room]).body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__"]  # type: ignore[attr-defined]
    names = ast.literal_eval(found[0]) if found else []
    return names if all(f"{room}.{name}" in MODULES for name in names) else []


def one_room(module: str, other: str) -> bool:
    return package(module) == package(other.removeprefix("sparkdiff."))


@pytest.mark.parametrize("module", list(MODULES))
def test_no_function_imports_our_own_modules(module: str) -> None:
    functions = [n for n in ast.walk(parsed(MODULES[module])) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {name for f in functions for name in imported(f) if package(name) == "sparkdiff"}
    assert not late, f"sparkdiff.{module} imports {sorted(late)} inside a function"


@pytest.mark.parametrize("module", [m for m in MODULES if below(m, NO_SPARK) and m not in SPARK])
def test_no_spark_where_torch_works_alone(module: str) -> None:
    assert "pyspark" not in {package(name) for name in imported(parsed(MODULES[module]))}


@pytest.mark.parametrize("module", [m for m in MODULES if below(m, NO_TORCH)])
def test_no_torch_where_spark_works_alone(module: str) -> None:
    assert "torch" not in {package(name) for name in imported(parsed(MODULES[module]))}


@pytest.mark.parametrize("module", [m for m in MODULES if package(m) != "jvm"])
def test_only_one_place_knows_the_jvm(module: str) -> None:
    text = MODULES[module].read_text(encoding="utf-8")
    found = [word for word in ("_jvm", "_java_obj", "py4j", "_jdf", "_jsc", "_jsparkSession") if word in text]
    assert not found, f"sparkdiff.{module} names {found}, which belong into jvm/"


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_no_module_bears_a_public_name(module: str) -> None:
    import sparkdiff

    assert module not in sparkdiff.__all__  # importing it would put the module in the name's place


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "print(sorted({n.partition('.')[0] for n in sys.modules} & {'torch', 'pyspark', 'petastorm', 'pandas', 'pyarrow'}))"
)


def test_import_sparkdiff_is_cheap() -> None:
    assert in_a_new_process(f"import sys, sparkdiff; assert sparkdiff.__all__; {HEAVY}") == "[]\n"
    assert in_a_new_process(f"import sys, sparkdiff.options, sparkdiff.errors; {HEAVY}") == "[]\n"


def test_the_jvm_seam_needs_no_torch() -> None:
    assert "torch" not in in_a_new_process(f"import sys, sparkdiff.jvm; {HEAVY}")


def test_public_names_can_be_had() -> None:
    import sparkdiff

    for name in sparkdiff.__all__:
        assert getattr(sparkdiff, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'fine_tuner'"):
        _ = sparkdiff.fine_tuner
