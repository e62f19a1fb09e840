"""The start of a training run: natural units (typical scales) of the parameters, statistics of the inputs, and the
candidates.

This module also resolves the loss and the metric, and lists the settings on which the result depends: a run in a folder
that was started with different settings is not resumed.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sparkdiff.evaluation.input_statistics import all_dense, distinct_values, features, leaf_counts, tallies
from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives import losses, metrics
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective, with_penalties
from sparkdiff.options import Options, callable_name
from sparkdiff.pipeline.graph import LEAVES, Version
from sparkdiff.pipeline.network import Network, fixed_versions, routed_versions
from sparkdiff.stages.base import FeatureStats, LabelStats
from sparkdiff.stages.forest import Trees
from sparkdiff.stages.predictor import Predictor
from sparkdiff.store.checkpoint_folder import text_or_reason
from sparkdiff.store.identity import identity
from sparkdiff.store.model_digests import all_params, without_uids
from sparkdiff.training.parameters import NaturalUnits
from sparkdiff.training.recipes import Recipe, recipes_for
from sparkdiff.training.training_run import STATE

# Options that affect where and how training runs, but not its result.
_OUTSIDE = (
    "verbosity",
    "numProcesses",
    "localMode",
    "timeout",
    "stream",
    "cacheInMemory",
    "cacheDir",
    "cacheMaxAge",
    "reuseStages",
    "checkpointDir",
    "runId",
    "guard",
    "maxFlipRate",
    "fleetSize",
    "waitForRun",
    "device",
    "localCacheLimit",
    "storeDir",
    "tags",
    "redact",
)


@dataclasses.dataclass(frozen=True)
class Start:
    """The start of a training run.

    Attributes:
        units: natural units of the parameters.
        frozen: number of frozen entries per parameter; entries are frozen if too few rows support them.
        stats: statistics of the network's fixed inputs; the standard deviation of a category's number is 0, as no noise
            may be added to it; means and standard deviations are empty if nothing will need them.
        recipes: the candidates of all settings that train together.
        each: the candidates of each setting.
    """

    units: NaturalUnits
    frozen: dict[str, int]
    stats: Mapping[Version, FeatureStats]
    recipes: tuple[Recipe, ...]
    each: tuple[tuple[Recipe, ...], ...] = ()


def start_of(
    network: Network,
    data: Data,
    label: LabelStats,
    options: Options,
    validationRows: int,
    recipes: Sequence[Recipe] | None = None,
    settings: Sequence[Options] = (),
) -> Start:
    """Compute the start in passes over the training rows; the stages of the network observe their inputs.

    Args:
        recipes: the candidates to train; None: those that the options define.
        settings: several options, whose candidates train together; empty: only `options`.
    """
    graph, inputs = network.graph, fixed_versions(network)
    modules = {i: network.module(i) for i in network.positions}
    trains = {i for i, m in modules.items() if any(p.requires_grad for p in m.parameters())}
    reads = {i: graph.vertices[i].reads[0] for i, m in modules.items() if isinstance(m, Trees) or i in trains}
    # A predictor in front of others does not predict the label: its unit follows from its own predictions.
    others = {
        i: (graph.casefold(graph.vertices[i].outputs[0]), i)
        for i, m in modules.items()
        if isinstance(m, Predictor) and i != graph.head_position and not m.classes and graph.vertices[i].outputs
    }
    stats, reached = features(network, data, {*reads.values(), *inputs, *others.values()}), leaf_counts(network, data)
    sums = tallies(network, data)
    labels = {
        i: dataclasses.replace(label, mean=float(stats[v].mean[0]), std=float(stats[v].std[0]))
        for i, v in others.items()
    }
    seen = {i: dataclasses.replace(stats[v], leaves=reached.get(i), sums=sums.get(i, {})) for i, v in reads.items()}
    # The tree stages whose thresholds train on features that no trainable parameter changes.
    settling = {i for i, m in network.trees().items() if not m.routes_fixed and {*graph.vertices[i].reads} <= {*inputs}}
    for i, v in reads.items():
        modules[i].observe(seen[i], distinct_values(network, data, i) if i in settling else {})
        stats[v] = dataclasses.replace(stats[v], std=stats[v].std.index_fill(0, modules[i].nominal_features(), 0.0))
    numbered = [v for i in trains if modules[i].reads_categories for v in graph.vertices[i].reads if v in stats]
    stats |= {v: dataclasses.replace(stats[v], std=torch.zeros_like(stats[v].std)) for v in numbered}
    units, frozen = NaturalUnits.of(network, seen, label, options, labels)
    trees = sum(m.nodes.trees for i, m in network.trees().items() if i in trains)
    apart = any(
        len(m.nominal_features()) or (i in trains and (m.reads_categories or m.takes_nulls)) for i, m in modules.items()
    )
    # A mixture of two rows has no value of its own for a column that the loss reads.
    mixes = all_dense(network, data, inputs) and not apart and not graph.head.lossReads
    newton = (LEAVES, graph.head_position) in routed_versions(network) and not network.head.wide
    each = [recipes or ()]
    if recipes is None:
        asked = settings or [options]
        each = [recipes_for(o, validationRows, mixes=mixes, trees=trees, newton=newton) for o in asked]
        recipes = list(dict.fromkeys(recipe for own in each for recipe in own))
    kept = {v: dataclasses.replace(stats[v], entry=None) for v in inputs}  # `entry` was only needed for the units
    if not any(r.augments for r in recipes) and "monotone" not in options.penalties:
        none = torch.empty(0, dtype=torch.float64)
        kept = {v: dataclasses.replace(s, mean=none, std=none) for v, s in kept.items()}
    return Start(units, frozen, kept, tuple(recipes), tuple(map(tuple, each)))


def network_identity(network: Network) -> dict[str, Any]:
    """An identity of the untrained network without uids: the same in every process that gets the same pipeline.

    It consists of the Params of all stages, in clear text, and a hash of the translated stages: their content, and the
    code of stages whose classes are not sparkdiff's.
    """
    vertices = network.graph.vertices
    stages = [v.stage for v in vertices]
    modules = [(i, network.module(i)) for i in network.positions]
    return {
        "stages": {f"{i} {s.stageClass}": p for i, (s, p) in enumerate(zip(vertices, all_params(stages), strict=True))},
        "pipeline": text_or_reason(lambda: identity(modules, bare=without_uids([s.uid for s in stages]))),
    }


def request_of(
    options: Options,
    rows: str,
    computed: Mapping[str, Any],
    recipes: Sequence[Recipe] | None = None,
    epochs: int | None = None,
) -> dict[str, Any]:
    """Everything that determines the result of a training run, by name.

    Args:
        rows: the cache's fingerprint.
        computed: see `network_identity`.
        recipes: the candidates, if the caller chose them.
        epochs: the number of epochs, if the caller chose it.
    """
    o = options
    request: dict[str, Any] = {k: v for k, v in o.asdict().items() if k not in _OUTSIDE}
    if o.localSteps > 1:
        request["numProcesses"] = o.numProcesses
    if callable(o.loss) and o.runId is not None:
        request["loss"] = text_or_reason(lambda: f"{callable_name(o.loss)} {identity(o.loss)[:16]}")  # type: ignore[arg-type]
    handed_in: dict[str, Any] = {} if recipes is None else {"recipes": [dataclasses.asdict(r) for r in recipes]}
    handed_in |= {} if epochs is None else {"epochs": epochs}
    return request | {"rows": rows, "stateVersion": STATE, **computed, **handed_in}


def resolve_objectives(options: Options, network: Network, label: LabelStats) -> tuple[Objective, Metric]:
    """Resolve the objective that training minimises, and the metric that validation measures, from the options.

    Raises:
        InputError: see `losses.resolve`, `metrics.resolve` and `with_penalties`.
    """
    o, head, columns = options, network.head, network.graph.head.outputs
    objective = losses.resolve(o.loss, o.lossParams, head, columns, label)
    metric = metrics.resolve(o, objective, head, columns, label)
    return with_penalties(objective, o.penalties, head, label, o.guardCols), metric
