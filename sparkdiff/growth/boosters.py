"""Boosted trees for any differentiable loss, fitted by LightGBM, XGBoost or scikit-learn, a few trees at a time.

Each class below holds the rows in the form of its library. Its method `block` starts a new ensemble at a given margin
(LightGBM's init_score, XGBoost's base_margin) and returns its trees. The trees found so far are therefore the whole state: no
object of the library has to be kept between two blocks. A library is imported only when it is needed.
"""

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch

from sparkdiff.errors import InputError
from sparkdiff.importers import lightgbm, sklearn, xgboost
from sparkdiff.importers.trees import TreeArrays
from sparkdiff.jvm.nodes import Array, Nodes
from sparkdiff.stages.routing import Router

Slopes = Callable[[Array], tuple[Array, Array]]
"""Margin (n, k) -> first and second derivative of each row's loss with respect to its margin, (n, k) each. Both are multiplied by
the row's weight, and scaled so that the mean second derivative is 1."""
SHARE = 0.8
"""Share of the rows, drawn at random, that each tree is fitted to."""
LEAST_CURVATURE = 1.0
"""Smallest sum of second derivatives (curvature) in a leaf: that of one average row."""
CATEGORY_ROWS, CATEGORY_RIDGE = 50.0, 20.0
"""LightGBM's cat_smooth and cat_l2. A category of fewer rows than cat_smooth is in no set of a split. With LightGBM's defaults
(10, 10), splits on a column of 40 categories without any effect cost two thirds of the gain of a planted interaction (2,000 rows,
two classes)."""
LARGEST = 1e30
"""Values are clipped to this magnitude for XGBoost and scikit-learn, whose trees read float32; scikit-learn also adds them up."""


@dataclass(frozen=True)
class TreeConstraints:
    """Constraints on a tree.

    Attributes:
        leaves, depth: largest number of leaves, and largest depth.
        rows: smallest number of rows in a leaf.
        ridge: L2 penalty on a leaf's value, in the curvature of an average row: a ridge of 1 counts like one more row.
        rate: factor of a leaf's Newton step.
        longest: largest Newton step before the rate, as a difference of margins.
        columns: share of the columns that is drawn at random for each tree (by scikit-learn for each split).
    """

    leaves: int
    depth: int
    rows: int
    ridge: float
    rate: float
    longest: float
    columns: float = 1.0


class Booster(ABC):
    """Base class of the libraries that fit trees to rows.

    Args:
        x: (n, c) float64, the columns; NaN where a row has no value.
        nominal: (c,) bool, True for columns of category indices.
    """

    module: ClassVar[str]

    def __init__(self, x: Array, nominal: Array, rules: TreeConstraints):
        self.x, self.nominal, self.rules = x, nominal, rules

    @abstractmethod
    def block(self, margin: Array, slopes: Slopes, rounds: int, seed: int) -> list[TreeArrays]:
        """Fit at most `rounds` boosting rounds from the margin (n, k); return k trees per round, one per entry of the margin."""


def _objective(slopes: Slopes, shape: tuple[int, ...]) -> Callable[[Array, Any], tuple[Array, Array]]:
    """The slopes as a custom objective. LightGBM and XGBoost call it with scores, each in its own shape, and their data set."""

    def derivatives(scores: Array, _: Any) -> tuple[Array, Array]:
        slope, curve = slopes(scores.reshape(shape).astype(np.float64, copy=False))
        return slope.reshape(scores.shape), curve.reshape(scores.shape)

    return derivatives


class LightGBM(Booster):
    module = "lightgbm"

    def __init__(self, x: Array, nominal: Array, rules: TreeConstraints):
        import lightgbm as library

        super().__init__(x, nominal, rules)
        self.library = library
        self.params = {
            "objective": "none",
            "verbosity": -1,
            "num_threads": 1,
            "deterministic": True,
            "force_row_wise": True,
            "feature_pre_filter": False,
            "num_leaves": rules.leaves,
            "max_depth": rules.depth,
            "learning_rate": rules.rate,
            "min_data_in_leaf": rules.rows,
            "min_sum_hessian_in_leaf": LEAST_CURVATURE,
            "min_data_per_group": rules.rows,
            "cat_smooth": CATEGORY_ROWS,
            "cat_l2": CATEGORY_RIDGE,
            "lambda_l2": rules.ridge,
            "max_delta_step": rules.longest,
            "bagging_fraction": SHARE,
            "bagging_freq": 1,
            "feature_fraction": rules.columns,
        }
        self.data = library.Dataset(
            x, categorical_feature=np.flatnonzero(nominal).tolist(), params=self.params, free_raw_data=False
        )

    def block(self, margin: Array, slopes: Slopes, rounds: int, seed: int) -> list[TreeArrays]:
        self.data.construct().set_init_score(margin if margin.shape[1] > 1 else margin[:, 0])
        booster = self.library.Booster({**self.params, "seed": seed, "num_class": margin.shape[1]}, self.data)
        objective = _objective(slopes, margin.shape)
        for _ in range(rounds):
            if booster.update(fobj=objective):
                break
        return lightgbm.trees_of(booster.model_to_string(num_iteration=-1), whole=True)


class XGBoost(Booster):
    """XGBoost, which has no smallest number of rows in a leaf: instead, `TreeConstraints.rows` is a leaf's smallest curvature."""

    module = "xgboost"

    def __init__(self, x: Array, nominal: Array, rules: TreeConstraints):
        import xgboost as library

        super().__init__(x, nominal, rules)
        self.library = library
        kinds = np.where(nominal, "c", "q").tolist()
        self.data = library.DMatrix(
            np.clip(x, -LARGEST, LARGEST), feature_types=kinds, enable_categorical=True, nthread=1
        )

    def block(self, margin: Array, slopes: Slopes, rounds: int, seed: int) -> list[TreeArrays]:
        params = {
            "verbosity": 0,
            "nthread": 1,
            "seed": seed,
            "tree_method": "hist",
            "grow_policy": "lossguide",
            "max_leaves": self.rules.leaves,
            "max_depth": self.rules.depth,
            "eta": self.rules.rate,
            "min_child_weight": max(LEAST_CURVATURE, self.rules.rows),
            "lambda": self.rules.ridge,
            "max_delta_step": self.rules.longest,
            "subsample": SHARE,
            "colsample_bytree": self.rules.columns,
            "base_score": 0.0,
            **({"num_class": margin.shape[1]} if margin.shape[1] > 1 else {}),
        }
        self.data.set_base_margin(margin if margin.shape[1] > 1 else margin[:, 0])
        booster = self.library.train(params, self.data, rounds, obj=_objective(slopes, margin.shape))
        return list(xgboost.read(booster, whole=True).trees)


class ScikitLearn(Booster):
    """scikit-learn: one DecisionTreeRegressor at a time; the values of its leaves are then replaced by Newton steps.

    A tree fitted by weighted least squares to -slope/curvature with weights curvature has the splits of a Newton step. (One fit
    of HistGradientBoosting, which takes no custom losses, takes forty times as long on 2,000 rows.) The values of a column of
    categories are sorted by their own Newton steps, shrunk by `CATEGORY_ROWS`. A threshold in this order divides the values
    into two sets; without shrinkage, the best threshold gives the best sets for least squares (Breiman et al., "Classification
    and Regression Trees", 1984, section 4.2.2).
    """

    module = "sklearn"

    def __init__(self, x: Array, nominal: Array, rules: TreeConstraints):
        from sklearn.tree import DecisionTreeRegressor

        super().__init__(np.clip(x, -LARGEST, LARGEST), nominal, rules)
        self.library = DecisionTreeRegressor
        self.codes = {int(j): np.unique(x[:, j], return_inverse=True) for j in np.flatnonzero(nominal)}

    def block(self, margin: Array, slopes: Slopes, rounds: int, seed: int) -> list[TreeArrays]:
        random, margin, out = np.random.default_rng(seed), margin.copy(), []
        for _ in range(rounds):
            slope, curve = slopes(margin)
            drawn = random.random(len(margin)) < SHARE
            for k in range(margin.shape[1]):
                tree, step = self._tree(
                    slope[:, k], curve[:, k], drawn & (curve[:, k] > 0), int(random.integers(2**31))
                )
                margin[:, k] += step
                out.append(tree)
        return out

    def _tree(self, slope: Array, curve: Array, drawn: Array, seed: int) -> tuple[TreeArrays, Array]:
        """A tree, and its prediction for each row, (n,).

        Args:
            slope, curve: (n,) derivatives for one entry of the margin.
            drawn: (n,) True for the rows that the tree is fitted to.
        """
        if not drawn.any():
            return TreeArrays.constant(0.0), np.zeros(len(drawn))
        model = self.library(
            max_leaf_nodes=self.rules.leaves,
            max_depth=self.rules.depth,
            min_samples_leaf=self.rules.rows,
            max_features=self.rules.columns,
            random_state=seed,
        )
        x, order = self._rank_categories(slope, curve, drawn)
        node = model.fit(x[drawn], -slope[drawn] / curve[drawn], sample_weight=curve[drawn]).apply(x)
        [tree] = sklearn.read(model).trees
        size = len(tree.left)
        pull = np.bincount(node[drawn], slope[drawn], minlength=size)
        weight = np.bincount(node[drawn], curve[drawn], minlength=size) + self.rules.ridge
        value = -self.rules.rate * np.clip(pull / weight, -self.rules.longest, self.rules.longest)
        below = np.floor(np.clip(tree.threshold, -1, size + len(x))).astype(np.int64) + 1
        sets = {
            int(j): (order[tree.feature[j]][: below[j]], True)
            for j in np.flatnonzero((tree.left >= 0) & np.isin(tree.feature, list(order)))
        }
        return replace(tree, value=value, sets=sets), value[node]

    def _rank_categories(self, slope: Array, curve: Array, drawn: Array) -> tuple[Array, dict[int, Array]]:
        """The rows (n, c), with each category value replaced by the rank of its Newton step; and column -> its values by rank."""
        x, order = self.x.copy(), {}
        for j, (values, code) in self.codes.items():
            real = values[~np.isnan(values)]
            pull, weight = (
                np.bincount(code[drawn], d[drawn], minlength=len(values))[: len(real)] for d in (slope, curve)
            )
            by = np.argsort(pull / (weight + CATEGORY_ROWS), kind="stable")
            rank = np.full(len(values), np.nan)
            rank[by] = np.arange(len(by))
            x[:, j], order[j] = rank[code], real[by]
        return x, order


BOOSTERS: tuple[type[Booster], ...] = (LightGBM, XGBoost, ScikitLearn)
"""Boosters in order of preference."""


def preferred_library() -> str | None:
    """Module name of the preferred library among those that are installed; None if none is installed."""
    return next((kind.module for kind in BOOSTERS if importlib.util.find_spec(kind.module) is not None), None)


def booster(module: str, x: Array, nominal: Array, rules: TreeConstraints) -> Booster:
    """Booster of the library with this module name, for the rows x (n, c).

    Raises:
        InputError: the library can't be imported in this process.
    """
    [kind] = [booster for booster in BOOSTERS if booster.module == module]
    try:
        return kind(x, nominal, rules)
    except ImportError as e:
        raise InputError(f"{module} cannot be imported in this process ({e}): install it on all machines") from e


def total(nodes: Nodes, x: Array) -> Array:
    """Sum over the trees of the value of the leaf that each row falls into: (n, c) -> (n,), computed as in Spark."""
    thresholds = torch.from_numpy(nodes.values[nodes.starts[nodes.continuous]])
    leaves = torch.from_numpy(nodes.prediction[nodes.leaf])
    return np.asarray(Router(nodes).total(torch.from_numpy(x), thresholds, leaves).numpy())
