"""One Spark session for the whole test run; tests/unit never asks for it."""

import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("tests.support")  # before anything of it is imported

from tests.support.cpu_times import CpuTimes  # noqa: E402

ROOT = Path(__file__).parents[1]


# For every JVM that tests start: on small data its second compiler, threads that collect garbage and a look at the byte code of
# Spark's own jars take more than they give. Without a larger code cache a JVM with one compiler has 48 MB, which an hour of
# tests fills: it then throws compiled methods away, interprets and compiles them again. With less
# room for classes, Java collects all garbage each time it needs more of it.
QUICK = (
    "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=256m -XX:-UseCodeCacheFlushing -XX:+UseSerialGC"
    " -XX:MetaspaceSize=256m -XX:+UnlockDiagnosticVMOptions -XX:-BytecodeVerificationRemote"
)
PLAIN = os.environ.get("SPARKDIFF_PLAIN_SPARK") == "true"
"""Whether tests run in the session that a user gets: no setting of Spark or Java, no class of ours in it. See .ci/run."""
PACKAGES = {"com", "java", "javax", "net", "org", "py4j", "scala"}
"""Where the names of Java's classes begin: no class has such a name itself."""


def pytest_configure(config: pytest.Config) -> None:
    """`--dist loadfile` takes the files as they come; by default those of few tests, which take longest here, come last."""
    config.option.loadscopereorder = False
    config.pluginmanager.register(CpuTimes())
    if PLAIN:
        os.environ.pop("SPARK_CONF_DIR", None)
    else:
        os.environ.setdefault("JDK_JAVA_OPTIONS", QUICK)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # torch's threads would wait for each other, and take the other process's core


FIRST = ("tests/jobs/", "tests/unit/training/", "tests/unit/test_benchmarks.py")
"""Long files: the last to be begun are short ones, so that all processes end at about the same time."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `nightly` run only if `-m` names the mark."""
    items.sort(key=lambda item: not item.nodeid.startswith(FIRST))
    if "nightly" in config.option.markexpr:
        return
    nightly = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=nightly)
    items[:] = [item for item in items if not item.get_closest_marker("nightly")]


class Prompt(socket.SocketIO):
    """A socket's stream that acknowledges at once what comes."""

    def readinto(self, buffer: Any) -> int | None:
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # holds until something is sent
        return super().readinto(buffer)


@pytest.fixture(scope="session")
def prompt() -> Iterator[None]:
    """A short way to Java, for tests whose DataFrames are small and whose plans are long.

    Java sends an answer of more than 8 kB in pieces, each when the one before is acknowledged, which Linux puts off by 40 ms. And
    py4j asks for every name in `jvm.org.apache.spark...` anew, for which Java looks into all of Spark's jars.
    """
    if PLAIN:
        yield
        return
    from py4j.clientserver import ClientServerConnection
    from py4j.java_gateway import JavaClass, JavaMember, JavaPackage, JVMView

    connect = ClientServerConnection.connect_to_java_server

    def promptly(self: Any) -> None:
        connect(self)
        if hasattr(socket, "TCP_QUICKACK"):
            self.stream.raw.__class__ = Prompt

    def known(look_up: Callable[[Any, str], Any], kinds: tuple[type, ...]) -> Callable[[Any, str], Any]:
        found: dict[tuple[Any, str, str], Any] = {}

        def attribute(self: Any, name: str) -> Any:
            key = self._gateway_client, vars(self).get("_fqn", ""), name
            if key not in found:
                thing = look_up(self, name)
                if not isinstance(thing, kinds) and name not in PACKAGES:
                    return thing
                found[key] = thing
            return found[key]

        return attribute

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientServerConnection, "connect_to_java_server", promptly)
        # What isn't imported yet is a package to a JVMView, and a class later.
        for place, kinds in (
            (JVMView, (JavaClass,)),
            (JavaPackage, (JavaClass, JavaPackage)),
            (JavaClass, (JavaMember,)),
        ):
            patch.setattr(place, "__getattr__", known(place.__getattr__, kinds))
        yield


def class_path(folder: Path) -> str:
    """What Java's class path begins with: no defaults of HDFS, MapReduce and YARN, which no test uses, and Spark's own jars.

    Each task of Spark reads all of them anew, a thousand, if it reads or writes a file. And Spark reads the code of each function
    that it sends to a task from its jar, of which there are three hundred: Java looks into one after the other.
    """
    import pyspark

    for name in ("hdfs", "mapred", "yarn"):
        (folder / f"{name}-default.xml").write_text("<configuration/>")
    jars = Path(pyspark.__file__).parent / "jars"
    first = (
        "spark-catalyst",
        "spark-sql_",
        "spark-sql-api",
        "spark-core",
        "spark-mllib_",
        "scala-library",
        "scala-reflect",
    )
    return os.pathsep.join([str(folder), *(str(jar) for name in first for jar in jars.glob(f"{name}*.jar"))])


LOCAL = """
import org.apache.hadoop.fs.*;

public class Local extends LocalFileSystem {
    public static class Raw extends RawLocalFileSystem {
        public void setPermission(Path path, org.apache.hadoop.fs.permission.FsPermission permission) {}
    }

    public Local() { super(new Raw()); }
}
"""


def without_chmod(session: Any) -> None:
    """Hadoop starts a process, `chmod`, for each file and folder that it makes, and sets what these have anyway.

    Where it looks first, among the file systems that it has open, it finds one of ours; Spark brings the compiler.
    """
    java = session._jvm
    compiler, hadoop = java.org.codehaus.janino.SimpleCompiler(), java.org.apache.hadoop
    compiler.cook(LOCAL)
    settings = hadoop.conf.Configuration(session._jsc.hadoopConfiguration())
    settings.setClassLoader(compiler.getClassLoader())
    settings.set("fs.file.impl", "Local")
    hadoop.fs.FileSystem.closeAll()
    assert hadoop.fs.FileSystem.get(java.java.net.URI("file:///"), settings).getClass().getName() == "Local"


def with_mirror(session: Any) -> Any:
    """What Scala knows of all classes; unless someone holds it, it is made anew after each collection of garbage."""
    java = session._jvm
    universe = java.scala.reflect.runtime.package.universe()
    return universe.runtimeMirror(java.java.lang.Thread.currentThread().getContextClassLoader())


@pytest.fixture(scope="session")
def spark(prompt: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    os.environ["PYSPARK_PYTHON"] = sys.executable
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master("local[2]")
    if PLAIN:
        session = builder.getOrCreate()
        yield session
        session.stop()
        return
    session = (
        builder.appName("sparkdiff tests")
        .config("spark.ui.enabled", "false")
        .config("spark.ui.showConsoleProgress", "false")
        .config("spark.sql.shuffle.partitions", "2")
        .config("spark.default.parallelism", "2")
        .config("spark.sql.warehouse.dir", str(tmp_path_factory.mktemp("warehouse")))
        .config("spark.driver.memory", "3g")
        .config("spark.driver.extraClassPath", class_path(tmp_path_factory.mktemp("hadoop")))
        # Tests ask what a stage has read; thousands of stages later Spark would have forgotten it.
        .config("spark.ui.retainedStages", "100000")
        .config("spark.ui.retainedJobs", "100000")
        # Nobody looks at Spark's pages: no notes of running tasks, and few queries, which Spark sorts at each new one.
        .config("spark.ui.liveUpdate.period", "1h")
        .config("spark.sql.ui.retainedExecutions", "20")
        # Dozens of stages in a job on few rows: compiling them takes longer than running them. tests/jobs have Spark's defaults.
        .config("spark.sql.codegen.wholeStage", "false")
        .config("spark.sql.codegen.factoryMode", "NO_CODEGEN")
        # Adaptive plans run each shuffle as a job: a quarter more time on few rows. tests/jobs and .ci/nightly have them.
        .config("spark.sql.adaptive.enabled", os.environ.get("SPARKDIFF_ADAPTIVE", "false"))
        # For a page that nobody looks at Spark describes every plan, in two ways.
        .config("spark.sql.ui.explainMode", "simple")
        .config("spark.python.daemon.module", "tests.support.python_daemon")
        # PySpark 4 tells Java of every column where in Python it was made: a third of all calls.
        .config("spark.python.sql.dataFrameDebugging.enabled", "false")
        .getOrCreate()
    )
    session.sparkContext.setLogLevel("ERROR")
    without_chmod(session)
    mirror = with_mirror(session)
    yield session
    del mirror
    session.stop()


@pytest.fixture(scope="session")
def any_case(spark: Any) -> bool:
    """Whether Spark's ML stages find a column that is spelled in another case; those of Spark 3.5 don't, as its SQL does."""
    from pyspark.errors import PySparkException
    from pyspark.ml.feature import VectorAssembler

    try:
        VectorAssembler(inputCols=["ID"], outputCol="vector").transform(spark.range(1))
    except PySparkException:
        return False
    return True


@pytest.fixture(autouse=True)
def saved_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what each fit compares of its saved model, which takes as long as a small fit, but in the tests of just this."""
    if request.path.name != "test_what_is_saved.py":
        for name in ("sparkdiff.estimators.fine_tuner", "sparkdiff.estimators.search"):
            if name in sys.modules:
                monkeypatch.setattr(f"{name}.check_what_is_saved", lambda *given: None)


@pytest.fixture(params=["constructor", "saved data"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The two ways in which a stage's weights come back into Spark; the test runs once for each."""
    from sparkdiff.jvm import sessions

    if request.param == "saved data":
        monkeypatch.setattr(sessions, "has_constructors", lambda: False)
    else:
        assert sessions.has_constructors()
    return str(request.param)
