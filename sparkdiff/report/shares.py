"""A change of a metric as a share of the metric."""

NOTHING = 1e-12
"""What a change of a metric that is zero is divided by."""


def share_of(change: float, metric: float) -> float:
    """The change as a share of the metric's size, whatever the label's unit is: squares of small labels are very small."""
    return change / (abs(metric) or NOTHING)
