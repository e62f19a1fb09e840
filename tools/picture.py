"""Draw the first screen of a run's report as a picture for README: `python tools/picture.py runs/bikeshare docs/report.png`.

Needs Chromium. The paths of this machine are left out: the picture shows them as they are below the run's parent folder.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
WIDTH, HEIGHT = 1000, 960
LARGEST = 200_000
"""Bytes of the picture at most."""


def page(run: Path, folder: Path) -> Path:
    """The report of a run whose paths are relative, in a folder of its own."""
    sys.path.insert(0, str(ROOT))
    from sparkdiff.report.run_report import report_of

    copy = folder / "run"
    shutil.copytree(run, copy, ignore=shutil.ignore_patterns("model", "offers", "report.html"))
    path = copy / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    parent = summary.get("parent") or {}
    if parent.get("path"):
        where, above = Path(parent["path"]), run.resolve().parent
        parent["path"] = f"{above.name}/{where.relative_to(above)}" if where.is_relative_to(above) else where.name
    path.write_text(json.dumps(summary), "utf-8")
    out = folder / "report.html"
    out.write_text(report_of(copy), "utf-8")
    return out


def shot(html: Path, picture: Path) -> bytes:
    """The page as PNG of 128 colours, which text and lines need no more of."""
    from PIL import Image

    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        raise SystemExit("the picture needs Chromium: apt-get install chromium")
    subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--window-size={WIDTH},{HEIGHT}",
            f"--screenshot={picture}",
            html.as_uri(),
        ],
        check=True,
        capture_output=True,
        timeout=300,
    )
    out = io.BytesIO()
    with Image.open(picture) as image:
        image.convert("RGB").quantize(128).save(out, "PNG", optimize=True)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a run")
    parser.add_argument("picture", type=Path, help="PNG file to write")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        content = shot(page(given.run, Path(name)), Path(name) / "shot.png")
    if len(content) > LARGEST:
        raise SystemExit(f"the picture has {len(content):,} bytes, more than {LARGEST:,}")
    temporary = given.picture.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(given.picture)
    print(f"wrote {given.picture} ({len(content):,} bytes)")


if __name__ == "__main__":
    main()
