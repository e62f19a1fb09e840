"""The GPU of the tests: a real one where torch sees it, else the one that isn't there (fake_gpu.py)."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

from sparkdiff.tensors.device import Place, gpus, module_of

T = TypeVar("T")
REAL = gpus() > 0
if REAL:  # without the fake one: torch's autograd goes backward on one kind of device in a process
    GPU = Place(torch.device("cuda", 0))
else:
    from tests.support import fake_gpu

    GPU = Place(torch.device(fake_gpu.NAME, 0))
ROUNDING = 1e-11 if REAL else 0.0
"""How far numbers may lie from the CPU's, relatively and absolutely: the fake one has the CPU's kernels."""
FAKE_ONLY = pytest.mark.skipif(REAL, reason="asks the fake GPU for what a real one does not do on request")


@contextlib.contextmanager
def no_reads() -> Iterator[None]:
    """Inside, what waits for the device raises RuntimeError."""
    module = module_of(GPU.device)
    before = module.get_sync_debug_mode()
    try:
        with warnings.catch_warnings():  # CUDA says once that the mode is a prototype
            warnings.simplefilter("ignore", UserWarning)
            module.set_sync_debug_mode("error")
        yield
    finally:
        module.set_sync_debug_mode(before)


def recorded(run: Callable[[], T]) -> tuple[Any, T]:
    """A graph of a function, and what its `replay` computes. The function first runs on the stream that is recorded, as the nodes
    of autograd stay on the stream that they were made on.
    """
    module, side = module_of(GPU.device), module_of(GPU.device).Stream(GPU.device)
    side.wait_stream(module.current_stream(GPU.device))
    with module.stream(side):
        run()
    module.synchronize(GPU.device)
    graph = module.CUDAGraph()
    with module.stream(side):
        graph.capture_begin()
        try:
            out = run()
        finally:
            graph.capture_end()
    return graph, out


def assert_same(gpu: Tensor, cpu: Tensor, tolerance: float = ROUNDING) -> None:
    assert gpu.device == GPU.device
    close = max(tolerance, ROUNDING) if gpu.is_floating_point() else 0.0
    torch.testing.assert_close(gpu.detach().cpu(), cpu.detach(), rtol=close, atol=close, equal_nan=True)
