"""Writes a page whole or not at all."""

import os
import uuid
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it, and rename it.

    Raises:
        OSError: the folder isn't there or can't be written.
    """
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex[:8]}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
