"""The content hash of a saved model's folder: the same number on every version of Arrow and Python."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.ml import Pipeline, PipelineModel
from pyspark.ml.feature import CountVectorizerModel, StringIndexerModel

from sparkdiff.data.fingerprint import Request, anonymous, fingerprint
from sparkdiff.options import Options
from sparkdiff.pipeline.cut import Cut, CutColumn
from sparkdiff.pipeline.graph import Graph
from sparkdiff.store.identity import UnidentifiableError
from sparkdiff.store.model_digests import params_of
from sparkdiff.store.saved_digests import hash_of_folder

VALUES = [[1.5, -0.0, float("inf")], [], None]


def save(folder: Path, *, part: str = "0", values: Any = None, uid: str = "pca_0123456789ab", **changes: Any) -> Path:
    """A folder as Spark lays it out, with all kinds of columns in it."""
    metadata = {
        "class": "org.apache.spark.ml.feature.PCAModel",
        "timestamp": 1,
        "sparkVersion": "4.0.5",
        "uid": uid,
        "paramMap": {"inputCol": "scaled", "k": 2},
        "defaultParamMap": {"outputCol": f"{uid}__output", "seed": 7},
        **changes,
    }
    for name in ("metadata", "data"):
        (folder / name).mkdir(parents=True)
    (folder / "metadata" / f"part-{part}").write_text(json.dumps(metadata))
    table = pa.table(
        {
            "numbers": pa.array(values or VALUES, pa.list_(pa.float64())),
            "flags": pa.array([True, None, False]),
            "vector": pa.array([{"type": 1, "values": [2.0]}, {"type": 0, "values": None}, None]),
            "names": ["a", None, "b"],
        }
    )
    pq.write_table(table, folder / "data" / f"part-{part}.snappy.parquet")
    return folder


def test_it_is_the_same_everywhere_and_whenever(tmp_path: Path) -> None:
    first = hash_of_folder(save(tmp_path / "a"))
    assert first == "85f78b0e0a19f935b6de9fe0129a06c21a64615306996a2dd7503d44d4f0daec"
    later = save(tmp_path / "b", part="9-x", uid="pca_ba9876543210", timestamp=2, sparkVersion="4.3.0")
    assert hash_of_folder(later) == first
    default = {"outputCol": "pca_aaaaaaaaaaaa__output", "seed": 8}
    assert hash_of_folder(save(tmp_path / "c", defaultParamMap=default)) == first


@pytest.mark.parametrize(
    "changes",
    [
        {"values": [[1.5, 0.0, float("inf")], [], None]},
        {"values": [[1.5, -0.0], [float("inf")], None]},
        {"values": [[1.5, -0.0, float("inf")], None, []]},
        {"class": "org.apache.spark.ml.feature.PCA"},
        {"paramMap": {"inputCol": "scaled", "k": 3}},
        {"paramMap": {"inputCol": "scaled", "k": 2, "seed": 8}},
        {"defaultParamMap": {"outputCol": "out", "seed": 7}},
    ],
)
def test_it_tells_apart(changes: dict[str, Any], tmp_path: Path) -> None:
    assert hash_of_folder(save(tmp_path / "a")) != hash_of_folder(save(tmp_path / "b", **changes))


@pytest.mark.parametrize("name", ["userFactors", "topicCounts"])
def test_it_is_the_same_for_any_number_of_files_of_a_table(name: str, tmp_path: Path) -> None:
    def divided(folder: str, *parts: list[int], last: float = 9.0, nulls: bool = True) -> Path:
        (saved := save(tmp_path / folder)).joinpath(name).mkdir()
        for i, ids in enumerate(parts):
            rows = [{"id": j, "features": [1.0 * j, last if j == 3 else 0.5]} for j in ids]
            numbers = pa.list_(pa.field("element", pa.float32(), nullable=nulls))
            table = pa.Table.from_pylist(
                rows, pa.schema([pa.field("id", pa.int32(), nullable=nulls), ("features", numbers)])
            )
            pq.write_table(table, saved / name / f"part-{i}.snappy.parquet")
        (saved / name / "_SUCCESS").touch()
        (saved / name / ".part-0.snappy.parquet.crc").write_bytes(b"crc")
        return saved

    first = hash_of_folder(divided("a", [0, 1, 2, 3], nulls=False))
    assert hash_of_folder(divided("b", [3, 1], [], [2, 0])) == first
    assert hash_of_folder(divided("c", [0, 1, 2, 3], last=9.5)) != first
    assert hash_of_folder(divided("d", [0, 1, 2])) != first


def test_it_is_the_same_for_any_number_of_files_of_itemsets(tmp_path: Path) -> None:
    def divided(folder: str, *parts: list[str], nulls: bool = True) -> Path:
        saved = save(tmp_path / folder, **{"class": "org.apache.spark.ml.fpm.FPGrowthModel"})
        (saved / "data" / "part-0.snappy.parquet").unlink()
        for i, itemsets in enumerate(parts):
            rows = [{"items": [*items], "freq": 7} for items in itemsets]
            schema = pa.schema([pa.field("items", pa.list_(pa.string()), nullable=nulls), ("freq", pa.int64())])
            pq.write_table(pa.Table.from_pylist(rows, schema), saved / "data" / f"part-{i}.snappy.parquet")
        return saved

    first = hash_of_folder(divided("a", ["a", "ab"], [], ["c"], nulls=False))
    assert hash_of_folder(divided("b", ["c", "ab", "a"])) == first
    assert hash_of_folder(divided("c", ["c", "ac", "a"])) != first


@pytest.mark.parametrize("model", [CountVectorizerModel, StringIndexerModel, lambda: PipelineModel([])])
def test_what_a_model_has_learnt_is_not_in_its_params(model: Callable[[], Any]) -> None:
    fitted = model()
    with pytest.raises(
        UnidentifiableError, match=rf"{fitted.uid} \({type(fitted).__name__}\) is fitted, and its Params do not contain"
    ):
        params_of(Pipeline(stages=[Pipeline(stages=[fitted])]))
    assert params_of(Pipeline(stages=[Pipeline(stages=[])]))


def test_uids_in_names_of_columns_and_views_do_not_count() -> None:
    def facts(uid: str, loaded: str, view: str) -> str:
        names = [{"name": f"{uid}__output"}, {"name": f"{loaded}__output", "qualifier": f"[{view}]"}]
        return anonymous(
            [{"plan": f"Project [{uid}__output]", "analyzed": json.dumps(names)}], [uid, "SQL_0123456789ab"]
        )

    first = facts("Tokenizer_0123456789ab", "IDF_0123456789ab", "sql_0123456789ab_0123456789ab")
    assert first == facts("Tokenizer_ba9876543210", "IDF_ba9876543210", "sql_0123456789ab_ba9876543210")
    assert first != facts("Tokenizer_ba9876543210", "words", "sql_0123456789ab_ba9876543210")
    assert first != facts("Tokenizer_ba9876543210", "IDF_ba9876543210", "rows")


def test_columns_that_the_loss_alone_reads_count(tmp_path: Path) -> None:
    """Another head's cache of the same columns has no ranges of them, by which a censor is checked."""

    def told(loss: bool) -> str:
        columns = (CutColumn(("seen", -1), "seen", False, False, loss),)
        cut = Cut(Graph(str.lower, (), head_position=0), (), (), columns)
        return fingerprint(Request(cut, [], Options(), "wait", None), tmp_path)

    assert told(loss=True) != told(loss=False)
