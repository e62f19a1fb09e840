"""Improvement: several ways to improve a pipeline (arms) compete under one budget, and one test decides about all results.

`exploration_and_proof` has the steps, `arms/` the arms, `race` decides which arms continue, and `proving` which
pipelines may be offered. The rows are divided: arms try things on the exploring rows, and the best results (the
finalists) are tested on the proving rows, which are usually divided into several folds. The context is the original
pipeline together with the rows that it is measured on.
"""
