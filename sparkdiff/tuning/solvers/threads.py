"""How many threads torch uses in a solver."""

import contextlib
import math
import os
from collections.abc import Iterator

import torch

WORTH = 1e8
"""Multiplications of one pass from which on several threads are quicker than one, which waits for no other program."""


def idle_cores() -> int:
    """How many cores nobody used in the last minute, at least one."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return max(math.ceil((os.cpu_count() or 1) - load), 1)


@contextlib.contextmanager
def threads_for(multiplications: float) -> Iterator[None]:
    """For a pass of this size no more threads than cores are idle, and one for a small pass.

    Threads wait for each other in each operation: where other programs use the cores too, two take several times as long as one.
    """
    before = torch.get_num_threads()
    now = 1 if multiplications < WORTH else min(before, idle_cores())
    if now != before:
        torch.set_num_threads(now)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
