"""The processes that train together: which one this is, and sums over all of them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sparkdiff.errors import SparkdiffError


class LostProcessError(SparkdiffError):
    """Another process of the training is gone or doesn't answer."""


@dataclass(frozen=True)
class Team:
    """This process among those that train together; by default it is alone."""

    rank: int = 0
    world: int = 1

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor, in place, by its sum over all processes; the same bits on every one of them.

        Raises:
            LostProcessError: a process is gone, or was silent for longer than the group's timeout.
        """
        if self.world == 1:
            return
        import torch.distributed as dist  # only here: it takes a while, and a process alone doesn't need it

        try:
            for tensor in tensors:
                dist.all_reduce(tensor)
        except RuntimeError as e:  # gloo has no class of its own for this
            raise LostProcessError(
                f"process {self.rank} of {self.world} lost another one: {str(e).splitlines()[0]}"
            ) from e


ALONE = Team()
