"""torch's L-BFGS without the import of torch's compiler."""

import inspect

import torch


class LBFGS(torch.optim.LBFGS):
    """The same steps. torch keeps its compiler out of two methods of its optimizers, and imports it for that: 2 s of CPU time."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
