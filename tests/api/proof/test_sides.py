"""The division of rows at its edges: rows without a side, times that many rows share, columns and tables of one's own."""

from typing import Any

import pytest
from pyspark.sql import DataFrame, functions as F

from sparkdiff import InputError
from sparkdiff.data.blocks import MAX_BLOCKS
from sparkdiff.data.splits import BLOCK, REFERENCE, TEST, TRAIN, VALIDATION, Source, with_splits
from sparkdiff.options import Options
from sparkdiff.proof.division import Division, check, divide


@pytest.fixture(scope="module")
def rows(df: DataFrame) -> DataFrame:
    return df.select("number", "user", "held", "when").cache()


def divided(df: DataFrame, **options: Any) -> Division:
    return divide([Source(df)], Options.of(options))


def values(parts: tuple[Source, ...], column: str) -> dict[str | None, set[int]]:
    """The values of a column on each side."""
    return {s.split: {int(r[0]) for r in s.data.select(column).distinct().collect()} for s in parts}


def disjoint(*sets: set[int]) -> bool:
    return sum(map(len, sets)) == len(set().union(*sets))


@pytest.mark.parametrize("options", [{"numFolds": 5}, {}, {"validationIndicatorCol": "held"}])
@pytest.mark.parametrize("time", [None, float("nan"), float("inf")])
def test_rows_without_a_time_are_named(rows: DataFrame, options: dict[str, Any], time: float | None) -> None:
    """They would lie on no side, and be lost without a word."""
    odd = rows.withColumn("hours", F.when(F.col("number") % 500 == 7, F.lit(time)).otherwise(F.col("number")))
    with pytest.raises(
        InputError, match=r"timeCol='hours' holds null or NaN or an infinite value in 3 rows.*fill the column or drop"
    ):
        divided(odd, timeCol="hours", **options)


def test_validation_and_reference_rows_need_a_time_too(rows: DataFrame) -> None:
    odd = rows.withColumn("when", F.when(F.col("number") != 3, F.col("when")))
    for split in (VALIDATION, REFERENCE):
        with pytest.raises(InputError, match="timeCol='when' holds null or NaN or an infinite value in 1 rows"):
            divide([Source(rows, TRAIN), Source(odd, split)], Options.of({"timeCol": "when"}))


def test_rows_without_a_group_are_named_in_any_division(rows: DataFrame) -> None:
    odd = rows.withColumn("team", F.nullif("user", F.lit(3)))
    for options in ({"numFolds": 2}, {}, {"validationIndicatorCol": "held"}):
        with pytest.raises(InputError, match=r"groupCol='team' holds null in 10 rows.*fill the column or drop"):
            divided(odd, groupCol="team", **options)


def test_named_rows_leave_times_to_train_and_to_explore(rows: DataFrame) -> None:
    with pytest.raises(
        InputError, match=r"timeCol='day' has too few different values.*those that train and those that"
    ):
        divided(rows.withColumn("day", F.lit(1)), timeCol="day", validationIndicatorCol="held")


@pytest.mark.parametrize("options", [{"numFolds": 5}, {}, {"validationIndicatorCol": "late"}])
def test_rows_of_one_time_stay_together(rows: DataFrame, options: dict[str, Any]) -> None:
    days = rows.withColumn("day", F.floor(F.col("number") / 24)).withColumn("late", F.col("day") > 50)
    found = divided(days, timeCol="day", **options)
    explores, *proves = [values(parts, "day") for parts in (found.explores, *found.proves)]
    assert all(disjoint(*sides.values()) for sides in (explores, *proves))
    assert disjoint(explores[VALIDATION], *(sides[TEST] for sides in proves))


def test_validation_rows_only_prove_and_groups_stay_whole(rows: DataFrame) -> None:
    train, held = rows.where("user < 100"), rows.where("user >= 100")
    options = Options.of({"groupCol": "user", "numFolds": 5})
    found = divide([Source(train, TRAIN), Source(held, VALIDATION)], options)
    [fold], explores = [values(parts, "user") for parts in found.proves], values(found.explores, "user")
    assert fold == {TRAIN: set(range(100)), TEST: set(range(100, 150))}
    assert disjoint(*explores.values()) and explores[TRAIN] | explores[VALIDATION] == set(range(100))


@pytest.mark.parametrize("options", [{"numFolds": 2}, {"numFolds": 5, "groupCol": "user"}])
def test_no_block_of_the_guard_explores_and_proves(rows: DataFrame, options: dict[str, Any]) -> None:
    found, o = divided(rows, **options), Options.of(options)
    blocks = []
    for parts in (found.explores, *found.proves):
        own = with_splits(parts, o)[1]
        blocks.append({int(r[0]) % MAX_BLOCKS for r in own.select(BLOCK).distinct().collect()})
    assert len(blocks) == options["numFolds"] and disjoint(*blocks)


def test_columns_that_divide_are_looked_at_first(rows: DataFrame) -> None:
    for options, why in (
        ({"groupCol": "usr"}, r"groupCol='usr' is not a column of the data\. Did you mean 'user'"),
        ({"timeCol": "held"}, "timeCol='held' must be a timestamp, date or number"),
        ({"validationIndicatorCol": "user"}, "validationIndicatorCol='user' must be boolean"),
    ):
        with pytest.raises(InputError, match=why):
            divide([Source(rows)], Options.of(options))


def test_stretches_and_halves_may_lack_classes_or_groups(rows: DataFrame) -> None:
    rare = rows.withColumn("rare", (F.col("number") % 500 == 3).cast("double")).withColumn("team", F.col("user") % 3)

    def checked(**options: Any) -> int | None:
        return check(divided(rare, **options), Options.of(options), labelCol="rare", weightCol=None, classes=True)

    with pytest.raises(InputError, match=r"fold [\d, ]+ of numFolds=9 has no row of labelCol='rare' 1: set fewer"):
        checked(numFolds=9)
    assert checked(numFolds=9, timeCol="when") is None
    assert checked(groupCol="team") is None
    with pytest.raises(InputError, match="groupCol='team' has 3 values, too few for numFolds=5"):
        checked(numFolds="auto", groupCol="team")


def test_a_few_groups_too_few_are_divided_into_more_folds(rows: DataFrame) -> None:
    """Of 36 groups 30 prove in more than five folds; of 29 they never do, and a number of the user's is not changed."""
    teams = rows.withColumn("team", F.col("user") % 36)
    found = divided(teams, numFolds="auto", groupCol="team")
    counted = check(
        found, Options.of({"numFolds": "auto", "groupCol": "team"}), labelCol=None, weightCol=None, classes=False
    )
    proving = [values(parts, "team")[TEST] for parts in found.proves]
    assert len(proving) > 4 and all(proving) and len(set().union(*proving)) == counted >= 30 and disjoint(*proving)
    assert found.name == f"{len(proving) + 1} folds"
    assert divided(teams, numFolds=5, groupCol="team").number == 4
    assert divided(rows.withColumn("team", F.col("user") % 29), numFolds="auto", groupCol="team").number == 4
    assert divided(rows, numFolds="auto", groupCol="user").number == 4
