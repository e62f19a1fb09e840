"""The candidates that train together: the three recipes, modified by the options.

To add a candidate:

1. Append a `recipe(...)` to the list that `recipes_for` returns for `thorough`. All candidates but those with `lbfgs` and
   `newton` use the same optimizer. A new kind of setting is a new field of `Recipe`, which `augmentation.py` or
   `optimizers.py` reads, with a case in `tests/unit/training/test_candidates.py`.
2. Add it to `GRID` in benchmarks/recipes.py, which measures the gain; benchmarks/candidates.py measures the cost. Each
   candidate makes the guard's test stricter for all others.
3. Delete the stored history of `tests/api/training/test_loss_curve.py`; the test then stores a new one.
4. Describe it in docs/recipes.md.
"""

import dataclasses
import math
from collections.abc import Sequence

from sparkdiff.options import Options

ONCE_AN_EPOCH = ("lbfgs", "newton")
"""Optimizers that take one step an epoch, along the gradient of all rows."""
FEW_ROWS = 1000
"""Number of validation rows below which fewer candidates are tried, as a choice among many is then mostly chance: with
a fifth of this number (FEWEST) or less, only one candidate."""
FEWEST = 1 / 5


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings of one candidate.

    Attributes:
        learningRate, regAnchor: step size and pull towards the original (L2-SP), in natural units (typical scales of
            the parameters).
        optimizer: `lbfgs` takes one step an epoch, along the gradient of all rows. So does `newton`, for leaves of
            trees only: along the gradient divided by the second derivative, leaf by leaf, times learningRate.
        ema: decay of the average over steps, which is measured instead of the last weights; 0 uses the last weights.
        noise: standard deviation of the noise added to the inputs, in standard deviations of the inputs.
        mask: share of input entries that are replaced by their mean.
        mixup: parameter a of the Beta(a, a) distribution that mixes pairs of rows (Zhang et al. 2018); 0 disables
            mixing.
    """

    learningRate: float
    regAnchor: float
    optimizer: str = "adam"
    ema: float = 0.0
    noise: float = 0.0
    mask: float = 0.0
    mixup: float = 0.0

    @property
    def augments(self) -> bool:
        return bool(self.noise or self.mask or self.mixup)

    def __str__(self) -> str:
        extra = [f"{name} {value:g}" for name in ("ema", "noise", "mask", "mixup") if (value := getattr(self, name))]
        return ", ".join([f"{self.optimizer} {self.learningRate:g}", f"regAnchor {self.regAnchor:g}", *extra])


def by_newton(recipes: Sequence[Recipe]) -> list[int]:
    """The candidates that take Newton steps."""
    return [k for k, r in enumerate(recipes) if r.optimizer == "newton"]


# Factors of the options learningRate and regAnchor. From a grid of 20 recipes: the single one, and the set of four,
# that lose least against the whole grid on validation rows (benchmarks/recipes.py).
_FAST = (10, 100)
_DEFAULT = ((1, 1), (3, 1), (10, 1), (10, 100))
# The same for trees, from a grid of 26 (benchmarks/tree_recipes.py): learningRate, regAnchor, noise.
_TREES_FAST = (3, 1)
_TREES = ((1, 10), _TREES_FAST, (1, 1, 0.05), (3, 1, 0.2))


def recipes_for(
    options: Options, validationRows: int, *, mixes: bool = True, trees: int = 0, newton: bool = False
) -> list[Recipe]:
    """The recipes to try: with up to 200 validation rows only the most cautious recipe, with 1,000 or more all recipes,
    and in between a number that grows with the logarithm of the number of rows; always one for recipe='fast'.

    Args:
        mixes: whether rows can be mixed (not if they are sparse or contain category indices).
        trees: number of trees whose leaves train.
        newton: whether the margin of trees enters the loss directly, so that Newton steps are possible.
    """
    o = options

    def recipe(rate: float = 1, anchor: float = 1, noise: float = 0, **more: float) -> Recipe:
        return Recipe(rate * o.learningRate, anchor * o.regAnchor, o.optimizer, noise=noise, **{"ema": o.ema, **more})

    if o.recipe == "fast" and validationRows >= FEW_ROWS:
        return [recipe(*(_TREES_FAST if trees else _FAST))]
    out = [recipe(*factors) for factors in (_TREES if trees else _DEFAULT)]
    if o.recipe == "thorough":
        noise = () if trees else (0.2, 0.4)
        out += [recipe(3, ema=0.99), *(recipe(3, noise=n) for n in noise), recipe(3, mask=0.1)]
        out += [recipe(3, mixup=0.2)] if mixes else []
        out += [Recipe(1.0, 10 * o.regAnchor, "lbfgs")]
        # All trees step at once, each as if it were alone: with 1/T of its step each, they can't overshoot.
        out += [Recipe(1 / trees, 10 * o.regAnchor, "newton")] if newton else []
    distinct = list(dict.fromkeys(out))
    share = 1 - math.log(max(validationRows, 1) / FEW_ROWS) / math.log(FEWEST)
    return distinct[: 1 if o.recipe == "fast" else 1 + int(min(max(share, 0.0), 1.0) * (len(distinct) - 1))]
