"""What outlives a process: files written whole, run folders and their locks, identities."""
