"""Steps as graphs of a GPU: the kernels of a step are recorded once and then started all at once.

A step of a small network is a hundred kernels of some microseconds, and starting each takes Python and torch longer than it runs.
A graph holds addresses and numbers, not Python: rows are copied to where it reads them, and everything else that changes from
step to step lies in tensors. Before a graph is used its results are compared, bit for bit, with those of the step it stands for.

Source: torch.cuda.CUDAGraph, and torch's notes on CUDA graphs.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sparkdiff.objectives.objective import Objective
from sparkdiff.pipeline.graph import Version
from sparkdiff.tensors.device import ALONE, abandon, is_short_of_memory, module_of
from sparkdiff.tensors.rows import Rows
from sparkdiff.training.augmentation import View
from sparkdiff.training.candidates import Candidates

SHAPES = 16
"""Numbers of rows of a batch that graphs are kept for; batches of one training differ by a few rows."""
INPUT_BYTES = 64 << 20
"""Size of a batch from which its kernels take longer than their starts (on an H200); a graph would keep a copy of it."""


class Captured:
    """One function as a graph, and the tensors that it reads its rows from."""

    def __init__(self, graph: Any, inputs: list[Tensor]):
        self.graph, self.inputs = graph, inputs

    def __call__(self, inputs: list[Tensor]) -> None:
        if inputs:
            torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()


class CapturedSteps:
    """The steps of these candidates on batches of dense rows, as graphs.

    Attributes:
        possible: whether the steps start the same kernels each time: not where rows are sparse, are compared with each other, or
            may all have weight 0.
        failed: why steps are started kernel by kernel; empty as long as they are not.
    """

    def __init__(self, candidates: Candidates, objective: Objective, values: Mapping[Version, Rows]):
        self.candidates, self.objective, self.failed = candidates, objective, ""
        self.device, self.reads = candidates.u.device, candidates.updates.reads()
        dense = all(isinstance(values[v], Tensor) for v in self.reads if v in values)
        self.possible = candidates.counts and not candidates.lazy and objective.batch is None and dense
        self.module = module_of(self.device)
        self.side = self.module.Stream(self.device)
        self.pool = self.module.graph_pool_handle()
        self.adds: dict[Any, Captured] = {}
        self.steps: Captured | None = None

    def add(self, views: Sequence[View], weight: Tensor) -> None:
        """Set the sums to those over these rows, of which `weight` (n,) are the weights; as `Candidates.add` does."""
        narrowed = [
            (rows, {v: x for v, x in seen.items() if v in self.reads}, targets) for rows, seen, targets in views
        ]
        tensors, like = _flattened(narrowed, weight)
        key = (like, *((x.shape, x.dtype) for x in tensors))
        if (known := self.adds.get(key)) is not None:
            known(tensors)
            return

        def run(inputs: list[Tensor]) -> None:
            views, weight = _unflattened(narrowed, like, inputs)
            matrix = self.candidates.updates.matrix
            matrix.sums.zero_()
            matrix.weight.add_(weight.sum())
            self.candidates.add_views(views, {}, self.objective)

        if self.failed or len(self.adds) == SHAPES or sum(x.nbytes for x in tensors) > INPUT_BYTES:
            run(tensors)
        elif (made := self._captured(run, tensors, [self.candidates.updates.matrix.sums])) is not None:
            self.adds[key] = made

    def step(self, factor: float) -> None:
        """One step by the sums, as `Candidates.step`."""
        self.candidates.set_rate(factor)
        if self.steps is not None:
            self.steps([])
            return

        def run(inputs: list[Tensor]) -> None:
            self.candidates.step(self.objective.scale, factor)

        if self.failed:
            run([])
        else:
            self.steps = self._captured(run, [], self.candidates.changing())

    def _captured(
        self, run: Callable[[list[Tensor]], None], inputs: list[Tensor], changes: Sequence[Tensor]
    ) -> Captured | None:
        """Run once, and make a graph of it; None where that fails or the graph finds something else. `changes` hold the results
        of running once in either case.
        """
        before = [x.clone() for x in changes]
        try:
            own = [x.clone() for x in inputs]
            self._aside(run, own)  # kernels choose their memory when they first run, which can't be recorded
        except RuntimeError as e:
            if not is_short_of_memory(e):
                raise
            self.failed = str(e).splitlines()[0]
        if self.failed:  # not in the handler, where the exception still holds the tensors of the step
            _restore(changes, before)
            self._trim()
            run(inputs)
            return None
        found = [x.clone() for x in changes]
        _restore(changes, before)
        try:
            with ALONE:
                self._aside(self._without_waiting, lambda: run(own))
                _restore(changes, before)
                self._trim()  # the memory of a graph is its own, and as much again
                captured = Captured(self._recorded(lambda: run(own)), own)
            _restore(changes, before)
            captured(inputs)
            if all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(changes, found, strict=True)):
                return captured
            self.failed = "a graph of the step found other numbers than the step"
        except RuntimeError as e:  # what can't be recorded has no class of its own
            self.failed = str(e).splitlines()[0]
        _restore(changes, found)
        return None

    def _trim(self) -> None:
        """Give back the freed memory that torch keeps for itself."""
        with contextlib.suppress(RuntimeError):  # which torch raises after a recording that failed
            self.module.empty_cache()

    def _aside(self, run: Callable[[Any], None], argument: Any) -> None:
        """Run on the stream that graphs are recorded on, which has memory of its own.

        What comes next waits for the kernels that were started there, after an error too: they write to what is then put back.
        """
        now = self.module.current_stream(self.device)
        self.side.wait_stream(now)
        try:
            with self.module.stream(self.side):
                run(argument)
        finally:
            now.wait_stream(self.side)

    def _without_waiting(self, run: Callable[[], None]) -> None:
        """Run where what waits for the device raises RuntimeError: a graph can't hold it, and in many versions of torch a
        recording that fails leaves the allocator in a state that it does not come back from.
        """
        before = self.module.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():  # it says once that it is a prototype
                warnings.simplefilter("ignore", UserWarning)
                self.module.set_sync_debug_mode("error")
            run()
        finally:
            self.module.set_sync_debug_mode(before)

    def _recorded(self, run: Callable[[], None]) -> Any:
        graph = self.module.CUDAGraph()
        self.module.synchronize(self.device)
        with self.module.stream(
            self.side
        ):  # not torch.cuda.graph, which shares one stream and stays on it after an error
            # Other threads may use the device meanwhile.
            graph.capture_begin(pool=self.pool, capture_error_mode="thread_local")
            try:
                run()
            finally:
                try:
                    graph.capture_end()
                except RuntimeError:
                    abandon(self.device, self.pool)
                    raise
        return graph


def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for x, value in zip(tensors, values, strict=True):
        x.copy_(value)


def _flattened(views: Sequence[View], weight: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """The tensors of some views and a weight, each once, and which of them stands at which place."""
    every = [x for _, seen, targets in views for x in (*seen.values(), *(t for pair in targets for t in pair))]
    distinct: dict[int, int] = {}
    tensors: list[Tensor] = []
    for x in (*every, weight):
        assert isinstance(x, Tensor)
        if id(x) not in distinct:
            distinct[id(x)] = len(tensors)
            tensors.append(x)
    return tensors, tuple(distinct[id(x)] for x in (*every, weight))


def _unflattened(views: Sequence[View], like: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[View], Tensor]:
    """The same views and weight of other tensors."""
    place = iter(like)
    out: list[View] = []
    for rows, seen, targets in views:
        values: dict[Version, Rows] = {v: tensors[next(place)] for v in seen}
        out.append((rows, values, [(tensors[next(place)], tensors[next(place)]) for _ in targets]))
    return out, tensors[next(place)]
