"""The step of a job that grows its pipeline, in place of fine-tuning."""

from collections.abc import Sequence
from typing import Any

from sparkdiff.data.splits import Boundaries, Source
from sparkdiff.finetune import Outcome
from sparkdiff.growth.plan import described
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
    """Print the plan of growth, and grow.

    Args:
        replace: see `fine_tune`.
    """
    settings, model = GrowthSettings.of(config.grower or {}), plain(model)
    with phases.phase("plan"):
        text = described(model, options, settings, sources[0].df)
    if options.verbosity:
        print(text, flush=True)
    return grow_pipeline(model, options, settings, sources, phases, boundaries=boundaries, replace=replace)
