"""Write-back of a trained network's weights into stages of the same MLlib classes."""

import copy
from typing import Any

import torch

from sparkdiff.errors import InputError, check_type
from sparkdiff.pipeline.nesting import flatten, with_leaves
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import StageModule


def write_back(model: Any, network: Network) -> Any:
    """Return the same pipeline (classes, uids, set and default Params) with the parameters of the network.

    A stage whose parameters did not change stays the same object, and so does the whole pipeline if nothing changed.
    `model` is never modified.

    Raises:
        InputError: a parameter is not finite or outside the domain of its stage (the message names both), or the
            network was translated from another pipeline.

    Examples:
        >>> import sparkdiff
        >>> import torch
        >>> network = sparkdiff.translate(model)
        >>> with torch.no_grad():
        ...     network.stages["3"].interceptVector += 0.5  # or a training of your own
        >>> changed = sparkdiff.write_back(model, network)
        >>> round(changed.stages[3].intercept - model.stages[3].intercept, 9)
        0.5
    """
    leaves = flatten(model)
    check_type("network", network, Network, "the result of translate(model)")
    of = {vertex.path: i for i, vertex in enumerate(network.graph.vertices)}
    if [(p, s.uid) for p, s in leaves] != [(vertex.path, vertex.uid) for vertex in network.graph.vertices]:
        raise InputError(
            f"the network was translated from another pipeline than {model.uid}: create one with translate(model)"
        )
    new = {p: write_back_stage(s, network.module(of[p])) for p, s in leaves if of[p] in network.positions}
    return with_leaves(model, new)


@torch.no_grad()
def write_back_stage(stage: Any, module: StageModule) -> Any:
    """`stage` itself if the module has the same parameters, else a new stage with the module's parameters. Entries that
    never count (`entry_mask`) keep Spark's values.
    """
    if not any(True for _ in module.parameters()):
        return stage
    old = type(module).from_spark(stage).unfrozen_as(module)
    fresh = copy.deepcopy(old)
    counts, changed = old.entry_mask(), False
    for (name, now), was, target in zip(module.named_parameters(), old.parameters(), fresh.parameters(), strict=True):
        moved = (now != was) & ~(now.isnan() & was.isnan())
        if name in counts:
            moved = moved & counts[name]
        if bool((moved & ~now.isfinite()).any()):
            raise InputError(
                f"{stage.uid}: {name} holds {now[moved & ~now.isfinite()][0].item()!r}; only finite values can "
                "be written back"
            )
        target.copy_(torch.where(moved, now, was))
        changed = changed or bool(moved.any())
    if not changed:
        return stage
    fresh.check_domain(stage.uid)
    return fresh.to_spark(stage)
