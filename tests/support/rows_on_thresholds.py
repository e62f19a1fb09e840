"""Rows on which two implementations of the same trees would differ, if they could."""

from typing import Any

import numpy as np
from pyspark.ml import PipelineModel
from pyspark.ml.functions import array_to_vector, vector_to_array

from sparkdiff.jvm import trees
from sparkdiff.jvm.nodes import Nodes


def ensembles(model: Any) -> list[Any]:
    """The stages of trees in what came home."""
    stages = model.stages if isinstance(model, PipelineModel) else [model]
    return [stage for stage in stages if "DecisionTree" in type(stage).__name__ or hasattr(stage, "trees")]


def rows(model: Any, width: int, *, nan: bool = True, inf: bool = True, seed: int = 0) -> np.ndarray:
    """(n, width): a row for every leaf, and values on, one double and one float32 beside every threshold, mixed at random."""
    random = np.random.default_rng(seed)
    every = [trees.read(stage) for stage in ensembles(model)]
    specials = [0.0, -0.0, 5e-324, -5e-324, 1e-35, -1e-35, 2e-35, 1e-40, -1e-40, 1e30, -1e30]
    specials += [np.inf, -np.inf, 1e300, -1e300, 3.5e38] if inf else []
    specials += [np.nan] if nan else []
    critical = []
    for feature in range(width):
        at = np.concatenate(
            [nodes.values[nodes.starts[nodes.continuous & (nodes.featureIndex == feature)]] for nodes in every]
        )
        at = np.unique(at[np.isfinite(at)])
        with np.errstate(over="ignore"):
            small = at.astype(np.float32)
        beside = [np.nextafter(small, np.float32(side)).astype(np.float64) for side in (np.inf, -np.inf)]
        near = [at, np.nextafter(at, np.inf), np.nextafter(at, -np.inf), small.astype(np.float64), *beside]
        critical.append(np.concatenate([*near, specials, random.normal(size=20), np.arange(-1.0, 50.0)]))
    count = max(4_000, 2 * max(map(len, critical)))
    mixed = np.stack([random.choice(values, count) for values in critical], 1)
    for feature, values in enumerate(critical):  # each at least once
        mixed[: len(values), feature] = values
    leaves = [reaching(nodes, width, random) for nodes in every]
    out = np.concatenate([mixed, *leaves])
    if not nan:
        out = np.nan_to_num(out, nan=0.5, posinf=np.inf, neginf=-np.inf)
    if not inf:  # not in float32 either
        out = np.clip(out, *np.array([np.finfo(np.float32).min, np.finfo(np.float32).max], np.float64))
    return out


def reaching(nodes: Nodes, width: int, random: np.random.Generator) -> np.ndarray:
    """(leaves, width): a row for each leaf that any row reaches, where it must be on the upper edge of the leaf's box."""
    out = []
    for first in nodes.offsets[:-1]:
        todo = [(0, np.full(width, -np.inf), np.full(width, np.inf), {}, frozenset())]
        while todo:
            at, low, high, fixed, isnan = todo.pop()
            j = first + at
            if nodes.leftChild[j] < 0:
                row = random.normal(size=width)
                row = np.where(row > high, high, np.where(row <= low, np.nextafter(low, np.inf), row))
                for feature, value in fixed.items():
                    row[feature] = value
                row[list(isnan)] = np.nan
                out.append(row)
                continue
            f, values = int(nodes.featureIndex[j]), nodes.values[nodes.starts[j] : nodes.ends[j]]
            if nodes.numCategories[j] >= 0:
                other = np.setdiff1d(np.arange(nodes.numCategories[j] + 3.0), values)
                for child, choice in ((nodes.leftChild[j], values), (nodes.rightChild[j], other)):
                    if f not in fixed and len(choice):
                        todo.append((child, low, high, {**fixed, f: random.choice(choice)}, isnan))
                    elif f in fixed and fixed[f] in choice:
                        todo.append((child, low, high, fixed, isnan))
                continue
            if f not in isnan and low[f] < min(high[f], values[0]):
                upper = high.copy()
                upper[f] = min(high[f], values[0])
                todo.append((nodes.leftChild[j], low, upper, fixed, isnan))
            if values[0] == np.inf or f in isnan:
                todo.append((nodes.rightChild[j], low, high, fixed, isnan | {f}))
            elif max(low[f], values[0]) < high[f]:
                lower = low.copy()
                lower[f] = max(low[f], values[0])
                todo.append((nodes.rightChild[j], lower, high, fixed, isnan))
    return np.array(out)


def served(spark: Any, model: Any, X: np.ndarray, *columns: str) -> list[np.ndarray]:
    """What a model writes on rows, a vector column as a matrix."""
    frame = spark.createDataFrame([(i, row) for i, row in enumerate(X.tolist())], "id int, x array<double>")
    out = model.transform(frame.select("id", array_to_vector("x").alias("features")))
    vectors = {
        f.name for f in out.schema.fields if "vector" in f.dataType.typeName().lower() or "VectorUDT" in str(f.dataType)
    }
    chosen = [vector_to_array(c).alias(c) if c in vectors else c for c in columns]
    found = out.orderBy("id").select(*chosen).collect()
    return [np.array([row[c] for row in found]) for c in columns]
