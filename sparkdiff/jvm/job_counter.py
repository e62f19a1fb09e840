"""A counter of Spark jobs."""

import contextlib
import uuid
from collections.abc import Callable, Iterator

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from sparkdiff.jvm.sessions import in_process, own_group

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
