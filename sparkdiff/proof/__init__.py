"""Proof: the division of rows into those that explore and those that prove, and the test of finalists.

Everything that is tried is measured on the rows that explore, and the best ones, the finalists, are chosen there. The
other rows prove, and form folds: for each fold, the finalists are made again from the rows outside the fold. Then they
are compared with their rival (the pipeline that they would replace, or its refit) on the rows of the fold, which had no
influence on them. So each finalist has its own test, whose p-value allows for four finalists, and for nothing else that
was tried.
"""
