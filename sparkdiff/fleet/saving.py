"""Triage of saved pipelines, as the command runs it: each tuned pipeline is saved as soon as its run ends."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.fleet.entries import name_of
from sparkdiff.fleet.procedure import triage
from sparkdiff.fleet.results import Triage, Triaged
from sparkdiff.machine import paths
from sparkdiff.serving.saving import new_folder, save


def triage_paths(
    models: Sequence[str], data: Sequence[str], budget: str, storeDir: str | None, output: str | None, share: float,
    dryRun: bool, options: Mapping[str, Any],
) -> Triage:  # fmt: skip
    """Triage of models and rows by their paths.

    Args:
        data: one path for all models, or one per model.
        output: the folder in which the tuned pipelines are saved by their names; None: nowhere.

    Raises:
        InputError: see `triage`; or a folder that would be written exists, is no folder of this machine, or cannot be written.
    """
    names = names_of(models)
    folders = {} if output is None else {name: new_folder("--output", paths.inside(output, name)) for name in names}
    every = list(data) * len(models) if len(data) == 1 else list(data)
    fleet = [{"name": n, "model": m, "data": d} for n, m, d in zip(names, models, every, strict=True)]

    def done(pipeline: Triaged, model: Any) -> None:
        if model is not None and pipeline.name in folders:
            save(model, folders[pipeline.name])

    return triage(fleet, budget=budget, storeDir=storeDir, share=share, dryRun=dryRun, done=done, **options)


def names_of(models: Sequence[str]) -> list[str]:
    """The names of saved models: where several have the same last part, the parts by which they differ, too."""
    names = [name_of(model) for model in models]
    out = []
    for model, name in zip(models, names, strict=True):
        alike = {other for other, own in zip(models, names, strict=True) if own == name}
        above = os.path.commonpath([os.path.dirname(other) for other in alike])
        out.append(name if len(alike) == 1 else os.path.relpath(model, above).replace("/", "-"))
    return out
