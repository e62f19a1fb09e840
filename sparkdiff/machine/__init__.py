"""The machine that a process runs on: `memory` gives freed memory back, `paths` reads paths as users write them, `interrupts`
decides what Ctrl-C does, `secrets` leaves passwords out of texts, `autologging` pauses what other libraries log of themselves,
and `package` writes our own code to a file for other machines.
"""

__all__ = ["autologging", "interrupts", "memory", "package", "paths", "secrets"]
