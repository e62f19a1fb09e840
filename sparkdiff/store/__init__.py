"""What outlives a process.

`files` writes files completely or not at all, and puts a full disk into one sentence; `run_folder` keeps a run's checkpoints,
`marker` tells whose a folder is, `lease` lets one process at a time work on a folder; `digests` hashes models and `identity`
callables; `registry` knows what a registry of models takes as a name.
"""

__all__ = ["digests", "files", "identity", "lease", "marker", "registry", "run_folder"]
