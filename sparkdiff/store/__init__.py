"""Data that outlive a process: atomic files, run folders and their locks, identities."""
