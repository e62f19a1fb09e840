"""Rows at critical values run through a network together, and those that it refuses are found without running each alone."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sparkdiff.errors import InputError
from sparkdiff.evaluation.cached_parity import _accepted_rows

X = ("x", -1)


@pytest.mark.parametrize("refused", [[], [0], [99], [3, 4, 50], list(range(100))])
def test_refused_rows_are_left_out_and_others_keep_order(refused: list[int]) -> None:
    runs = []

    def run(values: dict[Any, torch.Tensor], outputs: Any) -> None:
        runs.append(len(values[X]))
        if bool(torch.isin(values[X], torch.tensor(refused)).any()):
            raise InputError("a row that no stage takes")
        values["y", 0] = values[X]

    network: Any = SimpleNamespace(graph=SimpleNamespace(casefold=str.lower), positions=(), run=run)
    rows: list[Any] = [{X: torch.tensor([i])} for i in range(100)]
    found = _accepted_rows(network, rows)
    assert [int(r[X]) for r in found] == [i for i in range(100) if i not in refused]
    assert all(set(r) == {X} for r in found)
    assert len(runs) <= 1 + 14 * len(refused)
