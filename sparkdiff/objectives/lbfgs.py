"""torch's L-BFGS without the import of torch's compiler."""

import inspect

import torch


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, with the same steps, but without the import of torch's compiler, which takes 2 s of CPU time.

    torch imports it to exclude two methods of its optimizers from compilation.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
