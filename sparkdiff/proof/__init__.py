"""Proof: the division of rows into those that explore and those that prove, and the test of finalists.

Everything that is tried is measured on the rows that explore, and the best is chosen there. The other rows form folds:
for each fold, the finalists are made again from rows outside it and measured, with their rival, on its rows, which had
no influence on the finalists. So each finalist has its own test, which allows for four finalists and for nothing else
that was tried.
"""
