"""Improvement: every way to a better pipeline, raced under one budget, and one test over all that was measured.

`procedure` is the way, `arms/` the ways that race, `race` decides which go on, `judging` what may be offered.
"""
