"""The forests of tree_forward.py, and Hummingbird's side of it: a process that runs one of its implementations when told to.

Needs scikit-learn, numpy and, when run, hummingbird-ml and torch, of whatever versions go together; nothing of sparkdiff.
"""

import argparse
import json
import statistics
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


def passes(fitted: RandomForestRegressor, rows: int, device: str) -> dict[str, float]:
    """Seconds of a pass of each implementation, the median of five, by the batch that suits it best; without those that the
    device has no memory for.
    """
    import torch
    from hummingbird.ml import convert

    out: dict[str, float] = {}
    x = torch.from_numpy(np.random.default_rng(1).standard_normal((rows, FEATURES)).astype(np.float32)).to(device)

    def wait() -> float:
        if x.is_cuda:
            torch.cuda.synchronize(x.device)
        return time.perf_counter()

    for name in IMPLEMENTATIONS:
        # The module inside: `predict` takes rows of the CPU only, and copies them.
        model = convert(fitted, "torch", device=device, extra_config={"tree_implementation": name}).model
        for batch in sorted({min(rows, 10_000), min(rows, 100_000), rows}):
            try:
                times = []
                for _ in range(6):  # the first one warms up
                    start = wait()
                    with torch.no_grad():
                        for part in x.split(batch):
                            model(part)
                    times.append(wait() - start)
            except torch.OutOfMemoryError:
                continue
            key, taken = f"{name} by {batch:,}", statistics.median(times[1:])
            best = next((k for k in out if k.startswith(f"{name} by")), None)
            if best is None or taken < out[best]:
                out.pop(best or "", None)
                out[key] = taken
    return out


def main() -> None:
    """Write what there is to run, then answer each line, an arm, how many rows and how often, with the CPU seconds that took."""
    import torch
    from hummingbird.ml import convert

    parser = argparse.ArgumentParser()
    parser.add_argument("trees", type=int)
    parser.add_argument("depth", type=int)
    parser.add_argument(
        "--device", help="instead, time passes over --rows rows that lie on this device, as gpu.py asks"
    )
    parser.add_argument("--rows", type=int, default=ROWS)
    given = parser.parse_args()
    fitted, x = forest(given.trees, given.depth)
    if given.device:
        print(json.dumps(passes(fitted, given.rows, given.device)))
        return
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
