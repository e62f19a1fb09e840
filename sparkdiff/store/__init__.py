"""Files and folders that outlive a process.

`files` writes files completely or not at all, and reports a full disk in one sentence; `checkpoint_folder` holds a run's
checkpoints; `folder_marker` records the owner of a folder, `lease` lets one process at a time work on a folder;
`model_digests` and `saved_digests` hash models, `identity` hashes callables.
"""
