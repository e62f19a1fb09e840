"""The site's pages that are no files of docs/: README, other pages of the root, and the reference that the code itself states.

mkdocs.yml names this file as a hook; `make site` runs it.
"""

import dataclasses
import html
import json
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
FROM_ROOT = {
    "README.md": "index.md",
    "docs/README.md": "pages.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""A file of the repository, and its page."""
MADE = ("demo.md", "api.md", "options.md", "commands.md")
"""Pages that are written here."""
NOTEBOOKS = {f"{path.stem}.md": path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
"""A page for each notebook, with the outputs that are stored in it."""
FENCE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((?![a-z]+:)([^)\s]+)\)")
GROUPS = {
    "Fine-tuning": ["FineTuner", "FineTunerModel", "FineTuningSummary", "RunRecord", "Events", "Cost"],
    "Pipelines and torch": ["plan", "Plan", "translate", "Network", "write_back", "verify", "Parity", "plain"],
    "Search": [
        "CrossValidator",
        "TrainValidationSplit",
        "Search",
        "SearchModel",
        "SearchSummary",
        "alternatives",
        "choice",
        "integer",
        "loguniform",
        "uniform",
    ],
    "Improvement": ["Improver", "ImproverModel", "ImprovementSummary"],
    "Growth": ["Grower", "GrowerModel", "GrowthSummary"],
    "Weak supervision": ["LabelModel", "LabelModelModel", "LabelSummary", "distill"],
    "Tracking": ["JSONLines", "TensorBoard", "runs", "why", "Lineage", "triage", "Triage"],
    "Serving": ["compact", "compact_plan", "CompactPlan", "export", "ExportedModel", "Scorer", "TorchTransformer"],
    "Trees of other libraries": ["from_sklearn", "from_lightgbm", "from_xgboost"],
    "Stages of your own": ["StageModule", "register"],
    "Errors": ["SparkdiffError", "InputError", "ParityError"],
}
"""The public names, as the page of the API shows them."""
MEMBERS = {
    "Cost",
    "Events",
    "FineTuningSummary",
    "RunRecord",
    "Plan",
    "Parity",
    "SearchSummary",
    "GrowthSummary",
    "ImprovementSummary",
    "CompactPlan",
    "StageModule",
}
"""Classes whose members a user reads or overrides; the other ones have what pyspark's classes of their kind have."""
TILES = {
    "Tutorials": ("demo.md", "The demo from its start to its result, a weekly update, a stage of your own."),
    "How-to guides": ("jobs.md", "Jobs, Python, searches, growth, serving, several processes, GPUs."),
    "Explanation": ("guard.md", "When the original is kept, how often that is wrong, and what was gained."),
    "Reference": ("api.md", "The Python API, all options and commands, stages, versions, terms."),
}


ALONE = "    options: {members: false}\n"
STYLE = """
@media (min-width: 45em) {
  .md-typeset td:first-child :is(code, strong) { white-space: nowrap; }
}
.output { margin: 0.4em 0 1.4em; overflow-x: auto; font-size: 0.7rem; }
.md-typeset .output table:not([class]), .md-typeset .output .dataframe { display: table; font-size: inherit; border: 0; }
.output td, .output th { padding: 0.2em 0.8em !important; min-width: 0 !important; text-align: right; }
.output .dataframe { border-collapse: collapse; }
.output .dataframe td, .output .dataframe th { border: 0; border-bottom: 1px solid var(--md-default-fg-color--lightest); }
.output pre { margin: 0; white-space: pre-wrap; }
.output svg { width: 100%; max-width: 900px; min-width: 34rem; height: auto; }
.md-main__inner { margin-top: 0.4rem; }
.md-typeset h1 { color: var(--md-default-fg-color); font-weight: 400; margin: 0 0 0.6rem; }
.md-typeset h1 + p { margin-top: 0; }
.md-typeset thead:not(:has(th:not(:empty))) { display: none; }
"""
"""Where there is room, names in the first column of a table are not broken. Titles are as dark as text. A table
whose columns have no names shows no empty line for them."""


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    from mkdocs.structure.files import File

    if (index := files.get_file_from_path("README.md")) is not None:
        files.remove(index)
    for path, content in pages().items():
        files.append(File.generated(config, path, content=content))
    files.append(File.generated(config, "site.css", content=STYLE))
    return files


def on_page_markdown(markdown: str, page: "Page", **_: Any) -> str:
    path = page.file.src_uri
    sources = {new: old for old, new in FROM_ROOT.items()} | {"demo.md": "README.md"}
    source = f"notebooks/{NOTEBOOKS[path].name}" if path in NOTEBOOKS else sources.get(path, f"docs/{path}")
    return (
        outside_code(markdown, lambda text: linked(text, source))
        if Path(source).suffix in (".md", ".ipynb")
        else markdown
    )


def pages() -> dict[str, str]:
    """The pages that are generated, as Markdown with the links of the repository."""
    sys.path.insert(0, str(ROOT))
    try:
        found = {new: (ROOT / old).read_text("utf-8") for old, new in FROM_ROOT.items()}
        demo = section(found["index.md"], "Try the demo")
        found["demo.md"] = demo.replace("## Try the demo", "# The demo", 1)
        found["index.md"] = found["index.md"].replace("](docs/report.png)", "](report.png)")  # an image is no link
        found["index.md"] = landing(found["index.md"].replace(demo, ""))
        found |= {page: notebook(path) for page, path in NOTEBOOKS.items()}
        return found | {"api.md": api(), "options.md": options(), "commands.md": commands()}
    finally:
        sys.path.remove(str(ROOT))


def section(text: str, title: str) -> str:
    """A section of a page, from its heading to the next one of the same level."""
    start = text.index(f"## {title}\n")
    end = text.find("\n## ", start)
    return text[start:] if end < 0 else text[start : end + 1]


def landing(readme: str) -> str:
    """README without its last section, which the tabs of the site take the place of."""
    body = readme.replace(section(readme, "Documentation"), "")
    tiles = "\n".join(f"-   [**{name}**](docs/{path})\n\n    {text}\n" for name, (path, text) in TILES.items())
    head, rest = body.split("\n## ", 1)
    return (
        f'---\nhide: [navigation, toc]\n---\n{head}\n<div class="grid cards" markdown>\n\n{tiles}\n</div>\n\n## {rest}\n'
        "Apache License 2.0.\n"
    )


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """A text with a change in all that is no block of code."""
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(text))


def linked(text: str, source: str) -> str:
    """Links of a file of the repository as links of the site; of a link to what the site has no page of, the text stays."""

    start = PurePosixPath(page_of(source) or ".").parent

    def moved(match: re.Match[str]) -> str:
        name, target = match.groups()
        path, hash_, anchor = target.partition("#")
        if not path:
            return match[0]
        found = (ROOT / source).parent.joinpath(path).resolve().relative_to(ROOT).as_posix()
        new = FROM_ROOT.get(found) or page_of(found)
        if new is None:
            return name
        if name in (path, found) and found.endswith(".md"):
            name = (ROOT / found).read_text("utf-8").partition("\n")[0].lstrip("# ")
        return f"[{name}]({posixpath.relpath(new, start)}{hash_}{anchor})"

    return LINK.sub(moved, text)


def page_of(path: str) -> str | None:
    """The place in the site of a file that has one: a page of docs/ or docs/measured/, a report of the gallery, a notebook."""
    if re.fullmatch(r"docs/(measured/)?[\w-]+\.md|docs/gallery/\w+\.html", path):
        return path.removeprefix("docs/")
    return next((page for page, notebook in NOTEBOOKS.items() if path == f"notebooks/{notebook.name}"), None)


def notebook(path: Path) -> str:
    """A notebook as Markdown: its texts, its code, and what is stored of its outputs."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        shown = "\n".join(output_of(output) for output in cell["outputs"])
        if shown:
            parts.append(f'<div class="output">\n{shown}\n</div>')
    return "\n\n".join([*parts, ""])


def output_of(output: dict[str, Any]) -> str:
    """An output of a cell as HTML; no line of it is empty, where Markdown would begin anew."""
    data = output.get("data", {})
    rich = "".join(data.get("text/html", []))
    found = rich or f"<pre>{html.escape(''.join(output.get('text') or data.get('text/plain', [])))}</pre>"
    return "\n".join(line for line in found.splitlines() if line.strip())


def api() -> str:
    import sparkdiff

    missing = set(sparkdiff.__all__) ^ {name for names in GROUPS.values() for name in names}
    if missing:
        raise ValueError(f"tools/site_pages.py: GROUPS and sparkdiff.__all__ differ in {sorted(missing)}")
    parts = [
        "# Python API\n\nAll public names of `sparkdiff`, and `sparkdiff.testing`. The Params of each Estimator are on the page"
        " [Options](options.md).\n"
    ]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [f"::: sparkdiff.{name}\n" + ("" if name in MEMBERS else ALONE) for name in names]
    return "\n".join([*parts, "## Checks of stages\n", "::: sparkdiff.testing.check_stage\n"])


def options() -> str:
    from sparkdiff.growth.growth_options import GrowthSettings
    from sparkdiff.improvement.improvement_options import ImprovementSettings
    from sparkdiff.options import Options
    from sparkdiff.search.search_options import Settings

    parts = [
        "# Options\n\nEach is a Param of the Estimator, a key of the section in a YAML file, and `section.key=value` on the"
        " command line.\n"
    ]
    for title, section, kind in (
        ("FineTuner", "fineTuner", Options),
        ("Search", "search", Settings),
        ("Grower", "grower", GrowthSettings),
        ("Improver", "improver", ImprovementSettings),
    ):
        parts.append(f"## {title}\n\nSection `{section}` of a job.\n")
        parts.append("\n".join(["| Option | Default | Meaning |", "|---|---|---|", *rows(kind)]) + "\n")
    return "\n".join(parts)


def rows(kind: type) -> Iterator[str]:
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default is dataclasses.MISSING else field.default  # type: ignore[misc]
        told = field.metadata["help"] + bounds(field.metadata)
        yield f"| `{field.name}` | `{default!r}` | {cell(told)} |"


def bounds(rules: Any) -> str:
    low, high = (rules.get(name) for name in ("low", "high"))
    found = [f"{'more than' if rules.get('openLow') else 'at least'} {low}"] if low is not None else []
    found += [f"{'less than' if rules.get('openHigh') else 'at most'} {high}"] if high is not None else []
    return f" ({' and '.join(found)})" if found else ""


def cell(text: str) -> str:
    """Text in a table. What looks like HTML stays text."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def commands() -> str:
    import typer

    from sparkdiff.cli.app import app

    group: Any = typer.main.get_command(app)
    parts = [f"# Commands\n\n{group.help}\n"]
    for name, command in group.commands.items():
        named = " ".join(p.name.upper() for p in command.params if p.param_type_name == "argument")
        parts.append(
            f"## sparkdiff {name}\n\n{cell(command.help or '')}\n\n```bash\nsparkdiff {name} [OPTIONS] {named}\n```\n"
        )
        table = ["| Argument or flag | Meaning |", "|---|---|"]
        for p in command.params:
            spelled = ", ".join(p.opts) if p.param_type_name == "option" else p.name.upper()
            table.append(f"| `{spelled}` | {cell(getattr(p, 'help', None) or '')} |")
        parts.append("\n".join(table) + "\n")
    return "\n".join(parts)
