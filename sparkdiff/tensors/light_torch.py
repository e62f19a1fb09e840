"""Replacements for parts of torch, with the same results, that import neither SymPy nor the compiler, which takes seconds."""

import inspect

import torch
from torch import Tensor


def dot(out: Tensor, gradient: Tensor) -> Tensor:
    """sum(out * gradient), whose gradient with respect to `out` is `gradient`, bit for bit.

    `dot(out, gradient).backward()` replaces `out.backward(gradient)`, which makes torch import SymPy: two seconds of
    processor time in each process.
    """
    return (out * gradient).sum()


class LBFGS(torch.optim.LBFGS):
    """torch's L-BFGS, with the same steps, but without the import of torch's compiler, which takes 2 s of CPU time.

    torch imports it to exclude two methods of its optimizers from compilation.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
