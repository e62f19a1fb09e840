"""Writes the table in docs/serving.md: limits of the text stages that a Scorer takes.

    python tools/serving_table.py          # writes the file
    python tools/serving_table.py --check  # exit code 1 where the file isn't what this would write

The table is read from the registries of stages; nothing is fitted. A test asks a Scorer about a stage of each class.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from sparkdiff.serving.scorer.compiling import NOT_SERVED
from sparkdiff.serving.scorer.text import SERVED
from sparkdiff.stages import base
from sparkdiff.stages.inputs import FieldReader

PAGE = Path(__file__).parents[1] / "docs" / "serving.md"
BEGIN, END = "<!-- written by tools/serving_table.py -->\n", "<!-- end -->\n"


class Row(NamedTuple):
    """A class, where a Scorer computes it (empty if it refuses it), and its limits."""

    name: str
    where: str
    limits: str


def rows() -> list[Row]:
    names = sorted(n for n in {*base.REGISTRY, *base.UNTRANSLATED} if n.startswith("pyspark.ml."))
    return [row(name) for name in names]


def row(full: str) -> Row:
    name = full.rpartition(".")[2]
    if (text := SERVED.get(full)) is not None:
        return Row(name, "Python", "; ".join(text.refusals))
    if full in base.REGISTRY:
        return Row(name, "torch", "")  # docs/stages.md has its limits
    if name == "RFormulaModel":
        return Row(name, "the stages in it", "")
    return Row(name, "", NOT_SERVED[name])


def table() -> str:
    found = rows()
    by_torch, by_python, refused = ([r for r in found if r.where == where] for where in ("torch", "Python", ""))
    readers = [
        r.name for r in found if issubclass(base.REGISTRY.get(f"pyspark.ml.feature.{r.name}", object), FieldReader)
    ]
    lines = [
        f"A Scorer accepts {len(found) - len(refused)} of {len(found)} classes. "
        "The stages in a pipeline, a search or an RFormulaModel take its place.",
        "",
        f"Torch computes the {len(by_torch)} translated classes, unless [stages.md](stages.md) says that a setting keeps "
        "them in Spark. One difference: a VectorAssembler may have `handleInvalid='skip'`. Pass `schema=` for "
        f"{', '.join(readers[:-1])} and {readers[-1]}. "
        f"Python computes {', '.join(r.name for r in by_python)}:",
        *("", "| Class | Not with |", "|---|---|", *(f"| {r.name} | {r.limits} |" for r in by_python if r.limits)),
        "",
        f"These are refused, and the error gives the reason: {', '.join(r.name for r in refused)}.",
    ]
    return "\n".join(lines) + "\n"


def page(text: str) -> str:
    """The page with the table of the registries."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


def main() -> int:
    text = PAGE.read_text("utf-8")
    if "--check" in sys.argv:
        return int(page(text) != text)
    PAGE.write_text(page(text), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
