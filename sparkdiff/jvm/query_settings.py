"""The session's settings that can change the rows of a query: all of `spark.sql` except those listed in NO_EFFECT."""

from typing import Any

from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from sparkdiff.jvm.java_objects import each

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
    except (Py4JError, PySparkException, AttributeError, TypeError):
        return None
