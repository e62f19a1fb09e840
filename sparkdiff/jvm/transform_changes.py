"""The changes that a transform makes to a DataFrame, read from the analysed plan, in which an unchanged column keeps
its expression id. Runs no job.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.jvm.java_objects import each, packages, scala_object
from sparkdiff.jvm.sessions import SparkError

ALIASES = ("SubqueryAlias", "View")
PASSING = (*ALIASES, "Project", "Filter", "Sort", "Window", "Join", "ResolvedHint", "Repartition")
"""Nodes of a plan that compute columns or leave rows out; they pass all other columns on with the same values."""
Node = tuple[str, Any]
"""The class name of a node of a plan, and the node."""


@dataclass(frozen=True)
class Changes:
    """The effects of a transform.

    Attributes:
        passed: the columns that it doesn't change.
        reads: the columns from which it computes other columns or chooses rows; None if they are unknown.
        drops_rows: whether it may drop rows.
    """

    passed: tuple[str, ...]
    reads: tuple[str, ...] | None
    drops_rows: bool


def changes_between(before: DataFrame, after: DataFrame) -> Changes | None:
    """Changes from one DataFrame to another that a transform made of it; None if the plan does not show them."""
    with contextlib.suppress(*SparkError, AttributeError):
        start, end = _plan_of(before), _plan_of(after)
        path = _path(end, start)
        if path is not None:
            passed = _names(start.outputSet().intersect(end.outputSet()))
            return Changes(passed, _reads(path, start), any(kind in ("Filter", "Join") for kind, _ in path))
    return None


def with_lost_columns(
    before: DataFrame, after: DataFrame, casefold: Callable[[str], str], without: Collection[str] = ()
) -> DataFrame:
    """The result `after` of a transform of `before`, with the columns that the transform dropped added back if the plan
    allows it; else `after` unchanged.

    Args:
        without: casefolded names of dropped columns that are not added back.
    """
    there = {*map(casefold, after.columns), *without}
    lost = [i for i, c in enumerate(before.columns) if casefold(c) not in there]
    node = below = _plan_of(before)
    path = _path(_plan_of(after), node) if lost else None
    if path is None:
        return after
    columns = list(each(node.output()))
    own = _seq([columns[i] for i in lost]).toList()
    for kind, old in reversed(path):
        if kind == "Project":
            project = getattr(own, "$colon$colon$colon")(old.projectList().toList())
            node = packages().org.apache.spark.sql.catalyst.plans.logical.Project(project, node)
        elif kind not in ALIASES:  # aliases qualify names, and all names are resolved
            node = old.withNewChildren(_seq([node if c.equals(below) else c for c in each(old.children())]))
        below = old
    jdf = scala_object(before._jdf.getClass().getName()).ofRows(before.sparkSession._jsparkSession, node)
    return DataFrame(jdf, before.sparkSession)


def _plan_of(df: DataFrame) -> Any:
    return df._jdf.queryExecution().analyzed()


def _path(node: Any, start: Any) -> list[Node] | None:
    """Nodes of a transform: from `node` down to the plan `start` that it started from, without `start`. None if `start`
    is not below `node`, or if a node that is not in PASSING, or a join other than an inner join, lies between them.
    """
    if node.equals(start):
        return []
    kind = node.getClass().getSimpleName()
    if kind not in PASSING or (kind == "Join" and node.joinType().toString() != "Inner"):
        return None
    paths = (_path(child, start) for child in each(node.children()))
    return next(([(kind, node), *path] for path in paths if path is not None), None)


def _reads(path: Sequence[Node], start: Any) -> tuple[str, ...] | None:
    if any(kind == "Join" or not node.subqueries().isEmpty() for kind, node in path):
        return None  # it may read another copy of the rows, whose columns have other ids
    found = (_names(start.outputSet().intersect(read)) for kind, node in path for read in _references(kind, node))
    return tuple(dict.fromkeys(name for names in found for name in names))


def _references(kind: str, node: Any) -> Iterator[Any]:
    """Yield the sets of attributes that a node computes with, without those that it only passes on."""
    if kind == "Project":
        yield from (made.references() for made in each(node.projectList().diff(node.child().output())))
    elif kind in ("Filter", "Window"):
        yield node.references()


def _names(attributes: Any) -> tuple[str, ...]:
    types = scala_object("org.apache.spark.sql.catalyst.types.DataTypeUtils")
    return tuple(types.fromAttributes(attributes.toSeq()).fieldNames())


def _seq(values: list[Any]) -> Any:
    return packages().org.apache.spark.api.python.PythonUtils.toSeq(values)
