"""What a plan's JSON tells of its rows, and what is seen of a local file; no Spark."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from py4j.protocol import Py4JError

from sparkdiff.jvm.query_plans import (
    END,
    NO_EFFECT,
    canonical_plan,
    counts,
    file_facts,
    files_of,
    local_facts,
    version_entry,
)

CATALYST = "org.apache.spark.sql.catalyst.expressions."


def literal(value: Any, kind: Any = "string") -> dict[str, Any]:
    return {"class": CATALYST + "Literal", "num-children": 0, "value": value, "dataType": kind}


def alias(number: int, jvm: str, child: dict[str, Any]) -> str:
    made = {"product-class": CATALYST + "ExprId", "id": number, "jvmId": jvm}
    return json.dumps(
        [{"class": CATALYST + "Alias", "num-children": 1, "child": 0, "name": "v", "exprId": made}, child]
    )


def test_ids_of_a_session_are_left_out_and_values_are_not() -> None:
    one, again, other = (
        canonical_plan(alias(*args))
        for args in ((5, "a", literal("#5")), (9, "b", literal("#5")), (5, "a", literal("#9")))
    )
    assert one is not None
    assert one == again != other


def test_null_and_the_string_null_differ() -> None:
    found = [
        canonical_plan(alias(1, "a", literal(*args)))
        for args in ((None,), ("null",), (None, "void"), ("1", "integer"), ("1",))
    ]
    assert None not in found
    assert all(a != b for i, a in enumerate(found) for b in found[:i])


@pytest.mark.parametrize(
    "part",
    [
        literal("[B@14ed30e9", "binary"),
        literal("[a,null]", {"type": "array", "elementType": "string"}),
        literal("\ufffd"),
        {"class": CATALYST + "InSet", "hset": None},
        {"class": CATALYST + "PythonUDF"},
        {"class": CATALYST + "ScalarSubquery"},
        {"class": CATALYST + "JsonToStructs", "options": None},
        {"class": CATALYST + "ScalaUDF", "function": None},
    ],
    ids=lambda part: part["class"].rpartition(".")[2] + str(part.get("dataType", "")),
)
def test_what_json_does_not_show_is_not_trusted(part: dict[str, Any]) -> None:
    assert canonical_plan(alias(1, "a", part)) is None


class Java:
    """A Java object of a class, with methods that return what is given."""

    def __init__(self, name: str, **methods: Any) -> None:
        vars(self).update({method: lambda found=found: found for method, found in methods.items()})
        self.getClass = lambda: Java("java.lang.Class", getName=name) if name != "java.lang.Class" else None


SQL = "org.apache.spark.sql."


@pytest.mark.parametrize(
    ("format", "listing", "trusted"),
    [
        ("execution.datasources.parquet.ParquetFileFormat", "execution.datasources.InMemoryFileIndex", True),
        ("execution.datasources.csv.CSVFileFormat", "execution.datasources.CatalogFileIndex", True),
        ("delta.DeltaParquetFileFormat", "delta.files.TahoeLogFileIndex", False),  # leaves out rows by deletion vectors
        ("execution.datasources.parquet.ParquetFileFormat", "delta.files.TahoeLogFileIndex", False),
    ],
)
def test_files_of_a_table_format_do_not_tell_its_rows(format: str, listing: str, trusted: bool) -> None:
    datasources = SQL + "execution.datasources."
    relation = Java(datasources + "HadoopFsRelation", fileFormat=Java(SQL + format), location=Java(SQL + listing))
    assert (files_of(Java(datasources + "LogicalRelation", relation=relation)) is relation) == trusted
    assert files_of(Java(datasources + "v2.DataSourceV2Relation")) is None
    assert files_of(Java(datasources + "LogicalRelation", relation=Java(datasources + "jdbc.JDBCRelation"))) is None


def test_a_file_is_known_by_more_than_length_and_time(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"a" * (3 * END))
    first, times = local_facts(str(path)), path.stat()
    assert first == local_facts(str(path))
    assert local_facts(str(tmp_path / "none")) is None
    for place in (0, END + 1, 3 * END - 1):  # head, middle, tail
        before = local_facts(str(path))
        with path.open("r+b") as file:
            file.seek(place)
            file.write(b"b")
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        while before is not None and path.stat().st_ctime_ns == before[2]:  # that clock ticks in milliseconds
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = local_facts(str(path))
        assert before is not None
        assert after is not None
        assert before[:2] == after[:2]
        assert before != after
        assert (before[3] != after[3]) == (place != END + 1)  # the middle shows in the time of the last change alone


def test_settings_are_told_by_whole_names_or_by_beginnings() -> None:
    assert counts("spark.sql.legacy.timeParserPolicy")
    assert counts("spark.sql.shuffled")
    assert not counts("spark.sql.shuffle.partitions")
    assert not counts("spark.databricks.session.id")
    assert all(key.startswith("spark.sql.") and not counts(key) for key in NO_EFFECT)


class Hadoop:
    """A session beside a Hadoop whose file status is one of HDFS."""

    def __init__(self, *, has_etags: bool) -> None:
        self.confs, self._jvm, self._jsparkSession = 0, self, self
        self.org = self.java = self.py4j = self.apache = self.hadoop = self.fs = self.net = self.reflection = self
        self.has_etags = has_etags
        self.TypeUtil = self.URI = self

    def isInstanceOf(self, name: str, status: Any) -> bool:
        if name.endswith("EtagSource") and not self.has_etags:
            raise Py4JError("java.lang.ClassNotFoundException: org.apache.hadoop.fs.EtagSource")
        return name.endswith("HdfsFileStatus")

    def create(self, uri: str) -> str:
        return uri

    def sessionState(self) -> Any:
        return self

    def newHadoopConf(self) -> None:
        self.confs += 1

    def Path(self, uri: str) -> Any:
        status = Java("org.apache.hadoop.hdfs.protocol.HdfsFileStatus", getLen=7, getModificationTime=9, getFileId=5)
        system = Java("org.apache.hadoop.hdfs.DistributedFileSystem")
        system.getFileStatus = lambda path: status
        path = Java("org.apache.hadoop.fs.Path")
        path.getFileSystem = lambda conf: system
        return path


@pytest.mark.parametrize("has_etags", [True, False])
def test_a_hadoop_without_etags_tells_files_by_their_ids(has_etags: bool) -> None:
    spark: Any = Hadoop(has_etags=has_etags)
    uris = ["hdfs://a/b", "hdfs://a/c"]
    assert file_facts(spark, uris) == [[uri, 7, 9, "5"] for uri in uris]
    assert spark.confs == 1  # building one takes a while


@pytest.mark.parametrize(
    ("options", "location", "found"),
    [
        # How the files of Delta tables print: delta-io/delta, TahoeFileIndex.toString; the end of a long path only.
        ({}, "Delta[version=42, file:/path/to/table]", {"versionAsOf": "42"}),
        ({}, "Delta[version=0, ...logs/entity_storage/tables/11111111-2222]", {"versionAsOf": "0"}),
        (
            {"timestampAsOf": "2026-01-01"},
            "Delta[version=7, s3a://b/t]",
            {"timestampAsOf": "2026-01-01", "versionAsOf": "7"},
        ),
        ({"VERSIONASOF": "3", "path": "x"}, "org.apache.spark.InMemoryFileIndex(file:/x)", {"versionAsOf": "3"}),
        ({"snapshot-id": "8744", "as-of-timestamp": "17"}, "", {"snapshotId": "8744", "asOf": "17"}),
        ({"path": "/Delta[version=1, x"}, "file:/Delta[version=1, x]", None),
    ],
)
def test_versions_of_tables(options: dict[str, str], location: str, found: dict[str, str] | None) -> None:
    entry = version_entry("s3a://user:secret@b/t", options, location)
    assert entry == (None if found is None else {"table": "s3a://...@b/t", **found})
