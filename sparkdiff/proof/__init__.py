"""Proof: which rows explore and which prove, what finalists show against their rival on rows that prove, and the test of it.

Some rows explore: whatever is tried is measured on them, and the best of it is chosen. The finalists are made anew from the
rows outside of each fold of the others, and measured on its rows, which have decided nothing about them. So each finalist has a
test of its own, which allows for four finalists and for nothing else that was tried.
"""
