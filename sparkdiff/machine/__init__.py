"""The machine that a process runs on: `memory` gives freed memory back, `cpu` tells processor seconds, `paths` reads paths as
users write them, `interrupts` decides what Ctrl-C does, `line_files` are how processes talk, `secrets` leaves passwords out of
texts, `autologging` pauses what other libraries log of themselves, `package` makes an archive of this one, `processes` tells
processes apart, `threads` runs one beside another, `whole` writes files and folders whole or not at all.
"""

__all__ = [
    "autologging", "cpu", "interrupts", "line_files", "memory", "package", "paths", "processes", "secrets", "threads",
    "whole",
]  # fmt: skip
