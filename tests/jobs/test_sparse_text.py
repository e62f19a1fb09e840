"""A text pipeline of 2^18 columns in a process that may not take the memory of one dense batch; two processes agree with one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# On each commit test_cache looks at the size of the tensors: test_text_trains_through_arrow.
pytestmark = [pytest.mark.slow, pytest.mark.nightly]

RUN = """
import json, resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2] + "/benchmarks")
import pyarrow.parquet as pq
import torch
from sparse import WIDTH, invented, pipeline, session, status
import sparkdiff
from sparkdiff.training.active_columns import ActiveColumns

spark, folder = session(), sys.argv[1]
pq.write_table(invented(6_000, 2), folder + "/rows.parquet")
df = spark.read.parquet("file://" + folder + "/rows.parquet")
model = pipeline(regParam=1.0, maxIter=3).fit(df)
df.limit(5).toPandas()
dense = 8 * 1024 * WIDTH
resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + dense * 9 // 10, resource.RLIM_INFINITY))
lazy, made = [], ActiveColumns.__init__
ActiveColumns.__init__ = lambda self, *given: lazy.append(self) or made(self, *given)

def fit(**params):
    given = {"batchSize": 1024, "maxEpochs": 2, "seed": 3, "cacheDir": folder + "/cache", "rowsAreNew": True}
    tuner = sparkdiff.FineTuner(pipeline=model, **given, **params)
    tuned = tuner.fit(df)
    s, lr = tuned.summary, tuned.pipelineModel.stages[-1]
    return {
        "decision": s.decision, "metrics": s.metrics["validation"], "candidates": int(s.history.candidate.max()) + 1,
        "parity": [p["ok"] for p in s.parity.values()], "coefficients": lr.coefficients.toArray().tolist(),
    }

found = {"one": fit(), "lazy": len(lazy)}
if sys.argv[3] == "two":
    found["two"] = fit(numProcesses=2)
print("FOUND " + json.dumps(found))
"""


@pytest.mark.parametrize("processes", ["one", "two"])
def test_no_batch_is_ever_dense(tmp_path: Path, processes: str) -> None:
    script = tmp_path / "run.py"
    script.write_text(RUN)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), str(ROOT), processes],
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    line = next(x for x in done.stdout.splitlines() if x.startswith("FOUND "))
    found = json.loads(line.removeprefix("FOUND "))
    assert found["lazy"] == 1  # the training stepped on the columns of the batches alone
    for run in (found[name] for name in ("one", "two")[: 1 + (processes == "two")]):
        assert run["candidates"] == 4
        assert run["decision"] == "tuned"
        assert run["metrics"]["after"] < run["metrics"]["before"]
        assert all(run["parity"])
    if processes == "one":
        return
    apart = [abs(a - b) for a, b in zip(found["one"]["coefficients"], found["two"]["coefficients"], strict=True)]
    print(f"two processes differ from one by {max(apart):.1e}")
    assert max(apart) < 1e-9
