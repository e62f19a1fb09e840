"""The start of a backward pass from given gradients."""

from torch import Tensor


def dot(out: Tensor, gradient: Tensor) -> Tensor:
    """sum(out * gradient), whose gradient by `out` is `gradient`, bit for bit.

    `dot(out, gradient).backward()` is `out.backward(gradient)`, before which torch imports SymPy: two seconds of processor time
    in each process.
    """
    return (out * gradient).sum()
