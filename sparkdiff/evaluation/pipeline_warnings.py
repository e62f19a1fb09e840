"""Warnings about the pipeline: stages that drop rows too late, output columns that change although they do not enter
the loss, and Spark versions that cannot load the pipeline.
"""

import re
from collections.abc import Sequence
from typing import Any

from pyspark.util import VersionUtils

from sparkdiff import jvm
from sparkdiff.pipeline.cut import Cut
from sparkdiff.pipeline.nesting import flatten
from sparkdiff.pipeline.roles import Roles
from sparkdiff.report import enumeration
from sparkdiff.stages.base import REGISTRY, StageModule, class_name, columns_of
from sparkdiff.stages.forest import Trees

PROJECTION = re.compile(r"\s*SELECT\s(?!\s*DISTINCT\s).*\sFROM\s+__THIS__\s*", re.IGNORECASE | re.DOTALL)
"""Pattern of the statements of a SQLTransformer that keep all rows."""


def dropped_late(cut: Cut) -> list[str]:
    """A warning that lists the stages behind the predictor that may drop rows; training and the decision use these
    rows.
    """
    statements = [(v.uid, columns_of(v.stage, ("statement",))) for v in cut.late_droppers]
    names = [uid for uid, found in statements if not any(map(PROJECTION.fullmatch, found))]
    if not names:
        return []
    return [
        f"rows that {enumeration(names)} may drop behind the predictor count in training, metrics and decision all the same: "
        "drop them in front of the predictor, or from the data"
    ]


def changes_outside(roles: Roles, trained: Sequence[int], accepted: bool) -> list[str]:
    """A warning that lists the output columns that do not enter the loss but change when these stages train.

    Args:
        trained: positions of the stages that train.
        accepted: whether the tuned pipeline was accepted, so that the columns do change.
    """
    columns, vertices = roles.outside.columns(trained), roles.graph.vertices
    if not columns:
        return []
    makers = [vertices[i].uid for i in trained if roles.outside.columns([i])]
    readers = [vertices[j].uid for j in roles.outside.readers_of(trained)]
    return [
        f"columns outside the loss also {'change' if accepted else 'would have changed'}: "
        f"{', '.join(columns)}; {enumeration(readers)} read{'s' * (len(readers) == 1)} the output of {enumeration(makers)}"
    ]


def unreadable_by_older_spark(model: Any) -> list[str]:
    """A warning if the running Spark saves this model in a form that Spark 3.5 and 4.0 cannot load.

    The reason: since Spark 4.1, the columns of saved tree ensembles lack names.
    """
    version = jvm.session().version
    kinds = [(s.uid, REGISTRY.get(class_name(s), StageModule)) for _, s in flatten(model)]
    names = [uid for uid, kind in kinds if issubclass(kind, Trees) and not kind.single]
    if not names or VersionUtils.majorMinorVersion(version) < (4, 1):
        return []
    return [
        f"saved by Spark {version}, {', '.join(names)} cannot be loaded by Spark 3.5 and 4.0: save with the "
        "Spark version that will use the model"
    ]
