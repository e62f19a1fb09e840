"""The number of threads that torch uses in a solver."""

import contextlib
import math
import os

import torch

from sparkdiff.tensors.device import torch_threads

WORTH = 1e8
"""Number of multiplications in a pass from which several threads pay off; a single thread needn't wait for others,
which other programs may delay."""


def idle_cores() -> int:
    """Number of cores that were idle in the last minute, at least 1."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(math.ceil((os.cpu_count() or 1) - load), 1)


def threads_for(multiplications: float) -> contextlib.AbstractContextManager[None]:
    """Limit threads to the number of idle cores for a pass of this size, and to one for a small pass.

    Threads wait for each other in each operation: if other programs use the cores, too, two threads take several times
    as long as one.
    """
    return torch_threads(1 if multiplications < WORTH else min(torch.get_num_threads(), idle_cores()))
