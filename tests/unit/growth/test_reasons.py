"""A growth without a part says why, and ends with the way out."""

import dataclasses
from typing import Any

import pytest

from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.growth.round_reports import why_none
from sparkdiff.growth.rounds import GrowthResult, ItemReport
from sparkdiff.options import Options
from tests.support.growth_tables import table_of

TRIED = ItemReport(1, "known", "known", 0.0, 1.0, 3, 0.1, 0.1, 1, "its gain is less than its penalty")
MORE = "to decide it, set validationFraction=0.3, or pass more rows"


def grown(**given: Any) -> GrowthResult:
    table, _ = table_of(rows=60)
    return dataclasses.replace(GrowthResult((), table, (), "it stopped"), **given)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"tried": (TRIED,)}, f"to let smaller gains join, lower maxLoss=0.005 or complexity=0.1; {MORE}"),
        ({"late": True}, "to train more parts, raise maxSeconds=3"),
        ({}, "to propose more, name more kinds in parts, or columns in entityCols"),
    ],
    ids=["no gain", "no time", "nothing to try"],
)
def test_where_no_part_joins(given: dict[str, Any], why: str) -> None:
    found = why_none(GrowthSettings(), grown(**given), (), Options(maxSeconds=3.0, validationFraction=0.2))
    assert found == f"no part joined: it stopped; {why}"


def test_a_limit_that_is_off_is_not_to_be_lowered() -> None:
    off = GrowthSettings(maxLoss=0.0, complexity=0.0)
    found = why_none(off, grown(tried=(TRIED,)), (), Options(validationFraction=0.2))
    assert found == f"no part joined: it stopped; {MORE}"


def test_where_all_parts_are_dropped() -> None:
    gone: Any = ("a member",)
    found = why_none(GrowthSettings(), grown(), gone, Options())
    assert found.endswith("; to keep them, set maxLoss=0, which drops none")
