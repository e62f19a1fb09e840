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


def take(batch: Batch, rows: Rows, place: Place) -> Batch:
    """These rows of every column, copied, on the device that the batch lies on."""
    numbers = place.numbers(torch.from_numpy(rows), wait=False)
    return {name: taken(x, numbers) for name, x in batch.items()}


def copied_ahead(chunks: Iterator[tuple[Batch, T]], place: Place, side: Any) -> Iterator[tuple[Batch, T]]:
    """The chunks on the device: each is copied on the stream `side`, while the one before it is computed with.

    Source of the order of events: torch's notes on CUDA semantics (streams, `record_stream`).
    """
    module = module_of(place.device)
    coming: tuple[Batch, T] | None = None
    for chunk, what in chunks:
        ready = coming
        if ready is not None:
            arrived(ready[0], place, side)
        side.wait_stream(module.current_stream(place.device))  # for the chunk before `ready`: two are there at most
        with module.stream(side):
            coming = here(chunk, place, wait=False), what
        if ready is not None:
            yield ready
            del ready
    if coming is not None:
        arrived(coming[0], place, side)
        yield coming


def arrived(batch: Batch, place: Place, side: Any) -> None:
    """Let the work to come wait for the copies of a batch, and keep its memory until that work is done."""
    now = module_of(place.device).current_stream(place.device)
    now.wait_stream(side)
    for x in batch.values():
        for t in (x.indices, x.values, x.offsets) if isinstance(x, SparseRows) else (x,):
            t.record_stream(now)
