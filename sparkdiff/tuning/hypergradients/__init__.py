"""Joint tuning of many continuous hyper-parameters of a linear model by the gradient of the held-out loss; on tensors only.

`linear_model` makes a `Linear` from rows and groups of columns; `tuned` finds a penalty for each group, `chosen` an
alternative for each place; `point` computes the derivatives with respect to the penalties.
"""

from sparkdiff.tuning.hypergradients.gates import ChosenAlternatives, chosen
from sparkdiff.tuning.hypergradients.implicit import Point, point
from sparkdiff.tuning.hypergradients.penalties import Tuned, tuned
from sparkdiff.tuning.hypergradients.weights import Linear, linear_model

__all__ = [
    "ChosenAlternatives",
    "Linear",
    "Point",
    "Tuned",
    "chosen",
    "linear_model",
    "point",
    "tuned",
]
