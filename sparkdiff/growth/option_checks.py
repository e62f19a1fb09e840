"""Checks before growth trains anything: they refuse options, entity columns and Spark versions that growth can't work with."""

from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql.types import NumericType, StringType

from sparkdiff import jvm
from sparkdiff.data.splits import field
from sparkdiff.errors import InputError
from sparkdiff.fine_tuning.task import Task
from sparkdiff.growth.growth_options import GrowthSettings
from sparkdiff.options import Options


def check_options(options: Options) -> None:
    """Raise InputError for options of fine-tuning that are not possible with growth."""
    if options.precision != "float64":
        raise InputError(
            f"precision={options.precision!r} is not possible with Grower: parts are trained in float64. Leave it out"
        )
    if "monotone" in options.penalties:
        raise InputError(
            "penalties: monotone is not possible with Grower, because parts are no linear functions of a feature: leave it out"
        )


def check_last_stage(settings: GrowthSettings) -> None:
    """Raise InputError if the added columns are to be dropped, but this Spark can't drop columns without naming all others."""
    if settings.dropColumns and not jvm.can_except():
        raise InputError(
            f"dropColumns=True needs Spark 4.0 or newer, and this is {jvm.session().version}: an SQLTransformer drops columns "
            "by `SELECT * EXCEPT (...)`. A list of the columns to keep would lose those that only rows to predict have. Leave "
            "dropColumns out, and drop the columns from what transform returns (docs/growing.md shows the code)"
        )


def check_entities(names: Sequence[str], task: Task, data: DataFrame) -> None:
    """Raise InputError if one of these columns can't be an entity.

    Refused are the label, the columns that it is made of, and timeCol, because they would leak the label; the weight, the columns
    that it is made of, and validationIndicatorCol; and columns with an unsuitable type or name.
    """
    o, casefold = task.options, task.cut.graph.casefold
    used = {
        "labelCol": task.labelCol,
        "weightCol": task.weightCol,
        "timeCol": o.timeCol,
        "validationIndicatorCol": o.validationIndicatorCol,
    }
    for name in names:
        kind = field(data, name, "entityCols").dataType
        if not isinstance(kind, (StringType, NumericType)):
            raise InputError(f"entityCols: column {name!r} is {kind.simpleString()}, but must hold strings or numbers")
        for option, column in used.items():
            if column is not None and casefold(column) == casefold(name):
                raise InputError(
                    f"entityCols: {name!r} is the {option}, so it cannot be an entity column: leave it out"
                )
        for option in ("labelCol", "weightCol"):
            made, column = f"{option}={used[option]!r}", used[option]
            makers = task.cut.graph.makers([column] if column is not None else [])
            if any(casefold(name) in (read for read, _ in vertex.sources) for vertex in makers):
                raise InputError(
                    f"entityCols: {made} is made of {name!r}, so it cannot be an entity column: leave it out"
                )
        if "." in name or "`" in name:
            raise InputError(
                f"entityCols: {name!r} has a dot or a backtick, which stages read as a field: rename the column"
            )
