"""The team of training processes: the rank of this process, and sums over all processes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sparkdiff.errors import SparkdiffError


class LostProcessError(SparkdiffError):
    """Another process of the training is dead or does not answer."""


@dataclass(frozen=True)
class Team:
    """The rank of this process among the processes that train together; by default there is only one."""

    rank: int = 0
    world: int = 1

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor, in place, by its sum over all processes, with the same bits in each of them.

        Several tensors, of doubles or of counts, are one exchange: an exchange of a few thousand numbers costs what its
        messages and the threads that wait for each other cost, however many numbers there are.

        Raises:
            LostProcessError: a process is dead, or did not answer within the timeout of the group.
        """
        if self.world == 1:
            return
        import torch.distributed as dist  # only here: it takes a while, and a process alone doesn't need it

        together = tensors[0] if len(tensors) == 1 else torch.cat([x.reshape(-1).to(torch.float64) for x in tensors])
        try:
            dist.all_reduce(together)
        except RuntimeError as e:  # gloo has no class of its own for this
            raise LostProcessError(
                f"process {self.rank} of {self.world} lost another process: {str(e).splitlines()[0]}"
            ) from e
        if len(tensors) > 1:
            for tensor, total in zip(tensors, together.split([x.numel() for x in tensors]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def gather(self, tensor: Tensor) -> Tensor:
        """The rows (first dimension) of all processes, in their order, with the same bits in each of them. (n, ...)
        -> (N, ...)

        Computed as sums over buffers that are 0 except for the rows of one process, which are exact.

        Raises:
            LostProcessError: see `sum_`.
        """
        if self.world == 1:
            return tensor
        counts = torch.zeros(self.world, dtype=torch.int64)
        counts[self.rank] = len(tensor)
        self.sum_(counts)
        first = int(counts[: self.rank].sum())
        out = tensor.new_zeros((int(counts.sum()), *tensor.shape[1:]))
        out[first : first + len(tensor)] = tensor.detach()
        self.sum_(out)
        return out


ALONE = Team()
