"""The machine a process runs on: its memory, and its paths as users give them."""
