"""The translations of MLlib's stages; importing the package registers all of them."""

from sparkdiff.stages import assembling, clustering, encoding, linear, projection, scaling, trees

__all__ = ["assembling", "clustering", "encoding", "linear", "projection", "scaling", "trees"]
