"""Candidates, optimizer steps and the training loop, in one process or in many."""
