"""torch's L-BFGS without the import of torch's compiler."""

import inspect

import torch


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, with the same steps. torch excludes two methods of its optimizers from compilation, and imports
    its compiler for that, which takes 2 s of CPU time.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
