"""Values of Params and metrics that Spark would refuse, refused before the first fit."""

from typing import Any

from pyspark.ml.param import Param, Params
from pyspark.ml.wrapper import JavaParams

from sparkdiff import jvm
from sparkdiff.errors import InputError
from sparkdiff.pipeline.nesting import inside
from sparkdiff.tuning.fits import GridTask


def check_values(task: GridTask) -> None:
    """Refuse a value of the grid that a Param does not take.

    Raises:
        InputError: names the Param, and says what Spark says.
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
    """Refuse a value that a Param of a stage does not take.

    Raises:
        InputError: names the Param, and says what Spark, or the stage, says.
    """
    if stage.hasParam(param.name):
        param = stage.getParam(param.name)  # one that was loaded has lost its converter
    try:
        converted = param.typeConverter(value)
        if isinstance(stage, JavaParams) and converted is not None and not isinstance(converted, Params):
            stage._make_java_param_pair(param, converted)  # Java asks the Param's own validator
    except (TypeError, ValueError, *jvm.SparkError) as e:
        raise InputError(f"{where} gives {param.name} of {param.parent} the value {value!r}: {jvm.cause(e)}") from e


def check_evaluator(evaluator: Any) -> None:
    """Let Spark refuse an unknown metric.

    Raises:
        InputError: says what Spark says.
    """
    if not isinstance(evaluator, JavaParams):
        return
    for param in evaluator.params:
        if evaluator.isSet(param):
            with jvm.blamed(f"{type(evaluator).__name__}({param.name}={evaluator.getOrDefault(param)!r})"):
                evaluator._make_java_param_pair(param, evaluator.getOrDefault(param))
