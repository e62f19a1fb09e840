"""The machine that a process runs on: `memory` gives freed memory back, `paths` reads paths as users write them."""

__all__ = ["memory", "paths"]
