"""The gallery: one of its jobs from end to end, which fills its section of the page and writes its report."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.nightly
TRACES = re.compile(r"/(tmp|work|home|root)/|\b20[2-9]\d-\d\d-\d\d")
"""Of the machine that ran the jobs."""
OTHER = "## Another job\n\n`sparkdiff improve --config examples/trees.yaml`, budget 90s.\n"


def test_a_gallery_job_runs_and_fills_its_section_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Gallery\n\n{OTHER}")
    command = [sys.executable, str(ROOT / "examples" / "run.py"), "digits", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((ROOT / "runs" / "examples" / "digits" / "summary.json").read_text())
    text = page.read_text()
    head, own, other = text.split("\n## ")
    assert head.startswith("# Gallery") and f"## {other}" == OTHER
    assert "--config examples/digits.yaml" in own and f"Decision: {summary['decision']}." in own
    [report] = (tmp_path / "gallery").iterdir()
    assert report.name == "digits.html" and "(gallery/digits.html)" in own
    assert "<h2>Everything that was tried</h2>" in report.read_text() and len(report.read_text()) < 200_000
    assert not TRACES.search(text) and not TRACES.search(report.read_text())
