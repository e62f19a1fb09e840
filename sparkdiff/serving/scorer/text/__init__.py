"""Stages that read or write text, in plain Python, so that a Scorer computes them without Spark.

Each stage is a small frozen object, made from a fitted stage. Its `run` takes one list per input column (null is None),
and returns the output columns: lists, or numbers as a tensor or sparse rows. `SERVED` maps the class of a fitted stage
to the class here that computes it.
"""

from sparkdiff.serving.scorer.text import counts, indices, words
from sparkdiff.serving.scorer.text.base import SERVED

__all__ = ["SERVED", "counts", "indices", "words"]
