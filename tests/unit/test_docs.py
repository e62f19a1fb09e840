"""What README, CONTRIBUTING and docs tell the reader to type exists: targets, commands, flags, overrides, files, names."""

import argparse
import ast
import dataclasses
import importlib.util
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

import sparkdiff
from sparkdiff.cli import config
from sparkdiff.cli.app import app
from sparkdiff.data import loading
from sparkdiff.data.splits import SPLITS
from sparkdiff.errors import InputError
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.options import Options
from tests.support.pages import ELSEWHERE, LINES, PAGES, blocks

ROOT = Path(__file__).parents[2]
OPTIONS = {f.name for f in dataclasses.fields(Options)}
GROWTH = {f.name for f in dataclasses.fields(GrowthSettings)}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
UsageError: type[Exception] = typer.BadParameter.__bases__[0]  # click's, which typer may bring along or import
FOLDERS = ("jobs", "conf", "tools", "benchmarks", "tests", "docs", "constraints", "sparkdiff", ".ci")
SUBMIT = argparse.ArgumentParser(prog="spark-submit", exit_on_error=False, allow_abbrev=False)
SUBMIT.add_argument("--master")
SUBMIT.add_argument("--conf", action="append")


def spans(page: Path) -> Iterator[str]:
    """The code between backticks in running text."""
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", FENCE.sub("", page.read_text())))


def lines(page: Path) -> Iterator[str]:
    """The lines of blocks that aren't Python or YAML, continued ones joined."""
    for language, block in FENCE.findall(page.read_text()):
        if language == "bash":
            yield from block.replace("\\\n", " ").splitlines()


def commands(page: Path) -> Iterator[list[str]]:
    """All that begins as a command does, word by word, without variables in front; a list of words is no mention of a command."""
    for text in (*lines(page), *spans(page)):
        try:
            words = shlex.split(text, comments=True)
        except ValueError:  # an apostrophe in printed text
            continue
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if words and re.fullmatch(r"make|(.*/)?(sparkdiff|spark-submit|python|pip|pre-commit)|\.ci/\w+", words[0]):
            yield words


def check(words: list[str]) -> None:
    """Raise where there is no such thing to run."""
    program, rest = Path(words[0]).name, words[1:]
    if program == "make":
        done = subprocess.run(["make", "-n", *rest], cwd=ROOT, capture_output=True, text=True, env=quiet())
        assert done.returncode == 0, done.stderr
        known = set(re.findall(r"^(\w+) +\?=|^export (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE))
        for variable in (w.partition("=")[0] for w in rest if "=" in w):
            assert any(variable in " ".join(k).split() for k in known), variable
    elif program == "sparkdiff" or rest[:2] == ["-m", "sparkdiff"]:
        parse(rest if program == "sparkdiff" else rest[2:])
    elif program == "spark-submit" and rest:
        _, after = SUBMIT.parse_known_args(rest)
        assert (ROOT / after[0]).is_file(), after[0]
        parse(["finetune", *after[1:]])
    elif program == "python" and rest and rest[0].endswith(".py"):
        source = (ROOT / rest[0]).read_text()
        if "from common import" in source:  # the flags that all benchmarks have
            source += (ROOT / "benchmarks" / "common.py").read_text()
        for flag in (w.partition("=")[0] for w in rest[1:] if w.startswith("--")):
            assert f'"{flag}"' in source, f"{rest[0]} has no {flag}"
    elif program == "pip":
        for name, extra in re.findall(r"(\w+)\[(\w+)\]", " ".join(rest)):
            project = (ROOT / "pyproject.toml").read_text()
            assert f'name = "{name}"' in project
            assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    elif words[0].startswith(".ci/"):
        assert (ROOT / words[0]).is_file()
        if program == "nightly":
            source = (ROOT / words[0]).read_text()
            assert all(
                re.search(rf"^ +part {re.escape(part)} ", source, re.MULTILINE) for part in rest if part != "PART..."
            ), rest


def quiet() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("MAKE")}


def parse(words: list[str]) -> None:
    """Parse a command of ours as the command line would, without running it; its name alone is a mention of it."""
    command: Any = typer.main.get_command(app)
    if words[0].startswith("-"):
        assert words == [words[0]] and words[0] in {"--help", *(o for p in command.params for o in p.opts)}, words
        return
    found = command.commands[words[0]]
    if len(words) > 1:
        context = found.make_context(words[0], words[1:])
        for text in config.model_and_overrides(context.params.get("words") or ())[1]:
            override(text)
        if (path := context.params.get("config")) is not None and str(path).startswith("conf/"):
            assert (ROOT / path).is_file()


def override(text: str) -> None:
    key, equals, _ = text.partition("=")
    section, _, rest = key.partition(".")
    assert equals, text
    assert section in config.SECTIONS, text
    if section == "fineTuner":
        assert rest.partition(".")[0] in OPTIONS, text
    elif section == "grower":
        assert rest in GROWTH, text
    elif section == "data":
        split, _, entry = rest.partition(".")
        assert split in SPLITS, text
        assert not entry or entry.partition(".")[0] in loading.SOURCE_KEYS, text
    elif section == "output":
        assert rest in ("", "path", "mode"), text


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_command_exists(page: Path) -> None:
    for words in commands(page):
        try:
            check(words)
        except (AssertionError, KeyError, FileNotFoundError, UsageError, SystemExit) as e:
            raise AssertionError(f"{page.name}: {shlex.join(words)}: {e}") from e


def test_the_pages_are_read_and_wrong_commands_are_found() -> None:
    found = [words for page in PAGES for words in commands(page)]
    for start, least in (("make", 10), ("sparkdiff", 5), ("spark-submit", 4), ("python", 10)):
        assert sum(w[0] == start for w in found) >= least, start
    for wrong in (
        "make venv",
        "make demo CONFIGS=x",
        "sparkdiff plot models/churn",
        "sparkdiff plan models/churn --jsn",
        "sparkdiff --vrsion",
        "python -m sparkdiff verify m --dat x",
        "spark-submit jobs/tune.py",
        "spark-submit jobs/finetune.py fineTuner.epochs=1",
        "spark-submit jobs/finetune.py data.tran.path=x",
        "spark-submit jobs/finetune.py --confg x",
        "python benchmarks/tree_io.py --sedes 1",
        "python benchmarks/none.py",
        "pip install sparkdiff[conect]",
        "spark-submit jobs/finetune.py --config conf/week.yaml",
        ".ci/nightly gaurd",
        ".ci/daily",
    ):
        with pytest.raises((AssertionError, KeyError, FileNotFoundError, UsageError)):
            check(shlex.split(wrong))


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_file_option_and_name_exists(page: Path) -> None:
    text = page.read_text()
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        assert "://" in link or (page.parent / link).exists(), link
    for span in spans(page):
        if re.fullmatch(rf"({'|'.join(map(re.escape, FOLDERS))})/[\w./-]*", span) and "*" not in span:
            assert (ROOT / span).exists(), span
        for name in re.findall(r"\bfineTuner\.(\w+)", span):
            assert name in OPTIONS, name
        for name in re.findall(r"\bgrower\.(\w+)", span):
            assert name in GROWTH | {"py"}, name
        for name in re.findall(r"\bsparkdiff\.(\w+)\(", span):
            assert hasattr(sparkdiff, name), name
    for language, block in FENCE.findall(text):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "sparkdiff"
                ):
                    assert node.attr == "testing" or hasattr(sparkdiff, node.attr), node.attr
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("FineTuner"):
                    given = {k.arg for k in node.keywords}
                    assert given <= OPTIONS | {"pipeline", "referenceData", "callbacks", None}, given
                if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Grower"):
                    given = {k.arg for k in node.keywords}
                    assert given <= OPTIONS | GROWTH | {"pipeline", "referenceData", "callbacks", None}, given


def test_every_file_that_the_code_names_exists() -> None:
    here = {
        path.name for folder in ("sparkdiff", "tests", "tools", "benchmarks") for path in (ROOT / folder).rglob("*.py")
    }
    written = {"start.py"}  # by `training.distributed.shipping`
    missing = []
    for source in (ROOT / "sparkdiff").rglob("*.py"):
        for name in re.findall(r"`([\w/]+\.(?:py|md|sh|yaml))`", source.read_text()):
            beside = [folder / name for folder in (ROOT, ROOT / "sparkdiff", source.parent)]
            found = any(path.exists() for path in beside) or ("/" not in name and name in here | written)
            missing += [] if found else [f"{source.relative_to(ROOT)}: {name}"]
    assert not missing


def test_each_block_can_be_run_or_says_why_not() -> None:
    """What has no mark needs no more than this machine, a model and its rows. `text` is what a command prints."""
    for block in blocks():
        where = f"{block.page.name}:{block.line}"
        assert block.language in ("bash", "python", "text", "yaml"), f"{where}: which language?"
        assert block.mark is None or len(block.mark) > len("not run: why"), where
        measured = block.page.parent.name == "measured"
        assert block.mark or block.language == "text" or not measured, f"{where}: figures come without code to run"
    assert len(blocks()) == sum(len(FENCE.findall(page.read_text())) for page in PAGES)
    for page, test in ELSEWHERE.items():
        assert page in (ROOT / test).read_text(), test
    for command, test in LINES.items():
        assert any(line.startswith(command) for block in blocks() for line in block.text.splitlines()), command
        assert (ROOT / test).is_file(), test


def test_each_yaml_is_a_job(tmp_path: Path) -> None:
    """A block that shows one section only gets the others."""
    found = [block for block in blocks() if block.language == "yaml"]
    assert found
    (tmp_path / "pipelines.py").write_text("def digits_choices(): ...\n")
    for block in found:
        job = {"pipeline": "m", "data": {"train": "rows.parquet"}, "output": "runs/m", **yaml.safe_load(block.text)}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        try:
            config.load_config(tmp_path / "job.yaml", [])
        except InputError as e:
            raise AssertionError(f"{block.page.name}:{block.line}: {e}") from e


def test_the_site_has_every_page_and_every_public_name() -> None:
    """`mkdocs build --strict` checks the links; that a new page or name has its place is said at once."""
    pages = site_pages()
    docs = ROOT / "docs"
    known = {p.relative_to(docs).as_posix() for p in docs.rglob("*.md")} - {"README.md"} | {
        *pages.FROM_ROOT.values(),
        *pages.MADE,
        *pages.NOTEBOOKS,
        "gallery.md",  # `make gallery` writes it
    }

    def files(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for part in entry.values() if isinstance(entry, dict) else entry:
                yield from files(part)

    nav = list(files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    assert sorted(nav) == sorted(known), "mkdocs.yml: `nav` names each page of docs/ once"
    grouped = [name for names in pages.GROUPS.values() for name in names]
    assert sorted(grouped) == sorted(sparkdiff.__all__), "tools/site_pages.py: GROUPS has each public name once"
    assert set(grouped) >= pages.MEMBERS


def test_the_front_page_begins_with_install_code_and_one_table() -> None:
    """In this order, and short enough for the first screen at 1,280 x 800, as one looked at it."""
    front = site_pages().landing((ROOT / "README.md").read_text()).partition("\n- ")[0]
    code = re.search(r"```bash\npip install [^\n]*\n```\n\n```python\n(.*?)```\n\n\| \| \|\n", front, re.DOTALL)
    assert code is not None and sum(bool(line) for line in code[1].splitlines()) <= 10
    assert front.count("\n|") == 2 + 5 and max(map(len, front.splitlines())) < 250


def test_readme_has_the_commands_that_everybody_tries() -> None:
    """Within 900 words, with `make test` as CI calls it."""
    readme = (ROOT / "README.md").read_text()
    assert re.findall(r"^make (\w+)", readme, re.MULTILINE) == ["demo", "test"] and len(readme.split()) <= 900
    assert "make --no-print-directory test " in (ROOT / ".ci" / "run").read_text()


def site_pages() -> Any:
    spec = importlib.util.spec_from_file_location("site_pages", ROOT / "tools" / "site_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_of_the_repository_become_links_of_the_site() -> None:
    linked = site_pages().linked
    for source, text, found in (
        ("README.md", "[docs/cache.md](docs/cache.md)", "[When a cache is reused](cache.md)"),
        ("README.md", "[small data](docs/guard.md#small)", "[small data](guard.md#small)"),
        ("README.md", "[NOTICE](NOTICE)", "NOTICE"),
        ("docs/glossary.md", "[rules](../CONTRIBUTING.md)", "[rules](contributing.md)"),
        ("docs/weekly.md", "[conf/weekly.yaml](../conf/weekly.yaml)", "conf/weekly.yaml"),
        ("docs/README.md", "[jobs](jobs.md) and [here](#below)", "[jobs](jobs.md) and [here](#below)"),
        ("docs/README.md", "[notebook](../notebooks/1_first_steps.ipynb)", "[notebook](1_first_steps.md)"),
        ("notebooks/1_first_steps.ipynb", "[Grow](../docs/growing.md)", "[Grow](growing.md)"),
        ("docs/search.md", "[times](measured/search.md#time)", "[times](measured/search.md#time)"),
        ("docs/measured/search.md", "[guard](../guard.md#small)", "[guard](../guard.md#small)"),
        ("docs/measured/search.md", "[growth](growing.md)", "[growth](growing.md)"),
        ("docs/measured/search.md", "[rules](../../CONTRIBUTING.md)", "[rules](../contributing.md)"),
        ("docs/gains.md", "[elsewhere](https://example.org/a.md)", "[elsewhere](https://example.org/a.md)"),
        ("docs/guard.md", "[figures](measured/guard.md)", "[figures](measured/guard.md)"),
        (
            "docs/measured/guard.md",
            "[guard](../guard.md) and [gains](gains.md)",
            "[guard](../guard.md) and [gains](gains.md)",
        ),
        ("docs/measured/guard.md", "[rules](../../CONTRIBUTING.md#tests)", "[rules](../contributing.md#tests)"),
    ):
        assert linked(text, source) == found
