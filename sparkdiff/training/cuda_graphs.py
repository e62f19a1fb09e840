"""Steps as CUDA graphs: the kernels of a step are recorded once and then launched all at once.

A step of a small network is a hundred kernels of some microseconds, and Python and torch need longer to launch a kernel
than the kernel runs. A graph holds addresses and numbers, not Python: rows are copied to the memory that the graph
reads, and everything else that changes from step to step lies in tensors. Before a graph is used, its results are
compared, bit for bit, with those of the step that it replaces.

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
"""Largest number of batch shapes for which graphs are kept; batches of one training run differ by a few rows."""
INPUT_BYTES = 64 << 20
"""Bytes of a batch from which kernels run longer than their launches take (on an H200), so that a graph, which keeps a
copy of the batch, doesn't pay."""


class CapturedGraph:
    """One function as a graph, and the tensors from which it reads its rows."""

    def __init__(self, graph: Any, inputs: list[Tensor]):
        self.graph, self.inputs = graph, inputs

    def __call__(self, inputs: list[Tensor]) -> None:
        if inputs:
            torch._foreach_copy_(self.inputs, inputs)
        self.graph.replay()


class CapturedSteps:
    """The steps of these candidates on batches of dense rows, as graphs.

    Attributes:
        possible: whether each step launches the same kernels. It doesn't if rows are sparse, if the loss compares rows
            with each other, or if all rows of a batch may have weight 0.
        failed: the reason why steps are launched kernel by kernel; empty as long as graphs can be used.
    """

    def __init__(self, candidates: Candidates, objective: Objective, values: Mapping[Version, Rows]):
        self.candidates, self.objective, self.failed = candidates, objective, ""
        self.device, self.reads = candidates.u.device, candidates.updates.reads()
        dense = all(isinstance(values[v], Tensor) for v in self.reads if v in values)
        self.possible = candidates.counts and not candidates.lazy and objective.batch is None and dense
        self.module = module_of(self.device)
        self.side = self.module.Stream(self.device)
        self.pool = self.module.graph_pool_handle()
        self.adds: dict[Any, CapturedGraph] = {}
        self.steps: CapturedGraph | None = None

    def add(self, views: Sequence[View], weight: Tensor) -> None:
        """Reset the sums, and add these rows with weights `weight` (n,) to them, as `Candidates.add` does."""
        narrowed = [
            (rows, {v: x for v, x in seen.items() if v in self.reads}, targets) for rows, seen, targets in views
        ]
        tensors, like = _distinct_tensors(narrowed, weight)
        key = (like, *((x.shape, x.dtype) for x in tensors))
        if (known := self.adds.get(key)) is not None:
            known(tensors)
            return

        def run(inputs: list[Tensor]) -> None:
            views, weight = _with_tensors(narrowed, like, inputs)
            matrix = self.candidates.updates.matrix
            matrix.sums.zero_()
            matrix.weight.add_(weight.sum())
            self.candidates.add_views(views, {}, self.objective)

        if self.failed or len(self.adds) == SHAPES or sum(x.nbytes for x in tensors) > INPUT_BYTES:
            run(tensors)
        elif (made := self._capture(run, tensors, [self.candidates.updates.matrix.sums])) is not None:
            self.adds[key] = made

    def step(self, factor: float) -> None:
        """Take one step along the summed gradient, as `Candidates.step` does."""
        self.candidates.set_rate(factor)
        if self.steps is not None:
            self.steps([])
            return

        def run(_inputs: list[Tensor]) -> None:
            self.candidates.step(self.objective.scale, factor)

        if self.failed:
            run([])
        else:
            self.steps = self._capture(run, [], self.candidates.changing())

    def _capture(
        self, run: Callable[[list[Tensor]], None], inputs: list[Tensor], changes: Sequence[Tensor]
    ) -> CapturedGraph | None:
        """Run once and record a graph; return None if that fails or if the graph's results differ.

        In either case `changes` then hold the results of running once.
        """
        before = [x.clone() for x in changes]
        try:
            own = [x.clone() for x in inputs]
            self._aside(run, own)  # kernels allocate memory when they first run, which can't be recorded
        except RuntimeError as e:
            if not is_short_of_memory(e):
                raise
            self.failed = str(e).splitlines()[0]
        if self.failed:  # not in the except clause, where the exception still holds the tensors of the step
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
                self._trim()  # a graph allocates memory of its own, as much as the step uses
                captured = CapturedGraph(self._record(lambda: run(own)), own)
            _restore(changes, before)
            captured(inputs)
            if all(torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in zip(changes, found, strict=True)):
                return captured
            self.failed = "a graph of the step found other numbers than the step"
        except RuntimeError as e:  # there is no special exception class for what can't be recorded
            self.failed = str(e).splitlines()[0]
        _restore(changes, found)
        return None

    def _trim(self) -> None:
        """Return to the device the freed memory that torch caches."""
        with contextlib.suppress(RuntimeError):  # torch raises it after a failed recording
            self.module.empty_cache()

    def _aside(self, run: Callable[[Any], None], argument: Any) -> None:
        """Run on the stream on which graphs are recorded, which has its own memory.

        Later work waits for the kernels launched there, even after an error: they write to tensors that are then
        restored.
        """
        now = self.module.current_stream(self.device)
        self.side.wait_stream(now)
        try:
            with self.module.stream(self.side):
                run(argument)
        finally:
            now.wait_stream(self.side)

    def _without_waiting(self, run: Callable[[], None]) -> None:
        """Run so that anything that waits for the device raises RuntimeError.

        A graph can't hold a wait, and in many versions of torch a failed recording leaves the allocator in a state from
        which it does not recover.
        """
        before = self.module.get_sync_debug_mode()
        try:
            with warnings.catch_warnings():  # torch warns once that this is a prototype
                warnings.simplefilter("ignore", UserWarning)
                self.module.set_sync_debug_mode("error")
            run()
        finally:
            self.module.set_sync_debug_mode(before)

    def _record(self, run: Callable[[], None]) -> Any:
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


def _distinct_tensors(views: Sequence[View], weight: Tensor) -> tuple[list[Tensor], tuple[int, ...]]:
    """The distinct tensors of some views and a weight, and the index of the tensor at each place."""
    every = [x for _, seen, targets in views for x in (*seen.values(), *(t for pair in targets for t in pair))]
    distinct: dict[int, int] = {}
    tensors: list[Tensor] = []
    for x in (*every, weight):
        assert isinstance(x, Tensor)
        if id(x) not in distinct:
            distinct[id(x)] = len(tensors)
            tensors.append(x)
    return tensors, tuple(distinct[id(x)] for x in (*every, weight))


def _with_tensors(views: Sequence[View], like: Sequence[int], tensors: Sequence[Tensor]) -> tuple[list[View], Tensor]:
    """The same views and weight, with other tensors."""
    place = iter(like)
    out: list[View] = []
    for rows, seen, targets in views:
        values: dict[Version, Rows] = {v: tensors[next(place)] for v in seen}
        out.append((rows, values, [(tensors[next(place)], tensors[next(place)]) for _ in targets]))
    return out, tensors[next(place)]
