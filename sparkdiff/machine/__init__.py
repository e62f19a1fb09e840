"""The machine on which a process runs: `resources` counts processor seconds and idle cores, and returns freed memory to the
system, `paths` reads paths as users write them, `interrupts` handles Ctrl-C, `line_files` lets processes communicate,
`secrets` removes passwords from texts, `autologging` pauses the automatic logging of other libraries, `package` archives
this package, `processes` identifies processes, `threads` runs work in a second thread, `atomic_files` writes files and
folders atomically.
"""
