"""Writes the table in docs/export.md: which translated classes `sparkdiff.export` can write.

    python tools/export_table.py          # writes the file
    python tools/export_table.py --check  # exit code 1 where the file isn't what this would write

The table is read from the registry of translated stages and from the writers of their nodes; nothing is fitted.
"""

import sys
from pathlib import Path

from sparkdiff.serving.onnx.export import LIMITS
from sparkdiff.serving.onnx.stages import WRITERS
from sparkdiff.stages.base import REGISTRY, StageModule

PAGE = Path(__file__).parents[1] / "docs" / "export.md"
BEGIN, END = "<!-- written by tools/export_table.py -->\n", "<!-- end -->\n"


def classes() -> dict[str, bool]:
    """Per translated class of MLlib whether it can be exported."""
    mllib = {name: kind for name, kind in REGISTRY.items() if name.startswith("pyspark.ml.")}
    return {name.rpartition(".")[2]: is_written(kind) for name, kind in sorted(mllib.items())}


def is_written(module: type[StageModule]) -> bool:
    """Whether the stages of a registered module have a form in ONNX; one with kinds, such as NaiveBayes, if all of them have."""
    kinds, last = [module], []
    while kinds:
        kind = kinds.pop()
        below = [sub for sub in kind.__subclasses__() if sub.__module__.startswith("sparkdiff.")]
        kinds += below
        last += [] if below else [kind]
    return all(kind in WRITERS for kind in last)


def table() -> str:
    found = classes()
    missing = ", ".join(name for name, ok in found.items() if not ok)
    head = f"{sum(found.values())} of {len(found)} translated classes of MLlib can be exported"
    head += f"{missing and f'; not {missing}'}. Refused are:"
    rows = [f"| {name} | {LIMITS[name]} |" for name in found if name in LIMITS]
    return "\n".join([head, "", "| Class | With |", "|---|---|", *rows]) + "\n"


def page(text: str) -> str:
    """The page with the table of the registry."""
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
