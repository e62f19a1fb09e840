"""How good a network is on rows, and whether it may replace the original."""
