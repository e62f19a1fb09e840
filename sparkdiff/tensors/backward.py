"""The start of a backward pass from given gradients."""

from torch import Tensor


def dot(out: Tensor, gradient: Tensor) -> Tensor:
    """sum(out * gradient), whose gradient with respect to `out` is `gradient`, bit for bit.

    `dot(out, gradient).backward()` replaces `out.backward(gradient)`, which makes torch import SymPy: two seconds of
    processor time in each process.
    """
    return (out * gradient).sum()
