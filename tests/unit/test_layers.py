"""Who may import whom, read from the sources: one way only, Spark and torch where they belong, py4j in one place; and tests."""

import ast
import functools
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PACKAGE = TESTS.parent / "sparkdiff"
# From the bottom up: a room, or a module at the package's root, imports those of the lines above its own, and its own room.
ROOMS = [
    ["machine"],
    ["errors"],
    ["tensors", "jvm", "options", "report"],
    ["stages", "importers", "store"],
    ["pipeline", "objectives"],
    ["data", "serving", "tuning"],
    ["evaluation"],
    ["training", "proof"],
    ["fine_tuning", "search"],
    ["growth", "history"],
    ["improvement"],
    ["estimators", "tracking"],
    ["fleet", "labeling", "mlflow"],
    ["cli", "testing"],
    ["__main__"],
]
FILES = sorted(PACKAGE.rglob("*.py"))
# Modules and rooms (a prefix stands for all below it) that never import Spark, with those of them that may.
NO_SPARK = (
    "data.stream",
    "training",
    "evaluation",
    "objectives",
    "stages",
    "store",
    "tensors",
    "tuning.solvers",
    "tuning.hypergradients",
    "history.run_table",
    "history.lineage",
)
SPARK = (
    "training.distributed.attempt",
    "training.distributed.preflight",
    "training.distributed.shipping",
    "training.distributed.remote",
    "training.distributed.remote_task",
    "evaluation.cached_parity",
    "evaluation.pipeline_warnings",
    "evaluation.prediction_differences",
    "evaluation.model_saving",
    "store.model_digests",
)
NO_TORCH = (
    "jvm",
    "importers",
    "machine",
    "options",
    "errors",
    "data.splits",
    "pipeline.nesting",
    "training.distributed.preflight",
    "growth.growth_options",
    "improvement.improvement_options",
    "improvement.budget",
    "cli.job_options",
    "history.run_table",
    "history.lineage",
    "store.saved_digests",
)


def module_of(path: Path) -> str:
    """`stages.linear` for sparkdiff/stages/linear.py, `data.stream` for sparkdiff/data/stream/__init__.py, "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}
INSIDE = [m for m in MODULES if m]


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


@functools.cache
def own_imports(path: Path) -> set[str]:
    """The modules of sparkdiff that a file imports."""
    names = {name.removeprefix("sparkdiff.") for name in imported(parsed(path)) if name.startswith("sparkdiff.")}
    return {name for name in names if name in MODULES}


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def all_of(wrong: Callable[[str], Iterable[object]], modules: Iterable[str]) -> str:
    """A line for each of these modules in which something is wrong; a rule is one test, which names all who break it."""
    return "\n".join(
        f"sparkdiff.{m}: {', '.join(sorted(map(str, found)))}" for m in modules if (found := list(wrong(m)))
    )


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
    assert own_imports(MODULES["fine_tuning.phases"]) >= {"data.cache", "evaluation.scores", "data.stream.batches"}
    assert not one_way("data.cache", "fine_tuning.fine_tuning_run")
    assert not one_way("pipeline.network", "objectives.losses")  # the same floor
    assert not one_way("stages.base", "pipeline.graph")
    assert one_way("stages.linear", "stages.base")
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    taken = ast.parse(
        "from sparkdiff.data import cache, splits\nfrom sparkdiff.jvm import _cause\ncache._build\nsplits.BLOCK"
    )
    assert [*private_names("cli", taken)] == ["jvm._cause", "data.cache._build"]
    assert [*private_names("data.label_stats", taken)] == ["jvm._cause"]
    assert importers("torch", ["stages.linear", "options"]) == ["stages.linear"]
    assert all_of(lambda m: ["x", "y"] if m == "cli" else [], ["cli", "fleet"]) == "sparkdiff.cli: x, y"


def test_a_module_imports_lower_rooms_only() -> None:
    wrong = all_of(lambda m: (o for o in own_imports(MODULES[m]) if not one_way(m, o)), INSIDE)
    assert not wrong, f"imports of a room that is not lower:\n{wrong}"


def test_no_circle() -> None:
    # A room's __init__ imports what it names, and is imported first by what it names.
    rooms = {m for m, path in MODULES.items() if path.name == "__init__.py"}
    found = circle({m: own_imports(path) - rooms for m, path in MODULES.items() if m not in rooms})
    assert found is None, " > ".join(found)


def test_private_names_stay_in_their_room() -> None:
    wrong = all_of(lambda m: private_names(m, parsed(MODULES[m])), INSIDE)
    assert not wrong, f"private names of another room:\n{wrong}"


def private_names(module: str, tree: ast.Module) -> Iterator[str]:
    """Private names of other rooms that a module imports, or takes from a module or a class that it imports."""
    foreign: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and package(str(node.module)) == "sparkdiff":
            for alias in node.names:
                full = f"{node.module}.{alias.name}".removeprefix("sparkdiff.")
                if package(full) != package(module):
                    foreign[alias.asname or alias.name] = full
    yield from (full for full in foreign.values() if any(part.startswith("_") for part in full.split(".")))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            holder = node.value.id if isinstance(node.value, ast.Name) else ""
            yield from (f"{foreign[name]}.{node.attr}" for name in foreign if name == holder)


# What runs before Spark: help needs nothing, the entry looks for typer first, and torch is imported while Spark starts.
COMMANDS = tuple(f"cli.{name}" for name in ("app", "flags", "jobs", "models", "projects", "earlier_runs"))
LATE = ("__main__", *COMMANDS, "cli.config", "cli.starting")


def test_no_function_imports_our_own_modules() -> None:
    def late(module: str) -> Iterator[str]:
        for node in ast.walk(parsed(MODULES[module])):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield from {name for name in imported(node) if package(name) == "sparkdiff"}

    wrong = all_of(late, [m for m in MODULES if not below(m, LATE)])
    assert not wrong, f"imports inside a function:\n{wrong}"


def importers(library: str, modules: Iterable[str]) -> list[str]:
    found = list(modules)
    assert found
    return [m for m in found if library in {package(name) for name in imported(parsed(MODULES[m]))}]


def test_no_spark_where_torch_works_alone() -> None:
    assert importers("pyspark", (m for m in MODULES if below(m, NO_SPARK) and m not in SPARK)) == []


def test_no_torch_where_spark_works_alone() -> None:
    assert importers("torch", (m for m in MODULES if below(m, NO_TORCH))) == []


def test_a_started_process_needs_no_room_that_it_is_not_sent() -> None:
    from sparkdiff.training.distributed.shipping import STAY

    needed, waiting = set[str](), ["training.distributed.worker", "growth.worker"]
    while waiting:
        module = waiting.pop()
        if module not in needed:
            needed.add(module)
            waiting += own_imports(MODULES[module])
            waiting += filter(None, [module.rpartition(".")[0]])  # the room, which is imported first
    assert all((PACKAGE.parent / room).is_dir() for room in STAY)
    assert not {f"sparkdiff/{package(module)}" for module in needed} & {*STAY}


def test_only_one_place_knows_the_jvm() -> None:
    words = ("_jvm", "_java_obj", "py4j", "_jdf", "_jsc", "_jsparkSession")
    texts = {m: path.read_text(encoding="utf-8") for m, path in MODULES.items() if package(m) != "jvm"}
    wrong = all_of(lambda m: (word for word in words if word in texts[m]), texts)
    assert not wrong, f"names that belong into jvm/:\n{wrong}"


def test_tests_share_what_is_in_support_alone() -> None:
    """Each other file is a test, which no file imports, or what pytest reads; but for a command, and what mypy reads."""
    files = {path.relative_to(TESTS).as_posix(): path for path in sorted(TESTS.rglob("*.py"))}
    others = {name for name in files if not re.fullmatch(r"support/\w+\.py|(.*/)?(test_\w+|conftest)\.py", name)}
    assert others == {"__init__.py", "parity/random_pipelines.py", "typed/options.py"}
    wrong = [f"{name}: {m}" for name, path in files.items() for m in imported(parsed(path)) if re.search(r"\btest_", m)]
    assert wrong == []


def test_no_module_bears_a_public_name() -> None:
    import sparkdiff

    assert not {m for m in MODULES if m} & {*sparkdiff.__all__}  # importing it would put the module in the name's place


def in_a_new_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=400)
    assert done.returncode == 0, done.stderr
    return done.stdout


HEAVY = (
    "print(sorted({n.partition('.')[0] for n in sys.modules} & {'torch', 'pyspark', 'petastorm', 'pandas', 'pyarrow'}))"
)


def test_import_sparkdiff_is_cheap() -> None:
    assert in_a_new_process(f"import sys, sparkdiff; assert sparkdiff.__all__; {HEAVY}") == "[]\n"
    assert in_a_new_process(f"import sys, sparkdiff.options, sparkdiff.errors; {HEAVY}") == "[]\n"


def test_help_needs_nothing_and_a_job_no_torch_before_spark() -> None:
    assert in_a_new_process(f"import sys, sparkdiff.cli.app; {HEAVY}") == "[]\n"
    found = in_a_new_process(f"import sys, sparkdiff.cli.starting, sparkdiff.cli.config; {HEAVY}")
    of_spark = in_a_new_process(f"import sys, pyspark.sql, pyspark.ml; {HEAVY}")  # that of 4.3 imports pandas
    assert "pyspark" in found and "torch" not in found and ("pandas" not in found or "pandas" in of_spark)
    job = "load_config(None, ['pipeline=m', 'data.train=x.csv', 'output=o', 'grower.rounds=3'])"
    code = f"import sys; from sparkdiff.cli.config import load_config, request_of; request_of({job}); {HEAVY}"
    assert "torch" not in in_a_new_process(code)


def test_the_jvm_seam_needs_no_torch() -> None:
    assert "torch" not in in_a_new_process(f"import sys, sparkdiff.jvm; {HEAVY}")


def test_public_names_can_be_had() -> None:
    import sparkdiff

    for name in sparkdiff.__all__:
        assert getattr(sparkdiff, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'fine_tuner'"):
        _ = sparkdiff.fine_tuner
