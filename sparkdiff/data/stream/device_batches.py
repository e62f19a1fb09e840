"""Batches on a device: all rows are kept there, or each chunk of rows is copied there while training uses the chunk
before it.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from sparkdiff.data.stream.manifest import Batch
from sparkdiff.data.stream.order import Rows
from sparkdiff.tensors.device import Place, module_of
from sparkdiff.tensors.rows import SparseRows, rows_at, tensors_of

DOUBLES = ("label", "weight")
"""Columns that stay doubles whatever the dtype of the other columns, because they are summed."""
CHUNK_BYTES = 256 << 20
"""Bytes of a chunk: the batches that are gathered at a time. With fewer bytes, launching the kernel that gathers them
would take longer than running it.
"""
SPARE_BYTES = 512 << 20
"""Memory on a device that stays free for its libraries, in addition to the memory for rows, training and two chunks."""
T = TypeVar("T")


def here(batch: Batch, place: Place, *, wait: bool = True) -> Batch:
    """The columns of a batch, moved to a place (device and dtype)."""
    return {
        name: place.numbers(x, wait=wait) if name in DOUBLES and isinstance(x, Tensor) else place.rows(x, wait=wait)
        for name, x in batch.items()
    }


def bytes_of(batch: Batch, place: Place) -> int:
    """Bytes that a batch, now in the memory of the CPU, would take at a place."""

    def size(name: str, x: Tensor) -> int:
        narrower = x.is_floating_point() and name not in DOUBLES
        return x.numel() * (min(x.itemsize, place.dtype.itemsize) if narrower else x.itemsize)

    return sum(size(name, part) for name, x in batch.items() for part in tensors_of(x))


class StagingBuffers:
    """CPU memory in which rows are gathered before they are copied to a GPU. It is pinned and reused, because getting
    new pages from the system takes longer than gathering rows. Each dense column has two buffers: one is filled
    while the other is copied.

    Attributes:
        side: the stream of the device that copies.
    """

    def __init__(self, place: Place):
        self.place, self.side = place, module_of(place.device).Stream(place.device)
        self._buffers: list[dict[str, Tensor]] = [{}, {}]
        self._copied: list[Any] = [None, None]  # an event after the last copy of each
        self._now = 0

    def gather(self, batch: Batch, rows: Rows) -> Batch:
        """Copies of these rows of every column; those of dense columns are overwritten in the next call but one."""
        self._now = 1 - self._now
        if self._copied[self._now] is not None:
            self._copied[self._now].synchronize()
        numbers = torch.from_numpy(rows)
        return {
            name: x.take(numbers) if isinstance(x, SparseRows) else self._dense(name, x, numbers)
            for name, x in batch.items()
        }

    def _dense(self, name: str, x: Tensor, numbers: Tensor) -> Tensor:
        buffer = self._buffers[self._now].get(name)
        if buffer is None or len(buffer) < len(numbers) or buffer.dtype != x.dtype or buffer.shape[1:] != x.shape[1:]:
            pinned = self.place.device.type == "cuda"
            buffer = torch.empty(len(numbers), *x.shape[1:], dtype=x.dtype, pin_memory=pinned)
            self._buffers[self._now][name] = buffer
        return torch.index_select(x, 0, numbers, out=buffer[: len(numbers)])

    def send(self, batch: Batch) -> Batch:
        """Copy the rows gathered last to the device, asynchronously. Returns them on the device."""
        self.side.wait_stream(module_of(self.place.device).current_stream(self.place.device))
        with module_of(self.place.device).stream(self.side):
            out = here(batch, self.place, wait=False)
            self._copied[self._now] = self.side.record_event()
        return out

    def clear(self) -> None:
        """Drop the buffers; torch keeps their memory for new ones."""
        self._buffers = [{}, {}]


def take(batch: Batch, rows: Rows, place: Place) -> Batch:
    """Copies of these rows of every column, on the device of the batch."""
    numbers = place.numbers(torch.from_numpy(rows), wait=False)
    return {name: rows_at(x, numbers) for name, x in batch.items()}


def copy_ahead(chunks: Iterator[tuple[Batch, T]], buffers: StagingBuffers) -> Iterator[tuple[Batch, T]]:
    """Yield the chunks, which are gathered in these buffers, on the device. Each chunk is copied while the previous one
    is in use.

    Source of the order of events: torch's notes on CUDA semantics (streams, `record_stream`).
    """
    coming: tuple[Batch, T] | None = None
    for chunk, what in chunks:
        ready = coming
        if ready is not None:
            wait_for_copy(ready[0], buffers)
        coming = buffers.send(chunk), what  # only when the chunk before `ready` is no longer used: at most two exist
        if ready is not None:
            yield ready
            del ready
    if coming is not None:
        wait_for_copy(coming[0], buffers)
        yield coming


def wait_for_copy(batch: Batch, buffers: StagingBuffers) -> None:
    """Make later work on the device's current stream wait until a batch has been copied, and keep the memory of the
    batch until that work is done.
    """
    now = module_of(buffers.place.device).current_stream(buffers.place.device)
    now.wait_stream(buffers.side)
    for x in batch.values():
        for part in tensors_of(x):
            part.record_stream(now)
