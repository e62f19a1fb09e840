"""The translations of MLlib's stages; importing the package registers all of them."""

from sparkdiff.stages import assembling, binning, encoding, imputing, linear, projection, scaling, targets, trees

__all__ = ["assembling", "binning", "encoding", "imputing", "linear", "projection", "scaling", "targets", "trees"]
