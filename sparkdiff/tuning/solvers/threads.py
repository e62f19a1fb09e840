"""How many threads torch uses in a solver."""

import contextlib
import math
import os

import torch

from sparkdiff.tensors.device import torch_threads

WORTH = 1e8
"""Multiplications of one pass from which on several threads are quicker than one, which waits for no other program."""


def idle_cores() -> int:
    """How many cores nobody used in the last minute, at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(math.ceil((os.cpu_count() or 1) - load), 1)


def threads_for(multiplications: float) -> contextlib.AbstractContextManager[None]:
    """For a pass of this size no more threads than cores are idle, and one for a small pass.

    Threads wait for each other in each operation: where other programs use the cores too, two take several times as long as one.
    """
    return torch_threads(1 if multiplications < WORTH else min(torch.get_num_threads(), idle_cores()))
