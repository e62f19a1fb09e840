"""How the candidates of a network train on some rows: at which place, all columns or the active ones, affine or one by one."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch

from sparkdiff.evaluation.data import Data
from sparkdiff.evaluation.inputs import widths
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats
from sparkdiff.tensors.device import CPU, Place, home, moved
from sparkdiff.tensors.rows import SparseRows
from sparkdiff.training.active_columns import ActiveColumns, choose_active_columns, group_size
from sparkdiff.training.affine import AffineNetwork, affine_network
from sparkdiff.training.candidates import Candidates, can_be_lazy
from sparkdiff.training.monotone import Monotone
from sparkdiff.training.parameters import NaturalUnits, named_parameters
from sparkdiff.training.recipes import Recipe
from sparkdiff.training.updates import DenseUpdates, LazyUpdates

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative difference of margins, by the dtype of the rows, from which a network is not taken for affine; Spark and the network
may differ by as much."""


@dataclasses.dataclass(frozen=True)
class Here:
    """What a training computes with, at its place.

    Attributes:
        of_rows: the network in the dtype of the rows; the network itself where that is the one of the parameters.
        stats: of the network's fixed inputs.
    """

    network: Network
    units: NaturalUnits
    stats: Mapping[Version, FeatureStats]
    monotone: Monotone | None
    of_rows: Network
    place: Place = CPU

    def at(self, place: Place) -> "Here":
        """Copies of it all at another place."""
        if place.plain:
            return self
        bare = self.network.without_spark()
        network, units, stats, monotone = moved((bare, self.units, dict(self.stats), self.monotone), place.device)
        of_rows = network if place.dtype == torch.float64 else moved(bare, place.device, place.dtype)
        return Here(network, units, stats, monotone, of_rows, place)


@dataclasses.dataclass(frozen=True)
class Form:
    """How the candidates train together.

    Attributes:
        affine: the network as one affine map; None where it isn't one.
        active: which columns the steps change; None for all.
        counts: whether all rows are known to have a weight > 0.
    """

    here: Here
    options: Options
    affine: AffineNetwork | None
    active: ActiveColumns | None
    counts: bool

    @staticmethod
    def of(here: Here, recipes: Sequence[Recipe], options: Options, data: Data) -> "Form":
        """The form in which these candidates train on these data, the same in all processes."""
        affine = affine_network(here.network, widths(here.of_rows, data))
        if affine is not None and here.monotone is None:
            tolerance = TOLERANCE[here.place.dtype]
            affine = affine if _agrees(affine, here.network, data, tolerance, here.of_rows) else None
        # On the CPU a step looks at its own weights, which costs nothing there.
        counts = not here.place.on_cpu and _all_count(data)
        return Form(here, options, affine, _active_columns(here, affine, recipes, options, data), counts)

    def candidates(self, recipes: Sequence[Recipe], among: Sequence[Recipe] | None = None) -> Candidates:
        """These candidates, at the original's parameters; `among`: those that they are a part of, if they are."""
        here = self.here
        rows = None if here.of_rows is here.network else here.of_rows
        updates = (
            LazyUpdates(self.active, recipes)
            if self.active
            else DenseUpdates(here.network, recipes, here.units, self.affine, rows)
        )
        return Candidates(recipes, self.options, updates, here.monotone, counts=self.counts, among=among)


def _all_count(data: Data) -> bool:
    """Whether no training row of any process has the weight 0; rows that are read from files are not looked at."""
    zeros = data.stream.zero_weights("train", data.team.rank, data.team.world)
    found = torch.tensor(1 if zeros is None else zeros, dtype=torch.float64)
    data.team.sum_(found)
    return not bool(found)


@torch.no_grad()
def _agrees(
    affine: AffineNetwork, network: Network, data: Data, tolerance: float = 1e-9, of_rows: Network | None = None
) -> bool:
    """Whether the affine network gives the network's margins on validation rows, in all processes.

    (x - mean) * slope, multiplied out, loses the digits by which a column's mean exceeds its standard deviation; and a slope
    of 0 is no selection where a feature that isn't selected holds NaN.
    """
    slopes = affine.slopes(named_parameters(network), 1)
    wrong = slopes.constant.new_zeros(())
    for batch, *_ in data.batches("validation"):
        values = data.values(batch)
        margin = (of_rows or network).margin(dict(values))
        found = affine.margins(slopes, values)[0]
        near = (found - margin).abs() <= tolerance * margin.abs().clamp_min(1)
        wrong += (~near & (found != margin) & ~(found.isnan() & margin.isnan())).sum()
    data.team.sum_(wrong)
    return not bool(wrong)


def _active_columns(
    here: Here, affine: AffineNetwork | None, recipes: Sequence[Recipe], options: Options, data: Data
) -> ActiveColumns | None:  # fmt: skip
    """The columns that groups of batches use, where they are few; the same in all processes."""
    modules = [here.network.module(i) for i in here.network.positions]
    if affine is None or not can_be_lazy(modules, recipes, options, here.monotone):
        return None
    nothing = data.stream.nothing()
    values = data.values(data.prepare.rows(nothing) if data.prepare else nothing)
    sparse = {v: x.width for v, x in values.items() if v in here.stats and isinstance(x, SparseRows)}
    share = {v: home(here.stats[v].support).double() / max(1, data.stream.rows("train")) for v in sparse}
    rows = options.batchSize * group_size(options.batchSize)
    return choose_active_columns(here.network, affine, here.units, share, rows)
