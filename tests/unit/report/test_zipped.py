"""The package in a zip, as `spark-submit --py-files` takes it: its own data files are found there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_a_report_and_forecasts_from_a_zip(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "sparkdiff.zip", "w") as archive:
        for path in (ROOT / "sparkdiff").rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                archive.write(path, path.relative_to(ROOT))
    code = (
        "import sparkdiff.report.page as page; from sparkdiff.history import run_forecasts; "
        "from sparkdiff.improvement import arm_order; "
        "assert '.zip' in page.__file__; print(page.template('compare.html.j2')[:15]); "
        "print(len(arm_order.PRIORS.read_text()) > 0 < len(run_forecasts.PRIORS.read_text()))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "sparkdiff.zip")}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (0, ["<!doctype", "html>", "True"]), done.stdout + done.stderr
