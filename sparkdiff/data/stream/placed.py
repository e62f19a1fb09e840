"""Batches on a device: rows that live there, or that are copied there a piece ahead of the training."""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch
from sparkdiff.data.stream.order import Rows
from sparkdiff.tensors.device import Place, module_of
from sparkdiff.tensors.rows import SparseRows, taken

DOUBLES = ("label", "weight")
"""Columns whose floats stay doubles, whatever the dtype of rows: sums are made of them."""
CHUNK_BYTES = 256 << 20
"""So many bytes of batches are gathered at a time: a kernel that gathers less costs more to start than to run."""
SPARE_BYTES = 512 << 20
"""Free memory that rows on a device leave beside what training and two chunks need, for the libraries of the device."""
T = TypeVar("T")


def here(batch: Batch, place: Place, *, wait: bool = True) -> Batch:
    """The columns of a batch at a place."""
    return {
        name: place.numbers(x, wait=wait) if name in DOUBLES and isinstance(x, Tensor) else place.rows(x, wait=wait)
        for name, x in batch.items()
    }


def bytes_of(batch: Batch, place: Place) -> int:
    """The memory that a batch of the CPU takes at a place."""

    def size(name: str, x: Tensor) -> int:
        narrower = x.is_floating_point() and name not in DOUBLES
        return x.numel() * (min(x.itemsize, place.dtype.itemsize) if narrower else x.itemsize)

    parts = [
        (n, t)
        for n, x in batch.items()
        for t in ((x.indices, x.values, x.offsets) if isinstance(x, SparseRows) else (x,))
    ]
    return sum(size(name, x) for name, x in parts)


class StagingBuffers:
    """Memory of the CPU that rows are gathered in, to be copied to a GPU: pinned, and used again and again, as fresh pages of the
    system take longer than the rows. Each column has two buffers: one is filled while the other is copied.

    Attributes:
        side: the stream of the device that copies.
    """

    def __init__(self, place: Place):
        self.place, self.side = place, module_of(place.device).Stream(place.device)
        self._buffers: list[dict[str, Tensor]] = [{}, {}]
        self._copied: list[Any] = [None, None]  # an event after the last copy of each
        self._now = 0

    def gather(self, batch: Batch, rows: Rows) -> Batch:
        """These rows of every column, in memory that is used again in the call after the next."""
        self._now = 1 - self._now
        if self._copied[self._now] is not None:
            self._copied[self._now].synchronize()
        numbers = torch.from_numpy(rows)
        return {
            name: x.take(numbers) if isinstance(x, SparseRows) else self._dense(name, x, numbers) for name, x in batch.items()
        }  # fmt: skip

    def _dense(self, name: str, x: Tensor, numbers: Tensor) -> Tensor:
        buffer = self._buffers[self._now].get(name)
        if buffer is None or len(buffer) < len(numbers) or buffer.dtype != x.dtype or buffer.shape[1:] != x.shape[1:]:
            pinned = self.place.device.type == "cuda"
            buffer = torch.empty(len(numbers), *x.shape[1:], dtype=x.dtype, pin_memory=pinned)
            self._buffers[self._now][name] = buffer
        return torch.index_select(x, 0, numbers, out=buffer[: len(numbers)])

    def send(self, batch: Batch) -> Batch:
        """The rows gathered last, on the device; they are copied there while this process goes on."""
        self.side.wait_stream(module_of(self.place.device).current_stream(self.place.device))
        with module_of(self.place.device).stream(self.side):
            out = here(batch, self.place, wait=False)
            self._copied[self._now] = self.side.record_event()
        return out

    def clear(self) -> None:
        """Forget the memory, which torch keeps for the next ones."""
        self._buffers = [{}, {}]


def take(batch: Batch, rows: Rows, place: Place) -> Batch:
    """These rows of every column, copied, on the device that the batch lies on."""
    numbers = place.numbers(torch.from_numpy(rows), wait=False)
    return {name: taken(x, numbers) for name, x in batch.items()}


def copied_ahead(chunks: Iterator[tuple[Batch, T]], buffers: StagingBuffers) -> Iterator[tuple[Batch, T]]:
    """The chunks, gathered in these buffers, on the device: each is copied while the one before it is computed with.

    Source of the order of events: torch's notes on CUDA semantics (streams, `record_stream`).
    """
    coming: tuple[Batch, T] | None = None
    for chunk, what in chunks:
        ready = coming
        if ready is not None:
            arrived(ready[0], buffers)
        coming = buffers.send(chunk), what  # once the chunk before `ready` is done with: two are there at most
        if ready is not None:
            yield ready
            del ready
    if coming is not None:
        arrived(coming[0], buffers)
        yield coming


def arrived(batch: Batch, buffers: StagingBuffers) -> None:
    """Let the work to come wait for the copies of a batch, and keep its memory until that work is done."""
    now = module_of(buffers.place.device).current_stream(buffers.place.device)
    now.wait_stream(buffers.side)
    for x in batch.values():
        for t in (x.indices, x.values, x.offsets) if isinstance(x, SparseRows) else (x,):
            t.record_stream(now)
