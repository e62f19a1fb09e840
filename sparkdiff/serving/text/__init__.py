"""Stages that read or write text, in plain Python, so that a Scorer computes them without Spark.

Each is a small frozen object made of a fitted stage. `run` takes a list per input column, null as None, and returns its outputs:
a list, or numbers as a tensor or sparse rows. `SERVED` has the class for each class of stage.
"""

from sparkdiff.serving.text import counts, indices, words
from sparkdiff.serving.text.base import SERVED

__all__ = ["SERVED", "counts", "indices", "words"]
