"""The wheel as a stranger gets it: what is in it, what it asks for, and that it runs without the repository and Petastorm."""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
KINDS = (".py", ".pyi", ".typed", ".j2", ".css", ".json")
"""What files of the package are."""
pytestmark = pytest.mark.slow


def ran(*command: object, cwd: Path, expect: int = 0) -> subprocess.CompletedProcess[str]:
    variables = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(list(map(str, command)), cwd=cwd, env=variables, capture_output=True, text=True, timeout=900)
    assert done.returncode == expect, done.stdout + done.stderr
    return done


def run(*command: object, cwd: Path) -> str:
    return ran(*command, cwd=cwd).stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, ROOT, cwd=folder)
    (built,) = folder.iterdir()
    return built


def environment(wheel: Path, folder: Path, without: tuple[str, ...] = ()) -> Path:
    """The executables of a new environment with the wheel; other packages come from the running one, without those named."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    target = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index"]
    run(sys.executable, *target, wheel, cwd=folder)
    own = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    others = Path(sysconfig.get_path("purelib"))
    if without:
        links = folder / "others"
        links.mkdir()
        for path in others.iterdir():
            if re.split(r"\W", path.name)[0] not in without:
                (links / path.name).symlink_to(path)
        others = links
    # Behind its own packages. The links of editable installations aren't followed from here.
    (own / "others.pth").write_text(f"{others}\n")
    return folder / "bin"


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return environment(wheel, tmp_path_factory.mktemp("environment"))


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment without any extra."""
    return environment(wheel, tmp_path_factory.mktemp("bare"), ("typer", "rich", "jinja2", "matplotlib"))


def test_it_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    info = next(name.partition("/")[0] for name in names if ".dist-info/" in name)
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "sparkdiff").rglob("*") if p.suffix in KINDS}
    assert {"sparkdiff/py.typed", "sparkdiff/report/templates/report.html.j2"} <= sources
    assert {name for name in names if not name.startswith(f"{info}/")} == sources
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE", f"{info}/entry_points.txt"} <= names


def test_it_asks_for_petastorm_by_the_extra_only(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    required = [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]
    always = {r.name for r in required if r.marker is None or r.marker.evaluate({"extra": ""})}
    assert always == {
        "pyspark",
        "torch",
        "numpy",
        "pandas",
        "pyarrow",
        "packaging",
        "pyyaml",
        "typing-extensions",
    }
    with_extra = {r.name for r in required if r.marker is not None and r.marker.evaluate({"extra": "petastorm"})}
    assert "petastorm" in with_extra
    # A run that MLflow gets has its report as a file.
    logging = {r.name for r in required if r.marker is not None and r.marker.evaluate({"extra": "mlflow"})}
    assert {"mlflow-skinny", "jinja2", "matplotlib"} <= logging
    # What the extra bounds must not bound the others.
    assert not any("14.0.2" in str(r.specifier) for r in required if r.name == "pyarrow" and r.marker is None)
    assert metadata["License-Expression"] == "Apache-2.0"


def test_it_runs_without_the_repository_and_petastorm(installed: Path, tmp_path: Path) -> None:
    code = """
import sys
sys.modules["petastorm"] = None
import importlib.metadata, pkgutil, sparkdiff
for module in pkgutil.walk_packages(sparkdiff.__path__, "sparkdiff."):
    if module.name not in ("sparkdiff.__main__", "sparkdiff.data.stream.petastorm"):
        __import__(module.name)
assert all(getattr(sparkdiff, name) is not None for name in sparkdiff.__all__)
assert importlib.metadata.version("sparkdiff") == sparkdiff.__version__
print(sparkdiff.__file__, flush=True)
import runpy
sys.argv = ["sparkdiff", "--help"]
runpy.run_module("sparkdiff", run_name="__main__", alter_sys=True)  # as python -m sparkdiff does
"""
    file, _, shown = run(
        installed / "python", "-W", "error::DeprecationWarning:sparkdiff", "-c", code, cwd=tmp_path
    ).partition("\n")
    assert installed.parent in Path(file).parents
    assert all(command in shown for command in ("plan", "finetune", "verify", "diff"))
    assert "Example: sparkdiff finetune models/churn" in run(
        installed / "sparkdiff", "finetune", "--help", cwd=tmp_path
    )


def test_a_job_needs_no_extra(bare: Path, tmp_path: Path) -> None:
    settings = ["--config", "conf/bikeshare.yaml", f"output.path={tmp_path / 'run'}", "fineTuner.maxEpochs=2", "--json"]
    done = ran(bare / "python", "jobs/finetune.py", *settings, cwd=ROOT)
    assert (Path(json.loads(done.stdout)["model"]) / "metadata").is_dir()
    assert not (tmp_path / "run" / "report.html").exists()
    assert done.stderr.count('pip install "sparkdiff[report]"') == 1


def test_what_an_extra_brings_is_named_where_it_is_missing(bare: Path, tmp_path: Path) -> None:
    def refused(*command: object) -> str:
        return ran(*command, cwd=tmp_path, expect=2).stderr

    assert refused(bare / "sparkdiff", "doctor").endswith('pip install "sparkdiff[cli]"\n')
    assert "--confg" in refused(bare / "sparkdiff", "finetune", "--confg", "x.yaml")
    assert "x.yaml" in refused(bare / "python", ROOT / "jobs" / "grow.py", "--config", "x.yaml")
