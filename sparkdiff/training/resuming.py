"""The settings that a training depends on: it does not resume a run folder that was started with others."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from sparkdiff.options import Options, callable_name
from sparkdiff.pipeline.network import Network
from sparkdiff.store.digests import all_params, without_uids
from sparkdiff.store.identity import identity
from sparkdiff.store.run_folder import told
from sparkdiff.training.loop import STATE
from sparkdiff.training.recipes import Recipe

# Options that decide where and how training runs, but not its result.
_OUTSIDE = (
    "verbosity", "numProcesses", "localMode", "timeout", "stream", "cacheInMemory", "cacheDir", "checkpointDir", "runId", "guard",
    "maxFlipRate", "fleetSize", "waitForRun",
)  # fmt: skip


def computed_by(network: Network) -> dict[str, Any]:
    """An identity of the untrained network without uids: the same in every process that gets the same pipeline.

    It consists of the Params of all stages, in clear text, and a hash of the translated stages: their content, and the code of
    those that are not ours.
    """
    vertices = network.graph.vertices
    stages = [v.stage for v in vertices]
    modules = [(i, network.module(i)) for i in network.positions]
    return {
        "stages": {f"{i} {s.stageClass}": p for i, (s, p) in enumerate(zip(vertices, all_params(stages), strict=True))},
        "pipeline": told(lambda: identity(modules, bare=without_uids([s.uid for s in stages]))),
    }


def request_of(
    options: Options, rows: str, computed: Mapping[str, Any], recipes: Sequence[Recipe] | None = None
) -> dict[str, Any]:  # fmt: skip
    """Everything that decides the result of a training, by name.

    Args:
        rows: the cache's fingerprint.
        computed: see `computed_by`.
        recipes: the candidates, if the caller chose them.
    """
    o = options
    request: dict[str, Any] = {k: v for k, v in o.asdict().items() if k not in _OUTSIDE}
    if callable(o.loss) and o.runId is not None:
        request["loss"] = told(lambda: f"{callable_name(o.loss)} {identity(o.loss)[:16]}")  # type: ignore[arg-type]
    handed_in = {} if recipes is None else {"recipes": [dataclasses.asdict(r) for r in recipes]}
    return request | {"rows": rows, "stateVersion": STATE, **computed, **handed_in}
