"""Results show themselves: a line in a console, the same text as before by `print`, and escaped tables in a notebook."""

import dataclasses
import html
import html.parser
from typing import Any

import pytest

import sparkdiff
from sparkdiff.report import FineTuningSummary, SectionTable, StrongLine, as_html
from sparkdiff.report.sections import as_text
from sparkdiff.report.summary_sections import sections_of
from tests.support.made_up_runs import summary

EVIL = "<script>alert('1')</script> & \"more\""


class Seen(html.parser.HTMLParser):
    """The tags and the text of a page; an unclosed or misplaced tag is an error."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.texts.append(data)


def a_summary(**changes: Any) -> FineTuningSummary:
    kept = {f.name: None for f in dataclasses.fields(FineTuningSummary) if f.default is dataclasses.MISSING}
    return FineTuningSummary(
        **{**kept, "folds": None, "records": [{"epoch": 0}] * 500, "parity": {}, **summary(**changes)}
    )  # type: ignore[arg-type]


def test_a_table_and_a_line_as_text_and_as_html() -> None:
    sections = [SectionTable([("", "now"), ("train", "1.5"), (EVIL, "2")], ruled=True), StrongLine("decision"), EVIL]
    assert as_text(sections).splitlines() == [
        " " * (len(EVIL) + 2) + "now",
        "-" * (len(EVIL) + 5),
        f"train{'1.5':>{len(EVIL)}}",
        f"{EVIL}    2",
        "decision",
        EVIL,
    ]
    seen = Seen(as_html(sections))
    assert (seen.tags.count("th"), seen.tags.count("td"), seen.tags.count("tr")) == (2, 4, 3)
    assert "script" not in seen.tags
    assert seen.texts.count(EVIL) == 2
    assert seen.tags.count("strong") == 1


def test_a_summary_shows_itself() -> None:
    slices = [
        {"column": "country", "value": EVIL, "rows": 9, "units": 9, "before": 1.0, "after": 2.0, "gain": -1.0, "p": 0.5}
    ]
    found = a_summary(slices=slices, reason=EVIL)
    assert repr(found) == "<FineTuningSummary: tuned, poisson 2 -> 1.5 on validation rows (gain +25.00%, p < 0.001)>"
    assert str(found) == as_text(sections_of(found.asdict()))
    seen = Seen(found._repr_html_())
    assert "script" not in seen.tags and f"country = {EVIL}" in seen.texts and EVIL in seen.texts
    told = " ".join("".join(seen.texts).split())
    for word in str(found).split():
        assert word in told or set(word) == {"-"}
    assert "on out-of-fold rows" in repr(a_summary(folds=[{"fold": 1}]))
    assert "tuned, poisson" in repr(a_summary(metrics={}))


def test_colours_are_the_pages_and_nothing_is_loaded() -> None:
    page = as_html([SectionTable([("a", "b"), ("1", "2")]), "text"])
    assert "color: inherit" in page
    assert not {"script", "link", "img"} & {*Seen(page).tags}
    assert "http" not in page and "#" not in page  # no colour of its own but those with transparency


def test_the_package_shows_its_names() -> None:
    assert {*sparkdiff.__all__} <= {*dir(sparkdiff)}
    assert not [name for name in dir(sparkdiff) if name.startswith("_") and not name.startswith("__")]


@pytest.mark.parametrize("long", [39, 40, 41])
def test_only_long_cells_may_break(long: int) -> None:
    page = as_html([SectionTable([("a",), ("x" * long,)])])
    assert (' long">' in page) == (long > 40)
