"""The team of training processes: the rank of this process, and sums over all processes."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sparkdiff.errors import SparkdiffError


class LostProcessError(SparkdiffError):
    """The error that another training process is dead or does not answer."""


@dataclass(frozen=True)
class Team:
    """The rank of this process among the processes that train together; by default there is only one.

    Attributes:
        rank, world: rank of this process, and number of processes.
        gpus: torch's process group for tensors on GPUs; None: such tensors are summed on the CPU.
    """

    rank: int = 0
    world: int = 1
    gpus: Any = field(default=None, kw_only=True)

    def sum_(self, *tensors: Tensor) -> None:
        """Replace each tensor, in place, by its sum over all processes; all processes get the same bits.

        Several tensors, of doubles or of counts, are sent in one exchange, because the cost of an exchange of up to a
        few thousand numbers is that of its messages and of threads waiting for each other, whatever the number of
        values.

        Raises:
            LostProcessError: another process is dead, or did not answer within the timeout of the process group.
        """
        if self.world == 1:
            return
        import torch.distributed as dist  # only here: it takes a while, and a process alone doesn't need it

        together = tensors[0] if len(tensors) == 1 else torch.cat([x.reshape(-1).to(torch.float64) for x in tensors])
        on_gpu = together.device.type != "cpu"
        there = together.to("cpu") if on_gpu and self.gpus is None else together
        try:
            dist.all_reduce(there, group=self.gpus if on_gpu else None)
        except RuntimeError as e:  # gloo has no error class for this, and NCCL's is a subclass
            raise LostProcessError(
                f"process {self.rank} of {self.world} lost another process: {str(e).splitlines()[0]}"
            ) from e
        if there is not together:
            together.copy_(there)
        if len(tensors) > 1:
            for tensor, total in zip(tensors, together.split([x.numel() for x in tensors]), strict=True):
                tensor.copy_(total.view(tensor.shape))

    def gather(self, tensor: Tensor) -> Tensor:
        """Gather the rows (first dimension) of all processes, in the order of their ranks: (n, ...) -> (N, ...). All processes
        get the same bits.

        Each process puts its rows into a buffer of zeros for all rows, and the buffers are added, which is exact.

        Raises:
            LostProcessError: see `sum_`.
        """
        if self.world == 1:
            return tensor
        counts = torch.zeros(self.world, dtype=torch.int64)  # on the CPU, where they are needed
        counts[self.rank] = len(tensor)
        self.sum_(counts)
        first = int(counts[: self.rank].sum())
        out = tensor.new_zeros((int(counts.sum()), *tensor.shape[1:]))
        out[first : first + len(tensor)] = tensor.detach()
        self.sum_(out)
        return out


ALONE = Team()


def tells_of_another(error: BaseException) -> bool:
    """True if an error was caused by the failure of another process. NCCL raises it in a call after the failed one, as a
    DistBackendError.
    """
    import torch.distributed as dist  # only here, as in Team

    return isinstance(error, (LostProcessError, dist.DistBackendError))
