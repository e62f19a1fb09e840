"""The gallery: a page that the summaries of its jobs fill, and one of the jobs from end to end."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples").glob("*.yaml"))
pytestmark = pytest.mark.once


def test_the_page_has_every_job_and_no_trace_of_a_machine() -> None:
    text = (ROOT / "docs" / "gallery.md").read_text()
    assert sorted(re.findall(r"--config examples/(\w+)\.yaml", text)) == NAMES
    assert not re.search(r"/(tmp|work|home)/|\b20\d\d-\d\d|\d s\b", text)
    for name in NAMES:
        assert yaml.safe_load((ROOT / "examples" / f"{name}.yaml").read_text())["improver"]["budget"].endswith("passes")


@pytest.mark.nightly
def test_a_job_of_the_gallery_still_runs_and_fills_its_section_alone(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "gallery.md").read_text())
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
