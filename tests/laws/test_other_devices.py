"""The law of other devices can fail: each stage here breaks it in one way."""

import pytest
import torch
from torch import Tensor

from sparkdiff.stages.weighing import Normalizer
from tests.support import other_devices

ROWS = torch.tensor([[3.0, 4.0], [0.0, 2.0]], dtype=torch.float64)


class Numbering(Normalizer):
    """Makes its numbers on the CPU, wherever the rows are."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * torch.arange(x.shape[1])


class Adding(Normalizer):
    """Adds up in another order on a GPU."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x * (0.1 + 0.2 + 0.3 if x.is_cpu else 0.1 + (0.2 + 0.3))


class Doubling(Normalizer):
    """Returns float64, whatever the rows are."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x.double()


class Rounding(Normalizer):
    """Loses what float32 cannot hold: 1e10 + x - 1e10."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return x + 1e10 - 1e10


def test_faults_are_found() -> None:
    given = [ROWS], [None]
    other_devices.same_on_a_gpu(Normalizer(2.0), given)
    other_devices.near_in_float32(Normalizer(2.0), (), ("y",), given)
    with pytest.raises(RuntimeError, match="same device"):
        other_devices.same_on_a_gpu(Numbering(2.0), given)
    with pytest.raises(AssertionError, match="not equal"):
        other_devices.same_on_a_gpu(Adding(2.0), given)
    for wrong in (Doubling, Rounding):
        with pytest.raises(AssertionError, match="y"):
            other_devices.near_in_float32(wrong(2.0), (), ("y",), given)
