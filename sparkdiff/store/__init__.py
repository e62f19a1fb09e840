"""What outlives a process.

`files` writes files completely or not at all, `run_folder` keeps a run's checkpoints, `lease` lets one process at a
time work on a folder, `disk` puts a full disk into one sentence; `digests` hashes models and `identity` callables.
"""

__all__ = ["digests", "disk", "files", "identity", "lease", "run_folder"]
