"""Sections of a report, i.e. texts and tables, that can be shown both as plain text and as HTML in a notebook."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import TYPE_CHECKING, Any

from sparkdiff.errors import InputError, requires_extra

if TYPE_CHECKING:
    import pandas as pd

LONG = 40
"""Number of characters above which a browser may break the text of a table cell into lines."""


@dataclasses.dataclass(frozen=True)
class SectionTable:
    """A table; its first row is the head.

    Attributes:
        left: indices of the left-aligned columns; the others are right-aligned.
        ruled: whether the plain text has a line under the head.
    """

    rows: Sequence[Sequence[str]]
    left: Sequence[int] = (0,)
    ruled: bool = False


class StrongLine(str):
    """A line to emphasise."""

    strong = True


Section = str | SectionTable


def aligned(rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """One line per row: the columns `left` are left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(r, widths, strict=True))
        ).rstrip()
        for r in rows
    ]


def as_text(sections: Iterable[Section]) -> str:
    """The sections as lines of text."""
    return "\n".join(line for section in sections for line in _lines(section))


def _lines(section: Section) -> list[str]:
    if isinstance(section, str):
        return [section]
    lines = aligned(section.rows, section.left)
    return [lines[0], "-" * len(lines[0]), *lines[1:]] if section.ruled else lines


def as_html(sections: Iterable[Section]) -> str | None:
    """The sections as one `<div>` for a notebook: all text is escaped, colours are the page's own, there is no script.

    Without the extra `report` it is None, so that the notebook shows the text.
    """
    try:
        return render_template("sections.html", {}, sections=list(sections), long=LONG)
    except InputError:
        return None


class Displayable:
    """Base of results that display themselves: one line as `repr`, all sections with `print`, and HTML in a notebook."""

    def _headline(self) -> str:
        raise NotImplementedError

    def _sections(self) -> Iterable[Section]:
        raise NotImplementedError

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._headline()}>"

    def __str__(self) -> str:
        return as_text(self._sections())

    def _repr_html_(self) -> str | None:
        return as_html(self._sections())


class DisplayableFields(Displayable):
    """Base of dataclasses that display themselves and return their fields as a dict, or as JSON with times in ISO 8601."""

    def toDict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def toJSON(self) -> str:
        return json.dumps(self.toDict(), indent=2, default=datetime.isoformat)


@dataclasses.dataclass(frozen=True, repr=False)
class RunPlan(DisplayableFields):
    """The plan of a run, made before anything runs; `print` and notebooks show it.

    Attributes:
        title: the plan in one line.
        facts: the rest, by name: sentences, and tables as lists of dicts.
    """

    title: str
    facts: dict[str, str | list[dict[str, str]]]

    def _headline(self) -> str:
        return self.title

    def _sections(self) -> Iterator[Section]:
        yield StrongLine(self.title)
        yield from (
            f if isinstance(f, str) else SectionTable([[*f[0]], *([*row.values()] for row in f)], left=range(len(f[0])))
            for f in self.facts.values()
            if f
        )


class SummarizedModel(Displayable):
    """Base of models with a summary and a plain pipeline: they display the summary, and how to go on."""

    summary: Any

    def evaluate(self, _dataset: Any) -> None:
        """Raise InputError: metrics of the fit are in `summary`; an Evaluator of Spark measures other rows.

        Raises:
            InputError: always.
        """
        raise InputError(
            f"{type(self).__name__} has no metrics of other rows than those of its fit, which are in summary: set labelCol and "
            "metricName of an Evaluator of pyspark.ml.evaluation, and call evaluator.evaluate(model.transform(df))"
        )

    def _headline(self) -> str:
        return (
            f"{self.summary._headline()}; pipelineModel is "
            f"{'the original' if self.summary.decision == 'kept original' else 'plain Spark ML'}"
        )

    def _sections(self) -> Iterator[Section]:
        yield from self.summary._sections()
        yield (
            "pipelineModel is the original itself"
            if self.summary.decision == "kept original"
            else "pipelineModel.write().save(path) saves the plain pipeline"
        ) + "; summary.toHTML(path) writes the report"


class DisplayableStages(DisplayableFields):
    """Base of dataclasses with an entry per stage in `stages`."""

    stages: tuple[Any, ...]

    def toPandas(self) -> "pd.DataFrame":
        import pandas as pd

        return pd.DataFrame([dataclasses.asdict(s) for s in self.stages])


def template(file: str) -> str:
    """The text of a template; works also if the package is in a zip, as with `spark-submit --py-files`."""
    return (resources.files("sparkdiff.report") / "templates" / file).read_text(encoding="utf-8")


def render_template(name: str, filters: Mapping[str, Callable[..., str]], **values: Any) -> str:
    """The template of this name, filled with these values; all text is escaped."""
    with requires_extra("report", "HTML"):
        from jinja2 import Environment, FunctionLoader  # imported only if something is shown as HTML

    found = Environment(loader=FunctionLoader(template), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    found.filters |= filters
    return found.get_template(f"{name}.j2").render(**values)
