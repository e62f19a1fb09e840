"""The machine that a process runs on: its memory, and paths as users write them."""
