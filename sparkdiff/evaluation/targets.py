"""Labels and weights of the same rows in two pipelines: metrics of other ones can't be compared."""

from torch import Tensor


def changed(one: Tensor, other: Tensor, what: str, beside: str) -> str:
    """How many rows have another label or weight, in words, with the first of them; empty if none has. NaN is equal to NaN.

    Args:
        one, other: (n,) of a pipeline, and of the one that it is compared with.
        what: "label" or "weight".
        beside: what the other pipeline is.
    """
    differ = (one != other) & ~(one.isnan() & other.isnan())
    if not bool(differ.any()):
        return ""
    first = int(differ.nonzero()[0])
    return (
        f"{int(differ.sum()):,} of {len(one):,} rows have another {what} than in {beside}, as {one[first]:g} for "
        f"{other[first]:g}"
    )
