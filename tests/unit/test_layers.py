"""Who may import whom, read from the sources: one way only, Spark and torch where they belong, py4j in one place."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.once  # reads the sources

PACKAGE = Path(__file__).parents[2] / "sparkdiff"
LAYERS = [
    ["errors", "diagnostics", "training", "evaluation", "data", "pipeline", "store", "machine", "objectives"],
    ["machine.paths"],
    ["store.lease"],
    [
        "machine.memory",
        "options",
        "jvm.nodes",
        "rows",
        "store.files",
        "store.identity",
        "team",
        "training.optimizers",
        "objectives.formulas",
    ],
    ["jvm"],
    ["store.disk"],
    ["pipeline.nesting", "importers", "data.quantiles"],
    ["stages.constraints"],
    ["stages.base"],
    ["stages"],  # and all other modules of it
    ["pipeline.schema"],
    ["pipeline.graph", "pipeline.columns"],
    ["evaluation.guard"],
    ["pipeline.network", "objectives.derivatives", "data.splits", "pipeline.plan", "training.recipes"],
    ["data.content"],
    ["objectives.losses"],
    ["objectives.metrics"],
    ["data.stream", "data.fingerprint", "training.affine", "training.augmentation", "training.units"],
    ["training.active_columns"],
    ["pipeline.parity", "data.cache", "evaluation.scores", "diagnostics.predictions"],
    ["evaluation.feature_names", "diagnostics.outliers", "diagnostics.duplicates"],
    ["diagnostics.separation", "training.monotone"],
    [
        "training.candidates",
        "training.preparation",
        "training.distributed.preflight",
        "evaluation.cached_parity",
        "evaluation.slices",
        "evaluation.compatibility",
        "diagnostics.rows",
    ],
    ["training.loop"],
    ["training.distributed.worker"],
    ["training.distributed.launch"],
    ["report"],
    ["report.summary", "diagnostics.models", "evaluation.acceptance"],
    ["finetune"],
    ["estimator", "transformer"],
    ["job"],
    ["cli", "testing"],
    ["__main__"],
]
FILES = sorted(PACKAGE.rglob("*.py"))
NO_SPARK = (
    "training.loop",
    "training.candidates",
    "training.preparation",
    "training.affine",
    "training.active_columns",
    "training.monotone",
    "objectives.derivatives",
    "training.optimizers",
    "training.augmentation",
    "training.units",
    "training.recipes",
    "training.distributed.worker",
    "store.files",
    "store.lease",
    "store.identity",
    "team",
    "evaluation.scores",
    "evaluation.slices",
    "evaluation.compatibility",
    "evaluation.feature_names",
    "diagnostics.outliers",
    "diagnostics.duplicates",
    "diagnostics.separation",
    "diagnostics.rows",
    "objectives.losses",
    "objectives.formulas",
    "objectives.metrics",
    "rows",
    "data.stream",
    "stages",
)  # a package stands for all of its modules
NO_TORCH = (
    "jvm",
    "jvm.trees",
    "jvm.clustering",
    "jvm.als",
    "jvm.word2vec",
    "jvm.rformula",
    "jvm.encoders",
    "jvm.nodes",
    "pipeline.nesting",
    "options",
    "errors",
    "machine.paths",
    "data.splits",
    "data.quantiles",
    "training.distributed.preflight",
    "importers",
    "importers.trees",
    "importers.models",
    "importers.sklearn",
    "importers.lightgbm",
    "importers.xgboost",
)


def module_of(path: Path) -> str:
    """`stages.linear` for sparkdiff/stages/linear.py, `stream` for sparkdiff/data/stream/__init__.py, "" for the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def package(module: str) -> str:
    return module.partition(".")[0]


def layer(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        for number, names in enumerate(LAYERS):
            if ".".join(parts[:length]) in names:
                return number
    pytest.fail(f"sparkdiff/{module.replace('.', '/')}.py is in no layer: put it into LAYERS")


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
    if layer(other) < layer(module):
        return True
    return package(module) == package(other)


def test_the_rules_can_fail() -> None:
    assert own_imports(MODULES["finetune"]) >= {"data.cache", "training.loop", "stages.base", "data.stream"}
    assert not one_way("data.cache", "finetune")
    assert not one_way("data.splits", "pipeline.network")  # the same layer
    assert not one_way("stages.base", "pipeline.graph")
    assert one_way("stages.linear", "stages.base")


@pytest.mark.parametrize("module", [m for m in MODULES if m])
def test_a_module_imports_lower_layers_only(module: str) -> None:
    wrong = {other for other in own_imports(MODULES[module]) if not one_way(module, other)}
    assert not wrong, f"sparkdiff.{module} imports {sorted(wrong)}"


@pytest.mark.parametrize("module", list(MODULES))
def test_no_function_imports_our_own_modules(module: str) -> None:
    functions = [n for n in ast.walk(parsed(MODULES[module])) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
    late = {name for f in functions for name in imported(f) if package(name) == "sparkdiff"}
    assert not late, f"sparkdiff.{module} imports {sorted(late)} inside a function"


@pytest.mark.parametrize("module", [m for m in MODULES if m in NO_SPARK or package(m) in NO_SPARK])
def test_no_spark_where_torch_works_alone(module: str) -> None:
    assert "pyspark" not in {package(name) for name in imported(parsed(MODULES[module]))}


@pytest.mark.parametrize("module", NO_TORCH)
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
