"""What a fingerprint tells apart: two queries, contents, files, settings or stages that differ in one thing; and what not."""

import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.classification import LogisticRegression, OneVsRestModel
from pyspark.ml.feature import (
    HashingTF,
    Normalizer,
    OneHotEncoder,
    SQLTransformer,
    StandardScaler,
    StringIndexer,
    Tokenizer,
    VectorAssembler,
    Word2Vec,
)
from pyspark.ml.linalg import Vectors
from pyspark.ml.regression import GeneralizedLinearRegression, LinearRegression
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff import jvm
from sparkdiff.data.fingerprint import source_facts
from sparkdiff.data.row_hashes import row_hashes
from sparkdiff.jvm.query_plans import plan_facts, remote_facts, table_versions
from sparkdiff.store import model_digests
from tests.support.small_data import NUMBERS, Write, files, fingerprint_of, tune

Query = Callable[[SparkSession], DataFrame]


def facts(df: DataFrame) -> str:
    return json.dumps(source_facts(df), sort_keys=True)


# Queries --------------------------------------------------------------------------------------------------------------

STRINGS = (
    "NULL",
    "'null'",
    "'NULL'",
    "''",
    "' '",
    "'a'",
    "'b'",
    "'a, b'",
    "'a,b'",
    "'1'",
    "'none#0'",
    "'#1'",
    "'#2'",
    "'a) AS #1'",
)
TYPES = (
    "NULL",
    "cast(NULL AS int)",
    "cast(NULL AS string)",
    "1",
    "1L",
    "1S",
    "1Y",
    "1D",
    "1F",
    "1.0BD",
    "1.00BD",
    "'1'",
    "true",
    "'true'",
    "date'1970-01-02'",
    "timestamp'1970-01-02 00:00:00'",
    "timestamp_ntz'1970-01-02 00:00:00'",
    "interval 1 day",
    "interval 24 hours 1 second",
    "X'31'",
    "0D",
    "-0.0D",
    "double('NaN')",
    "float('NaN')",
    "'NaN'",
)
LISTS = (
    "'a, b'",
    "'a', 'b'",
    "'a,b'",
    "'a', 'b', NULL",
    "'a', 'b', 'null'",
    "'a', 'NULL'",
    "'[a, b]'",
    "NULL",
    "'null'",
)
TEN = ", ".join(f"'{i}'" for i in range(10))  # beyond which Spark keeps a set
TEMPLATES = {
    "a default": ("SELECT coalesce(a, {}) AS v FROM rows", STRINGS),
    "a constant of a type": ("SELECT *, {} AS v FROM rows", TYPES),
    "arguments": ("SELECT concat_ws('|', a, {}) AS v FROM rows", LISTS),
    "an array": ("SELECT concat_ws('|', array({}), a) AS v FROM rows", LISTS),
    "a list": ("SELECT * FROM rows WHERE a IN ({})", LISTS),
    "a long list": ("SELECT * FROM rows WHERE a IN (" + TEN + ", {})", LISTS[:6]),
    "a branch": ("SELECT CASE WHEN a = 'x' THEN {} ELSE b END AS v FROM rows", STRINGS[:6]),
}
OTHERS = (
    ("SELECT n + 1 AS v FROM rows", "SELECT try_add(n, 1) AS v FROM rows", "SELECT 1 + n AS v FROM rows"),
    ("SELECT sum(n) AS v FROM rows", "SELECT try_sum(n) AS v FROM rows", "SELECT avg(n) AS v FROM rows"),
    ("SELECT cast(a AS int) AS v FROM rows", "SELECT try_cast(a AS int) AS v FROM rows"),
    ("SELECT (d + n) + e AS v FROM rows", "SELECT d + (n + e) AS v FROM rows"),  # differ in the last digits, or in all
    ("SELECT n BETWEEN 1 AND 2 AS v FROM rows", "SELECT n BETWEEN 2 AND 2 AS v FROM rows"),
    ("SELECT nullif(n, 1) AS v FROM rows", "SELECT nullif(n, 2) AS v FROM rows"),
    ("SELECT a LIKE 'x#%' ESCAPE '#' AS v FROM rows", "SELECT a LIKE 'x#%' AS v FROM rows"),
    (
        "SELECT from_json(a, 'x date') AS v FROM rows",
        "SELECT from_json(a, 'x date', map('dateFormat', 'dd')) AS v FROM rows",
        "SELECT from_json(a, 'x date', map('dateFormat', 'MM')) AS v FROM rows",
    ),
    ("SELECT a AS v, b AS w FROM rows", "SELECT b AS v, a AS w FROM rows", "SELECT a AS w, b AS v FROM rows"),
    ("WITH q AS (SELECT * FROM rows) SELECT a FROM q", "WITH q AS (SELECT * FROM rows WHERE n > 1) SELECT a FROM q"),
    (
        "SELECT * FROM rows WHERE a = (SELECT max(a) FROM other)",
        "SELECT * FROM rows WHERE a = (SELECT min(a) FROM other)",
    ),
    ("SELECT * FROM rows EXCEPT ALL SELECT * FROM other", "SELECT * FROM other EXCEPT ALL SELECT * FROM rows"),
    (
        "SELECT * FROM (SELECT a, n FROM rows) PIVOT (sum(n) FOR a IN ('x', 'null'))",
        "SELECT * FROM (SELECT a, n FROM rows) PIVOT (sum(n) FOR a IN ('x', NULL))",
    ),
)
ALIKE = {query for group in OTHERS for query in group if "from_json" in query or "FROM other" in query}
GROUPS = [tuple(template.format(v) for v in values) for template, values in TEMPLATES.values()] + list(OTHERS)


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tables of the same schema, so that plans over them look alike."""
    folder = tmp_path_factory.mktemp("tables")
    for name, a in (("rows", ["x", "null", "?", None]), ("other", ["x", "y", None, "a, b"])):
        columns = {
            "a": a,
            "b": ["1", None, "3", "4"],
            "n": [1, 2, 3, 4],
            "d": [1.5, 1e20, 0.1, 2.0],
            "e": [1.0, -1e20, 0.2, 3.0],
        }
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def views(spark: SparkSession, folder: Path) -> SparkSession:
    for name in ("rows", "other"):
        spark.read.parquet(f"file://{folder}/{name}.parquet").createOrReplaceTempView(name)
    return spark


@pytest.fixture(scope="module")
def told(spark: SparkSession, tables: Path) -> dict[str, str]:
    here = views(spark, tables)
    return {query: facts(here.sql(query)) for group in GROUPS for query in group}


def test_one_literal_null_array_or_type_tells_queries_apart(told: dict[str, str]) -> None:
    pairs = [pair for group in GROUPS for pair in itertools.combinations(group, 2)]
    assert len(pairs) > 500
    alike = [pair for pair in pairs if told[pair[0]] == told[pair[1]]]
    assert [pair for pair in alike if "content" not in json.loads(told[pair[0]])] == []
    assert not {query for pair in alike for query in pair} - ALIKE  # other queries, but the same rows, which were read


def test_most_queries_are_told_without_reading_rows(told: dict[str, str]) -> None:
    by_content = {query for query, found in told.items() if "content" in json.loads(found)}
    assert len(by_content) <= 12, by_content
    assert not {q for q in by_content if q in GROUPS[0]}


def test_another_session_and_other_partitions_change_nothing(
    spark: SparkSession, tables: Path, told: dict[str, str]
) -> None:
    other = views(spark.newSession(), tables)
    other.conf.set("spark.sql.shuffle.partitions", "7")
    other.conf.set("spark.sql.adaptive.enabled", "false")
    other.conf.set("spark.sql.warehouse.dir2", "elsewhere")
    other.conf.unset("spark.sql.warehouse.dir2")
    for group in GROUPS:
        assert facts(other.sql(group[-1])) == told[group[-1]], group[-1]


def test_functions_of_python_differ_as_those_of_sql(spark: SparkSession, tables: Path) -> None:
    rows = views(spark, tables).table("rows")
    each = [
        rows.na.replace("?", None, ["a"]),  # type: ignore[type-var]
        rows.na.replace("?", "null", ["a"]),
        rows.select("b", F.concat_ws("|", "a", F.lit("a, b")).alias("v")),
        rows.select("b", F.concat_ws("|", "a", F.lit("a"), F.lit("b")).alias("v")),
        rows.withColumn("v", F.lit(None).cast("string")),
        rows.withColumn("v", F.lit("NULL")),
        rows.withColumn("v", F.array(F.lit("a"), F.lit(None))),
        rows.withColumn("v", F.array(F.lit("a"), F.lit("null"))),
    ]
    assert all(plan_facts(df) for df in each)
    assert len({facts(df) for df in each}) == len(each)


def test_the_hour_that_comes_twice_a_year_counts(spark: SparkSession, tables: Path) -> None:
    session = views(spark.newSession(), tables)
    session.conf.set("spark.sql.session.timeZone", "Europe/Berlin")
    one, other = (session.sql(f"SELECT timestamp'2024-10-27T{h}:30:00Z' AS t, * FROM rows") for h in ("00", "01"))
    assert one.select(F.col("t").cast("string")).first() == other.select(F.col("t").cast("string")).first()
    assert facts(one) != facts(other)


def test_options_of_a_file_are_delimited(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a\nb\n")
    options: list[dict[str, Any]] = [
        {"nullValue": "a, quote -> b"},
        {"nullValue": "a", "quote": "b"},
        {"nullValue": "a"},
    ]
    each = [spark.read.schema("v string").options(**o).csv(f"file://{tmp_path}/rows.csv") for o in options]
    assert all(plan_facts(df) for df in each)
    assert len({facts(df) for df in each}) == 3


def test_rows_kept_in_memory_count_not_the_files_they_came_from(
    spark: SparkSession, write: Write, tmp_path: Path
) -> None:
    path = tmp_path / "rows.parquet"
    df = write(pa.table({"v": [1.0]}), path)
    assert plan_facts(df)
    kept = spark.read.parquet(f"file://{path}").persist()
    try:
        assert kept.count() == 1
        assert plan_facts(df) is None  # Spark reads these rows from memory from now on
    finally:
        kept.unpersist()


# Settings -------------------------------------------------------------------------------------------------------------


def test_sql_settings_count_unless_they_cannot_change_rows(spark: SparkSession, tables: Path) -> None:
    session = views(spark.newSession(), tables)
    df = session.sql("SELECT *, to_date(b, 'yyyy-MM-dd') AS day FROM rows")
    before = facts(df)
    for key, value, counts in (
        ("spark.sql.legacy.timeParserPolicy", "LEGACY", True),
        (
            "spark.sql.legacy.timeParserPolicy",
            "EXCEPTION" if session.version < "4" else "CORRECTED",
            None,
        ),  # the default
        ("spark.sql.ansi.enabled", "false" if session.conf.get("spark.sql.ansi.enabled") == "true" else "true", True),
        ("spark.sql.session.timeZone", "Asia/Tokyo", True),
        ("spark.sql.decimalOperations.allowPrecisionLoss", "false", True),
        ("spark.sql.shuffle.partitions", "11", False),
        ("spark.sql.adaptive.coalescePartitions.enabled", "false", False),
        ("spark.sql.autoBroadcastJoinThreshold", "-1", False),
        ("spark.databricks.clusterUsageTags.clusterId", "1121-180000-abc", False),
    ):
        old = session.conf.get(key, None)
        session.conf.set(key, value)
        assert counts is None or (facts(df) != before) == counts, key
        if old is None:
            session.conf.unset(key)
        else:
            session.conf.set(key, old)
    assert facts(df) == before


# Content --------------------------------------------------------------------------------------------------------------

ROWS: list[tuple[str, list[list[Any]]]] = [
    ("a string, b string", [["x", None], [None, "x"], ["", "x"], ["x", ""], [None, None]]),
    ("a array<int>, b array<int>", [[[1, 2], [3]], [[1], [2, 3]], [[], [1, 2, 3]], [None, [1, 2, 3]], [[1, 2, 3], []]]),
    ("a array<int>", [[[1, None]], [[None, 1]], [[1]], [None], [[]], [[None]]]),
    (
        "a array<array<string>>",
        [[[["p"], ["q"]]], [[["p", "q"]]], [[["p", "q"], []]], [[["p", "q"], None]], [[["p, q"]]]],
    ),
    ("a struct<x: int, y: int>", [[(1, None)], [(None, 1)], [(None, None)], [None]]),
    ("a map<string, int>", [[{"p": None}], [{"p": 1}], [{}], [None], [{"null": 1}]]),
    ("a double, b double", [[0.0, 1.0], [-0.0, 1.0], [float("nan"), 1.0], [None, 1.0], [1.0, 0.0]]),
]


VECTORS = [
    (Vectors.dense([1.0, 2.0]), Vectors.dense([3.0])),
    (Vectors.dense([1.0]), Vectors.dense([2.0, 3.0])),
    (Vectors.sparse(2, [0], [1.0]), Vectors.dense([3.0])),
    (Vectors.sparse(3, [0], [1.0]), Vectors.dense([3.0])),
    (None, Vectors.dense([3.0])),
]


def test_contents_that_differ_in_one_null_or_boundary_differ(spark: SparkSession) -> None:
    frames = [spark.createDataFrame([tuple(row) for row in rows], schema) for schema, rows in ROWS]
    frames.append(spark.createDataFrame(VECTORS, ["a", "b"]))
    for df in frames:
        found = df.select(*row_hashes(df)).collect()
        for hashes in zip(*found, strict=True):
            assert len(set(hashes)) == len(found), df.schema.simpleString()
    typed = [spark.createDataFrame([(1,)], f"a {kind}") for kind in ("int", "bigint")]
    assert len({facts(df) for df in typed}) == 2


def test_no_two_small_values_of_nested_types_share_a_hash(spark: SparkSession) -> None:
    """All values of a nested type up to a size: where one is null, empty or borders on another, lies in no other place."""
    atoms = [None, 0, 1]
    arrays = [None, *(list(v) for n in range(4) for v in itertools.product(atoms, repeat=n))]
    nested = [
        [list(v) for v in pair] for n in range(3) for pair in itertools.product([(), (1,), (None,), (1, 1)], repeat=n)
    ]
    for schema, values in (
        ("a array<int>, b array<int>", list(itertools.product(arrays[:14], repeat=2))),
        ("a array<int>", [(a,) for a in arrays]),
        (
            "a int, b struct<c: int, d: boolean>",
            [(a, (c, d)) for a in atoms for c in atoms for d in (None, False, True)],
        ),
        ("a array<array<int>>, b int", [(a, b) for a in nested for b in atoms]),
    ):
        df = spark.createDataFrame(values, schema)
        found = df.select(*row_hashes(df)).collect()
        assert [len(set(hashes)) for hashes in zip(*found, strict=True)] == [len(values)] * 2, schema


def test_a_value_in_another_row_counts_but_not_row_order(spark: SparkSession) -> None:
    rows = [(float(i), None if i % 3 else "x") for i in range(50)]
    moved = [(float(i), None if (i + 1) % 3 else "x") for i in range(50)]
    one, other, turned = (spark.createDataFrame(r, "a double, b string") for r in (rows, moved, rows[::-1]))
    assert facts(one) == facts(turned) == facts(one.repartition(3)) != facts(other)
    assert facts(one.union(one)) != facts(one)


def test_strings_of_a_collation_count_letter_by_letter(spark: SparkSession) -> None:
    if spark.version < "4":
        return  # it has none
    one, other = (
        spark.createDataFrame([(v, [v])], "a string collate UTF8_LCASE, b array<string collate UTF8_LCASE>")
        for v in "xX"
    )
    assert facts(one) != facts(other)


# Files ----------------------------------------------------------------------------------------------------------------


def test_other_content_of_the_same_length_and_time_counts(spark: SparkSession, tmp_path: Path) -> None:
    path, beside = tmp_path / "rows 100%.csv", tmp_path / "beside"
    path.write_text("\n".join(f"0.{i}" for i in range(10_000, 90_000)))
    df = spark.read.schema("v double").csv(str(tmp_path))
    first, before = facts(df), path.stat()
    assert facts(df) == first
    beside.write_text(path.read_text().replace("0.50000", "9.50000"))  # far from both ends
    os.utime(beside, ns=(before.st_atime_ns, before.st_mtime_ns))
    beside.replace(path)  # what rsync -t does
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert plan_facts(df)
    assert facts(df) != first


def test_length_and_checksum_come_from_the_file_system(spark: SparkSession, tmp_path: Path) -> None:
    """Of a file system that isn't this machine's: here by its checksum, of a file written through Spark."""
    uri = f"file://{tmp_path}/rows"
    spark.range(3).coalesce(1).write.parquet(uri)
    (file,) = spark.read.parquet(uri).inputFiles()
    length, _, checksum = remote_facts(spark, [file])[file]
    assert length == Path(unquote(file).removeprefix("file://")).stat().st_size
    assert checksum is None or len(checksum) > 8


# Stages ---------------------------------------------------------------------------------------------------------------

SUFFIX = ""


class Words(Tokenizer):
    """A stage of Spark's with code of one's own."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("words", F.array(F.concat("hour", F.lit(SUFFIX))))


def test_what_a_subclass_of_a_spark_stage_returns_counts(df: DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        Words(inputCol="hour", outputCol="words"),
        HashingTF(inputCol="words", outputCol="x", numFeatures=16),
        LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
    ]
    fitted = Pipeline(stages=stages).fit(df)
    first = fingerprint_of(fitted, df)
    assert fingerprint_of(fitted, df) == first
    monkeypatch.setattr(sys.modules[__name__], "SUFFIX", " or so")
    assert fingerprint_of(fitted, df) != first


def test_the_query_behind_a_view_that_a_stage_reads_counts(spark: SparkSession, df: DataFrame) -> None:
    def joined(shift: float) -> None:
        df.groupBy("hour").agg((F.avg("wind") + shift).alias("mean")).createOrReplaceTempView("sparkdiff_means")

    joined(0.0)
    stages = [
        SQLTransformer(statement="SELECT t.*, m.mean FROM __THIS__ t JOIN sparkdiff_means m ON t.hour = m.hour"),
        VectorAssembler(inputCols=["mean", "temp"], outputCol="x"),
        LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
    ]
    fitted = Pipeline(stages=stages).fit(df)
    first = fingerprint_of(fitted, df)
    assert fingerprint_of(fitted, df) == first
    joined(1.0)
    assert fingerprint_of(fitted, df) != first


def test_default_column_names_before_sql_change_nothing(df: DataFrame) -> None:
    """They hold uids, which the next fit draws anew, as does each look at the rows for the view that the SQL reads."""

    def fitted() -> PipelineModel:
        words = Tokenizer(inputCol="hour")
        hashed = HashingTF(inputCol=words.getOutputCol(), outputCol="x", numFeatures=16)
        sql = SQLTransformer(statement="SELECT *, temp * 2 AS twice FROM __THIS__")
        linear = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)
        return Pipeline(stages=[words, sql, hashed, linear]).fit(df)

    assert fingerprint_of(fitted(), df) == fingerprint_of(fitted(), df)


def test_which_default_named_column_a_stage_reads_counts(df: DataFrame, tmp_path: Path) -> None:
    """A cache of one pipeline was taken for that of another, and the second one was judged by the columns of the first."""
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="numbers")
    one, other = Normalizer(inputCol="numbers", p=1.0), Normalizer(inputCol="numbers", p=2.0)
    names = [one.getOutputCol(), other.getOutputCol()]

    def stages(inputCols: list[str]) -> list[Any]:
        return [assembler, one, other, VectorAssembler(inputCols=inputCols, outputCol="x")]

    def fingerprint(inputCols: list[str]) -> str:
        linear = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)
        return fingerprint_of(Pipeline(stages=[*stages(inputCols), linear]).fit(df), df)

    first = fingerprint(names)
    assert fingerprint(names) == first
    assert len({first, *(fingerprint(given) for given in (names[::-1], names[:1], names[1:]))}) == 4

    def hash_of(inputCols: list[str], folder: str) -> list[str | None]:
        model = PipelineModel(stages(inputCols))
        model.save(f"file://{tmp_path}/{folder}")
        return [
            model_digests.hash_of(model, None, None),
            model_digests.hash_of(None, f"file://{tmp_path}/{folder}", None),
        ]

    first, second = hash_of(names, "first"), hash_of(names[::-1], "second")
    assert len({*first}) == len({*second}) == 1
    assert first != second


def test_which_default_named_data_column_is_read_counts(df: DataFrame) -> None:
    """Stages that are no part of the pipeline made it: nothing here has its uid, and all such names became one."""
    assembler = VectorAssembler(inputCols=NUMBERS, outputCol="numbers")
    stages = [Normalizer(inputCol="numbers", p=1.0), Normalizer(inputCol="numbers", p=2.0)]
    rows = PipelineModel([assembler, *stages]).transform(df)
    names = [stage.getOutputCol() for stage in stages]

    def model(name: str) -> PipelineModel:
        linear = LinearRegression(featuresCol="x", labelCol="riders", maxIter=1)
        return Pipeline(stages=[VectorAssembler(inputCols=[name], outputCol="x"), linear]).fit(rows)

    one, other, again = model(names[0]), model(names[1]), model(names[0])
    first, second = PipelineModel(one.stages[:1]), PipelineModel(other.stages[:1])
    assert model_digests.hash_of(first, None, None) != model_digests.hash_of(second, None, None)
    assert fingerprint_of(one, rows) == fingerprint_of(again, rows) != fingerprint_of(other, rows)


def test_a_stage_named_like_its_column_is_not_that_column(df: DataFrame, tmp_path: Path) -> None:
    """Such a uid and the column both became a number, and so did those of the other column."""

    def named(column: str, uid: str) -> PipelineModel:
        return PipelineModel([jvm.set_uid(VectorAssembler(inputCols=[column], outputCol="x"), uid)])

    def hash_of(model: PipelineModel, folder: str) -> str | None:
        model.save(f"file://{tmp_path}/{folder}")
        return model_digests.hash_of(None, f"file://{tmp_path}/{folder}", None)

    assert hash_of(named("temp", "temp"), "1") != hash_of(named("hum", "hum"), "2")
    assert hash_of(named("temp", "first"), "3") == hash_of(named("temp", "second"), "4")
    assert hash_of(named("temp__lag", "temp"), "5") != hash_of(named("hum__lag", "hum"), "6")


def test_a_stage_inside_word2vec_after_sql_changes_nothing(df: DataFrame) -> None:
    """It is made anew for each run, with a uid and a view of that run."""
    stages = [
        Tokenizer(inputCol="hour", outputCol="words"),
        SQLTransformer(statement="SELECT *, temp * 2 AS twice FROM __THIS__"),
        Word2Vec(inputCol="words", outputCol="x", vectorSize=2, minCount=0, maxIter=1, seed=1),
        LinearRegression(featuresCol="x", labelCol="riders", maxIter=1),
    ]
    fitted = Pipeline(stages=stages).fit(df)
    assert fingerprint_of(fitted, df) == fingerprint_of(fitted, df)


# End to end -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cleaned(df: DataFrame) -> Callable[[str | None], DataFrame]:
    """Rows in which one hour has another name, or none."""
    return lambda name: df.na.replace("h0", name, ["hour"])  # type: ignore[type-var]


def test_a_stale_cache_is_not_hit_and_an_equal_one_is(
    spark: SparkSession, cleaned: Callable[[str | None], DataFrame], folder: Path
) -> None:
    stages = [
        StringIndexer(inputCol="hour", outputCol="index", handleInvalid="keep"),
        OneHotEncoder(inputCol="index", outputCol="onehot", dropLast=False),
        VectorAssembler(inputCols=["onehot", *NUMBERS], outputCol="assembled"),
        StandardScaler(inputCol="assembled", outputCol="x"),
        GeneralizedLinearRegression(featuresCol="x", labelCol="riders", family="poisson"),
    ]
    named = cleaned("null")
    fitted = Pipeline(stages=stages).fit(named)
    first = tune(fitted, named, folder, maxEpochs=1).summary
    second = tune(fitted, cleaned(None), folder, maxEpochs=1).summary
    assert not first.cache["hit"]
    assert not second.cache["hit"]
    assert first.metrics["validation"]["before"] != second.metrics["validation"]["before"]
    other = spark.newSession()
    other.conf.set("spark.sql.shuffle.partitions", "5")
    again = other.read.parquet(*files(named)).na.replace("h0", "null", ["hour"])
    third = tune(fitted, again, folder, maxEpochs=1).summary
    assert third.cache == first.cache | {"hit": True}
    assert third.metrics == first.metrics


def test_the_same_stages_are_saved_once_for_their_digest(
    df: DataFrame, model: PipelineModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    saves: list[Any] = []
    save = model_digests.try_to_save
    monkeypatch.setattr(model_digests, "try_to_save", lambda *given: saves.append(given) or save(*given))
    indexer = model.stages[0].copy()
    own = PipelineModel([indexer, *model.stages[1:]])
    first = fingerprint_of(own, df)
    assert fingerprint_of(own, df) == first == fingerprint_of(model, df)
    assert len(saves) <= 2  # another test may have asked for the model's
    indexer._set(handleInvalid="keep")
    assert fingerprint_of(own, df) != first
    another = StringIndexer(inputCol="hour", outputCol="hour_index").fit(df.where("hour <> 'h0'"))
    assert fingerprint_of(PipelineModel([another, *model.stages[1:]]), df) != first


def test_stages_within_a_stage_count_as_they_are_now(spark: SparkSession, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(Vectors.dense(float(x)), float(x > 1)) for x in range(4)], ["features", "label"])
    one, other = (LogisticRegression(regParam=r).fit(rows) for r in (0.1, 0.2))
    stage = OneVsRestModel(models=[one, one])._set(classifier=LogisticRegression())
    before = model_digests.digest_of([stage], tmp_path)
    assert model_digests.digest_of([stage], tmp_path) == before
    stage.models[0] = other
    assert model_digests.digest_of([stage], tmp_path) != before


@pytest.mark.parametrize("v2", [False, True], ids=["files", "a table of another kind"])
def test_a_version_that_the_plan_shows_is_named(spark: SparkSession, df: DataFrame, v2: bool) -> None:
    """Spark's own readers pass on options that they do not know, in the places where Delta and Iceberg have theirs."""
    known = spark.conf.get("spark.sql.sources.useV1SourceList")
    path = files(df)[0]
    try:
        if v2:
            spark.conf.set("spark.sql.sources.useV1SourceList", "")
        new, old, now = (
            reader.parquet(path).filter("temp > 0")
            for reader in (
                spark.read.option("versionAsOf", 12),
                spark.read.option("versionasof", 11),
                spark.read.option("other", 11),
            )
        )
        (entry,) = table_versions(new)
        assert entry["versionAsOf"] == "12" and (v2 or entry["table"].endswith(path.removeprefix("file://")))
        assert table_versions(new.union(old).union(new)) == [entry, {**entry, "versionAsOf": "11"}]
        assert table_versions(now) == []
        facts = [source_facts(frame) for frame in (new, old, now)]
        assert [f.get("versions") for f in facts] == [[entry], [{**entry, "versionAsOf": "11"}], None]
    finally:
        spark.conf.set("spark.sql.sources.useV1SourceList", known)
