"""Threads of a pass over rows: no more than cores are idle, and torch's own number again afterwards."""

import os

import pytest
import torch

from sparkdiff.tensors.device import WORTH, threads_for


@pytest.mark.parametrize(
    ("load", "size", "expected"),
    [(0.4, WORTH, 3), (1.2, WORTH, 3), (2.5, WORTH, 2), (9.0, WORTH, 1), (0.0, WORTH / 2, 1)],
)
def test_threads(monkeypatch: pytest.MonkeyPatch, load: float, size: float, expected: int) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threads_for(size):
            assert torch.get_num_threads() == expected
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
