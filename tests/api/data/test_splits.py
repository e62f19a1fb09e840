"""Which rows train and which decide: sides, shares, groups, time, and test rows that influence nothing."""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import VectorAssembler
from pyspark.ml.regression import LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import InputError
from sparkdiff.data import blocks, splits
from sparkdiff.data.fingerprint import Request, content, fingerprint
from sparkdiff.data.row_hashes import COPY, row_hash
from sparkdiff.data.splits import BLOCK, SOURCE, SPLIT, TIME, Boundaries, Source, find_boundaries, with_splits
from sparkdiff.estimators import fine_tuner
from sparkdiff.evaluation import guard
from sparkdiff.fine_tuning.fine_tuning_run import fine_tune
from sparkdiff.fine_tuning.task import Outcome, prepare
from sparkdiff.options import Options
from sparkdiff.report import Phases
from sparkdiff.training.recipes import Recipe
from tests.support.small_data import NUMBERS, QUICK, cached, same, tune


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
    assert rows["block"].between(0, blocks.MAX_BLOCKS - 1).all()


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

    monkeypatch.setattr(guard, "decide", watched)
    return calls


@pytest.mark.nightly
def test_the_gain_is_tested_by_group(
    df: DataFrame, numeric: PipelineModel, folder: Path, decided: list[dict[str, Any]]
) -> None:
    """Rows of a group without weight make no group."""
    data = df.withColumn("weight", F.when(F.col("user") % 3 == 0, 0.0).otherwise(1.0))
    options = {"groupCol": "user", "validationFraction": 0.5}
    rows = dealt(data, **options)
    users = rows.loc[held(rows) & (rows["weight"] > 0)].groupby("user").size()
    assert 30 <= len(users) < 100
    tuned = tune(numeric, data, folder, weightCol="weight", **options)
    units = decided[0]["units"]
    assert units.kind == "groups" and units.number == pytest.approx(users.sum() ** 2 / (users**2).sum())
    sums = decided[0]["weights"][decided[0]["weights"] > 0]
    assert len(users) - 3 <= len(sums) <= len(users)  # a block per group, but for a few that share one
    assert float(sums.sum()) == users.sum()
    said = [w for w in tuned.summary.warnings if "fitted on train + validation rows" not in w]  # as the original was
    assert said == [] if len(users) >= 50 else said


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
    found = rows.loc[held(rows), "block"]
    assert found.is_monotonic_increasing  # contiguous
    assert sorted(found.unique()) == list(range(blocks.TIME_BLOCKS)) == list(range(50))
    assert found.value_counts().between(3, 9).all()  # 300 rows in 50 blocks


SOME = 6000
SHARES = [1 - 0.2 + (1 - (1 - 0.2)) * k / blocks.TIME_BLOCKS for k in range(blocks.TIME_BLOCKS)]


def drawn() -> pa.Table:
    """Columns of times of every type; `mixed` has values of every kind, and ties at both ends of what decides."""
    random = np.random.default_rng(3)
    normal = random.normal(size=SOME)
    kinds = (
        random.integers(-2, 3, SOME),
        0.0 * normal,
        5e-324 * random.integers(-3, 4, SOME),
        normal,
        -np.exp(normal),
        np.sign(normal) * np.exp(random.uniform(-700, 700, SOME)),
        np.full(SOME, 0.9),
        np.full(SOME, np.nan),
        np.where(normal < 0, -np.inf, np.inf),
    )
    micros = 1_760_000_000_000_000 + random.integers(0, 10**10, SOME)
    columns = {
        "mixed": pa.array(np.choose(random.integers(0, len(kinds), SOME), kinds), mask=random.random(SOME) < 0.1),
        "long": 2**60 + random.integers(0, 10_000, SOME),
        "date": random.integers(-9000, 9000, SOME).astype("datetime64[D]"),
        "timestamp": pa.array(micros, pa.timestamp("us", "UTC")),
    }
    return pa.table(columns)


def test_cuts_are_exact_quantiles_for_any_partitioning(
    spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy's on the same doubles, from guesses that are bad on few rows as Spark's are on many."""
    monkeypatch.setattr(splits, "ACCURACY", 30)
    pq.write_table(drawn(), tmp_path / "times.parquet")
    df = spark.read.parquet(f"file://{tmp_path}/times.parquet")
    seconds = df.select(*(splits.seconds(df, c).alias(c) for c in df.columns)).toPandas()
    parts = [df.repartition(5), df.coalesce(1), df.repartitionByRange(9, "mixed")]
    for i, name in enumerate(["mixed", *df.columns]):
        values = seconds[name].dropna().to_numpy()
        assert np.isfinite(values).all()
        exact = np.quantile(values, SHARES, method="inverted_cdf")
        found = find_boundaries([Source(parts[i % 3])], Options.of({"timeCol": name})).deciding
        assert list(found) == exact.tolist(), name
        assert not any(np.signbit(cut) for cut in found if cut == 0)


def test_ranks_between_two_guesses_are_counted(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guess that knows nothing of the rows costs time only."""
    monkeypatch.setattr(splits, "_approximate_quantiles", lambda values, shares: [-1.0, 2.5, 1e9])
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(40.0), np.arange(40)))
    df = spark.createDataFrame(pd.DataFrame({"t": values}))
    shares = [0.0, 0.001, 0.25, 0.5, 0.999, 1.0]
    found = splits.quantiles(df, F.col("t"), shares)
    assert found == np.quantile(values, shares, method="inverted_cdf").tolist()


def test_the_quantile_lies_in_the_bucket_that_counts_say() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        counts = random.integers(0, 6, random.integers(1, 8)).tolist()
        if not sum(counts):
            continue
        values = np.repeat(np.arange(len(counts)), counts)
        shares = [0.0, *random.random(4), 1.0]
        places = splits.bucket_ranks(shares, counts)
        assert [i for i, _ in places] == np.quantile(values, shares, method="inverted_cdf").tolist()
        assert all(1 <= rank <= counts[i] for i, rank in places)
        at = [sum(counts[:i]) + rank for i, rank in places]
        assert at == [max(1, int(np.ceil(s * len(values)))) for s in shares]


def test_rows_that_change_between_two_readings_are_told(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    restless = spark.range(500).withColumn("t", F.rand())
    monkeypatch.setattr(splits, "_values_at_ranks", lambda rows, wanted: {})  # as where buckets hold fewer rows by now
    monkeypatch.setattr(splits, "ACCURACY", 2)
    with pytest.raises(InputError, match="timeCol='t' had other values when"):
        find_boundaries([Source(restless)], Options.of({"timeCol": "t"}))


def test_an_unfitted_pipeline_is_fitted_on_the_rows_that_train(
    df: DataFrame, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boundaries that are found once divide the rows of the fit and of the cache, and are part of its fingerprint."""
    found: list[Boundaries] = []
    fits: list[int] = []
    find, fit = splits.find_boundaries, Pipeline.fit

    def counted(*given: Any) -> Boundaries:
        found.append(find(*given))
        return found[-1]

    def watched(self: Pipeline, rows: DataFrame, params: Any = None) -> Any:
        fits.append(rows.count())
        return fit(self, rows, params)

    for module in (splits, fine_tuner):
        monkeypatch.setattr(module, "find_boundaries", counted)
    monkeypatch.setattr(Pipeline, "fit", watched)
    stages = [VectorAssembler(inputCols=NUMBERS, outputCol="x"), LinearRegression(featuresCol="x", labelCol="riders")]
    given = Pipeline(stages=stages)
    options = {"timeCol": "number", "validationFraction": 0.3, "maxEpochs": 1}
    tuned = tune(given, df, folder, **options)
    assert len(found) == 1
    assert fits == [1050]
    assert found[0].deciding[0] == 1049.0
    cache = next(p for p in folder.iterdir() if (p / "manifest.json").exists())
    rows = pq.ParquetDataset(cache / "train").read(["time"])["time"].to_numpy()
    assert sorted(rows) == list(range(1050))
    # Rows that another reading divides otherwise are cached anew, whatever the files' facts say.
    request = Request(
        prepare(tuned.originalModel, Options.of({})).cut, [Source(df)], Options.of(options), "riders", None
    )
    deciding = found[0].deciding
    keys = {
        fingerprint(dataclasses.replace(request, boundaries=boundaries), folder)
        for boundaries in (
            found[0],
            Boundaries((*deciding[:-1], 1499.5)),
            Boundaries(deciding, deciding),
        )
    }
    assert len(keys) == 3


def test_an_infinite_time_is_refused(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    for value in ("inf", "-inf"):
        data = df.withColumn("number", F.when(F.col("number") < 500, float(value)).otherwise(F.col("number")))
        with pytest.raises(
            InputError, match=r"timeCol='number' holds null or NaN or an infinite value in 500 rows.*drop"
        ):
            tune(numeric, data, folder, timeCol="number")
    with pytest.raises(InputError, match="timeCol='number' has no finite value to split by"):
        tune(numeric, df.withColumn("number", F.lit(float("inf"))), folder, timeCol="number")


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
    """A loss that drifts slowly is correlated over many rows; in any other order it would look independent."""
    slow = df.withColumn("wind", F.sin(F.col("number") / 40)).withColumn(
        "riders", F.round(3 * F.exp(2 * F.col("wind")))
    )
    tuned = tune(numeric, slow, folder, timeCol="when", validationFraction=0.5)
    units = decided[0]["units"]
    assert units.kind == "blocks" and 49 < units.number <= int((decided[0]["weights"] > 0).sum()) == 50
    assert 14 < decided[0]["blockRows"] < 16
    assert decided[0]["correlationTime"] > 8
    assert any("block" in w and "fewer than 200" in w for w in tuned.summary.warnings), tuned.summary.warnings
    assert "0.01" in tuned.summary.reason  # the level that is left of 0.025


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


RECIPES = [Recipe(0.01, 1e-3), Recipe(0.03, 1e-3)]  # two, where so few rows get one


def run(model: Any, sources: list[Source], folder: Path, **options: Any) -> Outcome:
    given = Options.of({**QUICK, "cacheDir": str(folder), **options})
    return fine_tune(prepare(model, given), sources, Phases(shown=False), recipes=RECIPES)


def test_test_rows_influence_nothing(write: Any, table: pa.Table, numeric: PipelineModel, folder: Path) -> None:
    early, late = table.slice(0, 1100), table.slice(1100)
    at = table.schema.get_field_index("riders")
    shuffled = late["riders"].take(pa.array(np.random.default_rng(0).permutation(len(late))))
    absurd = late.set_column(at, "riders", pc.multiply(shuffled, 1000.0))
    train = write(early)
    outcomes = [run(numeric, [Source(train), Source(write(t), "test")], folder) for t in (late, absurd)]
    first = outcomes[0]
    assert first.summary.decision == "tuned"
    assert list(first.summary.history["recipe"].unique()) == list(map(str, RECIPES))
    for other in outcomes[1:]:
        assert same(first.model, other.model)
        assert other.summary.history.equals(first.summary.history)
        for name in ("decision", "reason", "gain", "z", "p", "stages"):
            assert getattr(other.summary, name) == getattr(first.summary, name)
        for split in ("train", "validation"):
            assert other.summary.metrics[split] == first.summary.metrics[split]
    tested = [o.summary.metrics["test"] for o in outcomes]
    assert all(t is not None for t in tested)
    assert len({t["before"] for t in tested}) == 2  # and yet they were measured


def test_too_few_rows_groups_and_blocks(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    """They are a decision, no error, and nothing is trained for it."""
    few, teams = df.where("number < 100"), df.withColumn("team", F.col("user") % 20)
    for rows, words, options in (
        (few, r"[12]\d rows, 30 are needed", {}),
        (
            teams,
            r"\d(\.\d effective)? groups, 30 are needed, but groupCol='team' has too few values",
            {"groupCol": "team"},
        ),
        (few, r"[12]\d(\.\d effective)? blocks, 30 are needed", {"timeCol": "number"}),
    ):
        kept = tune(numeric, rows, folder, **options)
        assert kept.pipelineModel is kept.originalModel and not kept.summary.records
        assert re.match(rf"not tested: {words}; to decide it, .*pass more (rows|groups)", kept.summary.reason), (
            kept.summary.reason
        )
    assert tune(numeric, few, folder, guard=1.0).summary.decision in ("tuned", "kept original")
    with pytest.raises(InputError, match="0 validation rows"):
        tune(numeric, df.withColumn("held", F.lit(False)), folder, validationIndicatorCol="held")
    with pytest.raises(InputError, match="0 train rows"):
        tune(numeric, df.withColumn("held", F.lit(True)), folder, validationIndicatorCol="held")


def test_a_column_with_a_dot_in_its_name(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    dotted = df.withColumnsRenamed({"user": "user.id", "held": "held out"})
    cache = cached(numeric, dotted, folder, groupCol="user.id", validationIndicatorCol="held out")
    assert cache.rows("validation") == df.where("held").count()


# Names and types of columns -------------------------------------------------------------------------------------------


@pytest.fixture
def sensitive(spark: SparkSession) -> Iterator[None]:
    """`spark.sql.caseSensitive`, spelled as a person may."""
    spark.conf.set("spark.sql.caseSensitive", "True")
    yield
    spark.conf.unset("spark.sql.caseSensitive")


def test_columns_that_differ_in_case_are_told_apart(
    df: DataFrame, numeric: PipelineModel, folder: Path, sensitive: None
) -> None:
    """`s` comes first in the schema: of three values, of which the slices of `S` know nothing."""
    data = df.select(
        (F.col("number") % 3).cast("string").alias("s"),
        "*",
        (F.col("number") % 2 == 0).alias("S"),
        F.lit(1).alias("HELD"),
    )
    cache = cached(numeric, data, folder, guardCols=["S"], validationIndicatorCol="held")
    (by_slice,) = (c for c in cache.manifest["columns"] if c["name"] == "slice0")
    assert by_slice["values"] == [False, True]
    with pytest.raises(InputError, match="groupCol='USER' is not a column of the data"):
        tune(numeric, data, folder, groupCol="USER")
    with pytest.raises(InputError, match="validationIndicatorCol='HELD' must be boolean"):
        tune(numeric, data, folder, validationIndicatorCol="HELD")


def test_a_name_that_columns_share_is_refused_where_it_is_used(
    df: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    twice = df.select("*", F.col("user").alias("USER"), F.lit(1.0).alias("Wind"), F.lit(2.0).alias("riders"))
    for option in ("groupCol", "timeCol", "guardCols"):
        value = ["user"] if option == "guardCols" else "user"
        with pytest.raises(InputError, match=f"{option}='user' matches 2 columns, 'user', 'USER': rename"):
            tune(numeric, twice, folder, **{option: value})
    with pytest.raises(InputError, match="training reads 'riders', but 2 columns match, 'riders', 'riders'"):
        tune(numeric, twice, folder)
    assembler = numeric.stages[0].uid
    with pytest.raises(InputError, match=f"{assembler} reads 'wind', but 2 columns match, 'wind', 'Wind'"):
        tune(numeric, df.withColumn("x", F.lit(1.0)).select("*", F.lit(1.0).alias("Wind")), folder)


def test_columns_that_nothing_reads_may_be_anything(
    spark: SparkSession, df: DataFrame, numeric: PipelineModel, folder: Path
) -> None:
    data = df.select("*", F.lit(1).alias("twice"), F.lit(2).alias("Twice"), F.expr("map(user, 1)").alias("m"))
    if spark.version >= "4":
        data = data.select(
            "*", F.expr("parse_json('{\"a\": 1}')").alias("v"), F.expr("array(parse_json('1'))").alias("vs")
        )
    assert cached(numeric, data, folder).rows("validation") > 200
    stages = [VectorAssembler(inputCols=NUMBERS, outputCol="x"), LinearRegression(featuresCol="x", labelCol="riders")]
    assert tune(Pipeline(stages=stages), data, folder, maxEpochs=1).summary.decision
    for column in ("m", "v", "vs"):
        if column in data.columns:
            with pytest.raises(
                InputError, match=f"groupCol='{column}' is .*, and Spark cannot group by this type: use a string"
            ):
                tune(numeric, data, folder, groupCol=column)


def test_a_variant_counts_in_the_hash(spark: SparkSession) -> None:
    if spark.version < "4":
        pytest.skip("no variants in Spark 3.5")
    df = spark.sql("SELECT parse_json(concat('{\"a\": ', id, ', \"b\": [1]}')) AS v FROM range(50)")
    assert df.select(row_hash(df).alias("h")).distinct().count() == 50
    twice = F.lit(1).alias("x"), F.lit(2).alias("X")
    one, same, other = (
        content(df.select(v.alias("v"), F.array("v").alias("vs"), *twice).orderBy(F.rand()))
        for v in (F.col("v"), F.col("v"), F.expr("parse_json(replace(to_json(struct(v)), '[1]', '[2]'))"))
    )
    assert one == same
    assert one[1] != other[1]


def test_no_column_is_overwritten(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    for name in (SPLIT, BLOCK.upper(), TIME, COPY, SOURCE, "__sparkdiff_slice0"):
        with pytest.raises(InputError, match=f"column '{name}', a name that sparkdiff reserves .* rename it"):
            tune(numeric, df.withColumn(name, F.lit("mine")), folder)
    assembler, scaler, *rest = numeric.stages
    stages = [assembler.copy({assembler.outputCol: SPLIT}), scaler.copy({scaler.inputCol: SPLIT}), *rest]
    with pytest.raises(InputError, match=f"column '{SPLIT}', a name that sparkdiff reserves"):
        tune(PipelineModel(stages), df, folder, reference=[assembler.uid])


def test_names_of_the_cache_are_free_for_columns(df: DataFrame, numeric: PipelineModel, folder: Path) -> None:
    """The cache has columns label, weight, block, time, split, c0, hash, key, shard: of ours, whatever the data's are."""
    ours = (
        "label",
        "weight",
        "block",
        "time",
        "split",
        "c0",
        "null0",
        "slice0",
        "hash",
        "key",
        "shard",
        "bucket",
        "value",
    )
    data = df.select("*", *(F.lit("x").alias(name) for name in ours if name != "weight"))
    options = {"groupCol": "user", "guardCols": ["split"], "validationFraction": 0.4}
    mine = cached(numeric, data.withColumn("weight", F.lit("x")), folder, **options)
    plain = cached(numeric, df.withColumn("split", F.lit("x")), folder, **options)
    for split in ("train", "validation"):
        mean, other = (cache.manifest["stats"][split]["mean"] for cache in (mine, plain))
        assert mean == pytest.approx(other, rel=1e-12)
        assert mine.rows(split) == plain.rows(split)
    renamed = df.withColumnsRenamed({"number": "value"})
    assert find_boundaries([Source(renamed)], Options.of({"timeCol": "value"})).deciding[0] == 1199.0
