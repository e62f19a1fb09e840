"""Local steps: each process takes several steps alone; then all meet and continue from their mean with a slow momentum.

Each synchronous step needs a sum over the processes. If a sum takes longer than a step, local steps save most of the
sums, at a price: the processes train on batches of their own rows, so the result depends on the number of processes.

Source: Wang, Tantia, Ballas and Rabbat, "SlowMo: Improving Communication-Efficient Distributed SGD with Slow Momentum",
2020, with a slow learning rate of 1. With a momentum of 0 it is local SGD (Stich, "Local SGD Converges Fast and
Communicates Little", 2019). The moments of Adam are averaged, too (there: the strategy "average").
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparkdiff.errors import InputError
from sparkdiff.objectives.objective import Objective
from sparkdiff.options import Options
from sparkdiff.tensors.device import Place
from sparkdiff.tensors.team import Team
from sparkdiff.training.recipes import ONCE_AN_EPOCH, Recipe

SLOWEST = 1e-12
"""Lower bound of the schedule's factor when a step is divided by it."""


class LocalSteps:
    """The schedule of meetings of the processes, and the slow momentum with which they continue.

    Args:
        every: number of steps that each process takes alone.
        decay: decay of the slow momentum per meeting.
        u: (K, p) vectors that the steps change, the same in all processes.

    Attributes:
        alone: steps since the last meeting.
        momentum: the slow momentum, (K, p).
    """

    def __init__(self, every: int, decay: float, u: Tensor):
        self.every, self.decay, self.u, self.alone = every, decay, u, 0
        self.start, self.momentum = u.clone(), torch.zeros_like(u)
        self.begun = False

    def load(self, momentum: Tensor) -> None:
        """Continue from a meeting: u must have the values of that meeting."""
        self.momentum.copy_(momentum)
        self.start.copy_(self.u)

    @torch.no_grad()
    def meet(self, team: Team, others: Sequence[Tensor], factor: float) -> None:
        """Replace u, in place, by the point where all processes continue: their mean, moved by the slow momentum.

        Args:
            others: tensors that are replaced by their means.
            factor: the schedule's factor of the learning rate.
        """
        team.sum_(self.u, *others)
        for tensor in (self.u, *others):
            tensor /= team.world
        factor = max(factor, SLOWEST)
        self.momentum.mul_(self.decay).add_(self.start - self.u, alpha=1 / factor)
        torch.sub(self.start, self.momentum, alpha=factor, out=self.u)

    def record_start(self) -> None:
        """Record u as the new start, after it was put within its bounds."""
        self.start.copy_(self.u)
        self.alone = 0


def check(options: Options, recipes: Sequence[Recipe], objective: Objective, place: Place) -> None:
    """Check that the candidates can take local steps.

    Raises:
        InputError: an optimizer takes one step an epoch, along the gradient of all rows; the loss of a batch is no sum over
            its rows; or a GPU trains.
    """
    told = f"localSteps={options.localSteps}"
    once = next((r.optimizer for r in recipes if r.optimizer in ONCE_AN_EPOCH), None)
    if once is not None:
        raise InputError(
            f"{told}, but a candidate steps by {once}, once an epoch along the gradient of all rows: set localSteps=1, or "
            "recipe='default' with optimizer='adam'"
        )
    if objective.batch is not None:
        raise InputError(
            f"{told}, but {objective.name} is a function of all rows of a batch, which no process has: set localSteps=1"
        )
    if not place.on_cpu:
        raise InputError(
            f"{told} is for trainings on the CPU, but {place.name} trains: set device='cpu' or localSteps=1"
        )
