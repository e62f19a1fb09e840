"""The training loop for several candidates over one stream, in one process or several; uses only torch and the stream.

Every process holds the same parameters. At each step it sums weight * gradient over its rows of the batch; the sums of
all processes are added and divided by the sum of the weights. So the number of processes changes nothing but the order
of additions.
"""

import contextlib
import itertools
from collections.abc import Callable

import torch

from sparkdiff.evaluation.split_batches import Data
from sparkdiff.objectives.metric import Metric
from sparkdiff.objectives.objective import Objective
from sparkdiff.tensors.device import is_short_of_memory, repeatable, torch_threads
from sparkdiff.training.active_columns import group_size
from sparkdiff.training.training_run import Training

SMALL_STEP = 10_000_000
"""Number of parameters times number of rows of a step below which one thread is faster than several."""


def train(
    training: Training,
    data: Data,
    objective: Objective,
    metric: Metric,
    on_step: Callable[[Training], None] = lambda _training: None,
) -> None:
    """Train on the train split until the end, and measure on the validation split after every epoch.

    All candidates see the same batches. A candidate stops when its validation metric hasn't improved (by `options.minDelta`)
    for `options.patience` epochs, or when it diverges: its training loss or its metric is not finite. All stop after the
    epoch in which `options.maxSeconds` have passed. `on_step` is called after every step and every epoch.
    """
    ready: Data | None = None
    place = training.here.place
    # On a GPU the CPU gathers rows, which takes all its cores.
    work = len(training.units.unit) * training.options.batchSize if place.on_cpu else SMALL_STEP
    with one_thread_for_small_steps(work), repeatable(place):
        while not training.ended:
            short = ""
            try:
                if ready is None:
                    data = training.place_rows(data)
                    ready = data.with_fixed_columns(training.here.of_rows)
                    training.begin(ready)
                _epoch(training, ready, objective, metric, on_step)
            except RuntimeError as e:
                if training.here.place.on_cpu or not is_short_of_memory(e):
                    raise
                short = str(e).splitlines()[0]
            if short:  # not in the except clause, where the exception still holds the tensors of the step
                data, ready = training.with_less(data, short), None


def _epoch(
    training: Training, data: Data, objective: Objective, metric: Metric, on_step: Callable[[Training], None]
) -> None:
    """Take the steps of an epoch, from `training.step` on, and then measure on the validation split."""
    options, active, done = training.options, training.active, 0
    for candidates in training.turns():
        group = group_size(options.batchSize) if candidates.lazy else 1
        first = training.step // group * group  # the start of the group that contains the next step
        steps = data.stream.batches(
            "train",
            batchSize=options.batchSize,
            epoch=training.epoch,
            first=first,
            rank=data.team.rank,
            world=data.team.world,
            prepare=data.prepare,
            whole=candidates.augments,
        )
        while some := list(itertools.islice(steps, group)):
            candidates.enter([data.values(batch) for batch in some], data.team)
            for batch in some[training.step - first :]:
                training.take_step(candidates, data, batch, objective)
                training.step += 1
                on_step(training)
            first = training.step
        own = active[done : done + len(candidates.recipes)]
        training.validate(candidates, data, objective, metric, own)
        done += len(own)
        del candidates
    training.end_epoch(data, active)
    on_step(training)


def one_thread_for_small_steps(work: int) -> contextlib.AbstractContextManager[None]:
    """Use one thread for small steps, where more threads cost more than they save, especially on a busy machine."""
    return torch_threads(1 if work < SMALL_STEP else torch.get_num_threads())
