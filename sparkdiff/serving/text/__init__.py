"""Stages that read or write text, in plain Python: those that a Scorer computes where Spark would otherwise have to.

Each is a small frozen object made of a fitted stage. `run` takes a list per input column, null as None, and returns what it
writes: a list, or numbers as tensor or sparse rows. `SERVED` finds the class of a stage.
"""

from sparkdiff.serving.text import counts, indices, words
from sparkdiff.serving.text.base import SERVED

__all__ = ["SERVED", "counts", "indices", "words"]
