"""A training in progress (`Training`: its candidates, their results so far, the position in the data) and the form in
which the candidates train (`TrainingForm`): at which place (device and dtype), on all columns or the active ones, and through
one affine map for all candidates or network by network.
"""

import dataclasses
import gc
import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch
from sparkdiff.data.stream.order import Share
from sparkdiff.errors import InputError, SparkdiffError
from sparkdiff.evaluation.guard import Ledger, LedgerTrial
from sparkdiff.evaluation.input_statistics import widths
from sparkdiff.evaluation.scores import Score
from sparkdiff.evaluation.split_batches import Data, scalar
from sparkdiff.machine import resources
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.pipeline.graph import Version
from sparkdiff.pipeline.network import Network
from sparkdiff.stages.base import FeatureStats
from sparkdiff.tensors.device import CPU, Place, copy_to, home
from sparkdiff.tensors.rows import Rows, SparseRows, rows_at
from sparkdiff.training.active_columns import ActiveColumns, choose_active_columns, group_size
from sparkdiff.training.affine import AffineNetwork, affine_network
from sparkdiff.training.augmentation import Draw
from sparkdiff.training.candidates import (
    Candidates,
    can_be_lazy,
    consecutive_runs,
    join_states,
    state_at_home,
    state_of,
)
from sparkdiff.training.cuda_graphs import CapturedSteps
from sparkdiff.training.epoch_results import Results, Standing, TrainedNetwork
from sparkdiff.training.monotone import MonotonePenalty
from sparkdiff.training.parameters import NaturalUnits, load, named_parameters, parameter_vector
from sparkdiff.training.recipes import Recipe, by_newton
from sparkdiff.training.updates import DenseUpdates, LazyUpdates

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
"""Relative difference of margins, by the dtype of the rows, above which a network is not treated as affine; Spark and
the network may differ by as much."""


@dataclasses.dataclass(frozen=True)
class NetworkOnDevice:
    """The network, its natural units (typical scales of its parameters), its input statistics and its monotone penalty,
    on the device where a training run computes.

    Attributes:
        of_rows: the network in the dtype of the rows; the network itself if that is the dtype of the parameters.
        stats: statistics of the network's fixed inputs.
    """

    network: Network
    units: NaturalUnits
    stats: Mapping[Version, FeatureStats]
    monotone: MonotonePenalty | None
    of_rows: Network
    place: Place = CPU

    def at(self, place: Place) -> "NetworkOnDevice":
        """Copies of all attributes at another place; for float64 on the CPU, this object itself."""
        if place.plain:
            return self
        bare = self.network.without_spark()
        network, units, stats, monotone = copy_to((bare, self.units, dict(self.stats), self.monotone), place.device)
        of_rows = network if place.dtype == torch.float64 else copy_to(bare, place.device, place.dtype)
        return NetworkOnDevice(network, units, stats, monotone, of_rows, place)


@dataclasses.dataclass(frozen=True)
class TrainingForm:
    """The way in which the candidates train together.

    Attributes:
        affine: the network as one affine map; None if it isn't one.
        active: the columns whose parameters the steps change; None for all.
        counts: whether all rows are known to have a weight > 0.
    """

    here: NetworkOnDevice
    options: Options
    affine: AffineNetwork | None
    active: ActiveColumns | None
    counts: bool

    @staticmethod
    def of(here: NetworkOnDevice, recipes: Sequence[Recipe], options: Options, data: Data) -> "TrainingForm":
        """The form in which these candidates train on these data, the same in all processes."""
        affine = affine_network(here.network, widths(here.of_rows, data))
        if affine is not None and here.monotone is None:
            tolerance = TOLERANCE[here.place.dtype]
            affine = affine if _agrees(affine, here.network, data, tolerance, here.of_rows) else None
        # On the CPU each step checks its own weights, which costs nothing there.
        counts = not here.place.on_cpu and _all_count(data)
        return TrainingForm(here, options, affine, _active_columns(here, affine, recipes, options, data), counts)

    def candidates(self, recipes: Sequence[Recipe], among: Sequence[Recipe] | None = None) -> Candidates:
        """Candidates with these recipes, which start from the original's parameters.

        Args:
            among: the recipes of all candidates, if `recipes` are only some of them.
        """
        here = self.here
        rows = None if here.of_rows is here.network else here.of_rows
        updates = (
            LazyUpdates(self.active, recipes)
            if self.active
            else DenseUpdates(here.network, recipes, here.units, self.affine, rows)
        )
        return Candidates(recipes, self.options, updates, here.monotone, counts=self.counts, among=among)


def _all_count(data: Data) -> bool:
    """True if no training row of any process has weight 0; False also for rows in files, which are not checked."""
    zeros = data.stream.zero_weights("train", data.team.rank, data.team.world)
    found = torch.tensor(1 if zeros is None else zeros, dtype=torch.float64)
    data.team.sum_(found)
    return not bool(found)


@torch.no_grad()
def _agrees(
    affine: AffineNetwork, network: Network, data: Data, tolerance: float = 1e-9, of_rows: Network | None = None
) -> bool:
    """True if the affine network reproduces the network's margins on validation rows, in all processes.

    They may differ for two reasons: (x - mean) * slope, multiplied out, loses digits where a column's mean is much larger than
    its standard deviation; and the margin is NaN where a feature is NaN, even if its slope is 0.
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
    here: NetworkOnDevice, affine: AffineNetwork | None, recipes: Sequence[Recipe], options: Options, data: Data
) -> ActiveColumns | None:
    """The builder for steps on active columns, if groups of batches use few columns (else None); the same in all
    processes.
    """
    modules = [here.network.module(i) for i in here.network.positions]
    if affine is None or not can_be_lazy(modules, recipes, options, here.monotone):
        return None
    nothing = data.stream.nothing()
    values = data.values(data.prepare.rows(nothing) if data.prepare else nothing)
    sparse = {v: x.width for v, x in values.items() if v in here.stats and isinstance(x, SparseRows)}
    share = {v: home(here.stats[v].support).double() / max(1, data.stream.rows("train")) for v in sparse}
    rows = options.batchSize * group_size(options.batchSize)
    return choose_active_columns(here.network, affine, here.units, share, rows)


SCORE_BYTES = 256 << 20
"""Bytes that a GPU may use at a time to measure all candidates: eight tensors of the size of their margins."""
IN_TURN = "one after the other"
STATE = 1
"""Version of the content of `Training.state`; a run that was started with another version is not resumed."""


class ShortOfMemoryError(SparkdiffError):
    """Lack of memory on the device of one of several processes."""


class Training(Results):
    """A training in progress: its candidates, their results so far, and the position in the data.

    `state()` contains everything that `load()` needs to continue as if without an interruption: bit for bit with the
    same number of processes, and up to the order of additions with another number.
    """

    def __init__(
        self,
        network: Network,
        recipes: Sequence[Recipe],
        options: Options,
        units: NaturalUnits,
        original: Score,
        stats: Mapping[Version, FeatureStats] | None = None,
        monotone: MonotonePenalty | None = None,
        epochs: int | None = None,
    ):
        super().__init__(parameter_vector(network), recipes, options, original, epochs)
        self.network, self.units = network, units
        self.here = NetworkOnDevice(network, units, stats or {}, monotone, network)
        self.step, self.ended = 0, False  # the next step of the current epoch
        self.began, self.before = time.monotonic(), 0.0  # seconds of training before this process resumed it
        self.unsaved = ""  # the first checkpoint that couldn't be written, and why
        self.fallbacks: list[str] = []  # measures taken when memory was short, and other slow-downs
        self.graphs = True  # whether steps on a GPU may be graphs; benchmarks measure them without
        self.parts = 1  # the number of parts in which the candidates train in an epoch, one after the other
        self.candidates: Candidates | None = None  # the active ones, from the first step on, unless they train in parts
        self._form: TrainingForm | None = None
        self._graphs: CapturedSteps | None = None
        self._saved: Mapping[str, Any] | None = None  # the candidates at the beginning of the epoch, or in a checkpoint
        self._before: dict[str, Any] = {}  # the whole state at that time, to return to if memory is short

    @property
    def seconds(self) -> float:
        """Seconds of training, including those before the checkpoint from which it was resumed."""
        return self.before + time.monotonic() - self.began

    @property
    def ended_early(self) -> str:
        """A message if maxSeconds ended the training while candidates were still active; else empty."""
        if self.epochs is not None or not (self.ended and self.active and self.epoch <= self.options.maxEpochs):
            return ""
        return (
            f"maxSeconds={self.options.maxSeconds:g} ended training after epoch {self.epoch - 1}, when {len(self.active)} of "
            f"{len(self.recipes)} candidates had not stopped: with more time they may gain more"
        )

    def move(self, place: Place) -> None:
        """Compute at this place from now on; results and saved states stay on the CPU.

        Raises:
            InputError: the network alone does not fit into the memory there.
        """
        try:
            self.here = self.here.at(place)
        except torch.OutOfMemoryError as e:
            why = str(e).splitlines()[0]
            raise InputError(
                f"the network does not fit into the memory of {place.name} ({why}): set device='cpu'"
            ) from e

    def begin(self, data: Data) -> None:
        """Find out how the candidates can train together on these data."""
        self.began = time.monotonic()
        self._form = TrainingForm.of(self.here, self.recipes, self.options, data)
        resources.trim_memory()  # for wide networks, the search for the affine form took much memory

    def place_rows(self, data: Data) -> Data:
        """The data, with all rows on the device if they fit there in addition to what training needs; else with rows
        that are copied there batch by batch.
        """
        stream, team, place = data.stream, data.team, self.here.place
        if place.on_cpu:
            return data
        head = self.network.head
        count, width = len(self.active), max(1, head.classes, head.margins if head.wide else 1)
        data = dataclasses.replace(data, rows=max(1024, min(data.rows, SCORE_BYTES // (8 * 8 * count * width))))
        # u, its moments and average; parameters, gradients and their forms by u; copies against which a graph is
        # checked.
        vectors = 12 * 8 * count * len(self.units.unit)
        kept = 32 * count * stream.rows("validation")  # for a metric that is no mean over rows
        if not stream.resident or stream.fits(
            ("train", "validation"), vectors + kept + SCORE_BYTES, team.rank, team.world
        ):
            return data
        self.reduce(1)
        return dataclasses.replace(data, stream=stream.on(place, resident=False))

    @property
    def is_whole(self) -> bool:
        """True if all processes have the same state, so that one of them can save it for all."""
        local = self.candidates.local if self.candidates is not None else None
        return local is None or not local.alone

    def turns(self) -> Iterator[Candidates]:
        """The active candidates for the steps of an epoch: all together, or part by part if memory is short."""
        assert self._form is not None
        active, first, every = self.active, self.step, [self.recipes[k] for k in self.active]
        if self.parts == 1 and self.candidates is None:
            self.candidates = self._form.candidates(every, self.recipes)
            if self._saved is not None:
                self.candidates.load(self._saved)
        if not self.here.place.on_cpu:
            self._saved = state_at_home(self.candidates.state()) if self.candidates else self._saved
            self._before = self._results() | {"candidates": self._saved}
        if self.candidates:
            yield self.candidates
            return
        parts = []
        for rows in consecutive_runs(len(active), self.parts):
            part, self.step = self._form.candidates([every[j] for j in rows], self.recipes), first
            if self._saved is not None:
                part.load(state_of(self._saved, rows, by_newton(every)))
            yield part
            parts.append(state_at_home(part.state()))
            self._graphs = None
            del part  # before the next part is made
        self._saved = join_states(parts)

    def with_less(self, data: Data, why: str) -> Data:
        """Return to the beginning of the epoch after torch ran out of memory, and continue with less on the device:
        first with rows that are copied there batch by batch, then with fewer candidates at a time. Returns the data to
        continue with.

        Raises:
            InputError: the memory is too small even for one candidate.
            ShortOfMemoryError: other processes wait for this one, so all have to start again with less.
        """
        place, short = self.here.place, f"training ran out of memory on {self.here.place.name}"
        self.candidates = self._graphs = self._form = None
        gc.collect()  # objects in reference cycles still hold memory of the device
        if self._before:
            self.load({**self._before, "fallbacks": self.fallbacks, "unsaved": self.unsaved, "seconds": self.seconds})
        if not data.stream.resident and self.parts >= len(self.active):
            raise InputError(
                f"{short} with one candidate at a time ({why}): set device='cpu', a smaller batchSize, or precision='float32'"
            )
        if data.team.world > 1:
            raise ShortOfMemoryError(f"process {data.team.rank}: {short} ({why})")
        self.reduce(1 if data.stream.resident else 1 + self.parts.bit_length())
        stream = data.stream.on(place, resident=False)
        data.stream.leave()
        return dataclasses.replace(data, stream=stream)

    def reduce(self, level: int) -> None:
        """Keep less on the device: no rows from level 1 on; from level 2 on, only a part of the candidates, which train
        in 2, 4, ... parts, one after the other.
        """
        self.parts = max(1, min(2 ** (level - 1), len(self.active)))
        name = self.here.place.name
        told = f"the rows and the training do not fit into the memory of {name}: rows are copied there batch by batch"
        if self.parts > 1:
            told = f"the candidates do not fit into the memory of {name}: they train in {self.parts} parts, {IN_TURN}"
        self.fallbacks = [*[f for f in self.fallbacks if IN_TURN not in f and f != told], told]

    def state(self) -> dict[str, Any]:
        """Everything needed to continue the training (from the start of the epoch if candidates train part by part)."""
        if self.parts > 1 and not self.ended:
            own = self._before or self._results() | {"candidates": self._saved}
        else:
            candidates = self.candidates.state() if self.candidates and not self.ended else None
            own = self._results() | {"candidates": state_at_home(candidates)}
        return own | {"unsaved": self.unsaved, "seconds": self.seconds, "fallbacks": self.fallbacks}

    def _results(self) -> dict[str, Any]:
        return {
            "epoch": self.epoch,
            "step": self.step,
            "ended": self.ended,
            "history": list(self.history),
            "gains": torch.stack(self.gains) if self.gains else torch.empty(0),
            "columns": list(self.columns),
            "standings": [dict(vars(s)) for s in self.standings],
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.epoch, self.step, self.ended = state["epoch"], state["step"], state["ended"]
        self.history, self.gains = list(state["history"]), list(state["gains"])
        self.columns = [(k, epoch) for k, epoch in state["columns"]]
        self.standings = [Standing(**s) for s in state["standings"]]
        self._saved, self.unsaved, self.before = state["candidates"], state["unsaved"], state["seconds"]
        self.began, self.fallbacks = time.monotonic(), list(state["fallbacks"])

    def take_step(self, candidates: Candidates, data: Data, batch: Batch, objective: Objective) -> None:
        """Take one step of every active candidate on this process's rows of a batch (there may be none).

        If a candidate augments its data, the batch holds all rows of the virtual shards (fixed parts of the rows) of which
        this process has a share.
        """
        o, team = self.options, data.team
        sums, of_weight = candidates.updates.matrix.sums, candidates.updates.matrix.weight
        draw = Draw((), (o.seed, self.epoch, self.step), self.here.stats)
        groups = {}
        if objective.batch is not None:
            groups = {name: scalar(batch, c.name) for name, c in data.stream.manifest.slices.items()}
        values, label, weight = data.values(batch), scalar(batch, "label"), scalar(batch, "weight")
        if candidates.augments:
            shares = data.stream.shares("train", o.batchSize, self.step, team.rank, team.world)
            draw = dataclasses.replace(draw, shards=[(s.shard, s.rows) for s in shares])
            if any(s.last - s.first < s.rows for s in shares):
                own = self.here.place.numbers(_own(shares), wait=False)
                draw = dataclasses.replace(draw, whole=(values, (label, weight)), own=own)
                values, label, weight = {v: rows_at(x, own) for v, x in values.items()}, label[own], weight[own]
                groups = {name: code[own] for name, code in groups.items()}
        graphs = None if candidates.u.is_cpu else self._step_graphs(candidates, objective, values)
        if graphs is not None and len(weight):
            graphs.add(candidates.augmenter.views(values, (label, weight), draw), weight)
        else:
            sums.zero_()
            candidates.add(values, (label, weight), objective, draw, groups=groups, team=team)
        if candidates.local is not None:
            last = self.step + 1 == data.stream.steps("train", o.batchSize)
            candidates.step_apart(team, objective.scale, self._factor(data), last=last)
            return
        team.sum_(sums)
        if graphs is not None:
            graphs.step(self._factor(data))
        elif bool(of_weight > 0):
            candidates.step(objective.scale, self._factor(data))

    def _step_graphs(
        self, candidates: Candidates, objective: Objective, values: Mapping[Version, Rows]
    ) -> CapturedSteps | None:
        """The steps of these candidates as CUDA graphs; None if they can't be captured."""
        if self._graphs is None or self._graphs.candidates is not candidates:
            self._graphs = CapturedSteps(candidates, objective, values)
        return self._graphs if self.graphs and self._graphs.possible else None

    def _factor(self, data: Data) -> float:
        """The schedule's factor of the learning rate at this step."""
        if self.options.schedule == "constant":
            return 1.0
        done = self.epoch - 1 + self.step / data.stream.steps("train", self.options.batchSize)
        return 0.5 * (1 + math.cos(math.pi * done / self.options.maxEpochs))

    def validate(
        self, candidates: Candidates, data: Data, objective: Objective, metric: Metric, active: Sequence[int]
    ) -> None:
        """Measure candidates on the validation split, after the steps of an epoch.

        Args:
            active: the indices of these candidates among all candidates.
        """
        losses = candidates.end_epoch(objective.scale)
        if candidates.lazy:
            resources.trim_memory()  # its steps took blocks of ever different sizes, between which more and more memory is free
        scores, parameters = candidates.scores(data, "validation", metric)
        for j, (k, loss, now) in enumerate(zip(active, losses, scores, strict=True)):
            if self.record(k, loss, now):
                self.standings[k].flat = home(parameters(j))
        if candidates.lazy:
            resources.trim_memory()

    def end_epoch(self, data: Data, active: Sequence[int]) -> None:
        """End the epoch and drop the candidates that stopped in it."""
        if self._graphs is not None and self._graphs.failed:
            told = f"steps on {self.here.place.name} start their kernels one by one, which is slower: {self._graphs.failed}"
            self.fallbacks = list(dict.fromkeys([*self.fallbacks, told]))
        self.epoch, self.step = self.epoch + 1, 0
        last = self.options.maxEpochs if self.epochs is None else self.epochs
        self.ended = self.epoch > last or not self.active or self._over(data)
        rows = [j for j, k in enumerate(active) if self.standings[k].active]
        if rows and len(rows) < len(active):
            if self.candidates is not None:
                self.candidates = self.candidates.subset(rows)
            elif self._saved is not None:
                self._saved = state_of(self._saved, rows, by_newton([self.recipes[k] for k in active]))
                self.parts = min(self.parts, len(rows))

    def _over(self, data: Data) -> bool:
        """True if maxSeconds have passed, by the first process's clock so that all end after the same epoch."""
        if self.options.maxSeconds is None:
            return False
        seconds = torch.tensor(0.0 if data.team.rank else self.seconds, dtype=torch.float64)
        data.team.sum_(seconds)
        return float(seconds) >= self.options.maxSeconds

    def release(self) -> None:
        """Release everything that only further steps need: candidates, optimizer states, and their preparation."""
        self.candidates = self._form = self._graphs = self._saved = None
        self._before = {}

    def result(self, network: Network) -> TrainedNetwork:
        """The result of the training; `network` is the original."""
        best = self.best
        out, moved = network.clone(), {}
        if best.column >= 0:
            load(out, best.flat)
            moved = self.units.distances(network, best.flat)
        ledger = Ledger(
            torch.stack(self.gains), self.original.weights, [LedgerTrial(*c) for c in self.columns], best.column
        )
        return TrainedNetwork(self.history, ledger, out, moved)


def _own(shares: Sequence[Share]) -> Tensor:
    """The indices of a process's own rows among all rows of its shards."""
    starts = itertools.accumulate((s.rows for s in shares), initial=0)
    return torch.cat([torch.arange(start + s.first, start + s.last) for start, s in zip(starts, shares, strict=False)])
