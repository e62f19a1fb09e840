"""Checks of Param values and metrics that Spark would refuse, before the first fit."""

import re
from collections.abc import Collection
from typing import Any

from pyspark.ml.param import Param, Params
from pyspark.ml.wrapper import JavaParams

from sparkdiff import jvm
from sparkdiff.errors import InputError, did_you_mean
from sparkdiff.pipeline.nesting import inside
from sparkdiff.stages.base import columns_of
from sparkdiff.stages.referenced_stages import OUTPUTS
from sparkdiff.tuning.fits import GridTask, is_sparks

READ = ("labelCol", "predictionCol", "rawPredictionCol")
"""Params of evaluators that name columns which every metric reads."""


def check_values(task: GridTask) -> None:
    """Check that the Params of the task's stages accept all values of the grid.

    Raises:
        InputError: a value is invalid. The message names the Param and gives Spark's reason.
    """
    held, seen = inside(task.estimator), set()
    for params in task.maps:
        for param, value in params.items():
            stage, known = held.get(param.parent), (param.parent, param.name, repr(value))
            if known in seen or stage is None or not stage.hasParam(param.name):
                continue
            seen.add(known)
            check_value("estimatorParamMaps", stage, param, value)


def check_value(where: str, stage: Any, param: Param[Any], value: Any) -> None:
    """Check that a Param of a stage accepts a value; `where` names the value's origin in the message.

    Raises:
        InputError: the value is invalid. The message names the Param and gives the reason of Spark or of the stage.
    """
    if stage.hasParam(param.name):
        param = stage.getParam(param.name)  # a loaded Param has lost its converter
    try:
        converted = param.typeConverter(value)
        if isinstance(stage, JavaParams) and converted is not None and not isinstance(converted, Params):
            stage._make_java_param_pair(param, converted)  # Java asks the Param's own validator
    except (TypeError, ValueError, *jvm.SparkError) as e:
        raise InputError(f"{where} gives {param.name} of {param.parent} the value {value!r}: {jvm.cause(e)}") from e


def check_evaluator(evaluator: Any, estimator: Any, columns: Collection[str]) -> None:
    """Check, with Spark's own validation, that the Params of an evaluator, such as its metric, have valid values; and
    that the rows have each column that it reads, or a Param of a stage names it, such as an output column or a statement.

    Args:
        estimator: the estimator, in a list with what a search may set in it.

    Raises:
        InputError: a value is invalid. The message gives Spark's reason.
    """
    if not isinstance(evaluator, JavaParams):
        return
    for param in evaluator.params:
        if evaluator.isSet(param):
            with jvm.as_input_error(f"{type(evaluator).__name__}({param.name}={evaluator.getOrDefault(param)!r})"):
                evaluator._make_java_param_pair(param, evaluator.getOrDefault(param))
    held = inside(estimator).values()
    texts = [
        *columns,
        str(estimator),
        *(str(stage.getOrDefault(p)) for stage in held for p in stage.params if stage.isDefined(p)),
    ]
    written = [column for stage in held for column in columns_of(stage, OUTPUTS)]
    for name in READ if all(map(is_sparks, held)) else ():
        for column in columns_of(evaluator, (name,)):
            if not any(re.search(rf"(?<!\w){re.escape(column)}(?!\w)", text, re.IGNORECASE) for text in texts):
                raise InputError(
                    f"{name}={column!r} of {type(evaluator).__name__} is neither a column of the data nor one that a stage "
                    f"writes. {did_you_mean(column, [*columns, *written])}"
                )
