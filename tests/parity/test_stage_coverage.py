"""docs/stages.md is what tools/stage_coverage.py writes, of every class that this Spark has."""

import re
from typing import Any

import pytest
from pyspark.sql import SparkSession

from sparkdiff.stages.base import REGISTRY, StageModule
from sparkdiff.stages.inputs import FieldReader

KINDS = {name: kind for name, kind in REGISTRY.items() if name.startswith("pyspark.ml.")}


def test_every_class_is_made(tool: Any, spark: SparkSession) -> None:
    """From what pyspark itself has, so that a class that Spark adds is noticed."""
    names = [kind.__name__ for kind in tool.classes()]
    assert sorted(names) == sorted(tool.stages())
    assert len(names) == 63 + ("TargetEncoderModel" in names)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_who_refuses_says_when(name: str) -> None:
    kind = KINDS[name]
    decides = kind.refuses.__func__ is not StageModule.refuses.__func__  # type: ignore[attr-defined]
    looks = issubclass(kind, FieldReader)
    assert bool(kind.refusals) == (decides or looks)


@pytest.mark.slow
def test_the_page_is_up_to_date(tool: Any, spark: SparkSession) -> None:
    """`python tools/stage_coverage.py` brings it up to date."""
    written, wished = tool.PAGE.read_text(encoding="utf-8"), tool.page(tool.rows(spark))
    if len(tool.classes()) == 64:
        assert written == wished
    assert "no translation to torch" not in wished
    table = [line for line in wished.splitlines() if line.startswith("| ")]
    assert set(table) <= set(written.splitlines())
    shown = re.findall(r"^\| (\w+) \|", wished, re.MULTILINE)
    assert sorted(n for n in shown if n != "class") == sorted(tool.stages())
