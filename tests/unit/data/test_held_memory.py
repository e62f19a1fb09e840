"""What a stream holds does not grow with the epochs, for both back ends, from memory and from files."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cache_on_disk import BACKENDS, HAS_PETASTORM, Cache

EPOCHS = """
import gc, os, sys, tracemalloc
from pathlib import Path
import pyarrow
from sparkdiff.data.stream.batches import Stream

def used():
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return resident, tracemalloc.get_traced_memory()[0] + pyarrow.total_allocated_bytes()

def serve(backend, in_memory):
    tracemalloc.start()
    with Stream(Path(sys.argv[1]), backend=backend, inMemory=in_memory) as stream:
        for epoch in range(1, int(sys.argv[2]) + 1):
            for batch in stream.batches("train", batchSize=128, epoch=epoch):
                pass
            if epoch == 5:
                early = used()
        print(backend, in_memory, *early, *used(), flush=True)

for backend in sys.argv[3:]:
    if backend == "petastorm":
        import petastorm.reader
    for in_memory in (True, False):
        if (child := os.fork()) == 0:  # in a process of its own, with the modules of this one
            serve(backend, in_memory)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
"""


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], list[int]]:
    """By back end and place: the process's pages and the bytes held, after five epochs and in the end."""
    rows, epochs = request.param
    cache = Cache(tmp_path_factory.mktemp("memory") / "cache", splits={"train": [[rows, 3 * rows // 4]] * 8})
    command = [sys.executable, "-c", EPOCHS, str(cache.folder), str(epochs), "arrow", *["petastorm"] * HAS_PETASTORM]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=500)
    lines = [line.split() for line in result.stdout.splitlines()]
    return {(backend, place): list(map(int, figures)) for backend, place, *figures in lines}


@pytest.mark.slow
@pytest.mark.parametrize("in_memory", [True, False], ids=["memory", "files"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("served", [(2000, 20), pytest.param((4000, 50), marks=pytest.mark.nightly)], indirect=True)
def test_memory_stays_over_epochs(served: dict[tuple[str, str], list[int]], backend: str, in_memory: bool) -> None:
    pages, held, late_pages, late_held = served[backend, str(in_memory)]
    # What Python (numpy's arrays with it) and Arrow hold is told to the byte: one batch more an epoch is 90 kB in the end. What
    # the process has is not, as Arrow's allocator gives memory back when it likes: an epoch more an epoch is 8% in the end.
    assert late_held - held < 1 << 16
    assert late_pages <= 1.05 * pages
