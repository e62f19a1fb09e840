"""What a release is made of fits together: versions, pins, hashes, workflows, and what SECURITY.md says about the code."""

import ast
import importlib.util
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

import sparkdiff

ROOT = Path(__file__).parents[2]
STACKS = ("petastorm", "modern", "spark35")
SOURCES = sorted((ROOT / "sparkdiff").rglob("*.py"))


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def workflow(name: str) -> dict[str, Any]:
    text = (ROOT / ".github" / "workflows" / f"{name}.yml").read_text("utf-8")
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def commands(found: dict[str, Any]) -> Iterator[str]:
    """All that a workflow's steps run, with each value of its matrix."""
    for job in found["jobs"].values():
        for step in job["steps"]:
            if "run" not in step:
                continue
            for entry in job.get("strategy", {}).get("matrix", {}).get("include", [{}]):
                run = step["run"]
                for key, value in entry.items():
                    run = run.replace(f"${{{{ matrix.{key} }}}}", value)
                yield run


def requirements(path: Path) -> list[Requirement]:
    lines = path.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [Requirement(line.partition(" --hash")[0]) for line in lines if line and line[0] not in "# "]


def pins(path: Path, python: str) -> dict[str, str]:
    """The version of each package, on a version of Python."""
    environment = {"python_version": python, "python_full_version": f"{python}.1"}
    return {
        r.name.lower().replace("_", "-"): str(r.specifier)
        for r in requirements(path)
        if r.marker is None or r.marker.evaluate(environment)
    }


def tracked() -> list[str]:
    """The files that belong to the project, whatever else lies in the checkout."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("only git knows which files belong to the project")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True)
    return listed.stdout.split("\0")[:-1]


def test_spark_gets_paths_as_they_are() -> None:
    """It takes the %20 of `as_uri` for a part of a name, so that nothing would be found in a folder with a space."""
    calls = re.compile(r"\b(load|save|parquet|csv|json|orc|text|setCheckpointDir)\([^\n]*\.as_uri\(\)")
    found = [p for p in tracked() if p.endswith(".py") and calls.search((ROOT / p).read_text("utf-8"))]
    assert not found, "write f'file://{path}'"


def test_the_page_of_versions_is_what_its_tool_writes() -> None:
    versions = tool("versions")
    assert versions.PAGE.read_text("utf-8") == versions.page()
    assert {p.stem for p in (ROOT / "constraints").glob("*.txt")} == set(versions.CI) == set(STACKS)


@pytest.mark.parametrize("stack", STACKS)
def test_each_pin_but_that_of_torch_has_hashes(stack: str) -> None:
    constraints, hashes = ROOT / "constraints" / f"{stack}.txt", ROOT / "constraints" / "hashes" / f"{stack}.txt"
    for python in ("3.10", "3.11"):
        wanted = pins(constraints, python)
        assert wanted.pop("torch")
        assert pins(hashes, python) == wanted
    for entry in hashes.read_text("utf-8").replace("\\\n", " ").splitlines():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", entry), entry


def test_a_tag_becomes_a_release_only_if_all_versions_agree() -> None:
    release = tool("release")
    package = (ROOT / "sparkdiff" / "__init__.py").read_text("utf-8")
    version = sparkdiff.__version__
    dated = f"# Changelog\n\n## [{version}] - 2026-01-31\n"
    assert release.faults(f"v{version}", package, dated) == []
    assert len(release.faults("v9.9.9", package, dated)) == 2
    assert len(release.faults(version, package, dated)) == 1
    assert len(release.faults(f"v{version}", '__version__ = "0"\n', f"## [{version}] - unreleased\n")) == 2


@pytest.mark.parametrize("name", ["ci", "release"])
def test_the_commands_of_a_workflow_exist(name: str) -> None:
    found = list(commands(workflow(name)))
    assert found
    for command in found:
        words = shlex.split(command)
        if words[0] == "make":
            subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
        for word in words:
            if re.match(r"(tools|constraints|tests)/[\w./]+$", word):
                assert (ROOT / word).exists(), command


def test_ci_runs_the_parts_of_the_script() -> None:
    """The workflow names each part of .ci/run, and no part that isn't there."""
    matrix = workflow("ci")["jobs"]["test"]["strategy"]["matrix"]["include"]
    assert {entry["part"] for entry in matrix if entry["script"] == "run"} == set(parts("run"))
    assert {entry["part"] for entry in matrix if entry["script"] == "nightly"} <= set(parts("nightly"))


def parts(script: str) -> list[str]:
    """The parts that a script of .ci/ lists when it is given a name that is none of them."""
    refused = subprocess.run(["bash", f".ci/{script}", "none"], cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2
    return refused.stderr.partition("its parts are: ")[2].split()


def test_the_sdist_has_what_the_tests_read() -> None:
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    (listed,) = re.findall(
        r"\[tool\.hatch\.build\.targets\.sdist\]\ninclude = \[(.*?)^\]", project, re.DOTALL | re.MULTILINE
    )
    included = re.findall(r'"/([^"]+)"', listed)
    assert all(any(ROOT.glob(name)) for name in included), included
    folders = {path.partition("/")[0] for path in tracked() if "/" in path}
    assert folders <= set(included)


def test_lint_reads_all_python_of_the_project_and_nothing_else() -> None:
    """A folder of one's own in the checkout may look as it likes."""
    (linted,) = re.findall(r"^CODE = (.*)$", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert {path.partition("/")[0] for path in tracked() if path.endswith((".py", ".ipynb"))} == set(linted.split())


def test_security_lists_all_that_can_run_code_from_a_file() -> None:
    """pickle, `torch.load` that isn't limited to weights, and whatever else turns bytes into code."""
    found = {path.relative_to(ROOT).as_posix() for path in SOURCES if any(unsafe(ast.parse(path.read_text("utf-8"))))}
    stated = set(re.findall(r"`(sparkdiff/[\w/]+\.py)`", (ROOT / "SECURITY.md").read_text("utf-8")))
    assert found == stated


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("Unpickler" in ast.unparse(base) for base in node.bases):
            yield node.name
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if name == "torch.load" and given.get("weights_only") != "True":
            yield name
        if name in ("np.load", "numpy.load") and "allow_pickle" in given:
            yield name
        if re.fullmatch(r"(pickle|cloudpickle|dill|joblib|marshal|shelve)\.(loads?|open|Unpickler)|eval|exec", name):
            yield name
        if re.fullmatch(r"yaml\.(load|full_load|unsafe_load)(_all)?", name):
            yield name


@pytest.mark.parametrize(
    ("code", "safe"),
    [
        ("torch.load(f, weights_only=True)", True),
        ("torch.load(f)", False),
        ("pickle.loads(b)", False),
        ("pickle.dumps(b)", True),
        ("yaml.safe_load(t)", True),
        ("yaml.load(t)", False),
        ("network.eval()", True),
        ("eval(t)", False),
        ("class A(pickle.Unpickler): pass", False),
    ],
)
def test_what_is_unsafe(code: str, safe: bool) -> None:
    assert (not list(unsafe(ast.parse(code)))) == safe


def test_nothing_is_sent_anywhere() -> None:
    """No module that opens connections is imported, but where a driver and its tasks talk; of `socket` only a name is asked."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert not re.match(
                    r"(urllib\.request|http|requests|httpx|aiohttp|ftplib|smtplib|websocket)\b", name
                ), path
                assert not (isinstance(node, ast.ImportFrom) and name == "socket"), path
                assert not name.startswith("multiprocessing.connection") or path.stem in ("remote", "remote_task"), path
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "socket":
                # Where the driver and its tasks talk, how long a read of that connection waits.
                more = ("socket", "SOL_SOCKET", "SO_RCVTIMEO", "SHUT_RDWR") if path.stem == "remote" else ()
                assert node.attr in ("gethostname", *more), path
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "socket.socket":
                assert [k.arg for k in node.keywords] == ["fileno"], path  # one that is open
