"""Spark jobs, counted."""

import contextlib
import uuid
from collections.abc import Callable, Iterator

from py4j.protocol import Py4JError
from pyspark.sql import SparkSession

from sparkdiff.jvm.sessions import in_process, own_group

GROUP = "spark.jobGroup.id"


@contextlib.contextmanager
def counted(spark: SparkSession) -> Iterator[Callable[[], int | None]]:
    """Within this context, a function tells how many jobs this thread has begun in it; None over Spark Connect.

    The thread's own job group is set again afterwards.
    """
    if not in_process(spark):
        yield lambda: None
        return
    context, group = spark.sparkContext, f"sparkdiff-{uuid.uuid4().hex}"

    def count() -> int:
        with contextlib.suppress(Py4JError):  # what the tracker has not heard yet
            context._jsc.sc().listenerBus().waitUntilEmpty()  # type: ignore[attr-defined]
        return len(context.statusTracker().getJobIdsForGroup(group))

    with own_group(spark):
        context.setLocalProperty(GROUP, group)
        yield count
