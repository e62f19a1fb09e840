"""How far phases are, in one form of words: epochs, trials, rounds, rows of a cache; and how long they may still take."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sparkdiff.data.cache import CacheProgress
from sparkdiff.growth.round_reports import RoundProgress
from sparkdiff.growth.rounds import ItemReport
from sparkdiff.report import RemainingTime, advance, change, counted, signed
from sparkdiff.search.search_progress import SearchProgress


def test_one_form_of_words() -> None:
    assert advance("epoch", 1, 9) == "epoch 1 of at most 9"
    assert advance("epoch", 1, 9, "", "2 left", seconds=120) == "epoch 1 of at most 9: 2 left, about 2 min"
    assert change("poisson", 38.7, 12.41) == "poisson 38.7 -> 12.41 (-67.9%)"
    assert change("squared", 4e-24, 1e-24).endswith("(-75.0%)")  # of a label whose unit is small
    assert change("r2", 0.0, 0.0).endswith("(+0.0%)")
    searched = SearchProgress(40, 12, 1, 0, 2, 0.913, 3, {"regParam": 0.1}, 30.4)
    assert str(searched) == "trial 12 of at most 40: best 0.913 of trial 3 with {'regParam': 0.1}, 1 failed, about 30 s"
    assert str(SearchProgress(40, 0, 0, 0, 8, None, None, None, None)) == "trial 0 of at most 40"


def test_nothing_is_minus_zero_percent_or_one_warnings() -> None:
    assert [signed(x) for x in (-0.0, -0.0004, 0.0004, -0.0006)] == ["+0.0%", "+0.0%", "+0.0%", "-0.1%"]
    assert [signed(x, 2) for x in (-0.00004, -0.00006, 0.12345, float("inf"))] == [
        "+0.00%",
        "-0.01%",
        "+12.35%",
        "+inf%",
    ]
    assert [counted(n, "warning") for n in (0, 1, 1200)] == ["0 warnings", "1 warning", "1,200 warnings"]
    assert [counted(n, "process", "processes") for n in (1, 2)] == ["1 process", "2 processes"]


def test_time_left_follows_from_work_since_the_first_look() -> None:
    now = 5.0
    pace = RemainingTime(lambda: now)
    assert pace.seconds_left(3, 10) is None  # what an earlier run did tells nothing
    now = 9.0
    assert pace.seconds_left(5, 10) == pytest.approx(10.0)
    assert pace.seconds_left(10, 10) is None


def test_rounds_tell_the_parts_and_what_they_gained() -> None:
    now = 0.0
    forecast = RoundProgress(5, lambda: now)
    assert forecast.item(1, 0, 4) == "round 1 of at most 5: 0 of 4 parts trained"
    now = 3.0
    assert forecast.item(1, 1, 4) == "round 1 of at most 5: 1 of 4 parts trained, about 9 s"

    def tried(number: int, gain: float, why: str = "") -> ItemReport:
        return ItemReport(number, "crosses", "hr x temp", gain, 0.0, 3, 0.1, 1.0, 2, why)

    assert forecast.end_round([tried(1, 0.2), tried(1, 0.3, "less")]) == "round 1 of at most 5: hr x temp joins, +20.0%"
    assert forecast.item(2, 0, 3) == "round 2 of at most 5: +20.0%, 0 of 3 parts trained"
    assert forecast.end_round([tried(2, 0.1, "less")]) == "round 2 of at most 5: nothing gains"


def test_a_growing_cache_tells_rows_and_bytes_so_far(tmp_path: Path) -> None:
    growing = CacheProgress(tmp_path)
    assert growing.message() == "0 rows, 0.0 MB so far"
    (tmp_path / "split=train").mkdir()
    table = pa.table({"c0": [0.5] * 200_000})
    pq.write_table(table, tmp_path / "split=train" / "part-0.parquet", use_dictionary=False, compression="none")
    (tmp_path / "split=train" / "part-1.parquet").write_bytes(b"PAR1 not yet")
    assert growing.message() == "200,000 rows, 1.6 MB so far"
    growing.folder = tmp_path / "renamed"
    assert growing.message() in ("", "200,000 rows, 0.0 MB so far")
