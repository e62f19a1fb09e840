"""Many continuous hyper-parameters of a linear model at once, by the slope of the loss on held-out rows; on tensors only.

`linear_model` makes a `Linear` of rows and groups of columns; `tuned` finds a penalty for each group, `chosen` an alternative for
each place; `point` and `unrolled` give derivatives by the penalties. `step_sizes` is for training: a step size for each group of
parameters.
"""

from sparkdiff.tuning.hypergradients.gates import ChosenAlternatives, chosen
from sparkdiff.tuning.hypergradients.implicit import Point, point, unrolled
from sparkdiff.tuning.hypergradients.penalties import Tuned, tuned
from sparkdiff.tuning.hypergradients.unrolled_steps import StepSizes, step_sizes
from sparkdiff.tuning.hypergradients.weights import Linear, linear_model

__all__ = [
    "ChosenAlternatives",
    "Linear",
    "Point",
    "StepSizes",
    "Tuned",
    "chosen",
    "linear_model",
    "point",
    "step_sizes",
    "tuned",
    "unrolled",
]
