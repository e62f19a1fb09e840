"""The step of a job that improves its pipeline, in place of fine-tuning."""

from collections.abc import Sequence
from typing import Any

from sparkdiff.data.splits import Boundaries, Source
from sparkdiff.improvement.plan import described
from sparkdiff.improvement.procedure import Improved, improve_pipeline
from sparkdiff.improvement.settings import ImprovementSettings
from sparkdiff.job.config import Config
from sparkdiff.options import Options
from sparkdiff.pipeline.nesting import plain
from sparkdiff.report import Phases


def improve(
    config: Config, model: Any, options: Options, sources: Sequence[Source], phases: Phases,
    boundaries: Boundaries | None, *, replace: bool,
) -> Improved:  # fmt: skip
    """Print the plan of the improvement, and improve.

    Args:
        replace: see `fine_tune`.
    """
    settings, model = ImprovementSettings.of(config.improver or {}), plain(model)
    with phases.phase("plan"):
        text = described(model, options, settings, sources[0].df)
    if options.verbosity:
        print(text, flush=True)
    return improve_pipeline(model, options, settings, sources, phases, boundaries=boundaries, replace=replace)
