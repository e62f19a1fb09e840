"""The GPU of the tests: a real one where torch sees it, else the one that isn't there (fake_gpu.py)."""

import contextlib
from collections.abc import Iterator
from typing import Any

import fake_gpu
import torch
from torch import Tensor

from sparkdiff.tensors.device import Place, gpus, module_of

FAKE = Place(torch.device(fake_gpu.NAME, 0))
REAL = [Place(torch.device("cuda", 0))] if gpus() else []
GPU = [*REAL, FAKE][0]
ROUNDING = 1e-11 if REAL else 0.0
"""How far numbers may lie from the CPU's, relatively and absolutely: the fake one has the CPU's kernels."""


@contextlib.contextmanager
def no_reads() -> Iterator[None]:
    """Inside, what waits for the device raises RuntimeError."""
    module = module_of(GPU.device)
    before = module.get_sync_debug_mode()
    module.set_sync_debug_mode("error")
    try:
        yield
    finally:
        module.set_sync_debug_mode(before)


@contextlib.contextmanager
def recorded() -> Iterator[Any]:
    """Gives a graph of what is done inside, which is not computed before `replay`."""
    module = module_of(GPU.device)
    graph = module.CUDAGraph()
    with module.graph(graph):
        yield graph


def assert_same(gpu: Tensor, cpu: Tensor, tolerance: float = ROUNDING) -> None:
    assert gpu.device == GPU.device
    close = max(tolerance, ROUNDING) if gpu.is_floating_point() else 0.0
    torch.testing.assert_close(gpu.detach().cpu(), cpu.detach(), rtol=close, atol=close, equal_nan=True)
