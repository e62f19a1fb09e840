"""Improvement: several ways to a better pipeline (arms), raced under one budget, and one test over all results.

`procedure` has the steps, `arms/` the arms, `race` decides which arms continue, and `proving` which pipelines may be offered.
"""
