"""Everything that decides the rows of a DataFrame (its plan, the session's settings and its files), to tell whether
two DataFrames have the same rows. Runs no job.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import unquote, urlsplit

from pyspark.sql import DataFrame, SparkSession

from sparkdiff.jvm.java_objects import each
from sparkdiff.jvm.sessions import UNREACHABLE, SparkError
from sparkdiff.machine import secrets

SPARK_FORMATS = re.compile(
    r"org\.apache\.spark\.(sql\.execution\.datasources|sql\.avro|sql\.hive\.orc|ml\.source)\.[\w.$]+"
)
"""Classes of file formats that read only the given files. (A format of Delta, for example, also reads deletion
vectors.)
"""
SPARK_LISTINGS = re.compile(r"org\.apache\.spark\.sql\.execution\.(datasources|streaming)\.[\w.$]+")

PLAIN_LITERAL = re.compile(
    r"void|string|boolean|byte|short|integer|long|float|double|date|timestamp|timestamp_ntz|decimal\(.*\)|interval.*|time\(.*\)"
)
"""Types whose values JSON shows completely. For binary values, arrays, maps and structs it shows an address, or
values without delimiters.
"""

CODE = re.compile(r"Python|UDF|UDAF|ScalaAggregator|InPandas|InArrow|Reflection|ScriptTransformation")
SUBQUERIES = {"ScalarSubquery", "Exists", "ListQuery", "InSubquery", "LateralSubquery", "LateralJoin"}
"""Classes in a plan that hide what decides the rows: CODE, which the plan only names, and SUBQUERIES, whose files the
plan does not list.
"""

LEFT_OUT = {
    ("Literal", "value"),  # null; any other value is a string
    ("LogicalRelation", "relation"),  # identified by `_relation`
    ("Like", "escapeChar"),  # searched for in the text
    ("Expand", "projections"),  # the text has them
    ("Deduplicate", "dedupSpec"),  # of streams
    ("Join", "hint"),
    ("ResolvedHint", "hints"),
    ("NamedLambdaVariable", "value"),  # set during execution
    ("CommonExpressionDef", "id"),
    ("CommonExpressionRef", "id"),
}
EVALUATION = ("evalMode", "evalContext")
"""Fields that hold the evaluation mode (ANSI or not) of an expression. They may be empty in the JSON, because
try_add etc. have their own classes or are named in the text, and for all other expressions
`spark.sql.ansi.enabled` decides."""
NOT_ROWS = {
    "View": {"desc", "options"},  # its creation time; its definition follows in the plan
    "LogicalRelation": {"catalogTable"},
    "ScalaUDF": {"function", "inputEncoders", "outputEncoder"},
}


def draws(df: DataFrame) -> bool:
    """True if the last column of a projection can differ between two evaluations; False if the JVM is out of reach."""
    with contextlib.suppress(*SparkError, AttributeError):
        return not df._jdf.queryExecution().analyzed().expressions().last().deterministic()
    return False


def tables_read(spark: SparkSession, statement: str) -> list[str]:
    """Names, in backticks, of all relations that an SQL statement reads, also in subqueries: tables, views, and its
    own WITH.

    Raises:
        SparkError: the statement can't be parsed.
    """
    plan = spark._jsparkSession.sessionState().sqlParser().parsePlan(statement)
    found = re.findall(r"UnresolvedRelation \[([^\]]*)\]", plan.toString())
    return sorted({".".join(f"`{part}`" for part in name.split(", ")) for name in found})


def plan_facts(df: DataFrame, *, after_stages: bool = False) -> dict[str, Any] | None:
    """Facts that determine the rows of a DataFrame: its plan, with types and delimiters, and its input files. Runs no
    job.

    None if this does not determine the content: a source other than files in Spark's own formats, code, a subquery, a
    nondeterministic expression, or anything that the description of the plan omits. After ML stages, whose functions
    are anonymous UDFs, only other code counts as code.

    The analyzed plan as JSON has types and values; the optimized plan's text has what JSON lacks (evaluated functions such as
    current_date, collations). Neither alone is enough.
    """
    try:
        spark = df.sparkSession
        # Optimized again: rows persisted since this DataFrame was first analysed are read from memory, not from files.
        execution, optimized = df._jdf.queryExecution(), df.select("*")._jdf.queryExecution().optimizedPlan()
        analyzed = execution.analyzed()
        with _printing(spark):
            text = optimized.canonicalized().toString()
            tree = canonical_plan(analyzed.toJSON(), after_stages=after_stages)
            escaped = "LIKE" in analyzed.toString() and "ESCAPE" in analyzed.toString()
        if tree is None or escaped or not optimized.deterministic():
            return None
        roots = [_roots(leaf) for leaf in each(analyzed.collectLeaves())]
        relations = [_relation(spark, leaf) for leaf in each(optimized.collectLeaves())]
    except (*SparkError, AttributeError):
        return None
    if None in roots or None in relations:
        return None
    # As text, in which uids within column names are replaced later.
    return {
        "plan": text,
        "analyzed": json.dumps(tree, sort_keys=True),
        "schema": df.schema.json(),
        "roots": roots,
        "relations": relations,
    }


def canonical_plan(text: str, *, after_stages: bool = False) -> Any:
    """JSON of a plan in which running numbers replace the ids of a session; None if the JSON does not show everything
    that decides the rows.
    """
    numbers: dict[tuple[str, Any], int] = {}

    def number(kind: str, value: Any) -> int:
        return numbers.setdefault((kind, value), len(numbers))

    def walk(node: Any, owner: str) -> Any:
        if isinstance(node, list):
            return [walk(n, owner) for n in node]
        if not isinstance(node, dict):
            return node
        kind = str(node.get("class") or node.get("product-class") or owner).rpartition(".")[2]
        if kind == "ExprId":
            return number("expression", node["id"])
        unnamed = kind == "ScalaUDF" and after_stages and "udfName" not in node
        if (
            kind in SUBQUERIES
            or (CODE.search(kind) and not unnamed)
            or (kind == "Literal" and not _is_complete_literal(node))
        ):
            raise _LeavesOutError(kind)
        out = {}
        for name, value in node.items():
            if name in NOT_ROWS.get(kind, ()):
                continue
            if value is None and (kind, name) not in LEFT_OUT and name not in EVALUATION:
                raise _LeavesOutError(f"{kind}.{name}")
            named = kind in ("CTERelationDef", "CTERelationRef") and name in ("id", "cteId")
            out[name] = number("cte", value) if named else walk(value, kind)
        return out

    try:
        return walk(json.loads(text), "")
    except _LeavesOutError:
        return None


class _LeavesOutError(Exception):
    """A part of a plan that JSON does not show; never leaves the module."""


def _is_complete_literal(literal: dict[str, Any]) -> bool:
    """True if the value and type of a literal are in its JSON."""
    kind, value = literal["dataType"], literal.get("value")
    plain = isinstance(kind, str) and PLAIN_LITERAL.fullmatch(kind) is not None
    # U+FFFD may stand for any bytes that aren't UTF-8.
    return value is None or (plain and isinstance(value, str) and "\ufffd" not in value)


@contextlib.contextmanager
def _printing(spark: SparkSession) -> Iterator[None]:
    """Make Spark print complete plans, and times in UTC, in this thread within this context. Otherwise two plans that
    are truncated at 25 fields, or two times in the hour when clocks are set back, could look equal. A separate session
    has these settings, because other threads may use the caller's session.
    """
    java: Any = spark._jsparkSession  # type: ignore[attr-defined]
    own = java.newSession()
    conf = own.sessionState().conf()
    conf.setConfString("spark.sql.debug.maxToStringFields", "1000000")
    conf.setConfString("spark.sql.session.timeZone", "UTC")
    sessions: Any = spark._jvm.org.apache.spark.sql.SparkSession  # type: ignore[union-attr]
    before = sessions.getActiveSession()
    sessions.setActiveSession(own)
    try:
        yield
    finally:
        if before.isDefined():
            sessions.setActiveSession(before.get())
        else:
            sessions.clearActiveSession()


def files_of(leaf: Any) -> Any:
    """The file relation that a leaf of a plan reads; None if it reads anything but files in one of Spark's formats."""
    if not leaf.getClass().getName().endswith(".LogicalRelation"):
        return None
    relation = leaf.relation()
    if not relation.getClass().getName().endswith(".HadoopFsRelation"):
        return None
    reads = SPARK_FORMATS.fullmatch(relation.fileFormat().getClass().getName())
    lists = SPARK_LISTINGS.fullmatch(relation.location().getClass().getName())
    return relation if reads and lists else None


def _roots(leaf: Any) -> list[str] | None:
    relation = files_of(leaf)
    return None if relation is None else [path.toString() for path in each(relation.location().rootPaths())]


def _relation(spark: SparkSession, leaf: Any) -> list[Any] | None:
    """Input of a leaf of a plan: format, schemas, options and files; None if it does not read only files."""
    relation = files_of(leaf)
    if relation is None:
        return None
    options = sorted([pair._1(), pair._2()] for pair in each(relation.options()))
    files = file_facts(spark, relation.location().inputFiles())
    schemas = [relation.dataSchema().json(), relation.partitionSchema().json()]
    return [relation.fileFormat().getClass().getName(), *schemas, options, files]


# Versions of tables ---------------------------------------------------------------------------------------------------

DELTA = re.compile(r"^Delta\[version=(\d+), ")
"""Beginning of the text by which an analysed plan describes the files of a Delta table. It has the version that is
read, also if the user requested none.

Source: delta-io/delta, TahoeFileIndex.toString.
"""
AS_OF = {
    "versionasof": "versionAsOf",
    "timestampasof": "timestampAsOf",
    "snapshot-id": "snapshotId",
    "as-of-timestamp": "asOf",
}
"""Options of readers that name a version, for Delta and Iceberg."""


def table_versions(df: DataFrame) -> list[dict[str, str]]:
    """Tables whose version the plan of a DataFrame shows: {"table", "versionAsOf" or another of `AS_OF`}.

    In the order of the plan, each once. Runs no job. Empty over Spark Connect, which does not show plans.
    """
    try:
        found = [_version_of(leaf) for leaf in each(df._jdf.queryExecution().analyzed().collectLeaves())]
    except UNREACHABLE:
        return []
    return [entry for i, entry in enumerate(found) if entry is not None and entry not in found[:i]]


def _version_of(leaf: Any) -> dict[str, str] | None:
    kind = leaf.getClass().getName().rpartition(".")[2]
    if kind.startswith("DataSourceV2"):  # a relation, or its scan
        relation = leaf if kind == "DataSourceV2Relation" else leaf.relation()
        options = {pair.getKey(): pair.getValue() for pair in relation.options().entrySet()}
        return version_entry(str(relation.table().name()), options)
    if kind != "LogicalRelation" or not leaf.relation().getClass().getName().endswith(".HadoopFsRelation"):
        return None
    location = leaf.relation().location()
    paths = [path.toString() for path in each(location.rootPaths())]
    table = leaf.catalogTable()
    name = table.get().identifier().unquotedString() if table.isDefined() else ", ".join(paths)
    options = {pair._1(): pair._2() for pair in each(leaf.relation().options())}
    return version_entry(name, options, location.toString())


def version_entry(table: str, options: Mapping[str, str], location: str = "") -> dict[str, str] | None:
    """A table and the version that is read of it, from the options of its reader and the text `location` of its files;
    None if these name no version.
    """
    found = {AS_OF[name.lower()]: value for name, value in options.items() if name.lower() in AS_OF}
    if delta := DELTA.match(location):
        found["versionAsOf"] = delta[1]
    return {"table": secrets.redacted(table), **found} if found else None


# Files ----------------------------------------------------------------------------------------------------------------

END = 1 << 16


def file_facts(spark: SparkSession, uris: Iterable[str]) -> list[list[Any]]:
    """Address, length, modification time and further facts for each file, which differ if its content has changed.

    For a local file (or one on NFS or FUSE): also the time of its last change of any kind, which no program can set,
    and a hash of its first and last 64 KiB. Elsewhere: the store's ETag, the file's id, or the file system's checksum,
    the first that is available; the file itself is not read.
    """
    uris = sorted(uris)
    local = {uri: unquote(parts.path) for uri in uris if (parts := urlsplit(uri)).scheme == "file" and not parts.netloc}
    with ThreadPoolExecutor(16) as pool:
        found = dict(zip(local, pool.map(local_facts, local.values()), strict=True))
    remote = remote_facts(spark, [uri for uri in uris if not found.get(uri)])
    return [[uri, *(found.get(uri) or remote[uri])] for uri in uris]


def local_facts(path: str) -> list[Any] | None:
    """Length, times and the hash of both ends of a file; None if this process cannot see it."""
    try:
        with open(path, "rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(os.pread(file.fileno(), END, 0))
            digest.update(os.pread(file.fileno(), END, max(status.st_size - END, 0)))
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, digest.hexdigest()]


def remote_facts(spark: SparkSession, uris: Sequence[str]) -> dict[str, list[Any]]:
    """Length, modification time, and a further fact of the file system, by address."""
    if not uris:
        return {}
    jvm: Any = spark._jvm
    conf = spark._jsparkSession.sessionState().newHadoopConf()  # type: ignore[attr-defined]
    out = {}
    for uri in uris:
        path = jvm.org.apache.hadoop.fs.Path(jvm.java.net.URI.create(uri))
        system = path.getFileSystem(conf)
        status = system.getFileStatus(path)
        out[uri] = [status.getLen(), status.getModificationTime(), _version(jvm, system, path, status)]
    return out


def _version(jvm: Any, system: Any, path: Any, status: Any) -> str | None:
    """A fact of the file system that changes with the content of a file: ETag, file id or checksum; None if the file
    system has none.
    """
    is_a = jvm.py4j.reflection.TypeUtil.isInstanceOf
    for probe in (
        lambda: is_a("org.apache.hadoop.fs.EtagSource", status) and status.getEtag(),
        lambda: is_a("org.apache.hadoop.hdfs.protocol.HdfsFileStatus", status) and status.getFileId(),
        lambda: (checksum := system.getFileChecksum(path)) and checksum.toString(),
    ):
        # Each by itself: if a class is missing (EtagSource came with Hadoop 3.3.2), the others may still exist.
        with contextlib.suppress(*SparkError):
            if found := probe():
                return str(found)
    return None


ALWAYS = ("spark.sql.session.timeZone", "spark.sql.ansi.enabled", "spark.sql.caseSensitive")
"""Settings whose values always count, even if they are not set, because their defaults depend on the machine, the
version or the vendor.
"""

NO_EFFECT = {
    # Division and scheduling of the work.
    "spark.sql.shuffle.": "how many partitions a shuffle makes",
    "spark.sql.adaptive.": "how a query is divided while it runs",
    "spark.sql.autoBroadcastJoinThreshold": "which side of a join is sent",
    "spark.sql.broadcast": "how long to wait for it",
    "spark.sql.join.preferSortMergeJoin": "how to join",
    "spark.sql.cbo.": "in which order to join",
    "spark.sql.statistics.": "statistics of sizes",
    "spark.sql.defaultSizeInBytes": "the assumed size if it is unknown",
    "spark.sql.files.maxPartitionBytes": "how files are divided into tasks",
    "spark.sql.files.openCostInBytes": "how files are divided into tasks",
    "spark.sql.files.minPartitionNum": "how files are divided into tasks",
    "spark.sql.files.maxPartitionNum": "how files are divided into tasks",
    "spark.sql.sources.parallelPartitionDiscovery.": "how files are listed",
    "spark.sql.sources.bucketing.": "whether a join shuffles",
    "spark.sql.leafNodeDefaultParallelism": "how many partitions rows in memory have",
    "spark.sql.inMemoryColumnarStorage.": "how persisted rows are stored in memory",
    "spark.sql.codegen.": "whether a query is compiled",
    "spark.sql.execution.arrow.pyspark.": "how rows are sent to Python",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "how rows are sent to Python",
    "spark.sql.parquet.enableVectorizedReader": "how a file is read",
    "spark.sql.parquet.filterPushdown": "what is skipped when a file is read",
    "spark.sql.orc.enableVectorizedReader": "how a file is read",
    "spark.sql.orc.filterPushdown": "what is skipped when a file is read",
    # Written files, and locations.
    "spark.sql.parquet.compression.codec": "how files are written",
    "spark.sql.orc.compression.codec": "how files are written",
    "spark.sql.avro.compression.codec": "how files are written",
    "spark.sql.parquet.output.committer.class": "how files are written",
    "spark.sql.parquet.fs.optimized.committer.": "how files are written (EMR)",
    "spark.sql.sources.commitProtocolClass": "how files are written",
    "spark.sql.sources.partitionOverwriteMode": "how files are written",
    "spark.sql.maxConcurrentOutputFileWriters": "how files are written",
    "spark.sql.warehouse.dir": "where managed tables are stored; their files are identified one by one",
    "spark.sql.catalogImplementation": "where tables are registered",
    "spark.sql.catalog.": "addresses and credentials of catalogs; their tables are identified by files or content",
    "spark.sql.hive.metastore": "addresses and versions of a catalog",
    "spark.sql.hive.filesourcePartitionFileCacheSize": "what is cached of a catalog",
    "spark.sql.hive.manageFilesourcePartitions": "where partitions are registered",
    # Displays, logs and counts; names of sessions.
    "spark.sql.ui.": "what is shown",
    "spark.sql.debug.": "what is shown",
    "spark.sql.maxPlanStringLength": "what is shown",
    "spark.sql.repl.": "what is shown",
    "spark.sql.redaction.": "what is shown",
    "spark.sql.planChangeLog.": "what is logged",
    "spark.sql.event.": "what is logged",
    "spark.sql.metrics.": "what is counted",
    "spark.sql.queryExecutionListeners": "listeners",
    "spark.sql.extendedExplainProviders": "listeners",
    "spark.sql.pyspark.": "what errors show",
    "spark.sql.stackTracesInDataFrameContext": "what errors show",
    "spark.sql.artifact.": "where the jars of a session are stored",
    "spark.sql.thriftserver.": "another server",
    "spark.sql.streaming.": "streams, which are not accepted",
}
"""Settings (and prefixes of settings, ending in a dot) that cannot change rows, each with what it affects instead.

Vendors keep values that differ between sessions or clusters (ids, tags, addresses) outside `spark.sql`.
"""


def counts(key: str) -> bool:
    """True if a setting can change rows."""
    beginnings = tuple(k for k in NO_EFFECT if k.endswith("."))
    return key.startswith("spark.sql.") and key not in NO_EFFECT and not key.startswith(beginnings)


def settings(spark: SparkSession) -> dict[str, str | None]:
    """Settings of the session that can change rows and differ from their defaults, those in ALWAYS, and Spark's version.

    With Spark Connect, which does not show defaults, all settings that are set.
    """
    given = {key: value for key, value in _all(spark).items() if counts(key)}
    found = {key: value for key, value in given.items() if key not in ALWAYS and value != _default(spark, key)}
    return found | {key: spark.conf.get(key) for key in ALWAYS} | {"version": spark.version}


def _all(spark: SparkSession) -> dict[str, str]:
    if hasattr(spark.conf, "getAll"):  # since Spark 4.0
        return dict(spark.conf.getAll)
    conf: Any = spark.conf
    return {pair._1(): pair._2() for pair in each(conf._jconf.getAll())}


def _default(spark: SparkSession, key: str) -> str | None:
    """Default of a setting; None if there is none or it is unknown."""
    try:
        return str(spark._jvm.org.apache.spark.sql.internal.SQLConf().getConfString(key))  # type: ignore[union-attr]
    except UNREACHABLE:
        return None
