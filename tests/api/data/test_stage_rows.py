"""Rows after the first stages in Spark: which run keeps them, which starts from them, and that caches do not depend on it."""

import errno
import functools
import json
import shutil
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import PipelineModel, Transformer
from pyspark.ml.classification import LogisticRegression, LogisticRegressionModel
from pyspark.ml.feature import HashingTF, NGram, SQLTransformer, StopWordsRemover, Tokenizer
from pyspark.ml.linalg import Vectors
from pyspark.sql import DataFrame, SparkSession, functions as F

from sparkdiff.data import frames
from sparkdiff.data.cache import Cache, root
from sparkdiff.data.frames import keys_of
from sparkdiff.history import caches
from tests.support.small_data import cached, requested, tune

ODD = "a b,;{}()=é."


@pytest.fixture(scope="module")
def rows(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> DataFrame:
    """Sentences of a few words, some null, with a label and a group."""
    words = ["the red house", "a blue the boat", "red red wine", "an old the boat in blue", ""]
    table = pa.table(
        {
            "text": [words[i % 5] + f" w{i % 17}" for i in range(300)],
            "label": [float(i % 5 in (0, 2)) for i in range(300)],
            ODD: [None if i % 7 == 0 else "ab"[i % 2] for i in range(300)],
        }
    )
    path = tmp_path_factory.mktemp("text") / "rows.parquet"
    pq.write_table(table, path)
    return spark.read.parquet(f"file://{path}")


@functools.cache
def regression(session: SparkSession, features: int) -> LogisticRegressionModel:
    """Of one iteration on two rows: no test asks what it predicts."""
    two = [(Vectors.sparse(features, {k: 1.0}), float(k)) for k in (0, 1)]
    return LogisticRegression(featuresCol="tf", maxIter=1).fit(session.createDataFrame(two, ["tf", "label"]))


def edited(
    rows: DataFrame, *between: Transformer, features: int = 16, first: Sequence[Transformer] = ()
) -> PipelineModel:
    """Tokenizer, these stages one after the other, HashingTF, LogisticRegression."""
    stages: list[Any] = [*(first or [Tokenizer(inputCol="text", outputCol="words")])]
    for i, stage in enumerate(between):
        stages.append(stage.setInputCol(stages[-1].getOutputCol()).setOutputCol(f"words{i}"))  # type: ignore[attr-defined]
    stages.append(HashingTF(inputCol=stages[-1].getOutputCol(), outputCol="tf", numFeatures=features))
    return PipelineModel([*stages, regression(rows.sparkSession, features)])


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("stages-*"))


def lengths(cache: Cache) -> tuple[int, int]:
    return len(cache.read), len(cache.kept)


def keys(model: PipelineModel, rows: DataFrame, **options: Any) -> list[str]:
    request = requested(model, rows, options)
    return keys_of(request, root(request.options))


def test_the_second_run_keeps_rows_that_the_third_reads(rows: DataFrame, folder: Path, tmp_path: Path) -> None:
    """Its cache has the bytes that it has without, and its summary names the stages."""
    first, second, third = edited(rows), edited(rows, StopWordsRemover()), edited(rows, NGram())
    given = {"reuseStages": True, "guardCols": [ODD]}
    assert lengths(cached(first, rows, folder, **given)) == (0, 0) and not kept(folder)
    assert lengths(cached(second, rows, folder, **given)) == (0, 1) and len(kept(folder)) == 1
    summary = tune(third, rows, folder, maxEpochs=1, **given).summary
    assert summary.cache["stagesRead"] == [third.stages[0].uid] and "stagesKept" not in summary.cache
    one, other = cached(third, rows, folder, **given), cached(third, rows, tmp_path / "plain", guardCols=[ODD])
    assert one.hit and not other.hit and one.manifest == other.manifest
    assert not kept(tmp_path / "plain") and not list(folder.glob(".stages-*"))


@pytest.mark.nightly
def test_damaged_rows_are_rewritten_and_whole_ones_listed(rows: DataFrame, folder: Path) -> None:
    for features, expected in ((16, (0, 0)), (32, (0, 1))):
        assert lengths(cached(edited(rows, features=features), rows, folder, reuseStages=True)) == expected
    [there] = kept(folder)
    part = max(there.rglob("part-*.parquet"), key=lambda p: p.stat().st_size)
    part.write_bytes(part.read_bytes()[:-10])
    assert lengths(cached(edited(rows, features=64), rows, folder, reuseStages=True)) == (0, 1)
    assert lengths(cached(edited(rows, features=128), rows, folder, reuseStages=True)) == (1, 0)
    (entry,) = (e for e in caches.entries(folder) if e.kind == caches.ROWS)
    assert entry.madeBy == ["Tokenizer"] and entry.uses == 2
    assert json.loads((there / "manifest.json").read_text())["bytes"] < entry.bytes
    assert caches.remove([entry]) and not kept(folder)


def test_rows_that_parquet_cannot_hold_are_not_kept(rows: DataFrame, folder: Path) -> None:
    spans = rows.withColumn("span", F.expr("make_interval(0, 1, 0, cast(label AS int))"))
    cached(edited(spans, features=16), spans, folder, reuseStages=True)
    model = edited(spans, features=32)
    with pytest.warns(UserWarning, match=rf"the rows after {model.stages[0].uid} are not kept: .*(?i:interval)"):
        assert lengths(cached(model, spans, folder, reuseStages=True)) == (0, 0)
    assert not kept(folder) and not list(folder.glob(".stages-*"))


@pytest.mark.nightly  # what tells rows and stages apart: test_fingerprints
def test_other_rows_splits_slices_and_stages_are_others(rows: DataFrame) -> None:
    [key] = keys(edited(rows), rows)[:1]
    same = edited(rows, StopWordsRemover(), features=64)
    assert keys(same, rows)[0] == key and keys(same, rows)[1] != key
    other, default = Tokenizer(inputCol="text", outputCol="other"), Tokenizer(inputCol="text")
    for model, data, options in (
        (same, rows.where("text <> 'x'"), {}),
        (same, rows, {"seed": 1}),
        (same, rows, {"guardCols": [ODD]}),
        (same, rows, {"validationFraction": 0.3}),
        (edited(rows, first=[other]), rows, {}),
        (edited(rows, first=[default]), rows, {}),
    ):
        assert keys(model, data, **options)[0] != key, options
    # Equal stages whose columns are named by their uids: the rows of one have not the columns of the other.
    assert keys(edited(rows, first=[Tokenizer(inputCol="text")]), rows) != keys(edited(rows, first=[default]), rows)


class Shouting(Transformer):
    """A stage of one's own."""

    def _transform(self, dataset: DataFrame) -> DataFrame:
        return dataset.withColumn("loud", F.upper("text"))


def test_stages_that_do_not_tell_their_rows_end_what_is_kept(rows: DataFrame) -> None:
    words = Tokenizer(inputCol="loud", outputCol="words")
    told = SQLTransformer(statement="SELECT *, upper(text) AS loud FROM __THIS__")
    drawn = SQLTransformer(statement="SELECT *, concat(text, cast(rand() AS string)) AS loud FROM __THIS__")
    named = SQLTransformer(statement="SELECT *, concat(text, input_file_name()) AS loud FROM __THIS__")
    found = [len(keys(edited(rows, first=[s, words]), rows)) for s in (told, drawn, named, Shouting())]
    assert found == [3, 0, 0, 0]
    # Nor is anything read for them that stages before them have left: they might tell of the kept files.
    before = Tokenizer(inputCol="text", outputCol="before")
    for stage in (drawn, named, Shouting()):
        assert not keys(edited(rows, first=[before, stage, words]), rows)


@pytest.mark.nightly
def test_a_pattern_as_folder_works_and_a_full_disk_warns(
    rows: DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    odd = tmp_path / "c[ab]*"
    for features, expected in ((16, (0, 0)), (32, (0, 1)), (64, (1, 0))):
        assert lengths(cached(edited(rows, features=features), rows, odd, reuseStages=True)) == expected

    def full(*given: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    shutil.rmtree(kept(odd)[0])
    monkeypatch.setattr(frames.stores, "size", full)
    with pytest.warns(UserWarning, match="are not kept: No space left"):
        assert lengths(cached(edited(rows, features=128), rows, odd, reuseStages=True)) == (0, 0)
    assert not kept(odd) and not [*odd.glob(".stages-*")]


def test_notes_in_a_shared_folder_are_for_all(rows: DataFrame, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    frames._note(shared, ["0123456789abcdef"])
    assert stat.S_IMODE((shared / ".seen-stages").stat().st_mode) == 0o777
    assert frames._was_needed(shared, "0123456789abcdef") and not frames._was_needed(shared, "f" * 16)
