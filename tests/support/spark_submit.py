"""Jobs by spark-submit, and the summary that a run leaves."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def spark_home() -> str:
    spec = importlib.util.find_spec("pyspark")
    assert spec is not None
    assert spec.submodule_search_locations
    return spec.submodule_search_locations[0]


def submit(
    script: Path,
    *arguments: str,
    expect: int | None = 0,
    log: Path | None = None,
    bare: tuple[str, ...] | None = None,
    timed: bool = False,
    **variables: str,
) -> subprocess.CompletedProcess[str]:
    """Run a script by spark-submit; Spark's events go to the folder `log`.

    Args:
        bare: without our settings of the launch, but with these.
        timed: by a JVM as users have it, not by one that starts quickly.
        variables: of the environment.
    """
    environment = {
        **os.environ,
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "SPARK_CONF_DIR": str(ROOT / "conf"),
        "SPARK_HOME": spark_home(),
        **variables,
    }
    command = [str(Path(spark_home()) / "bin" / "spark-submit"), "--master", "local[2]"]
    if bare is not None:
        environment.pop("SPARK_CONF_DIR")
        command += [part for setting in bare for part in ("--conf", setting)]
    if timed:
        for name in ("JDK_JAVA_OPTIONS", "OMP_NUM_THREADS"):
            environment.pop(name)
    if log is not None:
        log.mkdir()
        events = {"enabled": "true", "dir": log.as_uri(), "compress": "false", "rolling.enabled": "false"}
        command += [part for key, value in events.items() for part in ("--conf", f"spark.eventLog.{key}={value}")]
    command += [str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, cwd=ROOT)
    assert expect is None or done.returncode == expect, done.stdout + done.stderr
    return done


def summary(run: Path) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"summary.json holds {name}")

    return json.loads((run / "summary.json").read_text(), parse_constant=refuse)  # type: ignore[no-any-return]
