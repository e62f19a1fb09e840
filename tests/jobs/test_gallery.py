"""The gallery: a page and reports that its jobs fill, and one of the jobs from end to end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "gallery.md"
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml") if "\nimprover:" in path.read_text())
pytestmark = pytest.mark.once
TRACES = re.compile(r"/(tmp|work|home|root)/|\b20[2-9]\d-\d\d-\d\d")
"""Of the machine that ran the jobs."""


def test_the_page_has_each_jobs_report_and_no_machine_trace() -> None:
    text = PAGE.read_text()
    assert sorted(re.findall(r"--config examples/(\w+)\.yaml", text)) == NAMES
    assert sorted(re.findall(r"gallery/(\w+)\.html", text)) == NAMES
    assert not TRACES.search(text)
    for name in NAMES:
        report = (ROOT / "docs" / "gallery" / f"{name}.html").read_text()
        assert "<h2>Everything that was tried</h2>" in report and not TRACES.search(report)
        assert len(report) < 200_000


@pytest.mark.nightly
def test_a_gallery_job_runs_and_fills_its_section_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    before = page.read_text().split("\n## ")
    command = [sys.executable, str(ROOT / "examples" / "run.py"), "digits", "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    after = page.read_text().split("\n## ")
    assert len(after) == len(before)
    assert [a for a in after if "digits.yaml" not in a] == [b for b in before if "digits.yaml" not in b]
    summary = json.loads((ROOT / "runs" / "examples" / "digits" / "summary.json").read_text())
    [own] = [a for a in after if "digits.yaml" in a]
    assert f"Decision: {summary['decision']}." in own
    assert [path.name for path in (tmp_path / "gallery").iterdir()] == ["digits.html"]
