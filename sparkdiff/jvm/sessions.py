"""The running Spark session, the features that it has, the jobs that it runs, and the causes of Spark's errors."""

import contextlib
import functools
import importlib
import logging
import os
import re
import signal
import subprocess
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyspark
from py4j.clientserver import ClientServer
from py4j.java_gateway import JavaObject
from py4j.protocol import Py4JError, Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.find_spark_home import _find_spark_home
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.utils import is_remote
from pyspark.util import VersionUtils

from sparkdiff.errors import FILL_GAPS, InputError, SparkdiffError
from sparkdiff.machine import secrets
from sparkdiff.machine.threads import beside

SparkError = (Py4JError, PySparkException)
"""The exceptions that Spark raises in Python."""
UNREACHABLE = (*SparkError, AttributeError, TypeError)
"""The exceptions of calls of Java's classes through Spark Connect, and where the py4j of a cluster forbids them."""
AGAIN = 0.2
"""Seconds between two attempts to cancel jobs that run too long."""
CANCELLING = 5.0
"""Longest time in seconds that Ctrl-C waits for Spark to cancel its jobs."""
VERSION = VersionUtils.majorMinorVersion(pyspark.__version__)


def session() -> SparkSession:
    """The running SparkSession, classic or Spark Connect.

    Raises:
        InputError: none is running, or it was stopped.
    """
    try:
        spark = SparkSession.active()  # in a user's thread without an active session, the one started last
    except PySparkException:
        spark = None
    if spark is None or (in_process(spark) and spark.sparkContext._jsc is None):
        raise InputError(
            "no running SparkSession: start one (SparkSession.builder.getOrCreate()) and load the model again"
        )
    return spark


SPARKS_OWN_LOG = "org/apache/spark/log4j2-"
"""Spark's default logging configuration, used if the user has no file: everything from INFO on."""


def join_submit() -> None:
    """Connect to the JVM that spark-submit started, so that a SparkConf has its settings, and log only warnings and
    errors from then on.

    A log setting of the user (`spark.log.level` or a log4j2 file) has priority.
    """
    if (
        "PYSPARK_GATEWAY_PORT" not in os.environ
    ):  # no spark-submit: a JVM of our own, which starts with the session's settings
        return
    try:
        SparkContext._ensure_initialized()
        conf: Any = SparkConf()
        conf._jconf.initializeLogIfNecessary(False)
        jvm: Any = SparkContext._jvm
        log4j = jvm.org.apache.logging.log4j
        source = log4j.LogManager.getContext(False).getConfigLocation()
        if SPARKS_OWN_LOG in str(source) and not conf.contains("spark.log.level"):
            jvm.org.apache.spark.util.Utils.setLogLevel(log4j.Level.WARN)
    except UNREACHABLE:
        return  # the py4j of a cluster that forbids these calls: its logging stays as it is


SPARKS_ADVICE = re.compile(
    r'\. Consider removing \w+ from dataset or using handleInvalid = "keep" or "skip"\.?'
    r"|(?P<vector>Vector values MUST NOT be NaN or Infinity, but got \S*NaN\S*)(?: SQLSTATE: \w+)?"
)
"""The advice of a VectorAssembler on null and NaN, which leads to NaN where no trees follow; and the error of fitting a linear
stage to such a vector, which has no advice."""
QUICK = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m"
"""JVM options that turn off the second (optimizing) compiler, which takes more time in a short session than it saves."""


@contextlib.contextmanager
def java_options(*options: str) -> Iterator[None]:
    """Make JVMs that start on this machine within this context use these options; the user's own ones have priority."""
    before = os.environ.get("SPARK_SUBMIT_OPTS")
    os.environ["SPARK_SUBMIT_OPTS"] = " ".join(filter(None, (*options, before)))  # Java takes the last of two settings
    try:
        yield
    finally:
        if before is None:
            del os.environ["SPARK_SUBMIT_OPTS"]
        else:
            os.environ["SPARK_SUBMIT_OPTS"] = before


def is_running() -> bool:
    """True if this process is connected to a JVM."""
    return SparkContext._gateway is not None


@contextlib.contextmanager
def persist_rows(df: DataFrame) -> Iterator[DataFrame]:
    """Cache the rows of a DataFrame in Spark within this context (`df.cache()`), and yield the cached DataFrame."""
    rows = df.cache()
    try:
        yield rows
    finally:
        rows.unpersist()


def in_process(spark: SparkSession) -> bool:
    """True if this process is Spark's driver; with Spark Connect it is not, and has no SparkContext."""
    return hasattr(spark, "sparkContext")


def reads_zstandard(spark: SparkSession) -> bool:
    """True if Spark reads text files that are compressed by Zstandard: by its own codec, or by Hadoop's native one."""
    java: Any = getattr(spark, "_jvm", None) if in_process(spark) else None
    return (
        java is None
        or spark.conf.isModifiable("spark.sql.execution.datasources.hadoopLineRecordReader.enabled")  # of Spark 4.1
        or bool(java.org.apache.hadoop.io.compress.ZStandardCodec.isNativeCodeLoaded())
    )


def check_java() -> str:
    """Check, if this process will start Java, that Spark's scripts will find a suitable one. Returns Java's version
    text; empty if this process will start no Java, or if Spark's own script chooses one.

    Raises:
        InputError: there is none, or it is too old for this Spark.
    """
    if SparkSession.getActiveSession() is not None or "PYSPARK_GATEWAY_PORT" in os.environ:
        return ""
    if Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home()) / "conf", "spark-env.sh").exists():
        return ""  # which may choose another Java
    home, needed = os.environ.get("JAVA_HOME"), 17 if VERSION >= (4, 0) else 8
    java, told = ("java", "the java on PATH") if not home else (f"{home}/bin/java", f"JAVA_HOME={home}")
    way = f"set JAVA_HOME to the folder of a Java {17 if needed == 17 else '8, 11 or 17'}"
    try:
        asked = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as e:
        missing = f"{told} has no bin/java that runs" if home else "JAVA_HOME is unset, and no java on PATH runs"
        raise InputError(f"{missing}: {way}") from e
    found = re.search(r'version "(?:1\.)?(\d+)', asked.stderr + asked.stdout)
    if asked.returncode or (found and int(found[1]) < needed):
        what = "doesn't run" if asked.returncode or not found else f"is Java {found[1]}"
        raise InputError(f"{told} {what}, and Spark {pyspark.__version__} needs Java {needed} or later: {way}")
    return asked.stderr + asked.stdout


def ml_context(spark: SparkSession) -> Any:
    """The argument of pyspark.ml's readers and writers: the SparkContext if there is one (Spark 3.5 accepts nothing
    else), else the session.
    """
    return spark.sparkContext if in_process(spark) else spark


def has_constructors() -> bool:
    """True if Scala constructors can be called: not through Spark Connect, and not if the py4j of a cluster forbids
    them.
    """
    try:
        context: Any = session().sparkContext
        context._jvm.org.apache.spark.ml.param.ParamMap.empty().getClass().getConstructors()
    except UNREACHABLE:
        return False
    return True


def origin() -> dict[str, str]:
    """Versions of Spark and Java and the session's time zone, as far as they are available."""
    told: dict[str, str] = {}
    with contextlib.suppress(InputError, *SparkError):
        spark: Any = session()
        told |= {"sparkVersion": spark.version, "timeZone": spark.conf.get("spark.sql.session.timeZone")}
        told["javaVersion"] = (
            spark._jvm.java.lang.System.getProperty("java.version")
            if has_constructors()
            else spark.sql("SELECT java_method('java.lang.System', 'getProperty', 'java.version')").head()[0]
        )
    return told


def check_alive(stage: Any) -> None:
    """Raise InputError for a stage whose SparkSession was stopped; otherwise py4j would fail with an AssertionError.

    Raises:
        InputError: the session was stopped; the message names the stage.
    """
    java = getattr(stage, "_java_obj", None)
    try:
        session()
        if isinstance(java, JavaObject):
            java.uid()
        elif java is not None and not isinstance(java, str):  # Connect: a fitted model on the server
            _ask(stage)
    except (InputError, *SparkError, AttributeError, AssertionError, OSError) as e:
        raise InputError(
            f"{stage.uid}: its SparkSession is not running (stopped?); start a session and load the model again"
        ) from e


def _ask(stage: Any) -> None:
    """Call a method of a model on a Spark Connect server; raises the server's error if the server has lost the
    model.
    """
    try:
        stage._call_java("toString")  # one of the few methods that the server allows for every model
    except PySparkException as e:
        if "NoSuchElementException" not in str(e):  # a generalized linear model's own error, if no link was set
            raise


@contextlib.contextmanager
def by_arrow() -> Iterator[None]:
    """Exchange pandas frames with Spark in the Arrow format within this context, as Spark Connect always does."""
    spark, key = session(), "spark.sql.execution.arrow.pyspark.enabled"
    before = spark.conf.get(key, None) if in_process(spark) else "true"
    if before != "true":
        spark.conf.set(key, "true")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*_dtype is deprecated")  # PySpark 3.5 uses a deprecated pandas call
            warnings.filterwarnings("ignore", "toPandas attempted Arrow optimization")  # the error follows
            yield
    finally:
        if before is None:
            spark.conf.unset(key)
        elif before != "true":
            spark.conf.set(key, before)


def cause(error: BaseException) -> str:
    """Innermost message of an error raised by Spark, in one line and without secrets; for an error of Python code, its
    exception.
    """
    raised = re.findall(r"^\w+(?:Error|Exception): .*$", str(error), re.MULTILINE)
    if "from the Python worker" in str(error) and raised:
        return secrets.redacted(raised[-1])
    java: Any = getattr(error, "java_exception", None) or getattr(error, "_origin", None)
    if isinstance(error, Py4JJavaError) or java is not None:
        java = java.java_exception if isinstance(java, Py4JJavaError) else java
        with contextlib.suppress(Exception):
            while java.getCause() is not None:
                java = java.getCause()
            if java.getMessage():
                # The first line of a barrier stage's message only says that a task failed; the next one says why.
                first, _, rest = str(java.getMessage()).partition("\n")
                return first_sentences(
                    rest if first.endswith("finished unsuccessfully.") and rest else f"{first}\n{rest}"
                )
    text = str(error)
    causes = list(re.finditer(r"^Caused by: [\w.$]+: (?=.)", text, re.MULTILINE))  # Connect has the causes as text
    return first_sentences(text[causes[-1].end() :] if causes else text)


def message(error: BaseException) -> str:
    """Message of an error, without secrets: for an error of Spark its cause, in one line; for an error that is neither
    Spark's nor ours with its class in front.
    """
    if isinstance(error, SparkError):
        return cause(error)
    return secrets.redacted(str(error) if isinstance(error, SparkdiffError) else f"{type(error).__name__}: {error}")


@contextlib.contextmanager
def as_input_error(what: str) -> Iterator[None]:
    """Turn an error of Spark in this context into an InputError that says what failed, and why."""
    try:
        yield
    except SparkError as e:
        raise InputError(f"{what}: " + SPARKS_ADVICE.sub(rf"\g<vector>: {FILL_GAPS}", cause(e))) from e


@contextlib.contextmanager
def suppress_error_logs() -> Iterator[None]:
    """Keep pyspark from logging analysis errors of this thread within this context, because they are expected; pyspark
    logs each of them before it raises it.
    """
    loggers, own = [], threading.get_ident()
    with contextlib.suppress(ImportError):  # before Spark 4.0, pyspark logged none
        get_logger = importlib.import_module("pyspark.logger").PySparkLogger.getLogger
        loggers = [get_logger(f"{kind}QueryContextLogger") for kind in ("SQL", "DataFrame")]

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != own

    for logger in loggers:
        logger.addFilter(is_of_others)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(is_of_others)


def first_sentences(message: str) -> str:
    """First sentences of a message of Spark, in one line and without secrets.

    Traces, plans and pieces of code, which follow the complete sentences, are left out.
    """
    lines = message.strip().splitlines()
    out = lines[:1]
    for line in lines[1:]:
        whole = re.search(r"[.;!?)\]]$|SQLSTATE: \w+$", out[-1])
        if whole or not line.strip() or re.match(r"\s+at |\s*[+:]-|'|==|(Caused|Driver|JVM)\b", line):
            break
        out.append(line.strip())
    return secrets.redacted(" ".join(out).strip())


def clone_session(spark: SparkSession) -> SparkSession:
    """A new session with the settings of `spark`; changing the settings of one does not affect the other."""
    own: Any = spark
    return type(spark)(own.sparkContext, own._jsparkSession.cloneSession())


def slots(spark: SparkSession) -> int | None:
    """Number of tasks that can run at the same time on the current executors; None if unknown."""
    try:
        context: Any = spark.sparkContext._jsc.sc()
        return int(context.maxNumConcurrentTasks(context.resourceProfileManager().defaultResourceProfile()))
    except UNREACHABLE:
        return None


@contextlib.contextmanager
def cancellable(spark: SparkSession, tag: str) -> Iterator[None]:
    """Mark the jobs of this thread within this context with a tag, so that another thread can cancel them by
    `cancel(spark, tag)`.
    """
    if in_process(spark):
        spark.sparkContext.setJobGroup(tag, "sparkdiff: training", interruptOnCancel=True)
    else:
        spark.addTag(tag)
    yield


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let Ctrl-C end a call to Java within this context, if pyspark handles it; in other threads this changes nothing.

    pyspark's handler calls Java on the connection that the interrupted call still reads. So the session gets wrong answers
    afterwards, and up to Spark 4.2 the call fails with an error in place of KeyboardInterrupt. The handler here cancels the jobs
    from another thread, and drops the connection. The new connection gets the session and the local properties of the old one.
    """
    before, context = signal.getsignal(signal.SIGINT), SparkContext._active_spark_context
    in_main = threading.current_thread() is threading.main_thread() and not is_remote()
    if not in_main or context is None or not (getattr(before, "__module__", "") or "").startswith("pyspark."):
        yield
        return
    gateway, java = SparkContext._gateway, context._jsc.sc()
    sessions: Any = context._jvm.org.apache.spark.sql.SparkSession  # type: ignore[union-attr]
    active, properties = sessions.getActiveSession(), java.getLocalProperties()

    def interrupt(*_: Any) -> None:
        if context._jsc is None:  # it was stopped
            raise KeyboardInterrupt
        thread = threading.Thread(target=context.cancelAllJobs, daemon=True)
        thread.start()
        thread.join(CANCELLING)
        if isinstance(gateway, ClientServer) and (own := gateway._gateway_client.get_thread_connection()) is not None:
            own.close()
            java.setLocalProperties(properties)
            if active.isDefined():
                sessions.setActiveSession(active.get())
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    logging.getLogger().addFilter(_is_no_interruption)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        logging.getLogger().removeFilter(_is_no_interruption)


def _is_no_interruption(record: logging.LogRecord) -> bool:
    """False for the traceback that py4j logs, on the root logger, for each interrupted call."""
    return record.msg != "KeyboardInterrupt while sending command."


def threads_share_session() -> bool:
    """True if a new thread of this process would use the session of the current thread, and have jobs of its own."""
    spark, seen = session(), list[Any]()
    if in_process(spark) and not isinstance(SparkContext._gateway, ClientServer):  # PYSPARK_PIN_THREAD=false
        return False

    def look() -> None:
        with contextlib.suppress(InputError):
            seen.append(session())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    if not seen or not in_process(spark):
        return bool(seen) and seen[0] is spark
    return bool(seen[0]._jsparkSession == spark._jsparkSession)


@contextlib.contextmanager
def within(seconds: float | None) -> Iterator[None]:
    """Cancel the jobs that this thread runs in this context once `seconds` have passed; None: no limit.

    Raises:
        TimeoutError: the jobs were ended.
    """
    if seconds is None:
        yield
        return
    spark, tag, late = session(), f"sparkdiff-{uuid.uuid4().hex}", threading.Event()

    def watch(over: threading.Event) -> None:
        if not over.wait(seconds):
            late.set()
            cancel_until(over, spark, tag)

    try:
        with beside(watch, "sparkdiff-within"), own_group(spark), cancellable(spark, tag):
            yield
    except Exception as e:  # Spark's own error, or one of ours that reports it
        if late.is_set():
            raise TimeoutError(f"Spark took longer than {seconds:.0f} s") from e
        raise
    finally:
        if not in_process(spark):
            spark.removeTag(tag)


GROUP = "spark.jobGroup.id"


@contextlib.contextmanager
def count_jobs(spark: SparkSession) -> Iterator[Callable[[], int | None]]:
    """Yield a function that returns the number of jobs that this thread has started in this context, or None over Spark
    Connect.

    The thread's own job group is restored afterwards.
    """
    if not in_process(spark):
        yield lambda: None
        return
    context, group = spark.sparkContext, f"sparkdiff-{uuid.uuid4().hex}"

    def count() -> int:
        with contextlib.suppress(Py4JError):  # events that the tracker has not received yet
            context._jsc.sc().listenerBus().waitUntilEmpty()  # type: ignore[attr-defined]
        return len(context.statusTracker().getJobIdsForGroup(group))

    with own_group(spark):
        context.setLocalProperty(GROUP, group)
        yield count


@contextlib.contextmanager
def own_group(spark: SparkSession) -> Iterator[None]:
    """Restore the job group of this thread after this context."""
    names = ("spark.jobGroup.id", "spark.job.description", "spark.job.interruptOnCancel") if in_process(spark) else ()
    before: Any = {name: spark.sparkContext.getLocalProperty(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            spark.sparkContext.setLocalProperty(name, value)


def cancel(spark: SparkSession, tag: str) -> None:
    """End the jobs with this tag."""
    if in_process(spark):
        spark.sparkContext.cancelJobGroup(tag)
    else:
        spark.interruptTag(tag)


def cancel_until(ended: threading.Event, spark: SparkSession, tag: str) -> None:
    """Cancel the jobs with this tag again and again until `ended` is set, because the work may be between two jobs.

    Java's log leaves out what it says, with a stack for each, about cancelled jobs: messages with their tag and, meanwhile, those
    about writing files, which have no tag.
    """
    with contextlib.suppress(*UNREACHABLE), contextlib.ExitStack() as stack:
        with contextlib.suppress(*UNREACHABLE):
            begin, end = _leave_out_cancelled(spark.sparkContext._jvm)
            begin()
            stack.callback(end)
        while not ended.wait(AGAIN):
            with contextlib.suppress(*SparkError):
                cancel(spark, tag)


@functools.cache
def _leave_out_cancelled(java: Any) -> tuple[Callable[[], None], Callable[[], None]]:
    """Leave messages with the tag of a cancelled job out of Java's log from now on, because killed tasks log seconds later.

    The levels of loggers stay: to Spark's shell one with a level of its own is the user's, who wants to see more of it.

    Args:
        java: the view of the JVM, of which there is one; this function acts once for each.

    Returns:
        Functions between which messages about jobs and tasks that end while they write files are left out, too.
    """
    log4j = java.org.apache.logging.log4j
    root = log4j.LogManager.getContext(False).getConfiguration().getRootLogger()
    results = log4j.core.Filter.Result
    cancelled, aborted = (
        log4j.core.filter.RegexFilter.createFilter(f"(?s).*{text}.*", None, False, results.DENY, results.NEUTRAL)
        for text in (
            r"\bcancel(led)? job group sparkdiff-",
            r"(Aborting (job [-0-9a-f]{36}\.|task)|[Tt]ask attempt \w+ aborted|Interrupted while joining on)",
        )
    )
    # The root logger sees enabled messages only; a filter of the whole configuration would have to read all others, too.
    root.addFilter(cancelled)
    return functools.partial(root.addFilter, aborted), functools.partial(root.removeFilter, aborted)
