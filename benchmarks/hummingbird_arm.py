"""The forests of tree_forward.py, and Hummingbird's side of it: a process that runs one of its implementations when told to.

Needs scikit-learn, numpy and, when run, hummingbird-ml and torch, of whatever versions go together; nothing of sparkdiff.
"""

import argparse
import json
import sys
import time
from typing import Any

import numpy as np
from sklearn.ensemble import RandomForestRegressor

ROWS, FEATURES = 10_000, 30
TIMES = 5
"""Runs over the rows that make up one measurement: what an arm finds in the caches is mostly its own."""
IMPLEMENTATIONS, BATCHES = ("perf_tree_trav", "tree_trav", "gemm"), (200, 1_000, 5_000)


def forest(trees: int, depth: int) -> tuple[RandomForestRegressor, np.ndarray[Any, Any]]:
    """A fitted forest and rows for it, (n, d) float64 that float32 holds too: scikit-learn compares in float32."""
    random = np.random.default_rng(0)
    x = random.normal(size=(ROWS, FEATURES)).astype(np.float32).astype(np.float64)
    y = x[:, 0] * x[:, 1] + x[:, 2] + random.normal(size=ROWS)
    fitted = RandomForestRegressor(trees, max_depth=depth, max_features=0.3, random_state=0).fit(x, y)
    return fitted, x


def main() -> None:
    """Write what there is to run, then answer each line, an arm, how many rows and how often, with the CPU seconds that took."""
    import torch
    from hummingbird.ml import convert

    parser = argparse.ArgumentParser()
    parser.add_argument("trees", type=int)
    parser.add_argument("depth", type=int)
    given = parser.parse_args()
    fitted, x = forest(given.trees, given.depth)
    models = {
        n: convert(fitted, "torch", extra_config={"tree_implementation": n, "n_threads": 1}) for n in IMPLEMENTATIONS
    }
    torch.set_num_threads(1)  # after `convert`, which sets as many as the machine has cores
    arms = [(n, kind, batch) for n in IMPLEMENTATIONS for kind in ("float32", "float64") for batch in BATCHES]
    inputs = {kind: x.astype(kind) for kind in ("float32", "float64")}
    nodes = sum(tree.tree_.node_count for tree in fitted.estimators_)
    predictions = models[IMPLEMENTATIONS[0]].predict(inputs["float64"][:100]).ravel().tolist()
    print(json.dumps({"arms": arms, "nodes": nodes, "predictions": predictions}), flush=True)
    for line in sys.stdin:
        arm, number, times = map(int, line.split())
        name, kind, batch = arms[arm]
        model, rows = models[name], inputs[kind]
        assert torch.get_num_threads() == 1
        start = time.process_time()
        for begin in [*range(0, number, batch)] * times:
            model.predict(rows[begin : begin + batch])
        print(time.process_time() - start, flush=True)


if __name__ == "__main__":
    main()
