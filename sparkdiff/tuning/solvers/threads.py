"""How many threads torch uses in a solver."""

import contextlib
from collections.abc import Iterator

import torch

WORTH = 1e8
"""Multiplications of one pass from which on several threads are quicker than one, which waits for no other program."""


@contextlib.contextmanager
def threads_for(multiplications: float) -> Iterator[None]:
    """As many threads as torch has for a pass of this size; a single one for small ones, which threads only hold up where
    other programs use the cores too.
    """
    before = torch.get_num_threads()
    if multiplications < WORTH and before > 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
