"""Every pipeline of the tests beside this one, served in every way and compared with Spark (`tests/support/serving_sweep.py`)."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUPPORT = "tests.support"
"""A plugin, too, and the first: pytest then rewrites its asserts, as `conftest.py` asks, which comes after plugins."""

COMPARES = "tests/parity/versions/test_storage.py::test_zeros_are_stored_as_in_spark"
"""It compares all ways itself, and reads sparse vectors, which an ONNX file gets as dense ones."""


def swept() -> dict[str, dict[str, int]]:
    """By way how often it was taken, and refused for which reason.

    Raises:
        AssertionError: a test failed.
    """
    plugins = (SUPPORT, f"{SUPPORT}.serving_sweep", "no:cacheprovider")
    plugged = [part for name in plugins for part in ("-p", name)]
    command = [sys.executable, "-m", "pytest", "-q", *plugged, "--deselect", COMPARES, str(HERE)]
    path = os.pathsep.join([str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    found: dict[str, dict[str, int]] = {}
    for times, way, why in re.findall(r"^ *(\d+) (\w+): (.*)$", done.stdout.partition("\nserved:")[2], re.MULTILINE):
        found.setdefault(way, {})[why] = int(times)
    return found


@pytest.mark.nightly
def test_all_pipelines_of_these_tests() -> None:
    """A Scorer takes nine of ten of MLlib's pipelines, `TorchTransformer` nine of ten, ONNX six of ten. Today they take more:
    `conftest.py` checks each pipeline.
    """
    found = swept()
    scored = {why: n for why, n in found["Scorer"].items() if "not one of Spark's stages" not in why}
    assert scored["accepted"] >= 0.9 * sum(scored.values()), found
    assert found["TorchTransformer"]["accepted"] >= 0.9 * sum(found["TorchTransformer"].values()), found
    assert found["ONNX"]["accepted"] >= 0.6 * sum(found["ONNX"].values()), found
    assert found["compact"]["fewer stages"] >= 10, found
