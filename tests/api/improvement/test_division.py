"""Which rows train, explore and prove, and which make what ships: each row has one duty in each fold."""

import dataclasses
from typing import Any

import pandas as pd
import pytest
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError
from sparkdiff.data.splits import BLOCK, REFERENCE, SPLIT, TEST, TRAIN, VALIDATION, Boundaries, Source, with_splits
from sparkdiff.options import Options
from sparkdiff.proof import division
from sparkdiff.proof.division import Division, divide, inner

ROWS = 1500


def divided(df: DataFrame, *more: Source, **options: Any) -> Division:
    return divide([Source(df), *more], Options.of(options))


def dealt(sources: tuple[Source, ...], boundaries: Boundaries, **options: Any) -> pd.DataFrame:
    """Rows with their side and block, as a fit sees them."""
    found = [d.toPandas() for d in with_splits(sources, Options.of(options), boundaries)]
    return pd.concat(found).rename(columns={SPLIT: "split", BLOCK: "block"})


class Rows:
    """The numbers of the rows by their duty.

    Attributes:
        trains, explores: of the race.
        makes, proves: per fold.
        ships: that make what ships.
    """

    def __init__(self, df: DataFrame, *more: Source, **options: Any):
        found = divided(df, *more, **options)
        self.division = found
        race = dealt(found.explores, found.boundaries[0], **options)
        self.each = [dealt(rows, found.boundaries[1], **options) for rows in found.proves]
        self.trains, self.explores = (self.of(race, split) for split in (TRAIN, VALIDATION))
        self.makes, self.proves = ([self.of(rows, split) for rows in self.each] for split in (TRAIN, TEST))
        self.ships = {*found.makes.df.toPandas()["number"]}
        self.race = race

    def of(self, rows: pd.DataFrame, split: str) -> set[float]:
        assert set(rows["split"]) <= {TRAIN, VALIDATION, TEST}
        numbers = rows.loc[rows["split"] == split, "number"]
        assert not numbers.duplicated().any()
        return {*numbers}

    def check(self) -> None:
        """No row has two duties, and none that proves has explored."""
        assert not self.trains & self.explores
        proven: set[float] = set()
        for makes, proves in zip(self.makes, self.proves, strict=True):
            assert proves and not makes & proves and not proves & proven
            proven |= proves
        assert not proven & self.explores


def test_rows_explore_or_prove_once_and_all_make_what_ships(df: DataFrame) -> None:
    rows = Rows(df, numFolds="auto")
    rows.check()
    every = {float(n) for n in range(ROWS)}
    assert rows.trains | rows.explores == every
    assert len(rows.proves) == rows.division.number == 4
    assert set.union(rows.explores, *rows.proves) == every == rows.ships
    assert all(makes | proves == every for makes, proves in zip(rows.makes, rows.proves, strict=True))
    sizes = [len(x) for x in (rows.explores, *rows.proves)]
    assert min(sizes) > 250 and max(sizes) < 350
    assert rows.division.factor is None and rows.division.name == "5 folds"


def test_a_block_of_the_guard_lies_in_one_fold(df: DataFrame) -> None:
    """So that the sums of the folds' rows are those of other blocks."""
    rows = Rows(df, numFolds=3)
    rows.check()
    assert len(rows.proves) == 2
    blocks = [{*each.loc[each["split"] == TEST, "block"]} for each in rows.each]
    assert not blocks[0] & blocks[1]


def test_equal_rows_are_dealt_like_others(spark: SparkSession) -> None:
    same = spark.range(400).selectExpr("1.0 AS x")
    found = divided(same, numFolds=2)
    assert sum(s.df.count() for s in found.proves[0]) == 400
    assert 140 < found.proves[0][1].df.count() < 260


def test_groups_stay_whole(df: DataFrame) -> None:
    rows = Rows(df, groupCol="user", numFolds=4)
    rows.check()
    users = df.select("user", "number").toPandas().set_index("number")["user"]
    for one, other in ((rows.trains, rows.explores), *zip(rows.makes, rows.proves, strict=True)):
        assert not {*users[[*one]]} & {*users[[*other]]}
    assert len(rows.ships) == ROWS
    halves = Rows(df, groupCol="user", numFolds=0)
    halves.check()
    assert not {*users[[*halves.explores]]} & {*users[[*halves.proves[0]]]}


@pytest.mark.nightly
def test_by_time_each_stretch_is_proven_by_all_rows_before_it(df: DataFrame) -> None:
    rows = Rows(df.orderBy(F.rand(1)), timeCol="when", numFolds="auto")
    rows.check()
    size = 0.4 * ROWS / 4
    assert [len(x) for x in (rows.trains, rows.explores, *rows.proves)] == pytest.approx(
        [0.6 * ROWS, *[size] * 4], abs=2
    )
    assert max(rows.trains) < min(rows.explores)
    seen = rows.trains | rows.explores
    for makes, proves in zip(rows.makes, rows.proves, strict=True):
        assert makes == seen and max(makes) < min(proves)
        seen = seen | proves
    assert rows.ships == seen == {float(n) for n in range(ROWS)}  # the newest rows, too
    assert rows.division.factor == 2.0 and rows.division.name == "4 stretches of time"


def test_blocks_of_time_follow_each_other_through_the_stretches(df: DataFrame) -> None:
    rows = Rows(df, timeCol="number", numFolds=5)
    proven = pd.concat([each[each["split"] == TEST] for each in rows.each]).sort_values("number")
    assert proven["block"].is_monotonic_increasing
    assert proven["block"].nunique() == 3 * division.BLOCKS
    assert proven.groupby("block").size().max() <= 10
    explored = rows.race[rows.race["split"] == VALIDATION]
    assert explored["block"].nunique() == division.BLOCKS


def test_rows_that_the_user_names_only_prove(df: DataFrame) -> None:
    rows = Rows(df, validationIndicatorCol="held", numFolds="auto")
    rows.check()
    held = {*df.where("held").toPandas()["number"]}
    [proves] = rows.proves
    assert proves == held and not rows.ships & held
    assert rows.ships == rows.makes[0] == rows.trains | rows.explores
    assert len(rows.explores) / len(rows.ships) == pytest.approx(0.2, abs=0.04)
    given = Rows(df.where("not held"), Source(df.where("held"), VALIDATION), numFolds=0)
    given.check()
    assert (given.proves[0], given.ships) == (held, rows.ships)
    assert given.explores == rows.explores


def test_named_rows_with_times_prove_in_blocks_of_time(df: DataFrame) -> None:
    """And the latest of the others explore."""
    rows = Rows(df, validationIndicatorCol="held", timeCol="number", numFolds="auto")
    rows.check()
    assert max(rows.trains) < min(rows.explores)
    proven = rows.each[0][rows.each[0]["split"] == TEST].sort_values("number")
    assert proven["block"].is_monotonic_increasing and proven["block"].nunique() == 50


def test_without_folds_half_of_the_held_out_rows_prove(df: DataFrame) -> None:
    rows = Rows(df, numFolds=0, validationFraction=0.4)
    rows.check()
    [proves] = rows.proves
    assert len(proves) == pytest.approx(0.2 * ROWS, abs=60) and len(rows.explores) == pytest.approx(0.2 * ROWS, abs=60)
    assert rows.ships == rows.makes[0] == rows.trains | rows.explores
    assert not rows.division.ships  # what has proven ships
    plain = dealt((Source(df),), Boundaries(), validationFraction=0.4)
    held = {*plain.loc[plain["split"] == VALIDATION, "number"]}
    assert proves | rows.explores == held  # the rows that fine-tuning alone holds out


def test_without_folds_the_later_half_proves(df: DataFrame) -> None:
    rows = Rows(df, numFolds=0, validationFraction=0.4, timeCol="number")
    rows.check()
    [proves] = rows.proves
    assert len(proves) == pytest.approx(0.2 * ROWS, abs=2)
    assert max(rows.trains) < min(rows.explores) <= max(rows.explores) < min(proves)
    proven = rows.each[0][rows.each[0]["split"] == TEST].sort_values("number")
    assert proven["block"].is_monotonic_increasing and proven["block"].nunique() == 50


@pytest.mark.nightly
def test_reference_rows_have_blocks_of_their_own_times(df: DataFrame) -> None:
    reference = Source(df.where("number < 500"), REFERENCE)
    for options in ({"numFolds": 5}, {"numFolds": 0}, {"validationIndicatorCol": "held"}):
        found = divided(df, reference, timeCol="number", **options)
        rows = dealt((reference,), found.boundaries[1], timeCol="number", **options)
        assert rows["block"].nunique() == 50


def test_rows_that_choose_in_a_fold_are_its_training_rows(df: DataFrame) -> None:
    for options in ({}, {"groupCol": "user"}, {"timeCol": "number"}):
        found = divided(df, numFolds=5, **options)
        whole, parts = found.proves[0], inner(found.proves[0], Options.of(options))
        rows = {s.split: {*s.df.toPandas()["number"]} for s in parts}
        train, test = ({*s.df.toPandas()["number"]} for s in whole)
        assert rows[TRAIN] | rows[VALIDATION] == train and not rows[TRAIN] & rows[VALIDATION]
        assert rows[TEST] == test
        assert len(rows[VALIDATION]) / len(train) == pytest.approx(0.2, abs=0.05)
        assert "timeCol" not in options or max(rows[TRAIN]) < min(rows[VALIDATION])
    users = df.select("user", "number").toPandas().set_index("number")["user"]
    found = divided(df, numFolds=5, groupCol="user")
    one, other = (
        {*users[[*s.df.toPandas()["number"]]]} for s in inner(found.proves[0], Options.of({"groupCol": "user"}))[:2]
    )
    assert not one & other


@pytest.mark.parametrize(
    ("options", "folds"),
    [
        ({"numFolds": "auto"}, 5),
        ({"numFolds": "auto", "timeCol": "number"}, 5),
        ({"numFolds": 3}, 3),
        ({"numFolds": 0}, 0),
        ({"numFolds": "auto", "validationFraction": 0.79}, 5),
        ({"numFolds": "auto", "validationFraction": 0.9}, 0),
    ],
)
def test_the_smaller_error_chooses_folds_or_held_out_rows(options: dict[str, Any], folds: int) -> None:
    """Four fifths of the rows, at the largest factor of their dependence, against half of those that are held out."""
    assert division.folds_of(Options.of(options)) == folds


@pytest.mark.parametrize(
    ("column", "options", "says"),
    [
        (
            "held",
            {"validationIndicatorCol": "held", "numFolds": "auto"},
            r"Col='held' holds null in 500 rows.*neither side.*drop",
        ),
        ("number", {"timeCol": "number"}, r"timeCol='number' holds null or NaN or an infinite value in 500 rows.*drop"),
        ("number", {"timeCol": "number", "numFolds": 0}, r"timeCol='number' holds null"),
    ],
)
def test_rows_without_a_side_are_refused(df: DataFrame, column: str, options: dict[str, Any], says: str) -> None:
    """They would be missing from all of it, without a word."""
    data = df.withColumn(column, F.when(F.col("number") >= 500, F.col(column)))
    with pytest.raises(InputError, match=says):
        divided(data, **{"numFolds": 5, **options})


def test_too_few_times_for_stretches_are_named(df: DataFrame) -> None:
    data = df.withColumn("year", F.floor(F.col("number") / 500))
    with pytest.raises(InputError, match=r"timeCol='year' has too few different values.* 4 stretches"):
        divided(data, timeCol="year", numFolds=5)
    with pytest.raises(InputError, match=r"too few different values.* two halves"):
        divided(data, timeCol="year", numFolds=0)


def checked(df: DataFrame, classes: bool = False, **options: Any) -> None:
    o = Options.of({"numFolds": 5, **options})
    division.check(division.divide([Source(df)], o), o, labelCol="kind", weightCol="weight", classes=classes)


def test_a_fold_that_cannot_prove_is_named_before_any_work(df: DataFrame) -> None:
    checked(df, classes=True)
    with pytest.raises(
        InputError, match="groupCol='user' has 9 values, too few for numFolds=5: at least 10 are needed"
    ):
        checked(df.where("user < 9"), groupCol="user")
    with pytest.raises(InputError, match="groupCol='user' holds null"):
        checked(df.withColumn("user", F.when(F.col("number") > 9, F.col("user"))), groupCol="user")
    rare = df.withColumn("kind", F.when(F.col("number") == 3, 7.0).otherwise(F.col("kind"))).withColumn(
        "weight", F.lit(1.0)
    )
    with pytest.raises(InputError, match=r"fold (\d, ){3}\d of numFolds=5 has no row of labelCol='kind' 7"):
        checked(rare, classes=True)
    checked(rare)  # a number, of which no fold needs each value
    checked(
        rare.withColumn("weight", F.when(F.col("kind") == 7, 0.0).otherwise(1.0)), classes=True
    )  # which decides nothing
    with pytest.raises(InputError, match="of numFolds=5 has no rows"):
        checked(df.limit(1).withColumn("weight", F.lit(1.0)))


def test_too_few_rows_or_groups_are_known_before_any_work(df: DataFrame) -> None:
    def told(rows: DataFrame, **options: Any) -> str:
        found, o = divided(rows, **options), Options.of(options)
        counted = division.check(found, o, labelCol=None, weightCol=None, classes=False)
        assert (counted is None) == (options["numFolds"] == 0)
        said = division.too_few(found, o, counted)
        assert said == division.too_few(found, o, None)  # which counts them itself
        return said

    ways = "to decide it, pass more rows"
    assert told(df.where("number < 40"), numFolds=2).endswith(f"rows, 30 are needed; {ways}")
    assert not told(df.where("number < 80"), numFolds=2)
    assert "set numFolds=5" in told(df.where("number < 200"), numFolds=0)
    by_user = told(df.where("user < 20"), numFolds=5, groupCol="user")
    assert by_user.endswith(
        "groups, 30 are needed, but groupCol='user' has too few values; to decide it, pass more groups"
    )
    assert not told(df.where("user < 50"), numFolds=5, groupCol="user")
    assert not told(df.where("number < 40"), numFolds=2, guard=1.0)


def test_the_rows_depend_on_the_seed_and_on_nothing_else(df: DataFrame) -> None:
    one, other = Rows(df, numFolds=2), Rows(df.repartition(5, "wind").select(*sorted(df.columns)), numFolds=2)
    assert one.explores == other.explores and one.proves == other.proves
    assert Rows(df, numFolds=2, seed=1).explores != one.explores
    fewer = Rows(df.where("number < 400"), numFolds=2)
    assert fewer.explores == {n for n in one.explores if n < 400}  # new rows move no old ones
    assert dataclasses.replace(one.division, ships=()).makes.df is one.division.proves[0][0].df


def test_shares_are_those_of_numbers(df: DataFrame) -> None:
    """Half of the held-out rows, whatever the fraction is: the halves' hash is not that of the sides."""
    for fraction in (0.1, 0.3):
        rows = Rows(df, numFolds=0, validationFraction=fraction)
        held = len(rows.explores) + len(rows.proves[0])
        assert abs(len(rows.explores) / held - 0.5) < 0.15
        assert held / ROWS == pytest.approx(fraction, abs=0.04)
