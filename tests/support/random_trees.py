"""Trees of any shape to build stages from, and rows whose values lie on their thresholds and beside their categories."""

import math
from typing import Any

import numpy as np

from sparkdiff.jvm.nodes import Array, Nodes

WIDTH = 4
CATEGORIES = {2: 5, 3: 4}
"""Sizes of the categorical features: both an odd and an even one, as what half of them is differs."""
THRESHOLDS = [
    0.0,
    -0.0,
    0.5,
    1.0,
    -1.0,
    0.1,
    1e-300,
    5e-324,
    16777217.0,
    1.7976931348623157e308,
    -1.7976931348623157e308,
    math.inf,
    -math.inf,
]
VALUES = [
    *(v for t in THRESHOLDS for v in (t, math.nextafter(t, math.inf), math.nextafter(t, -math.inf))),
    *map(float, range(7)),
    2.5,
    -2.0,
    1e300,
    float(np.float32(0.1)),
    math.nan,
]
SHAPES = ("any", "any", "any", "left chain", "right chain", "full", "leaf")


def grown(random: np.random.Generator, trees: int, classes: int) -> Nodes:
    """Nodes of so many trees, of every shape up to a chain of depth 30.

    Args:
        classes: statistics of so many classes in the leaves; 0 of a regression. Some are all 0, though never in the first
            tree: Spark fails on a row for which no tree has a class.
    """
    return Nodes.of([_tree(random, str(random.choice(SHAPES)), classes, empty=t > 0) for t in range(trees)])


def _tree(random: np.random.Generator, shape: str, classes: int, empty: bool) -> list[dict[str, Any]]:
    """Spark's records in pre-order."""
    out: list[dict[str, Any]] = []
    todo: list[tuple[int, str, int]] = [(-1, "", 0)]
    while todo:
        parent, side, depth = todo.pop()
        here = len(out)
        if parent >= 0:
            out[parent][side] = here
        splits = {
            "any": depth < 1 + 11 * random.random() and here < 40,
            "left chain": depth < 30 and side != "rightChild",
            "right chain": depth < 30 and side != "leftChild",
            "full": depth < 4,
            "leaf": False,
        }[shape]
        out.append(_node(random, splits, classes, empty))
        if splits:
            todo += [(here, "rightChild", depth + 1), (here, "leftChild", depth + 1)]
    return out


def _node(random: np.random.Generator, splits: bool, classes: int, empty: bool) -> dict[str, Any]:
    feature = int(random.integers(WIDTH)) if splits else -1
    categories = CATEGORIES.get(feature, -1) if random.random() < 0.8 else -1
    values: Array = np.empty(0)
    if splits and categories < 0:
        values = random.choice(THRESHOLDS, 1)
    elif splits:  # from none to all of them
        values = np.sort(random.permutation(categories)[: random.integers(categories + 1)]).astype(float)
    if classes:
        few = random.integers(0, 4, classes)
        few[random.integers(classes)] += 0 if empty and random.random() < 0.2 else 1
        stats = few * random.choice([1.0, 0.1, 1e-3], classes)
        prediction = float(stats.argmax())
    else:
        count = random.choice([0.0, 1.0, 7.5])
        total = count * random.normal()
        stats = np.array([count, total, total**2 / max(count, 1) + count * random.random()])
        prediction = float(random.choice([0.0, -0.0, 0.5, -0.5, random.normal(), 100 * random.normal(), 1e-12]))
    return {
        "prediction": prediction,
        "impurity": float(random.random()),
        "gain": float(random.random()) if splits else -1.0,
        "impurityStats": stats.tolist(),
        "rawCount": int(random.integers(100)),
        "leftChild": -1,
        "rightChild": -1,
        "split": {
            "featureIndex": feature,
            "leftCategoriesOrThreshold": values.tolist(),
            "numCategories": categories if splits else -1,
        },
    }


def rows(number: int) -> Array:
    """(number, WIDTH): values on and beside thresholds, categories and what is none, in every combination of chance."""
    random = np.random.default_rng(number)
    return np.where(
        random.random((number, WIDTH)) < 0.2,
        random.normal(size=(number, WIDTH)),
        random.choice(VALUES, (number, WIDTH)),
    )


def reaching(nodes: Nodes, width: int) -> Array:
    """(m, width): for each leaf of each tree that any row can reach, one that does, its values exactly on thresholds."""
    out, left, values = [], nodes.leftChild, nodes.values
    for begin in nodes.offsets[:-1]:
        bounds = (np.full(width, -math.inf), np.full(width, math.inf))
        todo: list[tuple[int, Array, Array, dict[int, set[float]]]] = [(int(begin), *bounds, {})]
        while todo:
            j, low, high, sets = todo.pop()
            if nodes.leaf[j]:
                row = np.where(high < math.inf, high, np.where(low > -math.inf, np.nextafter(low, math.inf), 0.0))
                for feature, categories in sets.items():
                    row[feature] = max(categories)
                out.append(row)
                continue
            feature, split = int(nodes.featureIndex[j]), values[nodes.starts[j] : nodes.ends[j]]
            sides: list[tuple[int, Array, Array, dict[int, set[float]]]]
            if nodes.numCategories[j] < 0:
                below, above = high.copy(), low.copy()
                below[feature], above[feature] = min(high[feature], split[0]), max(low[feature], split[0])
                sides = [
                    (int(begin + left[j]), low, below, sets),
                    (int(begin + nodes.rightChild[j]), above, high, sets),
                ]
                todo += [side for side in sides if side[1][feature] < side[2][feature]]
            else:
                every = sets.get(feature, set(map(float, range(nodes.numCategories[j]))))
                parts = (every & set(split)), (every - set(split))
                children = (left[j], nodes.rightChild[j])
                sides = [
                    (int(begin + c), low, high, {**sets, feature: part})
                    for c, part in zip(children, parts, strict=True)
                ]
                todo += [side for side in sides if side[3][feature]]
    return np.array(out)


def edges(nodes: Nodes, width: int) -> Array:
    """(m, width): every combination of values on and just above thresholds, categories, none of them, and NaN."""
    features = []
    for f in range(width):
        cuts = np.unique(nodes.values[nodes.starts[nodes.continuous & (nodes.featureIndex == f)]])
        few = nodes.numCategories[nodes.featureIndex == f].max(initial=-1)
        features.append(np.concatenate([cuts, np.nextafter(cuts, math.inf), np.arange(few + 1), [math.nan]]))
    return np.stack(np.meshgrid(*features), -1).reshape(-1, width)


def differing(found: Nodes, wished: Nodes) -> list[str]:
    """The fields in which two ensembles differ, if any; in what order Spark keeps a node's categories says nothing."""

    def plain(nodes: Nodes) -> dict[str, Array]:
        node = np.repeat(np.arange(len(nodes)), nodes.ends - nodes.starts)
        order = np.lexsort((nodes.values, node))
        return {**vars(nodes), "values": nodes.values[order]}

    ours, theirs = plain(found), plain(wished)
    return [
        name
        for name, value in theirs.items()
        if not np.array_equal(ours[name], value, equal_nan=value.dtype.kind == "f")
    ]
