"""The rows of an improvement without a public class around it, for tests of one step of an arm."""

from typing import Any

from pyspark.sql import DataFrame

from sparkdiff.data.splits import TRAIN, VALIDATION, Source
from sparkdiff.fine_tuning.shared import Shared
from sparkdiff.improvement.ground import Ground, prepared
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.options import Options
from sparkdiff.report import Phases


def began(
    model: Any, rows: DataFrame, held: DataFrame | None = None, settings: dict[str, Any] | None = None, **options: Any
) -> Ground:
    """The rows that explore, where the original is measured.

    Args:
        held: the rows that choose; None for a share of `rows`.
        settings: of an improvement.
    """
    sources = [Source(rows)] if held is None else [Source(rows, TRAIN), Source(held, VALIDATION)]
    given = ImprovementSettings.of(settings or {})
    return prepared(Ground(model, Options.of(options), given, sources, None, Phases(False), Shared()))
