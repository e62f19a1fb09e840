"""A short way to one step of an arm: the original on the rows that explore, without a race and a proof around it."""

from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.fine_tuning.task import FitResults
from sparkdiff.improvement.arm_context import ArmContext, measure_original
from sparkdiff.improvement.improvement_options import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.report import Phases


def prepare_context(
    model: Any, rows: DataFrame, held: DataFrame | None = None, settings: dict[str, Any] | None = None, **options: Any
) -> ArmContext:
    """Measure the original on rows that explore.

    Args:
        held: the rows that choose; None for a share of `rows`.
        settings: of an improvement.
    """
    sources = [Source(rows)] if held is None else [Source(rows, TRAIN), Source(held, VALIDATION)]
    given = ImprovementSettings.of(settings or {})
    return measure_original(ArmContext(model, Options.of(options), given, sources, None, Phases(False), FitResults()))
