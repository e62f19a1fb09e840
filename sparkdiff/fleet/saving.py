"""Triage of saved pipelines, as the command runs it: each tuned pipeline is saved as soon as its run ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparkdiff.errors import InputError
from sparkdiff.fleet.entries import name_of
from sparkdiff.fleet.procedure import triage
from sparkdiff.fleet.results import Triage, Triaged


def triage_paths(
    models: Sequence[str], data: Sequence[str], budget: str, storeDir: str | None, output: Path | None, share: float,
    dryRun: bool, options: Mapping[str, Any],
) -> Triage:  # fmt: skip
    """Triage of models and rows by their paths.

    Args:
        data: one path for all models, or one per model.
        output: the folder in which the tuned pipelines are saved by their names; None: nowhere.

    Raises:
        InputError: see `triage`; or a folder that would be written exists.
    """
    names = [name_of(model) for model in models]
    if output is not None and (there := [str(output / name) for name in names if (output / name).exists()]):
        raise InputError(f"{', '.join(there)}: there already; choose another --output, or remove it")
    every = list(data) * len(models) if len(data) == 1 else list(data)
    fleet = [{"name": n, "model": m, "data": d} for n, m, d in zip(names, models, every, strict=True)]

    def done(pipeline: Triaged, model: Any) -> None:
        if output is not None and model is not None:
            model.write().save(f"file://{(output / pipeline.name).absolute()}")

    return triage(fleet, budget=budget, storeDir=storeDir, share=share, dryRun=dryRun, done=done, **options)
