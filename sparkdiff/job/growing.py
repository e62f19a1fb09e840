"""The step of a job that grows its pipeline, in place of fine-tuning."""

from collections.abc import Sequence
from typing import Any

from sparkdiff.data.splits import Boundaries, Source
from sparkdiff.finetune import Outcome
from sparkdiff.growth.procedure import grow_pipeline
from sparkdiff.growth.settings import GrowthSettings
from sparkdiff.job.config import Config
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import Phases


def grow(
    config: Config, model: Any, options: Options, sources: Sequence[Source], phases: Phases,
    boundaries: Boundaries | None, *, replace: bool,
) -> Outcome:  # fmt: skip
    """Grow by the settings of a job.

    Args:
        replace: see `fine_tune`.
    """
    settings = GrowthSettings.of(config.grower or {})
    return grow_pipeline(plain(model), options, settings, sources, phases, boundaries=boundaries, replace=replace)
