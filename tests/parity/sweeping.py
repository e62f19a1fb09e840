"""Runs all parity tests with a plugin that looks at each pipeline, and reads what the plugin has counted."""

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def swept(plugin: str, headline: str) -> dict[str, int]:
    """How often the plugin of this name found what, from the lines behind its headline.

    Raises:
        AssertionError: a test failed.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:cacheprovider", str(HERE)]
    path = os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command, cwd=HERE.parents[1], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=3600,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    lines = re.findall(r"^ *(\d+) (\S.*)$", done.stdout.partition(headline)[2], re.MULTILINE)
    return {why: int(times) for times, why in lines if "passed" not in why}
