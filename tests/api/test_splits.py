"""Which rows train and which decide: sides, shares, groups, time, and test rows that influence nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pyspark.ml import PipelineModel
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from riders import QUICK, cached, same, tune

from sparkdiff import InputError, finetune, guard
from sparkdiff.finetune import Outcome, fine_tune, prepare
from sparkdiff.options import Options
from sparkdiff.report import Phases
from sparkdiff.splits import BLOCK, SPLIT, Source, row_hash, with_splits

pytestmark = pytest.mark.once  # hashes, options and messages of our own: no stack changes them


def dealt(df: DataFrame | list[Source], **options: Any) -> pd.DataFrame:
    """The rows with their side and block."""
    sources = df if isinstance(df, list) else [Source(df)]
    frames = [d.toPandas() for d in with_splits(sources, Options.of(options))]
    return pd.concat(frames).rename(columns={SPLIT: "split", BLOCK: "block"})


def held(rows: pd.DataFrame) -> pd.Series:
    return rows["split"] == "validation"


# By indicator, by fraction --------------------------------------------------------------------------------------------


def test_the_indicator_is_followed(df: DataFrame) -> None:
    rows = dealt(df, validationIndicatorCol="held")
    assert (held(rows) == rows["held"]).all()
    assert set(rows["split"]) == {"train", "validation"}
    assert rows["block"].between(0, guard.MAX_BLOCKS - 1).all()


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.8])
def test_the_fraction_is_about_right(df: DataFrame, fraction: float) -> None:
    rows = dealt(df, validationFraction=fraction)
    assert held(rows).mean() == pytest.approx(fraction, abs=4 * np.sqrt(fraction * (1 - fraction) / len(rows)))
    assert rows["block"].nunique() > 900  # 1,500 rows in 2,048 blocks


def test_the_side_depends_on_the_rows_alone(df: DataFrame) -> None:
    one = dealt(df).set_index("number")
    other = dealt(df.repartition(5, "wind").select(*sorted(df.columns))).set_index("number").loc[one.index]
    assert (one["split"] == other["split"]).all()
    assert (one["block"] == other["block"]).all()
    seeded = dealt(df, seed=1).set_index("number").loc[one.index]
    assert 0.25 < (one["split"] != seeded["split"]).mean() < 0.4  # 2 * 0.2 * 0.8: independent of the first
    fewer = dealt(df.where("number < 400")).set_index("number")
    assert (fewer["split"] == one.loc[fewer.index, "split"]).all()  # new rows move no old ones


def test_equal_rows_stay_on_one_side(df: DataFrame) -> None:
    rows = dealt(df.where("number < 300").unionAll(df.where("number < 300")).repartition(3))
    assert (rows.groupby("number")["split"].nunique() == 1).all()
    assert (rows.groupby("number")["block"].nunique() == 1).all()
    assert (rows.groupby("number").size() == 2).all()


def test_every_type_can_be_hashed(spark: SparkSession) -> None:
    df = spark.sql(
        "SELECT id, map('a', id, 'b', 1) AS m, array(map('k', id)) AS ms, named_struct('x', map(id, 1)) AS s, "
        "current_date() AS d, cast(id AS decimal(30, 2)) AS c, cast(cast(id AS string) AS binary) AS b, id % 2 = 0 AS odd, "
        "timestamp'2024-01-01' AS t, interval 1 day AS i, cast(NULL AS string) AS n, 'x' AS `a.b` FROM range(200)"
    )
    rows = df.select(row_hash(df).alias("h")).toPandas()
    assert rows["h"].nunique() == 200
    other = df.withColumn("m", F.expr("map('a', id, 'b', 2)"))
    assert other.select(row_hash(other).alias("h")).toPandas()["h"].isin(rows["h"]).sum() == 0  # maps count


# By group -------------------------------------------------------------------------------------------------------------


def test_no_group_stands_on_both_sides(df: DataFrame) -> None:
    rows = dealt(df, groupCol="user", validationFraction=0.3)
    assert (rows.groupby("user")["split"].nunique() == 1).all()
    assert (rows.groupby("user")["block"].nunique() == 1).all()
    assert rows["block"].nunique() == rows["user"].nunique() == 150
    assert held(rows).mean() == pytest.approx(0.3, abs=0.15)


@pytest.fixture
def decided(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the guard was asked, call by call; it decides as ever."""
    calls: list[dict[str, Any]] = []
    decide = guard.decide

    def watched(gains: torch.Tensor, weights: torch.Tensor, **options: Any) -> guard.Verdict:
        calls.append({"gains": gains, "weights": weights, **options})
        return decide(gains, weights, **options)

    monkeypatch.setattr(finetune.guard, "decide", watched)
    return calls


def test_the_gain_is_tested_by_group(
    df: DataFrame, numeric: PipelineModel, folder: Path, decided: list[dict[str, Any]]
) -> None:
    options = {"groupCol": "user", "validationFraction": 0.4}
    rows = dealt(df, **options)
    users = rows.loc[held(rows)].groupby("user").size()
    assert 30 <= len(users) < 150
    tuned = tune(numeric, df, folder, **options)
    assert decided[0]["unit"] == "groups"
    assert decided[0]["units"] == len(users)
    sums = decided[0]["weights"][decided[0]["weights"] > 0]
    assert len(users) - 3 <= len(sums) <= len(users)  # a block per group, but for a few that share one
    assert float(sums.sum()) == users.sum()
    said = [w for w in tuned.summary.warnings if "fitted on train + validation rows" not in w]  # as the original was
    assert said == [] if len(users) >= 50 else said


def test_rows_of_a_group_without_weight_make_no_group(
    df: DataFrame, numeric: PipelineModel, folder: Path, decided: list[dict[str, Any]]
) -> None:
    data = df.withColumn("weight", F.when(F.col("user") % 3 == 0, 0.0).otherwise(1.0))
    options = {"groupCol": "user", "validationFraction": 0.5, "weightCol": "weight"}
    tune(numeric, data, folder, **options)
    rows = dealt(data, groupCol="user", validationFraction=0.5)
    assert decided[0]["units"] == rows.loc[held(rows) & (rows["weight"] > 0), "user"].nunique()


# By time --------------------------------------------------------------------------------------------------------------

TIMES = {
    "number": "number",
    "whole": "cast(number AS int)",
    "decimal": "cast(number AS decimal(10, 2))",
    "negative": "number - 5000",
    "timestamp": "cast(`when` AS timestamp)",
    "timestamp_ntz": "`when`",
    "date": "date_add(date'1960-01-01', cast(number AS int))",
}


@pytest.mark.parametrize("kind", list(TIMES))
def test_validation_is_the_latest_part_in_fifty_blocks(df: DataFrame, kind: str) -> None:
    rows = dealt(df.repartition(3).withColumn("t", F.expr(TIMES[kind])), timeCol="t").sort_values("number")
    assert held(rows).mean() == pytest.approx(0.2, abs=0.01)
    first = rows.loc[held(rows), "number"].min()
    assert (held(rows) == (rows["number"] >= first)).all()
    blocks = rows.loc[held(rows), "block"]
    assert blocks.is_monotonic_increasing  # contiguous
    assert sorted(blocks.unique()) == list(range(guard.TIME_BLOCKS)) == list(range(50))
    assert blocks.value_counts().between(3, 9).all()  # 300 rows in 50 blocks


def test_rows_of_one_time_stand_on_one_side(df: DataFrame) -> None:
    rows = dealt(df.withColumn("t", F.floor(F.col("number") / 7)), timeCol="t", validationFraction=0.3)
    assert (rows.groupby("t")["split"].nunique() == 1).all()
    assert (rows.groupby("t")["block"].nunique() == 1).all()
    assert held(rows).mean() == pytest.approx(0.3, abs=0.02)


def test_an_indicator_may_choose_the_rows_that_time_divides(df: DataFrame) -> None:
    rows = dealt(df, timeCol="number", validationIndicatorCol="held").sort_values("number")
    assert (held(rows) == rows["held"]).all()
    blocks = rows.loc[held(rows), "block"]
    assert blocks.is_monotonic_increasing
    assert blocks.nunique() == 50


def test_a_given_validation_part_is_divided_by_time(df: DataFrame) -> None:
    sources = [Source(df.where("number < 1000"), "train"), Source(df.where("number >= 1000"), "validation")]
    rows = dealt(sources, timeCol="number").sort_values("number")
    assert (held(rows) == (rows["number"] >= 1000)).all()
    assert rows.loc[held(rows), "block"].is_monotonic_increasing
    assert rows.loc[held(rows), "block"].nunique() == 50


def test_the_gain_is_tested_by_blocks_of_time(
    df: DataFrame, numeric: PipelineModel, folder: Path, decided: list[dict[str, Any]]
) -> None:
    tuned = tune(numeric, df, folder, timeCol="when")
    assert decided[0]["unit"] == "blocks"
    assert decided[0]["units"] == int((decided[0]["weights"] > 0).sum()) == 50
    assert 5 < decided[0]["blockRows"] < 7
    assert decided[0]["correlationTime"] >= 1
    assert any("block" in w and "fewer than 200" in w for w in tuned.summary.warnings), tuned.summary.warnings
    assert "0.01" in tuned.summary.reason  # the level that is left of 0.025


def test_differences_are_measured_in_the_order_of_time(
    spark: SparkSession, df: DataFrame, numeric: PipelineModel, folder: Path, decided: list[dict[str, Any]]
) -> None:
    """A loss that drifts slowly is correlated over many rows; in any other order it would look independent."""
    slow = df.withColumn("wind", F.sin(F.col("number") / 40)).withColumn(
        "riders", F.round(3 * F.exp(2 * F.col("wind")))
    )
    tune(numeric, slow, folder, timeCol="number", validationFraction=0.5)
    assert decided[0]["correlationTime"] > 8


# Sides that are given -------------------------------------------------------------------------------------------------


def test_given_sides_stay_as_they_are(df: DataFrame) -> None:
    parts = [df.where(f"number % 3 = {i}") for i in range(3)]
    sides = ("train", "validation", "test")
    rows = dealt([Source(p, s) for p, s in zip(parts, sides, strict=True)])
    assert (rows["split"] == rows["number"].mod(3).map(dict(enumerate(sides)))).all()
    rows = dealt([Source(parts[0]), Source(parts[1], "validation")])  # with a validation part the rest trains, whole
    assert (rows.loc[rows["number"] % 3 == 0, "split"] == "train").all()
    rows = dealt([Source(parts[0]), Source(parts[2], "test")])
    assert set(rows.loc[rows["number"] % 3 == 0, "split"]) == {"train", "validation"}
    assert (rows.loc[rows["number"] % 3 == 2, "split"] == "test").all()


def run(model: Any, sources: list[Source], folder: Path, **options: Any) -> Outcome:
    given = Options.of({**QUICK, "cacheDir": str(folder), **options})
    return fine_tune(prepare(model, given), sources, Phases(shown=False))


def test_test_rows_influence_nothing(write: Any, table: pa.Table, numeric: PipelineModel, folder: Path) -> None:
    early, late = table.slice(0, 1100), table.slice(1100)
    at = table.schema.get_field_index("riders")
    shuffled = late.set_column(
        at, "riders", late["riders"].take(pa.array(np.random.default_rng(0).permutation(len(late))))
    )
    absurd = late.set_column(at, "riders", pc.multiply(late["riders"], 1000.0))
    train = write(early)
    outcomes = [run(numeric, [Source(train), Source(write(t), "test")], folder) for t in (late, shuffled, absurd)]
    first = outcomes[0]
    assert first.summary.decision == "tuned"
    for other in outcomes[1:]:
        assert same(first.model, other.model)
        assert other.summary.history.equals(first.summary.history)
        for name in ("decision", "reason", "gain", "z", "p", "stages"):
            assert getattr(other.summary, name) == getattr(first.summary, name)
        for split in ("train", "validation"):
            assert other.summary.metrics[split] == first.summary.metrics[split]
    tested = [o.summary.metrics["test"] for o in outcomes]
    assert all(t is not None for t in tested)
    assert len({t["before"] for t in tested}) == 3  # and yet they were measured


def test_too_few_rows_groups_and_blocks(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    few = df.where("number < 100")
    with pytest.raises(InputError, match=r"[12]\d validation rows .*at least 30 are needed.*validationFraction"):
        tune(numeric, few, folder)
    with pytest.raises(InputError, match=r"\d+ groups .*at least 30 are needed.*groupCol"):
        tune(numeric, df, folder, groupCol="user", validationFraction=0.1)
    with pytest.raises(InputError, match=r"\d+ blocks .*at least 30 are needed.*timeCol"):
        tune(numeric, df.withColumn("t", F.floor(F.col("number") / 100)), folder, timeCol="t", validationFraction=0.5)
    with pytest.raises(InputError, match="0 validation rows"):
        tune(numeric, df.withColumn("held", F.lit(False)), folder, validationIndicatorCol="held")
    with pytest.raises(InputError, match="0 train rows"):
        tune(numeric, df.withColumn("held", F.lit(True)), folder, validationIndicatorCol="held")


def test_a_column_with_a_dot_in_its_name(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    dotted = df.withColumnsRenamed({"user": "user.id", "held": "held out"})
    cache = cached(numeric, dotted, folder, groupCol="user.id")
    assert cache.rows("validation") > 0
    cache = cached(numeric, dotted, folder, validationIndicatorCol="held out")
    assert cache.rows("validation") == df.where("held").count()
