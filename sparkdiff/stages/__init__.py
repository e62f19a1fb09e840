"""The translations of MLlib's stages; importing the package registers all of them."""

from sparkdiff.stages import assembling, encoding, formula, interaction, linear, projection, scaling, trees

__all__ = ["assembling", "encoding", "formula", "interaction", "linear", "projection", "scaling", "trees"]
