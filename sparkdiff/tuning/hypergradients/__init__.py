"""Joint tuning of many continuous hyper-parameters of a linear model by the gradient of the held-out loss; on tensors only.

`linear_model` makes a `LinearModel` from rows and groups of columns; `tune_penalties` finds a penalty for each group,
`choose_alternatives` an alternative for each place; `point` computes the derivatives with respect to the penalties.
"""

from sparkdiff.tuning.hypergradients.gates import ChosenAlternatives, choose_alternatives
from sparkdiff.tuning.hypergradients.penalties import Point, TunedPenalties, point, tune_penalties
from sparkdiff.tuning.hypergradients.weights import LinearModel, linear_model

__all__ = [
    "ChosenAlternatives",
    "LinearModel",
    "Point",
    "TunedPenalties",
    "choose_alternatives",
    "linear_model",
    "point",
    "tune_penalties",
]
