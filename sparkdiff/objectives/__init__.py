"""Losses, which training minimises, and metrics, which are measured; on tensors only."""
